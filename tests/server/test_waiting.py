"""TCP connections without a request: how long they may stay, how many there are, what they leave."""

from __future__ import annotations

import resource
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.staticfiles import StaticFiles
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.exceptions import WrongValueError
from nexios_trio.server.hypercorn import WAITING_CONNECTIONS, _lobby, hypercorn_config
from nexios_trio.testing import TestServer
from nexios_trio.types import Receive, Scope, Send
from tests.lanes import Serve, SocketPeer, reset
from tests.server.clients import H2Client, read_to_end
from tests.server.frames import TEXT, frame
from tests.server.test_hostile_and_dead_clients import UPGRADE
from tests.server.test_http2_and_tls import certificate
from tests.server.test_hypercorn import _tasks, eventually

__all__ = ["certificate"]

FOREVER = 1e6
"""So that no timer of hypercorn's own does what ours shall do."""


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


async def page(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers, and reads nothing."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"page"})


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp(heartbeat=None, close_timeout=0.1)

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/short")
    async def short(ws: WebSocket) -> None:
        await ws.accept()

    app.mount("/page", page)
    return app


async def connect(server: TestServer) -> trio.SocketStream:
    return await trio.open_tcp_stream(server.host, server.port)


async def take_page(stream: trio.SocketStream) -> None:
    received = b""
    while not received.endswith(b"\r\n\r\npage"):
        data = await stream.receive_some(1000)
        assert data, received
        received += data


async def echoes(peer: SocketPeer) -> bool:
    await peer.send("still there?")
    return await peer.receive() == "still there?"


PRIOR_KNOWLEDGE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
H2_PING = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)

SLOW: dict[str, tuple[bytes, bytes]] = {  # what is sent at once, and what is sent again and again
    "nothing": (b"", b""),
    "a byte at a time": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x"),
    "HTTP/2 and then nothing": (PRIOR_KNOWLEDGE, b""),
    "HTTP/2 and then pings": (PRIOR_KNOWLEDGE, H2_PING),
    "half of HTTP/2's preface": (PRIOR_KNOWLEDGE[:18], b""),
    "an upgrade that is answered 400": (UPGRADE.replace(b"Version: 13", b"Version: 99"), b""),
    "an upgrade that does not end": (UPGRADE[:-2] + b"X: ", b"x"),
    "a request and then a byte at a time": (b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\nGET / ", b"x"),
}


async def drip(stream: trio.abc.Stream, data: bytes) -> None:
    try:
        while data:
            await stream.send_all(data)
            await trio.sleep(0.2)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("fast_lane", [False, True], ids=["hypercorn", "engine"])
@pytest.mark.parametrize(("at_once", "again"), SLOW.values(), ids=SLOW.keys())
async def test_a_client_that_brings_no_request_is_dropped(
    serve: Serve, at_once: bytes, again: bytes, fast_lane: bool, app: NexiosApp, fast_clock: MockClock
) -> None:
    keep_alive = 4.0 if b"/page/" in at_once else FOREVER
    async with serve(
        app, handshake_timeout=2.0, keep_alive_timeout=keep_alive, fast_lane=fast_lane
    ) as server:
        async with await connect(server) as stream:
            await stream.send_all(at_once)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drip, stream, again)
                await read_to_end(stream)
                nursery.cancel_scope.cancel()
    assert trio.current_time() < FOREVER / 2


@pytest.mark.parametrize("shake_hands", [False, True])
async def test_so_is_one_that_brings_none_over_tls(
    serve: Serve, shake_hands: bool, app: NexiosApp, certificate: tuple[str, str], fast_clock: MockClock
) -> None:
    cert, key = certificate
    timers: dict[str, Any] = {
        "handshake_timeout": 4.0,
        "keep_alive_timeout": FOREVER,
        "ssl_handshake_timeout": FOREVER,
    }
    async with serve(app, certfile=cert, keyfile=key, **timers) as server:
        async with await connect(server) as stream:
            if shake_hands:
                trust = ssl.create_default_context(cafile=cert)
                tls = trio.SSLStream(stream, trust, server_hostname="127.0.0.1", https_compatible=True)
                await tls.do_handshake()
                assert await read_to_end(tls) == b""
            else:
                assert await read_to_end(stream) == b""


async def test_a_request_under_way_may_take_its_time(
    serve: Serve, app: NexiosApp, fast_clock: MockClock
) -> None:
    go = trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await go.wait()
        await page(scope, receive, send)

    app.mount("/slow", slow)
    async with serve(app, handshake_timeout=2.0) as server:
        async with await connect(server) as ws_stream, await connect(server) as http_stream:
            peer = SocketPeer(ws_stream)
            await peer.shake_hands(server.host, "/")
            await http_stream.send_all(b"GET /slow/ HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(2):
                async with await connect(server) as idle:
                    await read_to_end(idle)
            assert await echoes(peer)
            go.set()
            assert b"\r\n\r\npage" in await read_to_end(http_stream)
            await peer.close()


async def test_a_connection_may_bring_one_request_after_another(
    serve: Serve, app: NexiosApp, fast_clock: MockClock
) -> None:
    async with serve(app, handshake_timeout=1.0, keep_alive_timeout=FOREVER) as server:
        async with await connect(server) as stream:
            for _ in range(3):
                async with await connect(server) as idle:
                    await stream.send_all(b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\n")
                    await take_page(stream)
                    await read_to_end(idle)


async def test_of_too_many_the_oldest_goes(
    serve: Serve, app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app, waiting_connections=3) as server, AsyncExitStack() as stack:
        peer = SocketPeer(await stack.enter_async_context(await connect(server)))
        await peer.shake_hands(server.host, "/")
        waiting = []
        for _ in range(7):
            waiting.append(await stack.enter_async_context(await connect(server)))
            await wait_all_tasks_blocked(0.01)
        for stream in waiting[:4]:
            assert await read_to_end(stream) == b""
        late = SocketPeer(waiting[4])
        await late.shake_hands(server.host, "/")
        assert await echoes(late)
        assert await echoes(peer)
        for stream in waiting[5:]:
            await stream.send_all(b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\n")
            await take_page(stream)
        await late.close()
        await peer.close()
    warnings = [record.getMessage() for record in caplog.records if record.name == "nexios_trio.server"]
    assert warnings == ["3 TCP connections wait without a request; dropping the oldest (1 so far)"]


async def test_a_client_that_leaves_is_let_go_at_once(serve: Serve, app: NexiosApp) -> None:
    """hypercorn waits for its timer."""
    async with serve(app, handshake_timeout=FOREVER, keep_alive_timeout=FOREVER) as server:
        await wait_all_tasks_blocked(0.01)
        before = _tasks()
        for data in (b"", b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\n", PRIOR_KNOWLEDGE, UPGRADE[:50]):
            async with await connect(server) as stream:
                await stream.send_all(data)
                await eventually(lambda: _tasks() > before)
        await eventually(lambda: _tasks() == before)
        client = H2Client(await connect(server))
        await client.start()
        await client.connect("/")
        await client.stream.aclose()
        await eventually(lambda: _tasks() == before)


async def test_so_is_one_that_leaves_before_its_answer(serve: Serve, app: NexiosApp) -> None:
    asked, go = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            asked.set()
            await go.wait()
            await page(scope, receive, send)

    app.mount("/slow", slow)
    async with serve(app, handshake_timeout=FOREVER, keep_alive_timeout=FOREVER) as server:
        await wait_all_tasks_blocked(0.01)
        before = _tasks()
        stream = await connect(server)
        await stream.send_all(b"GET /slow/ HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        reset(stream.socket)
        await stream.aclose()
        await wait_all_tasks_blocked(0.01)
        go.set()
        await eventually(lambda: _tasks() == before)


async def test_a_flood_at_a_handler_that_has_returned_leaves_nothing_behind(
    serve: Serve, app: NexiosApp
) -> None:
    """hypercorn would wait for good for somebody to receive it."""
    async with serve(app) as server:
        await wait_all_tasks_blocked(0.01)
        before = _tasks()
        for _ in range(10):
            async with await connect(server) as stream:
                await SocketPeer(stream).shake_hands(server.host, "/short")
                try:
                    await stream.send_all(frame(TEXT, b"x") * 20_000)
                except trio.BrokenResourceError:
                    pass
        await eventually(lambda: _tasks() == before)


@pytest.mark.parametrize("body", [10_000, 10_000_000])
async def test_a_body_that_nobody_reads_leaves_nothing_behind(
    serve: Serve, body: int, app: NexiosApp
) -> None:
    async with serve(app) as server:
        await wait_all_tasks_blocked(0.01)
        before = _tasks()
        for _ in range(5):
            async with await connect(server) as stream:
                try:
                    await stream.send_all(
                        b"POST /page/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % body
                    )
                    await stream.send_all(bytes(body))
                except trio.BrokenResourceError:
                    pass
        await eventually(lambda: _tasks() == before)


def test_the_bound_leaves_file_descriptors_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    config = hypercorn_config()
    for files, bound in ((1_000_000, WAITING_CONNECTIONS), (1024, 512), (1, 1), (-1, WAITING_CONNECTIONS)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, files=files: (files, files))
        assert _lobby(config)._most == bound
    config = hypercorn_config(waiting_connections=2000)
    assert _lobby(config)._most == 2000


def test_a_setting_that_is_written_wrong_is_named() -> None:
    with pytest.raises(WrongValueError, match="did you mean 'handshake_timeout'"):
        hypercorn_config(handshake_timeuot=1)


async def test_requests_that_follow_a_response_at_once_are_all_answered(serve: Serve) -> None:
    site = NexiosApp()
    answers: list[bytes] = []
    site.mount("/", StaticFiles(directory=Path(__file__).parent))

    async def visit(server: TestServer) -> None:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            for _ in range(5):
                await stream.send_all(b"GET /frames.py HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(content):
                    received = await stream.receive_some()
                    assert received, answer
                    answer += received
                answers.append(answer)

    content = Path(__file__).with_name("frames.py").read_bytes()
    async with serve(site, handshake_timeout=FOREVER, keep_alive_timeout=FOREVER) as server:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(visit, server)
    assert len(answers) == 100
