"""The code of the Nexios WebSocket guide, as it stands there but for `nexios` → `nexios_trio`.

Channels and consumers are in test_channels_guide.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexios_trio.testing import TestClient, WebSocketRejected

Clients = Callable[..., TestClient]


async def test_a_handler_is_registered_by_decorator(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp

    app = NexiosApp()

    @app.ws_route("/ws")
    async def ws_handler(ws):  # type: ignore[no-untyped-def]
        await ws.accept()
        await ws.send_text("hello")

    async with nexios_client(app).connect("/ws") as client:
        assert await client.receive_text() == "hello"


async def test_websocket_is_the_same_decorator(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp

    app = NexiosApp()

    @app.websocket("/ws")
    async def ws_handler(ws):  # type: ignore[no-untyped-def]
        await ws.accept()
        await ws.send_text("hello")

    async with nexios_client(app).connect("/ws") as client:
        assert await client.receive_text() == "hello"


async def ws_handler(ws):  # type: ignore[no-untyped-def]
    await ws.accept()
    await ws.send_text("one")


async def ws_handler2(ws):  # type: ignore[no-untyped-def]
    await ws.accept()
    await ws.send_text("two")


async def assert_answers(client: TestClient, **answers: str) -> None:
    for path, answer in answers.items():
        async with client.connect("/" + path.replace("__", "-").replace("_", "/")) as ws:
            assert await ws.receive_text() == answer


@pytest.mark.parametrize("form", ["object", "positional", "keywords"])
async def test_add_ws_route_takes_three_forms(nexios_client: Clients, form: str) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WebsocketRoutes

    app = NexiosApp()
    if form == "object":
        app.add_ws_route(WebsocketRoutes("/ws", ws_handler))
    elif form == "positional":
        app.add_ws_route("/ws", ws_handler)
    else:
        app.add_ws_route(path="/ws", handler=ws_handler)
    await assert_answers(nexios_client(app), ws="one")


async def test_a_router_is_mounted_below_a_path(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WSRouter

    app = NexiosApp()
    router = WSRouter()
    router.add_ws_route("/ws", ws_handler)
    app.mount_ws_router(router, "/ws")
    await assert_answers(nexios_client(app), ws_ws="one")


async def test_a_router_is_made_of_a_list(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WebsocketRoutes, WSRouter

    app = NexiosApp()
    router = WSRouter([WebsocketRoutes("/ws", ws_handler), WebsocketRoutes("/ws2", ws_handler2)])
    app.mount_ws_router(router)
    await assert_answers(nexios_client(app), ws="one", ws2="two")


async def test_a_router_has_a_prefix_which_the_mount_path_replaces(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WSRouter

    app = NexiosApp()
    router = WSRouter(prefix="/ws")
    router.add_ws_route("/ws", ws_handler)
    app.mount_ws_router(router)
    app.mount_ws_router(router, "/ws-overide")
    await assert_answers(nexios_client(app), ws_ws="one", ws__overide_ws="one")


async def test_routers_nest(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WSRouter

    app = NexiosApp()
    inner = WSRouter(prefix="/v1")
    inner.add_ws_route("/ws", ws_handler)
    outer = WSRouter(prefix="/api")
    outer.mount_router(inner)
    app.mount_ws_router(outer)
    await assert_answers(nexios_client(app), api_v1_ws="one")


async def test_a_handler_receives_and_sends_every_kind_of_message(
    nexios_client: Clients, capsys: pytest.CaptureFixture[str]
) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.websockets.base import WebSocket, WebSocketDisconnect

    app = NexiosApp()
    messages: list[Any] = []

    @app.ws_route("/ws")
    async def handler(ws: WebSocket):  # type: ignore[no-untyped-def]
        await ws.accept()
        try:
            while True:
                message = await ws.receive()
                messages.append(message)
                text = await ws.receive_text()
                await ws.send_text(f"Received: {text}")
                data = await ws.receive_bytes()
                await ws.send_bytes(data)
                obj = await ws.receive_json()
                await ws.send_json({"status": "success", "data": obj})
        except WebSocketDisconnect as gone:
            print("Client disconnected", gone.code, gone.reason)
        finally:
            await ws.close()

    async with nexios_client(app).connect("/ws") as client:
        for _ in range(2):
            await client.send_text("any")
            await client.send_text("hello")
            assert await client.receive_text() == "Received: hello"
            await client.send_bytes(b"\x00\xff")
            assert await client.receive_bytes() == b"\x00\xff"
            await client.send_json({"a": [1]})
            assert await client.receive_json() == {"status": "success", "data": {"a": [1]}}
        await client.send_text("any")
        await client.close(4000, "enough")
    assert messages == [{"type": "websocket.receive", "text": "any", "bytes": None}] * 3
    assert capsys.readouterr().out == "Client disconnected 4000 enough\n"


async def test_events_are_heard_and_emitted(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp

    app = NexiosApp()
    pushed: list[Any] = []

    @app.events.on("notification.created")
    async def push(notification):  # type: ignore[no-untyped-def]
        pushed.append(notification)

    @app.events.once("notification.created")
    async def first(notification):  # type: ignore[no-untyped-def]
        pushed.append("the first")

    chat = app.events.namespace("chat")
    chat.on("joined", push)

    await app.events.emit("notification.created", {"id": 1})
    await app.events.emit("notification.created", {"id": 2})
    await chat.emit("joined", "ada")
    app.events.off("notification.created", push)
    await app.events.emit("notification.created", {"id": 3})
    assert sorted(map(str, pushed)) == ["ada", "the first", "{'id': 1}", "{'id': 2}"]


async def test_middleware_of_an_app_and_of_a_router(nexios_client: Clients) -> None:
    from nexios_trio import NexiosApp
    from nexios_trio.routing import WSRouter

    async def check_token(ws, call_next):  # type: ignore[no-untyped-def]
        if ws.headers.get("authorization") != "Bearer secret":
            await ws.close(code=1008, reason="Unauthorized")
            return
        await call_next()

    app = NexiosApp()
    router = WSRouter(prefix="/private", middleware=[check_token])
    router.add_ws_route("/ws", ws_handler)
    app.mount_ws_router(router)
    client = nexios_client(app)
    with pytest.raises(WebSocketRejected) as rejected:
        async with client.connect("/private/ws"):
            pass
    assert rejected.value.status == 403
    async with client.connect("/private/ws", headers={"Authorization": "Bearer secret"}) as ws:
        assert await ws.receive_text() == "one"
