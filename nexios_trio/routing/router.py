"""`WSRouter` and `WebsocketRoutes`: which handler answers which path."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack, cast, overload

from attrs import define, frozen
from starlette.convertors import Convertor
from starlette.datastructures import URLPath

from nexios_trio.exceptions import RoutingError, WrongTypeError
from nexios_trio.routing.handlers import Handler, check_handler, extra_parameters, name_of
from nexios_trio.routing.middleware import CONNECTION, AnyMiddleware, check_middleware, wrap
from nexios_trio.routing.paths import CONVERTORS, PathPattern, check_convertors, check_path
from nexios_trio.security.rules import RuleOptions, Rules
from nexios_trio.types import ASGIApp, Receive, RouteSpec, Scope, Send
from nexios_trio.websockets.base import WebSocket

__all__ = ["ResolvedRoute", "WSRouter", "WebsocketRoutes"]

H = TypeVar("H", bound=Handler)

_REST: Final = "nexios_trio.rest"
"""The scope key of what is still to be called, from the outermost router's middleware to the route."""


class WebsocketRoutes:
    """One path and its handler (the plural is Nexios' name).

    In a router with a prefix the path may be empty: the route is then the prefix itself.
    ``name`` is for `url_path_for` (default: the handler's). ``middleware`` runs innermost, after the
    app's and the routers'. ``rules`` are ``authenticate``, ``requires``, ``rate_limit`` and ``on_invalid``,
    see `nexios_trio.security.rules.RuleOptions`.
    """

    def __init__(
        self,
        path: str,
        handler: Handler,
        *,
        name: str | None = None,
        middleware: Iterable[AnyMiddleware] | None = None,
        **rules: Unpack[RuleOptions],
    ) -> None:
        self.path = check_path(path, empty=True)
        self.rules = Rules.of(rules)
        check_handler(handler)
        self.handler = handler
        self.name = name or name_of(handler)
        self.middleware = check_middleware(middleware)

    def __repr__(self) -> str:
        return f"<WebsocketRoutes {self.path!r} {self.name}>"


@define(eq=False)
class ResolvedRoute:
    """A route as its router sees it: with the prefixes and middleware of the routers in between."""

    pattern: PathPattern
    route: WebsocketRoutes
    middleware: Sequence[AnyMiddleware]
    mounts: Sequence[_Mounted]
    outer_rules: Rules

    @functools.cached_property
    def rules(self) -> Rules:
        """What the app, the routers, the route and decorators ask of a client; put together when the first
        one comes, so that decorators may stand above and below the registration."""
        return self.outer_rules.around(self.route.rules).around(Rules.marked(self.route.handler))

    @functools.cached_property
    def wanted(self) -> frozenset[str] | None:
        """The path parameters that the handler takes as arguments; None: all of them."""
        return extra_parameters(self.route.handler, set(self.pattern.convertors), self.pattern.path)

    @functools.cached_property
    def app(self) -> ASGIApp:
        """The handler inside its middleware; built when the first client comes."""

        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            with scope[CONNECTION].websocket(scope, receive, send) as ws:
                await self.handle(ws)

        app = wrap(endpoint, self.route.middleware)
        routers = [mounted.app for mounted in self.mounts if mounted.router.middleware]
        if not routers:
            return app

        async def enter(scope: Scope, receive: Receive, send: Send) -> None:
            await _go_on({**scope, _REST: (*routers, app)}, receive, send)

        return enter

    def handle(self, ws: WebSocket) -> Awaitable[None]:
        """Call the handler, past any middleware, for clients that the rules let in."""
        ws._connection.route = self.pattern.path
        return self.rules.run(ws, self._call) if self.rules else self._call(ws)

    def _call(self, ws: WebSocket) -> Awaitable[None]:
        if self.wanted is None:
            return self.route.handler(ws, **ws.path_params)
        return self.route.handler(ws, **{name: ws.path_params[name] for name in self.wanted})


async def _go_on(scope: Scope, receive: Receive, send: Send) -> None:
    following, *rest = scope[_REST]
    await following({**scope, _REST: rest}, receive, send)


@define(eq=False)
class _Mounted:
    prefix: str
    router: WSRouter

    @functools.cached_property
    def app(self) -> ASGIApp:
        """The router's middleware around whichever of its routes is due: one instance for all of them."""
        return wrap(_go_on, self.router.middleware)


@frozen(eq=False)
class _Place:
    """Where the entries of a router end up: in ``top`` (itself, or a router around it)."""

    top: WSRouter
    prefix: str
    middleware: tuple[AnyMiddleware, ...]
    convertors: Mapping[str, Convertor[Any]]
    rules: Rules
    mounts: tuple[_Mounted, ...] = ()

    def inside(self, mounted: _Mounted) -> _Place:
        inner = mounted.router
        return _Place(
            self.top,
            self.prefix + mounted.prefix,
            (*self.middleware, *inner.middleware),
            {**self.convertors, **inner.convertors},
            self.rules.around(inner.rules),
            (*self.mounts, mounted),
        )


class WSRouter:
    """A table of WebSocket routes, to be mounted on an app or inside another router.

    Routes are tried in the order in which they were added; the first match wins. ``prefix`` stands
    before each path. ``convertors`` are known to this router's patterns besides the built-in ones.
    ``rules`` hold for all its routes, see `nexios_trio.security.rules.RuleOptions`. Adding to a router that
    is mounted already works and is seen at once.
    """

    def __init__(
        self,
        routes: Iterable[WebsocketRoutes | RouteSpec] | None = None,
        *,
        prefix: str = "",
        middleware: Iterable[AnyMiddleware] | None = None,
        convertors: Mapping[str, Convertor[Any]] | None = None,
        **rules: Unpack[RuleOptions],
    ) -> None:
        self.prefix = _check_prefix(prefix)
        self.rules = Rules.of(rules).shared_as(f"router {id(self):x}")
        self.middleware = check_middleware(middleware)
        self.convertors = check_convertors(convertors)
        self._entries: list[WebsocketRoutes | _Mounted] = []
        self._owners: weakref.WeakSet[WSRouter] = weakref.WeakSet()
        self._resolved: list[ResolvedRoute] | None = None
        self._shapes: dict[tuple[str | int, ...], ResolvedRoute] = {}
        self._is_app = False
        for route in routes or ():
            self.add_ws_route(route)

    # Registration

    @overload
    def add_ws_route(self, path: WebsocketRoutes | RouteSpec) -> None: ...
    @overload
    def add_ws_route(
        self,
        path: str,
        handler: Handler,
        *,
        name: str | None = ...,
        middleware: Iterable[AnyMiddleware] | None = ...,
        **rules: Unpack[RuleOptions],
    ) -> None: ...

    def add_ws_route(
        self,
        path: WebsocketRoutes | RouteSpec | str,
        handler: Handler | None = None,
        *,
        name: str | None = None,
        middleware: Iterable[AnyMiddleware] | None = None,
        **rules: Unpack[RuleOptions],
    ) -> None:
        """Add a route: a `WebsocketRoutes`, or a path and a handler.

        Raises `RoutingError` or `WrongTypeError` that says what to write: for a path without a leading
        slash, an unknown convertor, a handler that is not async, a path that is taken.
        """
        if isinstance(path, RouteSpec):
            path = WebsocketRoutes(
                path.path, path.handler, name=path.name, middleware=path.middleware, **cast("Any", path.rules)
            )
        if isinstance(path, WebsocketRoutes):
            if handler is not None or name is not None or middleware is not None or rules:
                raise WrongTypeError("add_ws_route() takes a WebsocketRoutes alone, or a path and a handler")
            route = path
        elif not isinstance(path, str):
            raise WrongTypeError(
                f"add_ws_route() takes a WebsocketRoutes, or a path and a handler, not {type(path).__name__}"
            )
        elif handler is None:
            raise WrongTypeError(
                f"add_ws_route({path!r}) has no handler; write add_ws_route({path!r}, handler) or "
                f"decorate it with @app.ws_route({path!r})"
            )
        else:
            route = WebsocketRoutes(path, handler, name=name, middleware=middleware, **rules)
        self._add(route)

    def ws_route(
        self,
        path: str,
        *,
        name: str | None = None,
        middleware: Iterable[AnyMiddleware] | None = None,
        **rules: Unpack[RuleOptions],
    ) -> Callable[[H], H]:
        """Decorator: register the handler below it."""

        def register(handler: H) -> H:
            self.add_ws_route(path, handler, name=name, middleware=middleware, **rules)
            return handler

        return register

    websocket = ws_route

    def mount_router(self, router: WSRouter, path: str | None = None) -> None:
        """Take in another router's routes; ``path`` replaces its prefix."""
        if not isinstance(router, WSRouter):
            raise WrongTypeError(f"mount_router() takes a WSRouter, not {type(router).__name__}")
        if router is self or self in router._descendants():
            raise RoutingError("a router cannot be mounted inside itself")
        self._add(_Mounted(router.prefix if path is None else _check_prefix(path), router))
        router._owners.add(self)

    include = mount_router

    def _add(self, entry: WebsocketRoutes | _Mounted) -> None:
        claims = [(place.top, resolved) for place in self._places() for resolved in _expand(entry, place)]
        fresh: dict[tuple[WSRouter, tuple[str | int, ...]], ResolvedRoute] = {}
        for top, resolved in claims:
            if top._is_app and resolved.pattern.path == "":
                raise RoutingError(
                    f'{resolved.route.name} has an empty path in an app: write "/", or mount its router '
                    "with a prefix"
                )
            shape = resolved.pattern.shape
            other = top._shapes.get(shape) or fresh.get((top, shape))
            if other is not None:
                raise RoutingError(
                    f'the path "{resolved.pattern.path}" of {resolved.route.name} is taken: '
                    f'{other.route.name} has "{other.pattern.path}", which matches the same paths. Give one '
                    "of them another path"
                )
            if top._is_app:
                resolved.wanted  # noqa: B018 - raises if the path lacks one
            fresh[top, shape] = resolved
        self._entries.append(entry)
        for place in self._places():
            place.top._resolved = None
        for (top, shape), resolved in fresh.items():
            top._shapes[shape] = resolved

    def _places(self) -> Iterator[_Place]:
        yield self._here()
        for owner in self._owners:
            for entry in owner._entries:
                if isinstance(entry, _Mounted) and entry.router is self:
                    for place in owner._places():
                        yield place.inside(entry)

    def _here(self) -> _Place:
        rules = self.rules if self._is_app else Rules()
        return _Place(self, "", (), {**CONVERTORS, **self.convertors}, rules)

    def _descendants(self) -> Iterator[WSRouter]:
        for entry in self._entries:
            if isinstance(entry, _Mounted):
                yield entry.router
                yield from entry.router._descendants()

    # Resolution

    @property
    def routes(self) -> list[ResolvedRoute]:
        """All routes, nested ones included, in the order in which they are tried."""
        if self._resolved is None:
            here = self._here()
            expanded = (resolved for entry in self._entries for resolved in _expand(entry, here))
            self._resolved = [self._shapes[resolved.pattern.shape] for resolved in expanded]
        return self._resolved

    def find(self, path: str) -> tuple[ResolvedRoute, dict[str, Any]] | None:
        """The first route that matches ``path`` (decoded, below root_path), and its parameters."""
        for resolved in self.routes:
            parameters = resolved.pattern.match(path)
            if parameters is not None:
                return resolved, parameters
        return None

    def url_path_for(self, name: str, /, **parameters: Any) -> URLPath:
        """The path of the route ``name`` with these parameters, percent-encoded."""
        named = [resolved for resolved in self.routes if resolved.route.name == name]
        for resolved in named:
            if resolved.pattern.convertors.keys() == parameters.keys():
                return URLPath(path=resolved.pattern.build(parameters), protocol="websocket")
        if named:
            wanted = ", ".join(named[0].pattern.convertors) or "none"
            given = ", ".join(parameters) or "none"
            raise RoutingError(f"the route {name!r} takes the parameters: {wanted}; given: {given}")
        known = ", ".join(sorted({resolved.route.name for resolved in self.routes})) or "none"
        raise RoutingError(f"no WebSocket route is named {name!r}; known: {known}")


def _expand(entry: WebsocketRoutes | _Mounted, place: _Place) -> Iterator[ResolvedRoute]:
    if isinstance(entry, _Mounted):
        for inner in entry.router._entries:
            yield from _expand(inner, place.inside(entry))
    else:
        pattern = PathPattern.compile(place.prefix + entry.path, place.convertors)
        yield ResolvedRoute(pattern, entry, (*place.middleware, *entry.middleware), place.mounts, place.rules)


def _check_prefix(prefix: str) -> str:
    return check_path(prefix, empty=True).rstrip("/")
