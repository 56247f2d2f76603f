"""`NexiosApp` as an ASGI app for WebSockets: unknown paths, counting, several apps, other clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from starlette.testclient import TestClient as StarletteTestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect as StarletteDisconnect
from trio_websocket import ConnectionRejected, open_websocket_url

from nexios_trio import Heartbeat, Limits, NexiosApp, WebSocket
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.testing import TestClient, TestServer, WebSocketRejected
from nexios_trio.types import Message

Clients = Callable[..., TestClient]


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


def echo_app(**options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    app.add_ws_route("/ws", echo)
    return app


# Unknown paths


async def test_an_unknown_path_is_404_before_the_upgrade(nexios_client: Clients) -> None:
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(echo_app()).connect("/unknown"):
            pass
    assert rejected.value.status == 404
    assert rejected.value.body == b"no WebSocket route matches this path\n"
    assert ("content-type", "text/plain; charset=utf-8") in rejected.value.headers


async def test_an_unknown_path_is_a_plain_close_where_the_server_cannot_answer_http() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    to_app, from_server = trio.open_memory_channel[Message](2)
    to_app.send_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/unknown", "headers": [], "query_string": b""}
    await echo_app()(scope, from_server.receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


async def test_a_client_of_such_a_server_sees_403(nexios_client: Clients) -> None:
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(echo_app()).connect("/unknown", http_response=False):
            pass
    assert rejected.value.status == 403


async def test_an_unknown_path_is_404_over_a_real_server(nexios_server: Any) -> None:
    server: TestServer = await nexios_server(echo_app())
    with pytest.raises(ConnectionRejected) as rejected:
        async with open_websocket_url(f"{server.url}/unknown"):
            pass
    assert rejected.value.status_code == 404


async def test_an_http_route_is_no_websocket_route(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.get("/page")(lambda request: None)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/page"):
            pass
    assert rejected.value.status == 404


# Connections


async def test_the_app_counts_its_live_connections(nexios_client: Clients) -> None:
    app = echo_app()
    client = nexios_client(app)
    assert len(app.connections) == 0
    async with client.connect("/ws"):
        assert len(app.connections) == 1
        async with client.connect("/ws") as second:
            assert len(app.connections) == 2
            assert {connection.scope["path"] for connection in app.connections} == {"/ws"}
            await second.close()
            assert len(app.connections) == 1
    assert len(app.connections) == 0


async def test_a_connection_whose_handler_fails_is_counted_out(
    nexios_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise LookupError

    async with nexios_client(app).connect("/") as ws:
        assert (await ws.wait_closed())[0] == 1011
    assert len(app.connections) == 0


async def test_a_rejected_connection_is_counted_out(nexios_client: Clients) -> None:
    app = echo_app()
    client = nexios_client(app)
    with pytest.raises(WebSocketRejected):
        async with client.connect("/unknown"):
            pass
    assert len(app.connections) == 0


async def test_drain_closes_every_connection_and_refuses_new_ones(nexios_client: Clients) -> None:
    app = echo_app()
    client = nexios_client(app)
    async with client.connect("/ws") as first, client.connect("/ws") as second:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.drain)
            for ws in (first, second):
                assert await ws.wait_closed() == (1012, "service restart")
    with pytest.raises(WebSocketRejected) as rejected:
        async with client.connect("/ws"):
            pass
    assert rejected.value.status == 503


async def test_a_handler_reaches_the_app_and_its_state(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.state.answer = 42

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json([ws.app is app, ws.app.state.answer])

    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_json() == [True, 42]


async def test_two_apps_in_one_process_share_nothing(nexios_client: Clients) -> None:
    first, second = echo_app(), NexiosApp()
    first.state.x = 1
    first.get("/page", name="page")(lambda request: None)
    assert not hasattr(second.state, "x")
    assert list(second.routes) == []
    assert second.ws_router.routes == []
    async with nexios_client(first).connect("/ws"):
        assert (len(first.connections), len(second.connections)) == (1, 0)
    with pytest.raises(WebSocketRejected):
        async with nexios_client(second).connect("/ws"):
            pass


async def test_ten_handlers_at_once_keep_their_messages_apart(nexios_client: Clients) -> None:
    client = nexios_client(echo_app())
    met = 0
    all_here = trio.Event()

    async def talk(number: int) -> None:
        nonlocal met
        async with client.connect("/ws") as ws:
            met += 1
            if met == 10:
                all_here.set()
            await all_here.wait()
            await ws.send_text(str(number))
            assert await ws.receive_text() == str(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(talk, number)


# Settings


def test_settings_of_the_connections_are_those_given() -> None:
    app = NexiosApp(
        limits=Limits(inbox_messages=3, accept_timeout=4),
        heartbeat=Heartbeat(interval=1, timeout=2),
        idle_timeout=5,
        close_timeout=6,
        disconnect_grace=0,
    )
    settings = app.settings
    assert settings.limits.inbox_messages == 3
    assert settings.heartbeat == Heartbeat(1, 2)
    assert (settings.limits.accept_timeout, settings.idle_timeout) == (4, 5)
    assert (settings.close_timeout, settings.disconnect_grace) == (6, 0)
    assert NexiosApp(heartbeat=None).settings.heartbeat is None


@pytest.mark.parametrize(
    ("options", "error"),
    [({"idle_timeout": 0}, WrongValueError), ({"disconnect_grace": "5"}, WrongTypeError)],
)
def test_a_wrong_setting_is_an_error_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        NexiosApp(**options)


# Starlette's TestClient


def test_starlettes_test_client_talks_to_the_app() -> None:
    app = echo_app()
    started: list[bool] = []
    app.on_startup(lambda: started.append(True))
    with StarletteTestClient(app, backend="trio") as client:
        assert started == [True]
        with client.websocket_connect("/ws", subprotocols=["v1"]) as ws:
            ws.send_text("hello")
            assert ws.receive_text() == "hello"


def test_starlettes_test_client_sees_the_close_code() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept(subprotocol="v1")
        await ws.send_json({"a": 1})
        await ws.close(4001, "enough")

    client = StarletteTestClient(app, backend="trio")
    with client.websocket_connect("/", subprotocols=["v1"]) as ws:
        assert ws.accepted_subprotocol == "v1"
        assert ws.receive_json() == {"a": 1}
        with pytest.raises(StarletteDisconnect) as gone:
            ws.receive_text()
    assert (gone.value.code, gone.value.reason) == (4001, "enough")


def test_starlettes_test_client_sees_a_rejection_and_http() -> None:
    app = echo_app()
    client = StarletteTestClient(app, backend="trio")
    with pytest.raises(WebSocketDenialResponse) as denied:
        with client.websocket_connect("/unknown"):
            pass
    assert denied.value.status_code == 404
    assert client.get("/unknown").status_code == 404
