"""Habits of code that was written for Nexios, beyond the guide's own examples."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.testing import TestClient
from nexios_trio.websockets import WebSocketDisconnect

Clients = Callable[..., TestClient]


async def test_the_names_are_found_where_nexios_has_them() -> None:
    import nexios_trio
    import nexios_trio.routing
    import nexios_trio.websockets
    import nexios_trio.websockets.base

    assert nexios_trio.WebSocket is nexios_trio.websockets.WebSocket is nexios_trio.websockets.base.WebSocket
    assert (
        nexios_trio.WebSocketDisconnect
        is nexios_trio.websockets.WebSocketDisconnect
        is nexios_trio.websockets.base.WebSocketDisconnect
    )
    assert nexios_trio.WSRouter is nexios_trio.routing.WSRouter
    assert nexios_trio.WebsocketRoutes is nexios_trio.routing.WebsocketRoutes


async def test_invalid_json_is_caught_as_a_json_decode_error_and_the_loop_goes_on(
    nexios_client: Clients,
) -> None:
    app = NexiosApp()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                try:
                    data = await ws.receive_json()
                except json.JSONDecodeError:
                    await ws.send_json({"error": "Invalid JSON"})
                    continue
                await ws.send_json(data)
        except WebSocketDisconnect:
            pass

    async with nexios_client(app).connect("/ws") as ws:
        await ws.send_text("{no json")
        assert await ws.receive_json() == {"error": "Invalid JSON"}
        await ws.send_json([1])
        assert await ws.receive_json() == [1]


@pytest.mark.parametrize("leave", ["close", "drop"])
async def test_close_in_finally_never_raises(
    nexios_client: Clients, leave: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()
    finished: list[bool] = []

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            await ws.close()
            await ws.close()
            finished.append(True)

    async with nexios_client(app).connect("/ws") as ws:
        await getattr(ws, leave)()
    assert finished == [True]
    assert caplog.records == []


async def test_a_disconnect_that_nobody_catches_is_no_error(
    nexios_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_text(await ws.receive_text())

    async with nexios_client(app).connect("/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
    assert caplog.records == []
    assert len(app.connections) == 0


async def test_a_loop_runs_while_the_websocket_is_connected(nexios_client: Clients) -> None:
    app = NexiosApp()
    connected: list[bool] = []

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        connected.append(ws.is_connected())
        await ws.accept()
        while ws.is_connected():
            message = await ws.receive_text()
            if message == "stop":
                await ws.close(1000, "stopped")
        connected.append(ws.is_connected())

    async with nexios_client(app).connect("/ws") as ws:
        await ws.send_text("go on")
        await ws.send_text("stop")
        assert await ws.wait_closed() == (1000, "stopped")
    assert connected == [False, False]


async def test_path_parameters_come_as_arguments_in_path_params_and_in_the_scope(
    nexios_client: Clients,
) -> None:
    app = NexiosApp()

    @app.ws_route("/chat/{room_name}")
    async def room(ws: WebSocket, room_name: str) -> None:
        await ws.accept()
        await ws.send_json([room_name, ws.path_params["room_name"], ws.scope["path_params"]["room_name"]])

    async with nexios_client(app).connect("/chat/lobby") as ws:
        assert await ws.receive_json() == ["lobby"] * 3


async def test_the_client_the_headers_and_the_query_are_at_hand(nexios_client: Clients) -> None:
    app = NexiosApp()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        assert ws.client is not None
        await ws.accept()
        await ws.send_json(
            [ws.client.host, ws.headers["x-name"], ws.query_params.get("token"), ws.cookies["c"], ws.url.path]
        )

    async with nexios_client(app).connect("/ws?token=t", headers={"X-Name": "ada", "Cookie": "c=1"}) as ws:
        assert await ws.receive_json() == ["testclient", "ada", "t", "1", "/ws"]


async def test_a_client_without_a_token_is_closed_before_accept(nexios_client: Clients) -> None:
    from nexios_trio.testing import WebSocketRejected

    app = NexiosApp()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        if not ws.query_params.get("token"):
            await ws.close(code=1008)
            return
        await ws.accept()

    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/ws"):
            pass
    assert rejected.value.status == 403


async def test_the_message_loop_of_raw_asgi_messages(nexios_client: Clients) -> None:
    app = NexiosApp()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            message = await ws.receive()
            if message["type"] == "websocket.connect":
                continue
            if message["type"] == "websocket.disconnect":
                break
            if message.get("text") is not None:
                await ws.send({"type": "websocket.send", "text": message["text"]})
            else:
                await ws.send({"type": "websocket.send", "bytes": message["bytes"]})

    async with nexios_client(app).connect("/ws") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
        await ws.send_bytes(b"")
        assert await ws.receive_bytes() == b""


async def test_an_event_is_emitted_from_a_handler_and_answered_to_another_client(
    nexios_client: Clients,
) -> None:
    app = NexiosApp()

    @app.ws_route("/listen")
    async def listen(ws: WebSocket) -> None:
        await ws.accept()

        async def forward(text: str) -> None:
            await ws.send_json({"event": text})

        app.events.on("said", forward)
        try:
            async for _ in ws.iter_text():
                pass
        finally:
            app.events.off("said", forward)

    @app.ws_route("/say")
    async def say(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_json({"heard by": await app.events.emit("said", text)})

    client = nexios_client(app)
    async with client.connect("/say") as speaker:
        async with client.connect("/listen") as first, client.connect("/listen") as second:
            await speaker.send_text("hello")
            assert await first.receive_json() == {"event": "hello"}
            assert await second.receive_json() == {"event": "hello"}
            assert await speaker.receive_json() == {"heard by": 2}
        await speaker.send_text("anybody?")
        assert await speaker.receive_json() == {"heard by": 0}


async def test_clients_are_kept_in_a_set_and_broadcast_to(nexios_client: Clients) -> None:
    app = NexiosApp()
    clients: set[WebSocket] = set()

    @app.ws_route("/ws")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        clients.add(ws)
        try:
            while True:
                text = await ws.receive_text()
                for client in clients:
                    await client.send_text(text)
        except WebSocketDisconnect:
            clients.remove(ws)

    client = nexios_client(app)
    async with client.connect("/ws") as first, client.connect("/ws") as second:
        await first.send_text("to all")
        assert await first.receive_text() == "to all"
        assert await second.receive_text() == "to all"
    assert clients == set()


async def test_startup_and_shutdown_hooks_are_decorators_with_and_without_parentheses() -> None:
    app = NexiosApp()
    order: list[str] = []

    @app.on_startup()
    async def connect_to_db() -> None:
        order.append("connected")

    @app.on_shutdown
    async def disconnect_from_db() -> None:
        order.append("disconnected")

    async with TestClient(app):
        assert order == ["connected"]
    assert order == ["connected", "disconnected"]
