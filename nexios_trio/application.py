"""`NexiosApp`: composition of everything below, and nothing else."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar, TypeVarTuple, Unpack, cast, overload

import trio
from starlette.convertors import Convertor
from starlette.datastructures import State, URLPath
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Match, Mount, NoMatchFound, Route, Router

from nexios_trio.brokers import REDIS_SCHEMES, Broker, MemoryBroker
from nexios_trio.config import ConnectionSettings, Deflate, Heartbeat, HistoryLimits, Limits, Rate
from nexios_trio.events import EventEmitter
from nexios_trio.exceptions import RoutingError, WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.instrument import NULL_INSTRUMENT, Instrument, Instruments
from nexios_trio.lifespan import (
    Hook,
    LifespanContext,
    call_all_hooks,
    call_hooks,
    check_lifespan,
    mounted_lifespans,
    run_lifespan,
)
from nexios_trio.routing.handlers import Handler, name_of
from nexios_trio.routing.middleware import CONNECTION, AnyMiddleware, check_middleware, wrap
from nexios_trio.routing.paths import check_path, route_path
from nexios_trio.routing.router import ResolvedRoute, WebsocketRoutes, WSRouter
from nexios_trio.security.auth import Authenticator
from nexios_trio.security.guard import Guard, Refusal
from nexios_trio.security.origin import OriginRule
from nexios_trio.security.proxy import Proxy
from nexios_trio.security.ratelimit import RateLimit
from nexios_trio.security.rules import RuleOptions, Rules
from nexios_trio.supervision import OnCrash, Supervisor
from nexios_trio.transports.connections import SERVER_CONNECTIONS, Connections
from nexios_trio.transports.engine import TRANSPORT, EngineTransport
from nexios_trio.types import ASGIApp, Receive, RouteSpec, Scope, Send
from nexios_trio.websockets.base import SERVICES, OnInvalid, Services
from nexios_trio.websockets.channels import ChannelBox, current_box
from nexios_trio.websockets.lifetime import Connection

__all__ = ["NexiosApp"]

logger = logging.getLogger("nexios_trio.app")

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Handler)
Ts = TypeVarTuple("Ts")


class NexiosApp:
    """A WebSocket application: an ASGI 3 app for ``websocket``, ``http`` and ``lifespan`` scopes.

    ``routes`` are WebSocket routes. ``middleware`` runs around everything, the first outermost; each is
    ``async def mw(ws, call_next)``, an ASGI middleware class, or ``Middleware(cls, ...)``.
    ``lifespan`` is an async context manager function that takes the app; what it yields, if a dict, is
    in ``ws.state``. ``convertors`` are known to this app's path patterns. The times are described in
    `nexios_trio.config.ConnectionSettings`; all are seconds, `math.inf` means never.

    ``allowed_origins`` are the pages that may open a connection (default: those of the same host), see
    `nexios_trio.security.origin`; ``trusted_hosts`` the Host headers that the app answers to; ``proxy`` the
    reverse proxies that are believed, see `nexios_trio.security.proxy`. ``authenticate``, ``requires``,
    ``rate_limit`` and ``on_invalid`` hold for all WebSocket routes, see
    `nexios_trio.security.rules.RuleOptions`. ``deflate`` grants compression to clients that offer it, see
    `nexios_trio.Deflate`. ``broker`` is the engine behind the groups: ``"memory://"`` for one process,
    ``"redis://…"`` for several (docs/scaling.md), or an object; default: the environment's
    ``NEXIOS_BROKER``, or memory. ``debug`` tells clients what went wrong: in development only.
    """

    def __init__(
        self,
        routes: Iterable[WebsocketRoutes | RouteSpec] | None = None,
        *,
        lifespan: LifespanContext | None = None,
        middleware: Iterable[AnyMiddleware] | None = None,
        limits: Limits | None = None,
        heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008 - frozen
        idle_timeout: float = math.inf,
        close_timeout: float = 5.0,
        unread_timeout: float = 60.0,
        disconnect_grace: float = 5.0,
        deflate: Deflate | None = None,
        convertors: Mapping[str, Convertor[Any]] | None = None,
        exception_handlers: Mapping[Any, Callable[..., Any]] | None = None,
        broker: Broker | str | None = None,
        history: HistoryLimits | None = None,
        presence_grace: float = 2.0,
        allowed_origins: Iterable[str] | Literal["*", "same-origin"] | OriginRule | None = None,
        trusted_hosts: Iterable[str] | None = None,
        proxy: Proxy | None = None,
        authenticate: Authenticator | None = None,
        requires: Iterable[str] | str | None = None,
        rate_limit: RateLimit | Rate | str | Iterable[RateLimit | Rate | str] | None = None,
        on_invalid: OnInvalid | None = None,
        debug: bool = False,
    ) -> None:
        self.debug = debug
        if limits is None:
            limits = Limits()
        if not isinstance(limits, Limits):
            raise WrongTypeError(f"limits is a Limits, such as Limits(message_bytes=65536), not {limits!r}")
        if deflate is not None and not isinstance(deflate, Deflate):
            raise WrongTypeError(
                f"deflate is a Deflate, such as Deflate(threshold=1024), or None, not {deflate!r}"
            )
        self.guard = Guard(limits, allowed_origins=allowed_origins, trusted_hosts=trusted_hosts, proxy=proxy)
        """Who may open a connection: ``app.guard.counts`` says how often a client was refused something."""
        self.state = State()
        self.connections: Connections[Connection] = Connections()
        """The live connections of this app: ``len(app.connections)``."""
        self.channels = ChannelBox(_broker(broker, history, presence_grace), self.connections, limits)
        """The groups of this app; `ChannelBox` on the class means this one inside the app."""
        self._services = Services(self.channels.hub, self.guard)
        self.events = EventEmitter(self.channels.current)
        self.settings = ConnectionSettings(
            limits,
            heartbeat,
            idle_timeout,
            close_timeout,
            unread_timeout,
            disconnect_grace,
            deflate,
            debug,
        )
        self.ws_router = WSRouter(
            convertors=convertors,
            authenticate=authenticate,
            requires=requires,
            rate_limit=rate_limit,
            on_invalid=on_invalid,
        )
        self.ws_router._is_app = True
        self.http_router = Router()
        self._middleware = check_middleware(middleware)
        self.instruments: tuple[Instrument, ...] = ()
        self._instrument: Instrument = NULL_INSTRUMENT
        self._exception_handlers = dict(exception_handlers or {})
        self._stack: ASGIApp | None = None
        self._lifespan = check_lifespan(lifespan)
        self._startup: list[Hook] = []
        self._shutdown: list[Hook] = []
        self._mounted: list[ASGIApp] = []
        self._supervisor = Supervisor(self.channels.current)
        self._server: Connections[Connection] | None = None
        """What the server has, if it says so."""
        self._warned = False
        self._warned_of_limits = False
        for route in routes or ():
            self.add_ws_route(route)

    @property
    def broker(self) -> Broker:
        """The engine behind the groups; ``app.broker.available`` says whether it can be reached now."""
        return self.channels.hub.broker

    # WebSocket routes

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
        """Add a WebSocket route; see `WSRouter.add_ws_route`."""
        self.ws_router.add_ws_route(path, handler, name=name, middleware=middleware, **rules)  # type: ignore[arg-type]

    def ws_route(
        self,
        path: str,
        *,
        name: str | None = None,
        middleware: Iterable[AnyMiddleware] | None = None,
        **rules: Unpack[RuleOptions],
    ) -> Callable[[H], H]:
        """Decorator: the handler of a WebSocket path."""
        return self.ws_router.ws_route(path, name=name, middleware=middleware, **rules)

    websocket = ws_route

    def mount_ws_router(self, router: WSRouter, path: str | None = None) -> None:
        """Take in a router's routes; ``path`` replaces its prefix."""
        self.ws_router.mount_router(router, path)

    # HTTP, by Starlette

    def route(
        self, path: str, methods: Collection[str] | None = None, *, name: str | None = None
    ) -> Callable[[F], F]:
        """Decorator: a Starlette endpoint, ``async def endpoint(request) -> Response``. Default: GET."""

        def register(endpoint: F) -> F:
            self.add_route(path, endpoint, methods, name=name)
            return endpoint

        return register

    def add_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        methods: Collection[str] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Add a Starlette endpoint."""
        if Rules.marked(endpoint):
            raise WrongTypeError(
                f"our @requires and @rate_limit hold for WebSockets; for the HTTP endpoint "
                f"{name_of(endpoint)} use starlette.authentication.requires"
            )
        self.http_router.routes.append(Route(check_path(path), endpoint, methods=methods, name=name))

    def get(self, path: str, *, name: str | None = None) -> Callable[[F], F]:
        """Decorator: an endpoint for GET and HEAD."""
        return self.route(path, ["GET"], name=name)

    def post(self, path: str, *, name: str | None = None) -> Callable[[F], F]:
        """Decorator: an endpoint for POST."""
        return self.route(path, ["POST"], name=name)

    def put(self, path: str, *, name: str | None = None) -> Callable[[F], F]:
        """Decorator: an endpoint for PUT."""
        return self.route(path, ["PUT"], name=name)

    def patch(self, path: str, *, name: str | None = None) -> Callable[[F], F]:
        """Decorator: an endpoint for PATCH."""
        return self.route(path, ["PATCH"], name=name)

    def delete(self, path: str, *, name: str | None = None) -> Callable[[F], F]:
        """Decorator: an endpoint for DELETE."""
        return self.route(path, ["DELETE"], name=name)

    def mount(
        self, path: str, app: Callable[[Any, Any, Any], Awaitable[None]], name: str | None = None
    ) -> None:
        """Serve another ASGI app (Starlette, Quart-Trio, `StaticFiles`, another NexiosApp …) below ``path``,
        HTTP and WebSocket alike. Its lifespan runs inside ours."""
        self.http_router.routes.append(Mount(check_path(path, empty=True), app=app, name=name))
        self._mounted.append(app)

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """The path of a route by its name, WebSocket routes first. Raises `RoutingError`."""
        try:
            return self.ws_router.url_path_for(name, **path_params)
        except RoutingError as error:
            try:
                return self.http_router.url_path_for(name, **path_params)
            except NoMatchFound:
                raise error from None

    # Middleware

    def add_middleware(self, middleware: AnyMiddleware, *args: Any, **kwargs: Any) -> None:
        """Add middleware inside that which is there; arguments go to an ASGI middleware class."""
        if self._stack is not None:
            raise WrongStateError("the app has served a connection already; add middleware before it starts")
        if args or kwargs:
            middleware = Middleware(cast("Any", middleware), *args, **kwargs)
        self._middleware += check_middleware([middleware])

    def add_instrument(self, instrument: Instrument) -> None:
        """Have an instrument told of every connection, see `nexios_trio.instrument.Instrument`.

        Before the app serves its first one. Several are told in the order in which they were added.
        """
        if self._stack is not None:
            raise WrongStateError("the app has served a connection already; add instruments before it starts")
        self.instruments = (*self.instruments, instrument)
        self._instrument = (
            self.instruments[0] if len(self.instruments) == 1 else Instruments(self.instruments)
        )
        self.channels.hub.instrument = self._instrument

    # Lifespan

    @overload
    def on_startup(self, hook: F) -> F: ...
    @overload
    def on_startup(self) -> Callable[[F], F]: ...

    def on_startup(self, hook: F | None = None) -> F | Callable[[F], F]:
        """Decorator: call ``hook()`` when the app starts, after the lifespan was entered."""
        return _hook(self._startup, hook)

    @overload
    def on_shutdown(self, hook: F) -> F: ...
    @overload
    def on_shutdown(self) -> Callable[[F], F]: ...

    def on_shutdown(self, hook: F | None = None) -> F | Callable[[F], F]:
        """Decorator: call ``hook()`` when the app ends, before the lifespan is left."""
        return _hook(self._shutdown, hook)

    def start_soon(
        self,
        async_fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        on_crash: OnCrash = "restart",
        name: object = None,
    ) -> None:
        """Run ``async_fn(*args)`` in the background for as long as the app lives.

        Before the app runs, it is kept until then. A crash is logged with its traceback; then the task
        is started again after a pause (1 s, doubling up to 60 s), or, with ``on_crash="stop"``, the app
        ends with the error. Not a checkpoint.
        """
        self._supervisor.start_soon(async_fn, args, on_crash, name)

    @property
    def leaving(self) -> bool:
        """Whether this app or its server is about to end: no new clients should be sent here."""
        return self.connections.leaving or (self._server is not None and self._server.leaving)

    async def drain(self, window: float = 0.0) -> None:
        """Close every connection with 1012, spread over ``window`` seconds; wait until all have ended."""
        await self.connections.drain(window)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """The app's lifespan as an async context manager, for a framework around it that does not pass
        the lifespan on: ``Starlette(routes=[Mount("/rt", app)], lifespan=lambda _: app.running())``.

        Gives what our lifespan yields, for ``request.state``.
        """
        state: dict[str, Any] = {}
        with self.channels.current():
            async with self._up(state) as supervisor:
                yield state
        if supervisor.failure is not None:
            raise supervisor.failure

    @asynccontextmanager
    async def _up(self, state: dict[str, Any]) -> AsyncIterator[Supervisor]:
        supervisor = self._supervisor
        supervisor.failure = None
        try:
            lifespan = self._lifespan or _no_lifespan
            async with self.channels.hub.serving(), lifespan(self) as yielded:
                if isinstance(yielded, Mapping):
                    state.update(yielded)
                async with mounted_lifespans(self._mounted, state):
                    await call_hooks(self._startup)
                    async with trio.open_nursery() as nursery:
                        supervisor.open(nursery)
                        try:
                            yield supervisor
                            await self.drain()
                        finally:
                            supervisor.close()
                    if supervisor.failure is not None:
                        await self.drain()
                    await call_all_hooks(self._shutdown)
        finally:
            self.connections.leaving = self.connections.draining = False

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        token = current_box.set(self.channels)
        try:
            kind = scope["type"]
            if kind == "lifespan":
                self._server = (scope.get("extensions") or {}).get(SERVER_CONNECTIONS)
                await run_lifespan(scope, receive, send, up=self._up)
                return
            scope["app"] = self
            scope[SERVICES] = self._services
            scope["router"] = self  # whose url_path_for() `ws.url_for` asks, putting app_root_path before
            scope["app_root_path"] = scope.get("root_path", "")
            if self._stack is None:
                self._stack = self._build_stack()
            if kind == "http":
                refusal = self.guard.admit_http(scope, self.guard.now())
                if refusal is not None:
                    await refusal.answer(scope, receive, send)
                    return
                await self._stack(scope, receive, send)
                return
            if kind != "websocket":
                raise WrongValueError(f"NexiosApp knows websocket, http and lifespan scopes, not {kind!r}")
            if CONNECTION in scope:  # mounted inside another app of ours
                await self._serve_mounted(scope, receive, send, self._stack)
                return
            if self._supervisor.waiting:
                self._warn_of_missing_lifespan()
            address = self.guard.admit(scope, self.guard.now())
            if isinstance(address, Refusal):
                await address.answer(scope, receive, send)
                return
            try:
                connection = self._connection(scope, receive, send)
                try:
                    await connection.run(self._call)
                finally:
                    self._forget(connection)
            finally:
                self.guard.leave(address)
        finally:
            current_box.reset(token)  # the task may be that of an app around us

    def _connection(self, scope: Scope, receive: Receive, send: Send) -> Connection:
        extensions = scope.get("extensions") or {}
        transport: EngineTransport | None = extensions.get(TRANSPORT)
        if transport is not None and (receive != transport.asgi_receive or send != transport.asgi_send):
            transport = None  # somebody stands between the server and us, and wants to see what goes by
        connection = Connection(
            scope, receive, send, self.settings, self.guard.counts, transport, self._instrument
        )
        scope[CONNECTION] = connection
        server: Connections[Connection] | None = extensions.get(SERVER_CONNECTIONS)
        if self.connections.draining or (server is not None and server.draining):
            connection.begin_shutdown()
        self.connections.add(connection)
        if server is not None:
            server.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        scope = connection.scope
        del scope[CONNECTION]
        self.connections.discard(connection)
        server: Connections[Connection] | None = (scope.get("extensions") or {}).get(SERVER_CONNECTIONS)
        if server is not None:
            server.discard(connection)

    def _call(self, connection: Connection) -> Awaitable[None]:
        """The handler's coroutine where nothing stands in front of it, else that of the whole stack."""
        scope = connection.scope
        if (
            not self._middleware
            and (resolved := self._resolve(scope)) is not None
            and not resolved.middleware
        ):
            return resolved.handle(connection.plain_websocket())
        assert self._stack is not None
        return self._stack(scope, connection.receive, connection.send)

    async def _serve_mounted(self, scope: Scope, receive: Receive, send: Send, stack: ASGIApp) -> None:
        outer: Connection = scope[CONNECTION]
        if self.guard.limits != outer.settings.limits and not self._warned_of_limits:
            self._warned_of_limits = True
            logger.warning("an app mounted inside another one has limits of its own; the outer app's hold")
        if self.guard.checks_origin_when_mounted:
            refusal = self.guard.check_origin(scope)
            if refusal is not None:
                self.guard.refused(refusal, scope, self.guard.now())
                await refusal.answer(scope, receive, send)
                return
        self.connections.add(outer)
        try:
            await stack(scope, receive, send)
        finally:
            self.connections.discard(outer)

    def _warn_of_missing_lifespan(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%d background tasks wait for the app to start, but its lifespan has not run; a framework "
                "around it must pass the lifespan on (lifespan=lambda _: app.running())",
                self._supervisor.waiting,
            )

    def _build_stack(self) -> ASGIApp:
        handlers = dict(self._exception_handlers)
        on_error = handlers.pop(500, None) or handlers.pop(Exception, None)
        http: ASGIApp = ExceptionMiddleware(self.http_router, handlers=handlers, debug=self.debug)

        async def innermost(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await self._route_websocket(scope, receive, send)
            else:
                await http(scope, receive, send)

        return ServerErrorMiddleware(wrap(innermost, self._middleware), handler=on_error, debug=self.debug)

    def _resolve(self, scope: Scope) -> ResolvedRoute | None:
        found = self.ws_router.find(route_path(scope))
        if found is None:
            return None
        resolved, parameters = found
        scope["path_params"] = {**scope.get("path_params", {}), **parameters}
        scope["endpoint"] = resolved.route.handler
        return resolved

    async def _route_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        resolved = self._resolve(scope)
        if resolved is not None:
            await resolved.app(scope, receive, send)
            return
        for route in self.http_router.routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                rules = self.ws_router.rules.around(Rules.marked(getattr(route, "endpoint", None)))
                if rules:
                    with scope[CONNECTION].websocket(scope, receive, send) as ws:
                        await rules.enforce(ws)
                await route.handle({**scope, **child}, receive, send)
                return
        with scope[CONNECTION].websocket(scope, receive, send) as ws:
            await ws.reject(404, f"no WebSocket route matches this path{self._hint(route_path(scope))}\n")

    def _hint(self, path: str) -> str:
        other = path.rstrip("/") if path.endswith("/") else path + "/"
        if self.debug and other and self.ws_router.find(other) is not None:
            return "; there is one that differs in the trailing slash"
        return ""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The HTTP routes and mounts, as Starlette's tools expect them; see ``ws_router.routes`` for ours."""
        return self.http_router.routes


def _hook(hooks: list[Hook], hook: F | None) -> F | Callable[[F], F]:
    def register(hook: F) -> F:
        if not callable(hook):
            raise WrongTypeError(f"a hook is a function without arguments, not {type(hook).__name__}")
        hooks.append(hook)
        return hook

    return register if hook is None else register(hook)


def _broker(broker: Broker | str | None, history: HistoryLimits | None, presence_grace: float) -> Broker:
    if broker is None:
        broker = os.environ.get("NEXIOS_BROKER") or "memory://"
    if not isinstance(broker, str):
        if history is not None:
            raise WrongValueError("history= is for brokers by URL; give the limits to your own broker")
        return broker
    if broker == "memory://":
        return MemoryBroker(history, presence_grace=presence_grace)
    scheme = broker.partition(":")[0]
    if scheme not in REDIS_SCHEMES:
        raise WrongValueError(
            f'broker is "memory://", the URL of a Redis such as "redis://127.0.0.1", or a Broker object, '
            f"not {scheme[:30]!r}"
        )
    try:
        from nexios_trio.brokers.redis import RedisBroker
    except ImportError as error:
        if error.name != "hiredis":
            raise
        raise WrongValueError(
            f"{scheme}:// needs the extra redis; write: pip install 'nexios-trio[redis]'"
        ) from error
    return RedisBroker(broker, history, presence_grace=presence_grace)


@asynccontextmanager
async def _no_lifespan(_app: NexiosApp) -> AsyncIterator[None]:
    yield
