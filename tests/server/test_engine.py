"""The engine beside hypercorn: which connection goes where, and what only the engine does."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from trio.testing import MockClock
from wsproto.extensions import PerMessageDeflate

from nexios_trio import Deflate, Heartbeat, Limits, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.testing import TestServer, serve
from nexios_trio.transports.engine import TRANSPORT, EngineTransport
from nexios_trio.types import Receive, Scope, Send
from tests.lanes import SocketPeer
from tests.server.clients import read_to_end, stalled
from tests.server.frames import TEXT, deflate, header

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HELLO = b"\x81\x85\0\0\0\0hello"


def make_app(**options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    app.state.ended = []

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        assert isinstance(ws._transport, EngineTransport)
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect as over:
            app.state.ended.append((over.code, over.reason, over.by))

    @app.get("/hello")
    async def hello(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    return app


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[TestServer]:
    async with serve(app, fast_lane=True, **options) as server:
        yield server


@asynccontextmanager
async def tcp(server: TestServer) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        yield stream


async def all_gone(app: NexiosApp) -> None:
    with trio.fail_after(20):
        while len(app.connections):
            await trio.sleep(0.01)


async def test_http_on_the_same_port_is_hypercorn_s() -> None:
    async with served(make_app()) as server, tcp(server) as stream:
        await stream.send_all(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"server: hypercorn" in answer
    assert answer.endswith(b"hello")


async def test_a_request_that_comes_byte_by_byte_takes_the_same_lane() -> None:
    async with served(make_app()) as server, tcp(server) as stream:
        for byte in UPGRADE:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
        await stream.send_all(HELLO)
        assert await stream.receive_some() == b"\x81\x05hello"


async def test_frames_behind_the_request_are_not_lost() -> None:
    async with served(make_app()) as server, tcp(server) as stream:
        await stream.send_all(UPGRADE + HELLO)
        answer = b""
        while not answer.endswith(b"hello"):
            answer += await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (UPGRADE.replace(b"Version: 13", b"Version: 12"), b"426"),
        (UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), b"400"),
        (UPGRADE.replace(b"/echo", b"/nowhere"), b"404"),
        (UPGRADE.replace(b"Host: x", b"Host: x\r\nOrigin: https://evil.example"), b"403"),
    ],
)
async def test_a_bad_handshake_gets_its_status(request_: bytes, status: bytes) -> None:
    app = make_app()
    async with served(app) as server:
        async with tcp(server) as stream:
            await stream.send_all(request_)
            assert (await read_to_end(stream)).startswith(b"HTTP/1.1 " + status)
        async with tcp(server) as stream:
            await stream.send_all(UPGRADE)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")


async def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten() -> None:
    async with served(make_app()) as server:
        for cut in (0, 3, 40, len(UPGRADE) - 1):
            async with tcp(server) as stream:
                await stream.send_all(UPGRADE[:cut])
                await stream.send_eof()
                with trio.fail_after(10):
                    await read_to_end(stream)


async def test_the_handler_is_told_the_client_s_code_and_reason() -> None:
    app = make_app()
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        await peer.close(4321, "lunch")
        await all_gone(app)
    assert app.state.ended == [(4321, "lunch", "peer")]


async def test_a_violation_is_answered_with_its_code_after_what_came_before_it() -> None:
    app = make_app()
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        await stream.send_all(HELLO + b"\x81\x82\0\0\0\0\xff\xfe")
        assert await peer.receive() == "hello"
        code, _ = await peer.wait_closed()
        assert code == 1007
        await all_gone(app)
    assert app.state.ended[0][0] == 1007


@pytest.mark.parametrize("end", ["a Close frame", "an end of the stream"])
async def test_what_came_in_one_packet_with_the_end_is_answered(end: str) -> None:
    app = make_app()
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        if end == "a Close frame":
            await stream.send_all(HELLO * 3 + b"\x88\x82\0\0\0\0\x03\xe9")
        else:
            await stream.send_all(HELLO * 3)
            await stream.send_eof()
        assert [await peer.receive() for _ in range(3)] == ["hello"] * 3
        code, _ = await peer.wait_closed()
        await all_gone(app)
    if end == "a Close frame":
        assert (code, app.state.ended) == (1001, [(1001, "", "peer")])
    else:
        assert (code, app.state.ended) == (1006, [(1006, "", "network")])


async def test_a_close_behind_a_message_that_nobody_takes_is_answered_in_time() -> None:
    app = NexiosApp(close_timeout=0.2, disconnect_grace=0)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep_forever()

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/")
        await stream.send_all(HELLO + b"\x88\x82\0\0\0\0\x03\xe8")
        with trio.fail_after(20):
            assert await peer.wait_closed() == (1000, "")
            await all_gone(app)


async def test_tcp_ends_with_the_closing_handshake_and_not_with_the_handler() -> None:
    app, leave = NexiosApp(disconnect_grace=1000), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        await leave.wait()

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/")
        await peer.close(1000, "bye")
        with trio.fail_after(20):
            assert await stream.receive_some() == b""
        assert len(app.connections) == 1
        leave.set()


async def test_a_handler_that_returns_with_messages_and_a_close_unread_is_not_waited_for() -> None:
    app, leave = NexiosApp(close_timeout=1000), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await leave.wait()

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/")
        await stream.send_all(HELLO + b"\x88\x82\0\0\0\0\x03\xe8")
        await trio.testing.wait_all_tasks_blocked(0.05)
        leave.set()
        with trio.fail_after(20):
            assert (await peer.wait_closed())[0] == 1000
            await all_gone(app)


LONG = "the same words again and again " * 40


@pytest.mark.parametrize("takeover", [False, True], ids=["no context", "context takeover"])
async def test_permessage_deflate_both_ways(takeover: bool) -> None:
    app = make_app(deflate=Deflate(server_no_context_takeover=not takeover))
    async with served(app) as server, tcp(server) as stream, tcp(server) as other:
        peer, plain = SocketPeer(stream), SocketPeer(other)
        packed = PerMessageDeflate()
        await peer.shake_hands("x", "/echo", extensions=[packed])
        await plain.shake_hands("x", "/echo")
        assert packed.enabled()
        for text in (LONG, "short", LONG + "é", ""):
            for client in (peer, plain):
                await client.send(text)
                assert await client.receive() == text
        await peer.close()
    assert packed.server_no_context_takeover is not takeover


@pytest.mark.parametrize("fast_lane", [True, False], ids=["engine", "hypercorn"])
async def test_no_compression_is_granted_unless_the_app_says_so(fast_lane: bool) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(LONG)

    async with serve(app, fast_lane=fast_lane) as server, tcp(server) as stream:
        peer, packed = SocketPeer(stream), PerMessageDeflate()
        await peer.shake_hands("x", "/", extensions=[packed])
        assert not packed.enabled()
        assert await peer.receive() == LONG


async def test_a_group_s_message_reaches_members_with_and_without_compression() -> None:
    app = NexiosApp(deflate=Deflate())

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("all") as group:
            await ws.send_text("in")
            async for text in ws.iter_text():
                await group.send(text)

    async with served(app) as server, AsyncExitStack() as stack:
        peers = []
        for offers in ([PerMessageDeflate()], [PerMessageDeflate(server_max_window_bits=9)], []):
            stream = await trio.open_tcp_stream(server.host, server.port)
            stack.push_async_callback(stream.aclose)
            peer = SocketPeer(stream)
            await peer.shake_hands("x", "/", extensions=offers)
            assert await peer.receive() == "in"
            peers.append(peer)
        for text in (LONG, "short"):
            await peers[0].send(text)
            assert [await peer.receive() for peer in peers] == [text] * 3


async def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    app = make_app(deflate=Deflate(), limits=Limits(message_bytes=1000))
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo", extensions=[PerMessageDeflate()])
        packed = deflate(bytes(50 << 20))
        tracemalloc.start()
        try:
            await stream.send_all(header(TEXT, len(packed), rsv1=True) + packed)
            assert await peer.wait_closed() == (1009, "a message has at most 1000 bytes")
            assert tracemalloc.get_traced_memory()[1] < 5 << 20
        finally:
            tracemalloc.stop()


async def test_a_broken_connection_is_told_at_once() -> None:
    app = make_app()
    async with served(app) as server:
        stream = await trio.open_tcp_stream(server.host, server.port)
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        await peer.drop()
        await all_gone(app)
    assert app.state.ended == [(1006, "", "network")]


async def test_a_client_that_answers_no_ping_is_closed_and_one_that_does_is_measured() -> None:
    app = make_app(heartbeat=Heartbeat(interval=0.2, timeout=0.4))
    latencies: list[float | None] = []

    @app.ws_route("/latency")
    async def latency(ws: WebSocket) -> None:
        await ws.accept()
        while ws.latency is None:
            await trio.sleep(0.01)
        latencies.append(ws.latency)
        await ws.send_text("measured")

    async with served(app) as server, tcp(server) as silent, tcp(server) as lively:
        deaf, peer = SocketPeer(silent), SocketPeer(lively)
        await deaf.shake_hands("x", "/echo")
        await peer.shake_hands("x", "/latency")
        with trio.fail_after(20):
            assert await peer.receive() == "measured"
            while not app.state.ended:
                await trio.sleep(0.01)
    assert app.state.ended == [(1006, "heartbeat timeout", "network")]
    assert latencies[0] is not None
    assert 0 <= latencies[0] < 10


async def test_a_client_that_does_not_read_is_cut_and_others_are_not() -> None:
    app = make_app(heartbeat=Heartbeat(interval=30, timeout=0.5))

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_bytes(bytes(100_000))
        except WebSocketDisconnect as over:
            app.state.ended.append((over.code, over.by))

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        async with stalled(server.host, server.port, "/flood"):
            with trio.fail_after(20):
                while not app.state.ended:
                    await peer.send("still")
                    assert await peer.receive() == "still"
    assert app.state.ended[0] == (1006, "network")


async def test_what_the_kernel_does_not_take_comes_later_whole_and_in_order() -> None:
    app = make_app(limits=Limits(outbox_bytes=1 << 30), close_timeout=60)

    @app.ws_route("/many")
    async def many(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("all") as group:
            for number in range(60):
                await group.send(f"{number} " + "g" * 50_000, save_history=False)
                await ws.send_text(f"{number} " + "d" * 50_000)
        await ws.close()

    async with served(app) as server, tcp(server) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/many")
        got = [str(await peer.receive()).split() for _ in range(120)]
        assert await peer.wait_closed() == (1000, "")
    assert [int(number) for number, _ in got] == [number for number in range(60) for _ in range(2)]
    assert [text[0] for _, text in got] == ["g", "d"] * 60


async def test_any_asgi_app_runs_on_it() -> None:
    async def endpoint(ws: StarletteWebSocket) -> None:
        await ws.accept(subprotocol="b", headers=[(b"x-a", b"1")])
        async for text in ws.iter_text():
            await ws.send_json({"got": text, "state": ws.scope["state"]})

    app = Starlette(routes=[WebSocketRoute("/", endpoint), Route("/", lambda _: PlainTextResponse("http"))])
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/", subprotocols=["a", "b"])
        await peer.send("x")
        assert await peer.receive() == '{"got":"x","state":{}}'
        await peer.close()


@pytest.mark.parametrize(("fails", "code"), [(False, 1000), (True, 1011)])
async def test_a_raw_app_that_ends_closes_its_connection(
    fails: bool, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "websocket.accept"})
        if fails:
            raise RuntimeError("a bug")

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/")
        assert (await peer.wait_closed())[0] == code
    assert ("a bug" in caplog.text) is fails


async def test_middleware_around_the_app_sees_every_message() -> None:
    inner, seen = make_app(), []

    @inner.ws_route("/wrapped")
    async def wrapped(ws: WebSocket) -> None:
        assert TRANSPORT in ws.scope["extensions"]
        assert not isinstance(ws._transport, EngineTransport)
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def telling(message: Any) -> None:
            seen.append(message["type"])
            await send(message)

        await inner(scope, receive, telling if scope["type"] == "websocket" else send)

    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/wrapped")
        await peer.send("x")
        assert await peer.receive() == "x"
        await peer.wait_closed()
    assert seen == ["websocket.accept", "websocket.send", "websocket.close"]


async def test_at_shutdown_clients_are_told_1012_also_beside_one_that_does_not_read() -> None:
    app = make_app(close_timeout=0.5, disconnect_grace=0.5)

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_bytes(bytes(100_000))

    app.settings = type(app.settings)(
        heartbeat=app.settings.heartbeat, close_timeout=0.5, disconnect_grace=0.5
    )
    async with served(app) as server, tcp(server) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands("x", "/echo")
        async with stalled(server.host, server.port, "/flood"):
            await trio.sleep(0.1)
            server.stop()
            assert await peer.wait_closed() == (1012, "service restart")
            with trio.fail_after(20):
                await server.wait_stopped()


async def test_over_a_unix_socket(tmp_path: Any) -> None:
    path = tmp_path / "s"
    app = make_app()
    async with serve(app, fast_lane=True, bind=[f"unix:{path}"]):
        with trio.fail_after(10):
            while not path.exists():
                await trio.sleep(0.01)
        async with await trio.open_unix_socket(str(path)) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands("x", "/echo")
            await peer.send("by the door")
            assert await peer.receive() == "by the door"
            await peer.close()


class Steps(trio.abc.Instrument):
    """How often tasks of Trio ran."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)


async def test_idle_connections_wake_nobody_between_two_heartbeats(autojump_clock: MockClock) -> None:
    app = make_app(heartbeat=Heartbeat(interval=20, timeout=20), limits=Limits(connections_per_address=None))
    async with served(app) as server, AsyncExitStack() as stack:
        peers = []
        for _ in range(50):
            stream = await stack.enter_async_context(tcp(server))
            peers.append(SocketPeer(stream))
            await peers[-1].shake_hands("x", "/echo")
        await trio.testing.wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(19.5)
        trio.lowlevel.remove_instrument(steps)
        assert len(steps.names) <= 2, steps.names  # this task's own
        await trio.sleep(1)
        for peer in peers:
            await peer.stream.wait_send_all_might_not_block()
        assert [(await peer.stream.receive_some())[0] for peer in peers] == [0x89] * 50  # a Ping
