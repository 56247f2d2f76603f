"""Middleware on the app, on routers and on routes, of both kinds."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from starlette.authentication import AuthCredentials, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse

from nexios_trio import NexiosApp, WebSocket, WebSocketException, WebsocketRoutes, WSRouter
from nexios_trio.exceptions import WrongStateError, WrongTypeError
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import ASGIApp, Message, Receive, Scope, Send

Clients = Callable[..., TestClient]
Next = Callable[..., Awaitable[None]]


class Trace:
    """Pure ASGI middleware that notes in the scope that it was passed."""

    def __init__(self, app: ASGIApp, name: str = "plain") -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "trace": (*scope.get("trace", ()), self.name)}, receive, send)


def tracing(name: str) -> Callable[[WebSocket, Next], Awaitable[None]]:
    async def middleware(ws: WebSocket, call_next: Next) -> None:
        ws.scope["trace"] = (*ws.scope.get("trace", ()), name)
        await call_next()

    return middleware


async def tell_trace(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_json(ws.scope["trace"])


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


# Order


async def test_middleware_runs_from_the_app_over_the_routers_to_the_route(nexios_client: Clients) -> None:
    inner = WSRouter(prefix="/inner", middleware=[Middleware(Trace, "inner 1"), tracing("inner 2")])
    inner.add_ws_route("/ws", tell_trace, middleware=[tracing("route 1"), Middleware(Trace, name="route 2")])
    outer = WSRouter(prefix="/outer", middleware=[tracing("outer 1"), Middleware(Trace, "outer 2")])
    outer.mount_router(inner)
    app = NexiosApp(middleware=[Middleware(Trace, "app 1"), tracing("app 2")])
    app.add_middleware(Trace, name="app 3")
    app.mount_ws_router(outer)
    async with nexios_client(app).connect("/outer/inner/ws") as ws:
        assert await ws.receive_json() == [
            *("app 1", "app 2", "app 3"),
            *("outer 1", "outer 2"),
            *("inner 1", "inner 2"),
            *("route 1", "route 2"),
        ]


async def test_middleware_of_a_router_or_a_route_leaves_others_alone(nexios_client: Clients) -> None:
    app = NexiosApp(middleware=[Middleware(Trace, "app")])
    router = WSRouter(prefix="/r", middleware=[tracing("router")])
    router.add_ws_route("/ws", tell_trace)
    app.mount_ws_router(router)
    app.add_ws_route(WebsocketRoutes("/route", tell_trace, middleware=[tracing("route")]))
    app.ws_route("/decorated", middleware=[Trace])(tell_trace)
    app.add_ws_route("/bare", tell_trace)
    client = nexios_client(app)
    for path, trace in {
        "/r/ws": ["app", "router"],
        "/route": ["app", "route"],
        "/decorated": ["app", "plain"],
        "/bare": ["app"],
    }.items():
        async with client.connect(path) as ws:
            assert await ws.receive_json() == trace


async def test_a_middleware_class_stands_alone_or_in_starlettes_wrapper(nexios_client: Clients) -> None:
    app = NexiosApp(middleware=[Trace, Middleware(Trace, "wrapped")])
    app.add_ws_route("/", tell_trace)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_json() == ["plain", "wrapped"]


async def test_a_function_that_wraps_an_app_is_middleware(nexios_client: Clients) -> None:
    def factory(app: ASGIApp, name: str = "factory") -> ASGIApp:
        return Trace(app, name)

    app = NexiosApp(middleware=[factory, Middleware(factory, name="named")])
    app.add_ws_route("/", tell_trace)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_json() == ["factory", "named"]


async def test_an_instance_with_an_async_call_is_middleware(nexios_client: Clients) -> None:
    class Named:
        async def __call__(self, ws: WebSocket, call_next: Next) -> None:
            ws.scope["trace"] = ("instance",)
            await call_next(ws)

    app = NexiosApp(middleware=[Named()])
    app.add_ws_route("/", tell_trace)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_json() == ["instance"]


# What middleware can do


@pytest.mark.parametrize("with_ws", [True, False])
async def test_call_next_goes_on_with_or_without_the_websocket(nexios_client: Clients, with_ws: bool) -> None:
    seen = []

    async def middleware(ws: WebSocket, call_next: Next) -> None:
        seen.append("before")
        await (call_next(ws) if with_ws else call_next())
        seen.append("after")

    app = NexiosApp(middleware=[middleware])
    app.add_ws_route("/", echo)
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
        assert seen == ["before"]
    assert seen == ["before", "after"]


async def test_middleware_rejects_before_the_handler_is_called(nexios_client: Clients) -> None:
    async def guard(ws: WebSocket, call_next: Next) -> None:
        if "token" not in ws.query_params:
            await ws.reject(401, {"error": "no token"})
        else:
            await call_next()

    app = NexiosApp(middleware=[guard])
    app.add_ws_route("/", echo)
    client = nexios_client(app)
    with pytest.raises(WebSocketRejected) as rejected:
        async with client.connect("/"):
            pass
    assert (rejected.value.status, rejected.value.body) == (401, b'{"error":"no token"}')
    async with client.connect("/", params={"token": "t"}) as ws:
        await ws.send_text("in")
        assert await ws.receive_text() == "in"


async def test_asgi_middleware_rejects_with_a_close_before_accept(nexios_client: Clients) -> None:
    class Closed:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self.app(scope, receive, send)

    app = NexiosApp(middleware=[Closed])
    app.add_ws_route("/", echo)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/"):
            pass
    assert rejected.value.status == 403


async def test_middleware_that_neither_goes_on_nor_answers_is_a_403(nexios_client: Clients) -> None:
    async def silent(ws: WebSocket, call_next: Next) -> None:
        return

    app = NexiosApp(middleware=[silent])
    app.add_ws_route("/", echo)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/"):
            pass
    assert rejected.value.status == 403


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [(LookupError("secret"), 500, b""), (HTTPException(429, "slowly"), 429, b"slowly")],
    ids=["error", "HTTPException"],
)
async def test_an_error_of_middleware_before_accept_is_an_http_answer(
    nexios_client: Clients, error: Exception, status: int, body: bytes
) -> None:
    async def failing(ws: WebSocket, call_next: Next) -> None:
        raise error

    app = NexiosApp(middleware=[failing])
    app.add_ws_route("/", echo)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/"):
            pass
    assert (rejected.value.status, rejected.value.body) == (status, body)


async def test_middleware_sees_the_error_of_the_handler_and_may_end_it_otherwise(
    nexios_client: Clients,
) -> None:
    async def translate(ws: WebSocket, call_next: Next) -> None:
        try:
            await call_next()
        except LookupError as error:
            raise WebSocketException(4004, str(error)) from error

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise LookupError("no such room")

    router = WSRouter(middleware=[translate])
    router.add_ws_route("/", handler)
    app = NexiosApp()
    app.mount_ws_router(router)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.wait_closed() == (4004, "no such room")


async def test_middleware_that_accepts_leaves_the_rest_to_the_handler(nexios_client: Clients) -> None:
    async def accepting(ws: WebSocket, call_next: Next) -> None:
        await ws.accept()
        await call_next()

    async def handler(ws: WebSocket) -> None:
        await ws.send_text("accepted already")

    app = NexiosApp(middleware=[accepting])
    app.add_ws_route("/", handler)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_text() == "accepted already"


class Shout:
    """Turns messages to upper case on the way in, and adds an exclamation mark on the way out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_loud() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                return {**message, "text": message["text"].upper()}
            return message

        async def send_loud(message: Message) -> None:
            if message["type"] == "websocket.send":
                message = {**message, "text": message["text"] + "!"}
            await send(message)

        await self.app(scope, receive_loud, send_loud)


@pytest.mark.parametrize("level", ["app", "router", "route"])
async def test_asgi_middleware_sees_and_changes_messages_both_ways(
    nexios_client: Clients, level: str
) -> None:
    shouts: dict[str, list[Any]] = {"app": [], "router": [], "route": [], level: [Shout]}
    router = WSRouter(middleware=shouts["router"])
    router.add_ws_route("/", echo, middleware=shouts["route"])
    app = NexiosApp(middleware=shouts["app"])
    app.mount_ws_router(router)
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("hi")
        assert await ws.receive_text() == "HI!"
        await ws.send_text("again")
        assert await ws.receive_text() == "AGAIN!"


async def test_asgi_middleware_adds_headers_to_the_handshake(nexios_client: Clients) -> None:
    class Stamp:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def stamped(message: Message) -> None:
                if message["type"] == "websocket.accept":
                    message["headers"].append((b"x-stamp", b"1"))
                await send(message)

            await self.app(scope, receive, stamped)

    app = NexiosApp(middleware=[Stamp])
    app.add_ws_route("/", echo)
    async with nexios_client(app).connect("/") as ws:
        assert ("x-stamp", "1") in ws.headers


async def test_a_replaced_scope_is_seen_inside_and_the_old_one_outside(nexios_client: Clients) -> None:
    seen: list[Any] = []

    async def outside(ws: WebSocket, call_next: Next) -> None:
        seen.append((ws.scope.get("extra"), ws.headers.get("x-added"), ws.query_params.get("q")))
        await call_next()
        seen.append((ws.scope.get("extra"), ws.headers.get("x-added"), ws.query_params.get("q")))

    class Replace:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            headers = [*scope["headers"], (b"x-added", b"yes")]
            await self.app({**scope, "extra": 1, "headers": headers, "query_string": b"q=2"}, receive, send)

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        seen.append((ws.scope.get("extra"), ws.headers.get("x-added"), ws.query_params.get("q")))

    app = NexiosApp(middleware=[outside, Replace])
    app.add_ws_route("/", handler)
    async with nexios_client(app).connect("/?q=1") as ws:
        await ws.wait_closed()
    assert seen == [(None, None, "1"), (1, "yes", "2"), (None, None, "1")]


async def test_path_parameters_reach_a_handler_below_middleware_that_copies_the_scope(
    nexios_client: Clients,
) -> None:
    async def handler(ws: WebSocket, room: str) -> None:
        await ws.accept()
        await ws.send_text(room)

    app = NexiosApp(middleware=[Trace])
    router = WSRouter(middleware=[Trace])
    router.add_ws_route("/{room}", handler, middleware=[Trace])
    app.mount_ws_router(router)
    async with nexios_client(app).connect("/a") as ws:
        assert await ws.receive_text() == "a"


# Instances


class Counting:
    """Counts its instances, and the connections of each."""

    instances = 0

    def __init__(self, app: ASGIApp) -> None:
        type(self).instances += 1
        self.app = app
        self.connections = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.connections += 1
        await self.app({**scope, "count": self.connections}, receive, send)


async def tell_count(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_json(ws.scope["count"])


@pytest.mark.parametrize("level", ["app", "router", "route"])
async def test_a_middleware_is_built_once_and_not_for_each_connection(
    nexios_client: Clients, level: str
) -> None:
    class Fresh(Counting):
        instances = 0

    fresh: dict[str, list[Any]] = {"app": [], "router": [], "route": [], level: [Fresh]}
    router = WSRouter(middleware=fresh["router"])
    router.add_ws_route("/", tell_count, middleware=fresh["route"])
    app = NexiosApp(middleware=fresh["app"])
    app.mount_ws_router(router)
    client = nexios_client(app)
    counts = []
    for number in range(3):
        async with client.connect("/") as ws:
            counts.append(await ws.receive_json())
        app.add_ws_route(f"/more/{number}", tell_count)
        router.add_ws_route(f"/late/{number}", tell_count)
    assert counts == [1, 2, 3]
    assert Fresh.instances == 1


async def test_the_routes_of_a_router_share_its_middleware(nexios_client: Clients) -> None:
    inner = WSRouter(prefix="/inner")
    inner.add_ws_route("/c", tell_count)
    router = WSRouter(middleware=[Counting])
    router.add_ws_route("/a", tell_count)
    router.add_ws_route("/b", tell_count)
    router.mount_router(inner)
    app = NexiosApp()
    app.mount_ws_router(router)
    client = nexios_client(app)
    counts = []
    for path in ("/a", "/b", "/inner/c"):
        async with client.connect(path) as ws:
            counts.append(await ws.receive_json())
    assert counts == [1, 2, 3]


# Starlette's


async def test_starlettes_sessions_work(nexios_client: Clients) -> None:
    async def handler(ws: WebSocket) -> None:
        ws.session["visits"] = ws.session.get("visits", 0) + 1
        await ws.accept()
        await ws.send_json(ws.session)

    async def login(request: Request) -> PlainTextResponse:
        request.session["visits"] = 41
        return PlainTextResponse("")

    app = NexiosApp(middleware=[Middleware(SessionMiddleware, secret_key="s")])
    app.add_ws_route("/ws", handler)
    app.get("/login")(login)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://testserver") as http:
        cookie = (await http.get("/login")).headers["set-cookie"].partition(";")[0]
    async with nexios_client(app).connect("/ws", headers={"cookie": cookie}) as ws:
        assert await ws.receive_json() == {"visits": 42}


class Backend:
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["chat"]), SimpleUser(name)) if name else None


async def test_starlettes_authentication_works(nexios_client: Clients) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json([ws.user.is_authenticated, ws.user.display_name, ws.auth.scopes])

    app = NexiosApp(middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])  # type: ignore[arg-type]
    app.add_ws_route("/", handler)
    client = nexios_client(app)
    async with client.connect("/", headers={"x-user": "ada"}) as ws:
        assert await ws.receive_json() == [True, "ada", ["chat"]]
    async with client.connect("/") as ws:
        assert await ws.receive_json() == [False, "", []]


@pytest.mark.parametrize(
    ("attribute", "ours", "middleware"),
    [
        ("session", "", "SessionMiddleware"),
        ("user", "authenticate=, which this route has not, or by ", "AuthenticationMiddleware"),
        ("auth", "authenticate=, which this route has not, or by ", "AuthenticationMiddleware"),
    ],
)
async def test_what_a_missing_middleware_would_give_is_an_error_with_the_line_to_write(
    nexios_client: Clients, attribute: str, ours: str, middleware: str
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(
            WrongStateError,
            match=re.escape(
                f"ws.{attribute} is filled in by {ours}Starlette's {middleware}, which is not installed; "
                f"write NexiosApp(middleware=[Middleware({middleware}, ...)])"
            ),
        ):
            getattr(ws, attribute)
        await ws.send_text("raised")

    app = NexiosApp()
    app.add_ws_route("/", handler)
    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_text() == "raised"


async def test_starlettes_http_middleware_lets_websockets_pass(nexios_client: Clients) -> None:
    class Refuse(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> PlainTextResponse:
            return PlainTextResponse("refused", 418)

    app = NexiosApp(middleware=[Refuse])
    app.add_ws_route("/", echo)
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://t") as http:
        assert (await http.get("/")).status_code == 418


async def test_asgi_middleware_of_the_app_runs_for_http_too_and_dispatching_only_for_websockets() -> None:
    async def dispatching(ws: WebSocket, call_next: Next) -> None:
        raise AssertionError("called for HTTP")

    app = NexiosApp(middleware=[dispatching, Middleware(Trace, "http")])

    @app.get("/")
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(",".join(request.scope["trace"]))

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://t") as http:
        assert (await http.get("/")).text == "http"


# Mistakes


async def one_argument(ws: WebSocket) -> None: ...


def sync(ws: WebSocket, call_next: Next) -> None: ...


async def right(ws: WebSocket, call_next: Next) -> None: ...


class NoApp:
    pass


@pytest.mark.parametrize(
    ("middleware", "cure"),
    [
        (
            5,
            "middleware is `async def mw(ws, call_next)`, an ASGI middleware class, or Middleware(cls, ...), "
            "not 5",
        ),
        (one_argument, "does not take two arguments; write `async def mw(ws, call_next)`"),
        (Trace(NexiosApp()), "does not take two arguments; write `async def mw(ws, call_next)`"),
        (sync, "the middleware sync is not async; write `async def sync(ws, call_next)`"),
        (
            SessionMiddleware,
            "SessionMiddleware cannot be called as SessionMiddleware(app, ...) with the arguments given; "
            "write Middleware(SessionMiddleware, ...) with what its signature asks for: (app",
        ),
        (
            Middleware(Trace, nam="x"),  # type: ignore[call-arg]
            "Trace cannot be called as Trace(app, ...)",
        ),
        (NoApp, "NoApp cannot be called as NoApp(app, ...)"),
        (
            Middleware(right),  # type: ignore[arg-type]
            "right is `async def mw(ws, call_next)` and takes no further arguments; add it as it is, without "
            "Middleware(...)",
        ),
    ],
)
@pytest.mark.parametrize("level", ["app", "add_middleware", "router", "route"])
def test_what_is_no_middleware_is_an_error_at_registration_with_the_cure(
    middleware: Any, cure: str, level: str
) -> None:
    with pytest.raises(WrongTypeError, match=re.escape(cure)):
        match level:
            case "app":
                NexiosApp(middleware=[middleware])
            case "add_middleware":
                NexiosApp().add_middleware(middleware)
            case "router":
                WSRouter(middleware=[middleware])
            case "route":
                WebsocketRoutes("/", echo, middleware=[middleware])


def test_arguments_for_a_dispatching_function_are_an_error() -> None:
    with pytest.raises(WrongTypeError, match=r"right is `async def mw.* takes no further arguments"):
        NexiosApp().add_middleware(right, "argument")


def test_middleware_whose_signature_nobody_knows_is_taken() -> None:
    NexiosApp(middleware=[dict])


async def test_middleware_cannot_be_added_once_the_app_has_served(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.add_ws_route("/", echo)
    async with nexios_client(app).connect("/"):
        pass
    with pytest.raises(
        WrongStateError, match="the app has served a connection already; add middleware before it starts"
    ):
        app.add_middleware(Trace)
