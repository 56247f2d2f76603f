"""What an app, a router, a route and a handler ask of a client, put together, and held."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypedDict, TypeVar, cast

from attrs import evolve, frozen

from nexios_trio.config import Rate
from nexios_trio.exceptions import AuthenticationError, PeerError, WrongTypeError, WrongValueError
from nexios_trio.security.auth import Authenticator, authenticate, check_authenticator, check_scopes, is_async
from nexios_trio.security.ratelimit import RateLimit
from nexios_trio.types import RULES_MARK
from nexios_trio.websockets.base import OnInvalid, WebSocket

__all__ = ["RuleOptions", "Rules", "rate_limit", "requires"]

F = TypeVar("F", bound=Callable[..., Any])


class RuleOptions(TypedDict, total=False):
    """What an app, a router and a route take by keyword."""

    authenticate: Authenticator | None
    """Who the client is; the innermost counts. See `nexios_trio.security.auth`."""
    requires: Iterable[str] | str | None
    """Scopes that the client must have; those of app, router, route and handler together."""
    rate_limit: RateLimit | Rate | str | Iterable[RateLimit | Rate | str] | None
    """What the client may send; all hold."""
    on_invalid: OnInvalid | None
    """What becomes of a bad JSON message; the innermost counts."""


def _scopes(scopes: Iterable[str] | str | None) -> tuple[str, ...]:
    if scopes is None:
        return ()
    named: tuple[object, ...] = (scopes,)
    if not isinstance(scopes, str) and isinstance(scopes, Iterable):
        named = tuple(scopes)
    if not all(isinstance(scope, str) and scope for scope in named):
        raise WrongTypeError(f'scopes are names such as "chat:write", not {scopes!r}')
    return cast("tuple[str, ...]", named)


def _limits(limit: object) -> tuple[RateLimit, ...]:
    if limit is None:
        return ()
    several = isinstance(limit, Iterable) and not isinstance(limit, str)
    return tuple(RateLimit.of(each) for each in (limit if several else (limit,)))  # type: ignore[attr-defined]


@frozen
class Rules:
    """See `RuleOptions`."""

    authenticate: Authenticator | None = None
    requires: tuple[str, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    on_invalid: OnInvalid | None = None

    @classmethod
    def of(cls, options: RuleOptions) -> Rules:
        """Checked. Raises `WrongTypeError` or `WrongValueError`."""
        for name in options:
            if name not in RuleOptions.__annotations__:
                raise WrongTypeError(
                    f"a route takes by keyword: {', '.join(RuleOptions.__annotations__)}, name and "
                    f"middleware, not {name!r}"
                )
        authenticator = options.get("authenticate")
        on_invalid = options.get("on_invalid")
        if on_invalid not in (None, "close", "reply") and not is_async(on_invalid):
            raise WrongValueError(
                f'on_invalid is "close", "reply" or `async def on_invalid(ws, error)`, not {on_invalid!r}'
            )
        return cls(
            None if authenticator is None else check_authenticator(authenticator),
            _scopes(options.get("requires", ())),
            _limits(options.get("rate_limit")),
            on_invalid,
        )

    @classmethod
    def marked(cls, handler: object) -> Rules:
        """Those that decorators have put on a handler, in whatever order it was registered and decorated."""
        if isinstance(handler, functools.partial):
            return cls.marked(handler.func).around(getattr(handler, RULES_MARK, _NONE))
        if inspect.isroutine(handler):
            return cast("Rules", getattr(handler, RULES_MARK, _NONE))
        # An object: its __call__, its class and the bases of that, and itself
        places = [type(handler).__call__, *reversed(type(handler).__mro__), handler]
        marks: list[Rules] = [getattr(place, "__dict__", {}).get(RULES_MARK, _NONE) for place in places]
        return functools.reduce(Rules.around, marks)

    def around(self, inner: Rules) -> Rules:
        """Both together: these are the outer ones."""
        return Rules(
            # not `or`: an authenticator may have a length, or a truth of its own
            self.authenticate if inner.authenticate is None else inner.authenticate,
            tuple(dict.fromkeys((*self.requires, *inner.requires))),
            tuple(dict.fromkeys((*self.rate_limits, *inner.rate_limits))),
            self.on_invalid if inner.on_invalid is None else inner.on_invalid,
        )

    def shared_as(self, name: str) -> Rules:
        """With rate limits that count together for all routes that have them: those of an app or a router."""
        limits = [
            limit if limit.name is not None or limit.per == ("connection",) else evolve(limit, name=name)
            for limit in self.rate_limits
        ]
        return evolve(self, rate_limits=tuple(limits))

    def __bool__(self) -> bool:
        return self != _NONE

    async def enforce(self, ws: WebSocket) -> None:
        """Hold the client to the rules, from before its handler runs. Raises `AuthenticationError`,
        `PermissionDenied`, `LimitError`."""
        try:
            await self._let_in(ws)
        except PeerError as error:
            ws._connection.refused = error  # middleware around us may swallow it
            raise
        for limit in self.rate_limits:
            ws.rate_limit(limit)
        if self.on_invalid is not None:
            ws._on_invalid = self.on_invalid

    async def _let_in(self, ws: WebSocket) -> None:
        if self.authenticate is not None:
            await authenticate(ws, self.authenticate, self.requires)
        elif self.requires:  # Starlette's AuthenticationMiddleware has found out
            if "auth" not in ws.scope:
                raise AuthenticationError("requires= without authenticate=, or Starlette's middleware for it")
            if not getattr(ws.scope["user"], "is_authenticated", True):
                raise AuthenticationError
            check_scopes(ws.scope["auth"], self.requires)

    async def run(self, ws: WebSocket, call: Callable[[WebSocket], Awaitable[None]]) -> None:
        """`enforce`, then ``call(ws)``."""
        await self.enforce(ws)
        await call(ws)


_NONE: Final = Rules()


def _mark(handler: F, rules: Rules) -> F:
    if not callable(handler):
        raise WrongTypeError(f"this decorates a handler, not {type(handler).__name__}")
    try:
        before = vars(handler).get(RULES_MARK, _NONE)
        setattr(handler, RULES_MARK, rules.around(before))
    except (AttributeError, TypeError):
        raise WrongTypeError(
            f"{handler!r} cannot be marked; give the option to its route: ws_route(path, requires=...)"
        ) from None
    return handler


def requires(*scopes: str) -> Callable[[F], F]:
    """Decorator: only clients with all of these scopes reach the handler; others get HTTP 401 or 403.

    It works above and below ``@app.ws_route``, and needs ``authenticate=`` or Starlette's
    `AuthenticationMiddleware`.
    """
    if not scopes:
        raise WrongTypeError('requires() takes scopes: @requires("chat:write")')
    rules = Rules(requires=_scopes(scopes))
    return lambda handler: _mark(handler, rules)


def rate_limit(limit: RateLimit | Rate | str) -> Callable[[F], F]:
    """Decorator: hold the handler's clients to a `RateLimit`, or a rate such as ``"10/s"``. It works above
    and below ``@app.ws_route``."""
    if callable(limit):
        raise WrongTypeError('rate_limit() takes a limit: @rate_limit("10/s")')
    rules = Rules(rate_limits=(RateLimit.of(limit),))
    return lambda handler: _mark(handler, rules)
