"""What serving adds to hypercorn while it runs: pings, TCP_USER_TIMEOUT, an early end of each task."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from hypercorn.config import Config, Sockets
from hypercorn.utils import LifespanFailureError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import HandshakeError, open_websocket_url, wrap_client_stream
from wsproto.events import Ping

from nexios_trio import Heartbeat, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.server.hypercorn import hypercorn_config, serve_hypercorn
from nexios_trio.testing import serve
from nexios_trio.types import ASGIApp, Receive, Scope, Send
from tests.lanes import SocketPeer
from tests.server.clients import closed_with, stalled

linux = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="NO TCP_USER_TIMEOUT HERE")


def echo_app(heartbeat: Heartbeat | None = None) -> NexiosApp:
    app = NexiosApp(heartbeat=heartbeat)

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.get("/")
    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    return app


@asynccontextmanager
async def running(app: ASGIApp, config: Config | None = None) -> AsyncIterator[tuple[Config, Sockets, str]]:
    """The app under `serve_hypercorn` itself: its config, its listening sockets, its URL."""
    config = config or hypercorn_config(bind=["127.0.0.1:0"], errorlog=None)
    sockets = config.create_sockets()
    for listener in sockets.insecure_sockets:
        listener.listen()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_hypercorn(app, config, sockets=sockets, drain_window=0, task_status=task_status)

        (url,) = await nursery.start(run)
        yield config, sockets, url
        nursery.cancel_scope.cancel()


def user_timeout(sockets: Sockets) -> int:
    (listener,) = sockets.insecure_sockets
    return listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def pings_of(url: str) -> AsyncGenerator[float]:
    """When pings arrive, in seconds since the handshake."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands(host, "/echo")
        connected = trio.current_time()
        while True:
            event = await peer._event()
            if isinstance(event, Ping):
                yield trio.current_time() - connected
                await peer._put(event.response())


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


async def test_clients_are_pinged_at_the_heartbeats_interval(fast_clock: MockClock) -> None:
    async with running(echo_app(Heartbeat(interval=4, timeout=60))) as (config, _, url):
        async with aclosing(pings_of(url)) as pings:
            times = [await anext(pings) for _ in range(3)]
        assert times[2] - times[0] > 7
        assert config.websocket_ping_interval is None  # the caller's own config is left alone


@linux
async def test_the_heartbeats_timeout_is_set_for_the_sockets_that_will_be_accepted() -> None:
    async with running(echo_app(Heartbeat(interval=5, timeout=7.5))) as (_, sockets, _):
        assert user_timeout(sockets) == 7500
    async with running(echo_app(Heartbeat(interval=5, timeout=0.0001))) as (_, sockets, _):
        assert user_timeout(sockets) == 1  # 0 would mean the system's default
    async with running(echo_app(Heartbeat(interval=math.inf, timeout=math.inf))) as (_, sockets, _):
        assert user_timeout(sockets) == 0


@linux
async def test_a_client_that_does_not_read_is_gone_after_the_heartbeats_timeout() -> None:
    """By the kernel's own clock: no cancel scope frees hypercorn's send."""
    app = NexiosApp(heartbeat=Heartbeat(interval=math.inf, timeout=0.5))
    over = trio.Event()
    codes: list[int] = []

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_bytes(bytes(1 << 20))
        except WebSocketDisconnect as gone:
            codes.append(gone.code)
            over.set()

    async with serve(app) as server, stalled(server.host, server.port, "/flood"):
        await over.wait()
    assert codes == [1006]


async def test_an_app_without_settings_gets_the_default_heartbeat(fast_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        await send({"type": "websocket.accept"})
        await receive()
        await receive()

    async with running(app) as (_, sockets, _):
        assert user_timeout(sockets) == 1000 * Heartbeat().timeout


async def test_without_a_heartbeat_there_are_no_pings_and_no_timeout(fast_clock: MockClock) -> None:
    async with running(echo_app(None)) as (_, sockets, url):
        assert user_timeout(sockets) == 0
        with trio.move_on_after(5) as patience:
            async with aclosing(pings_of(url)) as pings:
                await anext(pings)
        assert patience.cancelled_caught


async def test_a_ping_interval_of_the_users_own_wins(fast_clock: MockClock) -> None:
    config = hypercorn_config(bind=["127.0.0.1:0"], errorlog=None, websocket_ping_interval=1.0)
    async with running(echo_app(Heartbeat(interval=1000, timeout=1000)), config) as (_, _, url):
        async with aclosing(pings_of(url)) as pings:
            for _ in range(3):
                await anext(pings)
        assert trio.current_time() < 500


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the server does after its client has seen the end."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


def _tasks(task: trio.lowlevel.Task | None = None) -> int:
    task = task or trio.lowlevel.current_root_task()
    assert task is not None
    return 1 + sum(_tasks(child) for nursery in task.child_nurseries for child in nursery.child_tasks)


async def test_nothing_of_hypercorn_lingers_after_a_client_has_left() -> None:
    """Its pinger sleeps for the whole interval, and its connection waits for the pinger."""
    async with running(echo_app(Heartbeat(interval=1000, timeout=1000))) as (_, _, url):
        await wait_all_tasks_blocked()
        before = _tasks()
        url = url.replace("http", "ws")
        for _ in range(3):
            async with open_websocket_url(url + "/echo") as ws:
                await ws.send_message("x")
                await ws.get_message()
        await eventually(lambda: _tasks() == before)


async def test_every_server_starts_from_the_config_as_it_was_given() -> None:
    config = hypercorn_config(bind=["127.0.0.1:0"], errorlog=None)
    before = dict(vars(config))
    for _ in range(2):
        async with running(echo_app(Heartbeat(interval=3)), config):
            pass
    assert vars(config) == before


async def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with running(
        echo_app(Heartbeat()), hypercorn_config(bind=[f"unix:{path}"], errorlog=None)
    ) as started:
        assert started[2] == f"http://unix:{path}"
        async with trio.open_nursery() as nursery:
            stream = await trio.open_unix_socket(str(path))
            ws = await wrap_client_stream(nursery, stream, "localhost", "/echo")
            await ws.send_message("hello")
            assert await ws.get_message() == "hello"
            await ws.aclose()


async def test_without_sockets_it_binds_its_own() -> None:
    config = hypercorn_config(bind=["127.0.0.1:0"], errorlog=None)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_hypercorn(echo_app(), config, task_status=task_status)

        (url,) = await nursery.start(run)
        async with httpx2.AsyncClient() as http:
            assert (await http.get(url)).text == "page"
        nursery.cancel_scope.cancel()


async def test_an_untried_hypercorn_is_served_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.99rc1")
    async with serve(echo_app()) as server:
        async with open_websocket_url(server.url + "/echo") as ws:
            await ws.send_message("hello")
            assert await ws.get_message() == "hello"
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
    warnings = [record.getMessage() for record in caplog.records if record.name == "nexios_trio.server"]
    assert warnings == [
        "hypercorn 0.99rc1 has not been tried; serving without early ping and shutdown ends and some bounds"
    ]


async def test_an_app_inside_another_frameworks_is_drained_too() -> None:
    inner = echo_app()
    async with serve(Starlette(routes=[Mount("/rt", app=inner)])) as server:
        async with open_websocket_url(server.url + "/rt/echo") as ws:
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")


async def test_an_app_that_returns_from_its_lifespan_is_served() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4000})

    async with serve(app) as server, open_websocket_url(server.url) as ws:
        assert (await closed_with(ws))[0] == 4000


async def test_a_shutdown_that_fails_is_not_lost() -> None:
    app = echo_app()

    @app.on_shutdown
    def fail() -> None:
        raise KeyError("cannot flush")

    with pytest.raises(LifespanFailureError, match="cannot flush"):
        async with serve(app) as server:
            server.stop()
            await server.wait_stopped()


async def test_a_rejection_leaves_nothing_behind() -> None:
    app = NexiosApp()
    async with serve(app) as server:
        for _ in range(3):
            with pytest.raises(HandshakeError):
                async with open_websocket_url(server.url + "/nowhere"):
                    pass
        await eventually(lambda: len(app.connections) == 0)
