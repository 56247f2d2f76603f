"""Authentication: who the client is, found before the handler runs.

An authenticator is ``async def authenticate(ws)``: it gives an `Identity` (or any other object, which is then
the user), None if the client has not said who it is, and raises `AuthenticationError` if what it said is
wrong. The ready ones take a ``verify``: a function of the token, async or not, that does the same.
"""

from __future__ import annotations

import base64
import binascii
import functools
import inspect
import math
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio
from attrs import evolve
from starlette.exceptions import HTTPException

from nexios_trio.exceptions import (
    AuthenticationError,
    NexiosTrioError,
    PeerError,
    PermissionDenied,
    UsageError,
    WebSocketDisconnect,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.security.identity import Identity, has_scopes
from nexios_trio.websockets import codec
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.verdict import leaves

__all__ = [
    "AnyOf",
    "Authenticator",
    "BearerToken",
    "FirstMessage",
    "SessionUser",
    "SubprotocolToken",
    "Verify",
    "authenticate",
    "check_authenticator",
    "check_scopes",
    "nobody",
]

Authenticator: TypeAlias = Callable[[WebSocket], Awaitable[Any]]
"""``async def authenticate(ws) -> Identity | user | None``."""

Verify: TypeAlias = Callable[[str], Any]
"""``verify(token) -> Identity | user | None``, or an async function that gives one."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1, b64token


async def nobody(_ws: WebSocket) -> Identity:
    """The authenticator of a public route in an app that authenticates: everybody may come in, and
    ``ws.user`` is None."""
    return Identity(None)


async def _verified(verify: Verify, token: str) -> Identity:
    try:
        result = verify(token)
        if inspect.isawaitable(result):
            result = await result
    except Exception as error:
        if all(isinstance(leaf, NexiosTrioError | HTTPException) for leaf in leaves(error)):
            raise
        # Its text may well hold the token (a KeyError does), and would go to the log.
        raise UsageError(
            f"the check of a token raised {type(error).__name__} {_place_of(error)}; its text is not shown: "
            "it may hold the token"
        ) from None
    identity = _identity(result, verify)
    if identity is None:
        raise AuthenticationError("the token is not known")
    if identity.renew is None:
        # Named once here, so that a renewal goes the way of the first token.
        async def renew(token: str) -> Identity:
            return await _verified(verify, token)

        identity = evolve(identity, renew=renew)
    return identity


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "somewhere" if not frames else f"in {frames[-1].filename}:{frames[-1].lineno}"


def _identity(result: object, source: object) -> Identity | None:
    if result is None or isinstance(result, Identity):
        return result
    if isinstance(result, bool | tuple):  # a tuple is what Starlette's authentication backends give
        name = getattr(source, "__qualname__", None) or type(source).__qualname__
        raise WrongTypeError(
            f"{name} gave a {type(result).__name__}; an authenticator gives the user or an Identity, or None "
            "for nobody"
        )
    if result == "" or getattr(result, "is_authenticated", True) is False:
        return None  # as Starlette's UnauthenticatedUser says of itself
    return Identity(result)


def _check_verify(verify: object, owner: str) -> Verify:
    if not callable(verify):
        raise WrongTypeError(
            f"{owner} takes a function of the token, such as JWT(...), not {type(verify).__name__}; write "
            f"{owner}(verify)"
        )
    return verify


class BearerToken:
    """A token in the request's ``Authorization: Bearer …`` (RFC 6750 §2.1). Browsers cannot send one with a
    WebSocket: see `SubprotocolToken` and `FirstMessage`."""

    def __init__(self, verify: Verify) -> None:
        self._verify = _check_verify(verify, "BearerToken")

    async def __call__(self, ws: WebSocket) -> Identity | None:
        """See `Authenticator`."""
        values = ws.headers.getlist("authorization")
        if not values:
            return None
        scheme, _, token = values[0].partition(" ")
        if scheme.lower() != "bearer":
            return None
        if len(values) > 1:
            raise AuthenticationError("several Authorization headers")
        token = token.strip(" ")
        if _TOKEN.fullmatch(token) is None:
            raise AuthenticationError("a malformed Authorization header")
        return await _verified(self._verify, token)


class SubprotocolToken:
    """A token among the subprotocols: what a page can send before the connection is open, and no URL shows.

    ``new WebSocket(url, ["chat", "base64url.bearer." + base64url(token)])``, without padding. The token is
    taken out of ``ws.subprotocols`` and ``ws.headers``. The page has to offer a subprotocol besides: the
    server must choose one of those offered, and never that with the token. An ``accept()`` that names none
    takes the first.
    """

    def __init__(self, verify: Verify, *, prefix: str = "base64url.bearer.") -> None:
        self._verify = _check_verify(verify, "SubprotocolToken")
        if not isinstance(prefix, str) or re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", prefix) is None:
            raise WrongValueError(f"a prefix is the beginning of a subprotocol's name, not {prefix!r}")
        self._prefix = prefix

    async def __call__(self, ws: WebSocket) -> Identity | None:
        """See `Authenticator`."""
        tokens, others = self.take_out(ws)
        if not tokens:
            return None
        if not others:
            raise AuthenticationError("a token among the subprotocols, and no subprotocol beside it")
        if len(tokens) > 1:
            raise AuthenticationError("several tokens among the subprotocols")
        text = tokens[0][len(self._prefix) :]
        try:
            token = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise AuthenticationError("a token among the subprotocols that is not base64url") from None
        ws._transport.default_subprotocol = others[0]
        return await _verified(self._verify, token)

    def take_out(self, ws: WebSocket) -> tuple[list[str], list[str]]:
        """Take the tokens out of ``ws.subprotocols`` and ``ws.headers``; gives them, and the others
        offered."""
        lines = ",".join(ws.headers.getlist("sec-websocket-protocol"))
        offered = [name for name in map(str.strip, lines.split(",")) if name]
        tokens = [name for name in offered if name.startswith(self._prefix)]
        others = [name for name in offered if name not in tokens]
        if tokens:
            self._hide(ws, others)
        return tokens, others

    @staticmethod
    def _hide(ws: WebSocket, others: list[str]) -> None:
        name = b"sec-websocket-protocol"
        headers = [pair for pair in ws.scope["headers"] if pair[0].lower() != name]
        if others:
            headers.append((name, ", ".join(others).encode("latin-1", "replace")))
        ws.scope["subprotocols"] = others
        ws.scope["headers"] = headers
        ws._replace_scope(ws.scope)


class SessionUser:
    """The user whom Starlette's `SessionMiddleware` has a cookie of.

    ``key`` is where the session holds the user's id; ``load(id)``, async or not, finds the user or gives None
    (default: the id is the user). A cookie comes along whatever page opens the connection: keep
    ``allowed_origins`` narrow.
    """

    def __init__(self, key: str = "user_id", load: Callable[[Any], Any] | None = None) -> None:
        if load is not None and not callable(load):
            raise WrongTypeError(f"load is a function of the user's id, not {type(load).__name__}")
        self._key = key
        self._load = load

    async def __call__(self, ws: WebSocket) -> Identity | None:
        """See `Authenticator`."""
        user = ws.session.get(self._key)
        if user is None:
            return None
        if self._load is not None:
            user = self._load(user)
            if inspect.isawaitable(user):
                user = await user
        identity = _identity(user, self._load)
        if identity is None:
            raise AuthenticationError("the session's user is not known")
        return identity


def _token_of(message: str | bytes) -> str | None:
    """The token in ``{"token": "…"}``."""
    try:
        value = codec.decode(message, dict[str, Any], depth=8, items=100)  # nobody knows yet who it is
    except PeerError:
        return None
    token = value.get("token")
    return token if isinstance(token, str) else None


class FirstMessage:
    """A token in the first message, for pages that have no other way: accepts, then waits for it.

    The message is JSON with a ``"token"`` (or what ``token_of(message)`` finds; None: no token) and comes
    within ``timeout`` seconds; else the connection is closed with 4401. On success ``reply`` is sent, if one
    is given: str as text, anything else as JSON. The handler's own ``accept()`` then does nothing; a
    subprotocol is chosen by ``choose(offered)``.
    """

    def __init__(
        self,
        verify: Verify,
        *,
        timeout: float = 10.0,
        token_of: Callable[[str | bytes], str | None] = _token_of,
        reply: Any = None,
        choose: Callable[[list[str]], str | None] | None = None,
    ) -> None:
        self._verify = _check_verify(verify, "FirstMessage")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise WrongValueError(f"timeout is more than 0 seconds, not {timeout!r}")
        self._timeout = timeout
        self._token_of = token_of
        self._reply = reply
        self._choose = choose

    async def __call__(self, ws: WebSocket) -> Identity | None:
        """See `Authenticator`."""
        await ws.accept(self._choose(ws.subprotocols) if self._choose is not None else None)
        token = None
        with trio.move_on_after(self._timeout) as patience:
            try:
                message = await ws._next()
            except WebSocketDisconnect:
                raise AuthenticationError("left before saying who it is") from None
            ws._transport.let_accept_again()
            token = self._token_of(message)
            if token is not None:
                identity = await _verified(self._verify, token)
        if patience.cancelled_caught:
            raise AuthenticationError(f"no token within {self._timeout:g} s")
        if token is None:
            raise AuthenticationError("a first message without a token")
        if isinstance(self._reply, str):
            await ws.send_text(self._reply)
        elif self._reply is not None:
            await ws.send_json(self._reply)
        return identity


class AnyOf:
    """Several authenticators, asked in turn: the first for whom the client has said who it is decides.
    `FirstMessage` goes last: it always asks."""

    def __init__(self, *authenticators: Authenticator) -> None:
        if not authenticators:
            raise WrongTypeError("AnyOf() takes authenticators, such as AnyOf(BearerToken(v), SessionUser())")
        self.authenticators = tuple(check_authenticator(each) for each in authenticators)
        if any(isinstance(each, FirstMessage) for each in authenticators[:-1]):
            raise WrongValueError("FirstMessage always asks the client: put it last in AnyOf()")

    async def __call__(self, ws: WebSocket) -> Identity | None:
        """See `Authenticator`."""
        for authenticator in self.authenticators:
            result = await authenticator(ws)
            if result is not None:
                for other in self.authenticators:
                    if isinstance(other, SubprotocolToken):
                        other.take_out(ws)  # also where another one has decided, nobody shall see it
                return _identity(result, authenticator)
        return None


def is_async(function: object) -> bool:
    """Whether calling it gives something to await."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isclass(function):
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an instance with an async __call__
    )


def check_authenticator(authenticator: Any) -> Authenticator:
    """``authenticator`` if it is one, else a `WrongTypeError` that says what to write."""
    if not is_async(authenticator):
        raise WrongTypeError(
            "authenticate= takes `async def authenticate(ws)` that gives the user or None, or a ready one "
            f"such as BearerToken(verify), not {authenticator!r}"
        )
    return authenticator  # type: ignore[no-any-return]


async def authenticate(ws: WebSocket, authenticator: Authenticator, required: tuple[str, ...]) -> None:
    """Find out who the client is, and note it. Raises `AuthenticationError`, `PermissionDenied` for scopes it
    lacks, `LimitError` for a user with too many connections."""
    identity = _identity(await authenticator(ws), authenticator)
    if identity is None:
        raise AuthenticationError
    latest = ws._connection.expires_at  # an app inside does not prolong what the outer one has let in
    await _note(ws, identity, required, latest)
    renew = identity.renew
    ws._renewal = None
    if renew is not None:
        begun = applied = 0

        async def renewal(ws: WebSocket, token: str) -> None:
            nonlocal begun, applied
            begun = mine = begun + 1
            fresh = _identity(await renew(token), renew)
            if fresh is None:
                raise AuthenticationError("the new token is not known")
            same = fresh.user == identity.user if identity.user_id is None else True
            if fresh.user_id != identity.user_id or not same:
                raise AuthenticationError("the new token is another user's")
            if mine > applied:  # a slow check of an older token does not undo a newer one
                applied = mine
                await _note(ws, fresh, required, latest)

        ws._renewal = renewal


async def _note(ws: WebSocket, identity: Identity, required: tuple[str, ...], latest: float) -> None:
    _remaining(identity)
    check_scopes(identity.auth, required)
    if identity.user_id is not None:
        hub = ws._hub()
        hub.identify(ws._connection, identity.user_id)
        await hub.claim(ws._connection)
    remaining = _remaining(identity)  # that may have taken a while
    now = trio.current_time()
    deadline = now + remaining
    auth = identity.auth
    if latest < deadline:
        auth = evolve(auth, expires=time.time() + latest - now)
    ws.scope["user"], ws.scope["auth"] = identity.user, auth
    ws._connection.expire_at(min(deadline, latest))


def _remaining(identity: Identity) -> float:
    remaining = math.inf if identity.expires is None else identity.expires - time.time()
    if remaining <= 0:
        raise AuthenticationError("expired")
    return remaining


def check_scopes(auth: object, required: tuple[str, ...]) -> None:
    """Raise `PermissionDenied` unless ``auth`` has all of these scopes."""
    if not has_scopes(auth, required):
        raise PermissionDenied(f"one of the scopes {', '.join(required)} is missing")
