"""Our app inside others, others inside ours, ours inside ours."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
import trio.testing
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from trio_websocket import open_websocket_url

from nexios_trio import NexiosApp, WebSocket, WSRouter
from nexios_trio.lifespan import MountedAppError
from nexios_trio.testing import TestClient, TestServer, WebSocketRejected
from nexios_trio.types import Receive, Scope, Send
from tests.application.lifespans import lifespan_of

Clients = Callable[..., TestClient]


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


async def tell_place(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_json(
        {
            "root_path": ws.scope["root_path"],
            "path": ws.scope["path"],
            "params": ws.path_params,
            "url": str(ws.url),
            "url_for": str(ws.url_for("room", room="b")),
            "url_path_for": str(ws.app.url_path_for("room", room="b")),
        }
    )


def place_app() -> NexiosApp:
    app = NexiosApp()
    app.add_ws_route("/rooms/{room}", tell_place, name="room")

    @app.get("/page")
    async def page(request: Request) -> Response:
        return JSONResponse([request.scope["root_path"], str(request.url_for("room", room="b"))])

    return app


def http(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://testserver")


# Inside Starlette


async def test_an_app_inside_starlette_knows_its_place(nexios_client: Clients) -> None:
    outer = Starlette(routes=[Mount("/rt", place_app())])
    async with nexios_client(outer).connect("/rt/rooms/a") as ws:
        assert await ws.receive_json() == {
            "root_path": "/rt",
            "path": "/rt/rooms/a",
            "params": {"room": "a"},
            "url": "ws://testserver/rt/rooms/a",
            "url_for": "ws://testserver/rt/rooms/b",
            "url_path_for": "/rooms/b",
        }


async def test_an_app_inside_starlette_behind_a_proxy_prefix_knows_its_place(nexios_client: Clients) -> None:
    outer = Starlette(routes=[Mount("/rt", place_app())])
    async with nexios_client(outer, root_path="/proxy").connect("/proxy/rt/rooms/a") as ws:
        place = await ws.receive_json()
    assert place["root_path"] == "/proxy/rt"
    assert place["params"] == {"room": "a"}
    assert place["url_for"] == "ws://testserver/proxy/rt/rooms/b"


async def test_http_of_an_app_inside_starlette_knows_its_place() -> None:
    async with http(Starlette(routes=[Mount("/rt", place_app())])) as client:
        assert (await client.get("/rt/page")).json() == ["/rt", "ws://testserver/rt/rooms/b"]
        assert (await client.get("/rt/unknown")).status_code == 404
        assert (await client.get("/page")).status_code == 404


async def test_parameters_of_the_mount_are_in_path_params(nexios_client: Clients) -> None:
    outer = Starlette(routes=[Mount("/{tenant}", place_app())])
    async with nexios_client(outer).connect("/acme/rooms/a") as ws:
        assert (await ws.receive_json())["params"] == {"tenant": "acme", "room": "a"}


async def test_an_app_inside_starlette_works_although_its_lifespan_never_runs(nexios_client: Clients) -> None:
    app = place_app()
    app.add_ws_route("/echo", echo)
    app.on_startup(lambda: pytest.fail("Starlette does not run the lifespans of what it mounts"))
    client = nexios_client(Starlette(routes=[Mount("/rt", app)]))
    async with client.connect("/rt/echo") as ws:
        assert len(app.connections) == 1
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
        await ws.close()
        assert len(app.connections) == 0
    with pytest.raises(WebSocketRejected) as rejected:
        async with client.connect("/rt/unknown"):
            pass
    assert rejected.value.status == 404


async def test_starlettes_middleware_around_our_app_wraps_its_messages(nexios_client: Clients) -> None:
    class Exclaim:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def exclaim(message: Any) -> None:
                if message["type"] == "websocket.send":
                    message = {**message, "text": message["text"] + "!"}
                await send(message)

            await self.app(scope, receive, exclaim)

    app = NexiosApp()
    app.add_ws_route("/echo", echo)
    outer = Starlette(routes=[Mount("/rt", app)])
    outer.add_middleware(Exclaim)
    async with nexios_client(outer).connect("/rt/echo") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x!"


# Foreign apps inside ours

FOREIGN = ["starlette", "quart"]


class Gone:
    """Tells a test that a handler has seen its client leave."""

    def __init__(self) -> None:
        self.seen = trio.Event()


def starlette_app(gone: Gone | None = None, **options: Any) -> Starlette:
    async def handler(ws: StarletteWebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(f"starlette {ws.path_params.get('room', '')}: {text}")
        if gone is not None:
            gone.seen.set()

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"starlette at {request.scope['root_path']}")

    return Starlette(
        routes=[WebSocketRoute("/ws", handler), WebSocketRoute("/{room}/ws", handler), Route("/page", page)],
        **options,
    )


def quart_app(gone: Gone | None = None) -> QuartTrio:
    app = QuartTrio("tests")

    @app.websocket("/ws")
    async def handler() -> None:
        await quart_websocket.accept()
        try:
            while True:
                text = await quart_websocket.receive()
                await quart_websocket.send(f"quart: {text!s}")
        finally:
            if gone is not None:
                gone.seen.set()

    @app.websocket("/<room>/ws")
    async def room(room: str) -> None:
        await quart_websocket.send(f"quart {room}")

    @app.get("/page")
    async def page() -> str:
        return "quart page"

    return app


@pytest.mark.parametrize(
    ("make", "reply"),
    [(starlette_app, "starlette : hi"), (quart_app, "quart: hi")],
    ids=["starlette", "quart"],
)
@pytest.mark.parametrize("real", [False, True], ids=["memory", "server"])
async def test_a_foreign_app_inside_ours_answers_and_sees_its_client_leave(
    nexios_client: Clients, nexios_server: Any, make: Callable[[Gone], Any], reply: str, real: bool
) -> None:
    gone = Gone()
    app = NexiosApp()
    app.mount("/inner", make(gone))
    if real:
        server: TestServer = await nexios_server(app)
        async with open_websocket_url(f"{server.url}/inner/ws") as ws:
            await ws.send_message("hi")
            assert await ws.get_message() == reply
            assert len(app.connections) == 1
    else:
        async with nexios_client(app).connect("/inner/ws") as memory_ws:
            await memory_ws.send_text("hi")
            assert await memory_ws.receive_text() == reply
            assert len(app.connections) == 1
    with trio.fail_after(5):
        await gone.seen.wait()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(app.connections) == 0


@pytest.mark.parametrize(
    ("make", "text"),
    [(starlette_app, "starlette at /inner"), (quart_app, "quart page")],
    ids=["starlette", "quart"],
)
async def test_http_of_a_foreign_app_inside_ours_answers(make: Callable[[], Any], text: str) -> None:
    app = NexiosApp()
    app.mount("/inner", make())
    async with lifespan_of(app), http(app) as client:
        assert (await client.get("/inner/page")).text == text
        assert (await client.get("/inner/unknown")).status_code == 404


@pytest.mark.parametrize(
    ("make", "reply"), [(starlette_app, "starlette a: "), (quart_app, "quart a")], ids=FOREIGN
)
async def test_path_parameters_of_a_foreign_app_are_its_own(
    nexios_client: Clients, make: Callable[[], Any], reply: str
) -> None:
    app = NexiosApp()
    app.mount("/inner", make())
    async with nexios_client(app).connect("/inner/a/ws") as ws:
        await ws.send_text("")
        assert await ws.receive_text() == reply


async def test_an_unknown_path_of_a_foreign_app_is_rejected_by_it(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.mount("/inner", starlette_app())
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/inner/unknown"):
            pass
    assert rejected.value.status == 403
    assert len(app.connections) == 0


async def test_a_client_that_vanishes_is_seen_by_a_foreign_app(nexios_client: Clients) -> None:
    makes: list[Callable[[Gone], Any]] = [starlette_app, quart_app]
    for make in makes:
        gone = Gone()
        app = NexiosApp()
        app.mount("/inner", make(gone))
        async with nexios_client(app).connect("/inner/ws") as ws:
            await ws.drop()
            with trio.fail_after(5):
                await gone.seen.wait()


async def test_our_websocket_routes_go_before_what_is_mounted(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.mount("/", starlette_app())
    app.add_ws_route("/ws", echo)
    client = nexios_client(app)
    async with client.connect("/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
    async with client.connect("/room/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "starlette room: x"


async def test_the_lifespan_of_a_mounted_starlette_runs_and_its_state_is_seen(nexios_client: Clients) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        order.append("up")
        yield {"pool": "the pool"}
        order.append("down")

    app = NexiosApp()
    app.mount("/inner", starlette_app(lifespan=lifespan))

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.state.pool)

    async with TestClient(app) as client, client.connect("/ws") as ws:
        assert await ws.receive_text() == "the pool"
        assert order == ["up"]
    assert order == ["up", "down"]


async def test_the_lifespan_of_a_mounted_quart_runs() -> None:
    order: list[str] = []
    inner = quart_app()
    inner.before_serving(lambda: order.append("up"))
    inner.after_serving(lambda: order.append("down"))
    app = NexiosApp()
    app.mount("/inner", inner)
    async with lifespan_of(app) as server:
        assert order == ["up"]
    assert order == ["up", "down"]
    assert server.kinds == ["startup.complete", "shutdown.complete"]


def faulty_starlette(when: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if when == "startup":
            raise LookupError("no database")
        yield
        raise LookupError("no database")

    return starlette_app(lifespan=lifespan)


def faulty_quart(when: str) -> QuartTrio:
    app = quart_app()

    async def fail() -> None:
        raise LookupError("no database")

    (app.before_serving if when == "startup" else app.after_serving)(fail)
    return app


def faulty_nexios(when: str) -> NexiosApp:
    app = NexiosApp()

    async def fail() -> None:
        raise LookupError("no database")

    (app.on_startup if when == "startup" else app.on_shutdown)(fail)
    return app


@pytest.mark.parametrize("when", ["startup", "shutdown"])
@pytest.mark.parametrize("make", [faulty_starlette, faulty_quart, faulty_nexios])
async def test_a_mounted_app_that_fails_fails_the_whole_and_the_others_end_in_order(
    make: Callable[[str], Any], when: str, autojump_clock: trio.testing.MockClock
) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        order.append("up")
        try:
            yield
        finally:
            await trio.lowlevel.checkpoint()
            order.append("down")

    app = NexiosApp()
    app.mount("/fine", starlette_app(lifespan=lifespan))
    app.mount("/faulty", make(when))
    with trio.fail_after(5):
        async with lifespan_of(app) as server:
            pass
    assert server.kinds == (
        ["startup.failed"] if when == "startup" else ["startup.complete", "shutdown.failed"]
    )
    assert "no database" in server.text
    assert order == ["up", "down"]


async def test_an_app_that_reports_a_failure_without_raising_is_named() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    app = NexiosApp()
    app.mount("/inner", inner)
    async with lifespan_of(app) as server:
        pass
    assert server.kinds == ["startup.failed"]
    assert re.search(
        r"the mounted app <function .*inner.*> sent lifespan.startup.failed: no database", server.text
    )
    assert server.error is not None
    (error,) = leaves(server.error)
    assert isinstance(error, MountedAppError)
    assert error.app is inner


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"


async def returns_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    return


@pytest.mark.parametrize("inner", [raises_at_once, returns_at_once])
async def test_a_mounted_app_without_a_lifespan_is_left_alone(inner: Any) -> None:
    app = NexiosApp()
    app.mount("/inner", inner)
    async with lifespan_of(app) as server:
        pass
    assert server.kinds == ["startup.complete", "shutdown.complete"]


async def test_a_mounted_app_that_dies_while_it_runs_ends_the_whole() -> None:
    die = trio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await die.wait()
        raise LookupError("died")

    app = NexiosApp()
    app.mount("/inner", inner)
    async with lifespan_of(app) as server:
        die.set()
        await server.ended.wait()
    assert server.kinds == ["startup.complete", "shutdown.failed"]
    assert "LookupError: died" in server.text


# Ours inside ours


async def test_an_app_inside_an_app_is_counted_by_both_and_runs_its_middleware_and_hooks(
    nexios_client: Clients,
) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[WebSocket, Callable[..., Awaitable[None]]], Awaitable[None]]:
        async def middleware(ws: WebSocket, call_next: Callable[..., Awaitable[None]]) -> None:
            order.append(name)
            await call_next()

        return middleware

    inner = NexiosApp(middleware=[noting("inner")])
    inner.on_startup(lambda: order.append("startup"))
    inner.add_ws_route("/ws", echo)
    outer = NexiosApp(middleware=[noting("outer")])
    outer.mount("/inner", inner)
    async with nexios_client(outer).connect("/inner/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
        assert order == ["startup", "outer", "inner"]
        assert (len(outer.connections), len(inner.connections)) == (1, 1)
        assert next(iter(outer.connections)) is next(iter(inner.connections))
    assert (len(outer.connections), len(inner.connections)) == (0, 0)


async def test_a_handler_inside_two_apps_belongs_to_the_inner_one(nexios_client: Clients) -> None:
    inner = place_app()
    inner.ws_route("/whose")(whose := Whose())
    outer = NexiosApp()
    outer.mount("/inner", inner)
    client = nexios_client(outer)
    async with client.connect("/inner/whose"):
        pass
    assert whose.app is inner
    async with client.connect("/inner/rooms/a") as ws:
        place = await ws.receive_json()
    assert place["root_path"] == "/inner"
    assert place["url_for"] == "ws://testserver/inner/rooms/b"


class Whose:
    app: Any = None

    async def __call__(self, ws: WebSocket) -> None:
        self.app = ws.app
        await ws.accept()


async def test_an_unknown_path_of_an_inner_app_is_404(nexios_client: Clients) -> None:
    outer = NexiosApp()
    outer.mount("/inner", place_app())
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(outer).connect("/inner/unknown"):
            pass
    assert rejected.value.status == 404
    assert len(outer.connections) == 0


async def test_background_tasks_of_an_inner_app_run() -> None:
    inner, outer = NexiosApp(), NexiosApp()
    ran = trio.Event()

    async def task() -> None:
        ran.set()

    inner.start_soon(task)
    outer.mount("/inner", inner)
    async with lifespan_of(outer):
        with trio.fail_after(5):
            await ran.wait()


async def test_an_inner_task_that_stops_its_app_ends_the_outer_one_too() -> None:
    inner, outer = NexiosApp(), NexiosApp()

    crash = trio.Event()

    async def task() -> None:
        await crash.wait()
        raise LookupError("the important one")

    inner.start_soon(task, on_crash="stop")
    outer.mount("/inner", inner)
    async with lifespan_of(outer) as server:
        crash.set()
        await server.ended.wait()
    assert server.kinds[-1] == "shutdown.failed"
    assert "the important one" in server.text


async def test_our_app_inside_starlette_inside_our_app(nexios_client: Clients) -> None:
    inner = place_app()
    inner.add_ws_route("/echo", echo)
    outer = NexiosApp()
    outer.mount("/a", Starlette(routes=[Mount("/b", inner)]))
    client = nexios_client(outer)
    async with client.connect("/a/b/echo"):
        assert (len(outer.connections), len(inner.connections)) == (1, 1)
    async with client.connect("/a/b/rooms/x") as ws:
        place = await ws.receive_json()
    assert place["root_path"] == "/a/b"
    assert place["params"] == {"room": "x"}
    assert place["url_for"] == "ws://testserver/a/b/rooms/b"


async def test_a_router_of_the_outer_app_and_a_mount_share_a_prefix(nexios_client: Clients) -> None:
    router = WSRouter(prefix="/api")
    router.add_ws_route("/ws", echo)
    outer = NexiosApp()
    outer.mount("/api", place_app())
    outer.mount_ws_router(router)
    client = nexios_client(outer)
    async with client.connect("/api/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
    async with client.connect("/api/rooms/a") as ws:
        assert (await ws.receive_json())["params"] == {"room": "a"}


async def test_a_framework_around_us_can_run_our_lifespan(nexios_client: Callable[..., TestClient]) -> None:
    app, called = NexiosApp(), []

    @app.on_startup
    def up() -> None:
        called.append("up")

    @app.on_shutdown
    def down() -> None:
        called.append("down")

    async def tick() -> None:
        called.append("tick")

    app.start_soon(tick)
    outer = Starlette(routes=[Mount("/rt", app)], lifespan=lambda _app: app.running())
    async with TestClient(outer):
        await trio.testing.wait_all_tasks_blocked()
        assert called == ["up", "tick"]
    assert called == ["up", "tick", "down"]
