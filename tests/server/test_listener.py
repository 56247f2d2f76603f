"""What comes in at the engine's own door: silence, resets, halves, floods, and the end amid all of it."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.config import ConnectionSettings, Limits
from nexios_trio.server.reactor import BATCH, EpollReactor, TaskReactor
from nexios_trio.testing import TestServer, serve
from nexios_trio.transports.engine import READ_BYTES, READ_LESS_BYTES, READ_MORE_BYTES, EngineTransport
from nexios_trio.wire import RequestReader
from tests.lanes import SocketPeer, reset
from tests.server.clients import read_to_end, stalled
from tests.server.frames import BINARY, CLOSE, MORE, PING, PONG, TEXT, frame
from tests.server.test_hostile_and_dead_clients import UPGRADE


@pytest.fixture(params=[EpollReactor, TaskReactor])
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NexiosApp:
    """On the reactor of this platform, and on the one for those without epoll."""
    monkeypatch.setattr("nexios_trio.server.engine.make_reactor", request.param)
    app = NexiosApp(close_timeout=0.5, disconnect_grace=0.5)
    app.state.sockets = []

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        app.state.sockets.append(ws)
        await ws.accept()
        async with ws.join("all"):
            async for text in ws.iter_text():
                await ws.send_text(text)

    return app


async def connect(server: TestServer) -> trio.SocketStream:
    return await trio.open_tcp_stream(server.host, server.port)


async def shaken(server: TestServer) -> SocketPeer:
    peer = SocketPeer(await connect(server))
    await peer.shake_hands(server.host, "/")
    return peer


async def echoed(peer: SocketPeer, text: str) -> None:
    await peer.send(text)
    assert await peer.receive() == text


async def nothing(_stream: trio.SocketStream) -> None:
    pass


async def half(stream: trio.SocketStream) -> None:
    await stream.send_all(UPGRADE[:40])


async def garbage(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x00\xff\r\n\r\n")


async def upgrade(stream: trio.SocketStream) -> None:
    await stream.send_all(UPGRADE)


async def upgrade_and_hello(stream: trio.SocketStream) -> None:
    await stream.send_all(UPGRADE + frame(TEXT, b"hello") + frame(CLOSE))


async def bad_key(stream: trio.SocketStream) -> None:
    await stream.send_all(UPGRADE.replace(b"dGhl", b"\xff\xff"))


VISITS: list[Callable[[trio.SocketStream], Awaitable[None]]] = [
    nothing,
    half,
    garbage,
    upgrade,
    upgrade_and_hello,
    bad_key,
]


def descriptors() -> int:
    if not Path("/proc/self/fd").exists():
        pytest.skip("NO /proc HERE: descriptors stay uncounted")
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.untraced
@pytest.mark.parametrize("rudely", [False, True], ids=["closing", "resetting"])
async def test_a_thousand_visitors_leave_no_descriptor_and_no_task_behind(
    rudely: bool, app: NexiosApp
) -> None:
    async with serve(app, fast_lane=True) as server:
        neighbour = await shaken(server)
        gc.collect()  # what an earlier test has left shall not be counted
        before = descriptors(), tasks()

        async def visit(number: int) -> None:
            stream = await connect(server)
            await VISITS[number % len(VISITS)](stream)
            if rudely:
                reset(stream.socket)
            await stream.aclose()

        for start in range(0, 1000, 50):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 50):
                    nursery.start_soon(visit, number)
            await echoed(neighbour, str(start))
        with trio.fail_after(20):
            while (descriptors(), tasks()) != before:
                await trio.sleep(0.01)
        assert len(app.connections) == 1
        await neighbour.close()


async def crowd(server: TestServer, stack: AsyncExitStack) -> list[trio.SocketStream]:
    """One connection in each state that there is."""
    streams = []
    for visit in VISITS:
        stream = await stack.enter_async_context(await connect(server))
        await visit(stream)
        streams.append(stream)
    streams.append(await stack.enter_async_context(stalled(server.host, server.port, "/")))
    return streams


async def test_a_shutdown_waits_for_nobody_who_is_silent(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True, handshake_timeout=1000) as server, AsyncExitStack() as stack:
        streams = await crowd(server, stack)
        peer = await shaken(server)
        server.stop()
        assert await peer.wait_closed() == (1012, "service restart")
        with trio.fail_after(30):
            await server.wait_stopped()
        for stream in streams:
            await read_to_end(stream)


async def test_a_server_that_is_cancelled_in_the_middle_ends_without_a_word_in_the_log(
    app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()
    async with AsyncExitStack() as stack:
        before = descriptors(), tasks()
        async with serve(app, fast_lane=True) as server, trio.open_nursery() as nursery:
            streams = await crowd(server, stack)
            peers = [await shaken(server) for _ in range(20)]

            async def tell_all() -> None:
                while True:
                    await app.channels.send("all", "x" * 1000)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(tell_all)
            await peers[0].receive()
            server.kill()
            with trio.fail_after(30):
                await server.wait_stopped()
            nursery.cancel_scope.cancel()
        for stream in (*streams, *(peer.stream for peer in peers)):
            await stream.aclose()
        gc.collect()  # a socket that nobody closed would warn
        with trio.fail_after(20):
            while (descriptors(), tasks()) != before:
                await trio.sleep(0.01)
    assert not caplog.records


async def test_a_group_is_sent_to_while_its_members_leave(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, AsyncExitStack() as stack:
        staying = await shaken(server)
        peers = [await shaken(server) for _ in range(60)]
        for peer in peers:
            stack.push_async_callback(peer.stream.aclose)

        async def leave() -> None:
            for number, peer in enumerate(peers):
                await (peer.drop() if number % 2 else peer.stream.send_all(frame(CLOSE)))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            for number in range(100):
                await app.channels.send("all", str(number))
                await trio.lowlevel.checkpoint()
        assert [await staying.receive() for _ in range(100)] == [str(number) for number in range(100)]
        with trio.fail_after(20):
            while len(app.connections) > 1:
                await trio.sleep(0.01)
        await staying.close()


async def test_what_comes_behind_a_close_frame_is_thrown_away(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server:
        for junk in (b"\xff" * 100_000, frame(TEXT, b"late") * 1000, frame(PING) * 1000):
            peer = await shaken(server)
            await peer.stream.send_all(frame(TEXT, b"hello") + frame(CLOSE, b"\x03\xe8bye") + junk)
            assert await peer.receive() == "hello"
            assert await peer.wait_closed() == (1000, "bye")
            await peer.stream.aclose()


async def test_who_pings_and_does_not_read_is_not_read_from_until_he_does(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, stalled(server.host, server.port, "/") as stream:
        with trio.CancelScope() as blocked:
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await wait_all_tasks_blocked(0.05)
                    blocked.cancel()

                nursery.start_soon(stop)
                while True:
                    await stream.send_all(frame(PING, b"x" * 125) * 100)
        (ws,) = app.state.sockets
        transport = ws._transport
        assert isinstance(transport, EngineTransport)
        assert not transport.reading
        with trio.fail_after(30):
            while not transport.reading:
                await stream.receive_some(65536)


FLOODS = {
    "tiny messages": frame(TEXT, b"x"),
    "pings": frame(PING),
    "pongs": frame(PONG),
}


class Nobody:
    """A reactor that tells of nothing."""

    now = 0.0

    def watch(self, watched: object) -> None:
        pass

    def forget(self, watched: object) -> None:
        pass

    def wake_at(self, watched: object, due: float) -> None:
        pass


@pytest.mark.parametrize("flood", [*FLOODS, "fragments"])
async def test_a_flood_of_frames_is_read_in_small_pieces_and_a_large_message_in_large_ones(
    flood: str,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        request = RequestReader().receive_data(UPGRADE)
        assert request is not None
        settings = ConnectionSettings(limits=Limits(message_bytes=1 << 20))
        transport = EngineTransport(ours, request, Nobody(), settings)
        await transport.accept(None, [])
        assert transport._read_bytes == READ_BYTES
        large = frame(BINARY, bytes(60_000))
        theirs.sendall(large)
        while not len(transport.inbox):
            transport.readable()
        assert READ_BYTES < transport._read_bytes <= READ_MORE_BYTES
        await transport.inbox.get()
        theirs.sendall(large)
        transport.readable()
        assert len(transport.inbox) == 1  # in one piece
        many = FLOODS.get(flood) or frame(MORE, b"x", fin=False)
        theirs.sendall(frame(TEXT, b"x", fin=False) * (flood == "fragments") + many * 5000)
        transport.readable()
        assert transport._read_bytes == READ_LESS_BYTES
        for _ in range(3):
            transport.readable()
            assert transport._read_bytes == READ_LESS_BYTES


class Due:
    """Something whose time has come."""

    reading = writing = False
    watched = 0

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.scheduled = float("inf")
        self.ticks = 0

    def readable(self) -> None:
        pass

    writable = hung_up = readable

    def tick(self, now: float) -> float:
        self.ticks += 1
        return float("inf")


@pytest.mark.parametrize("make", [EpollReactor, TaskReactor])
async def test_ten_thousand_timers_that_are_due_at_once_let_others_run(
    make: type[EpollReactor | TaskReactor], autojump_clock: trio.testing.MockClock
) -> None:
    reactor = make()
    with socket.socket() as sock:
        dues = [Due(sock) for _ in range(10_000)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            await wait_all_tasks_blocked()
            for due in dues:
                reactor.wake_at(due, trio.current_time() + 1)
            await trio.sleep(1)
            before = 0
            while before < len(dues):
                done = sum(due.ticks for due in dues)
                assert done - before <= 2 * BATCH
                before = done
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert all(due.ticks == 1 for due in dues)


async def test_a_message_for_a_client_that_has_reset_ends_that_connection_alone(app: NexiosApp) -> None:
    told: list[WebSocketDisconnect] = []

    @app.ws_route("/push")
    async def push(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text("x" * 100)
                await trio.lowlevel.checkpoint()
        except WebSocketDisconnect as over:
            told.append(over)

    async with serve(app, fast_lane=True) as server:
        neighbour = await shaken(server)
        for _ in range(20):
            stream = await connect(server)
            await SocketPeer(stream).shake_hands(server.host, "/push")
            reset(stream.socket)
            await trio.aclose_forcefully(stream)
        with trio.fail_after(20):
            while len(told) < 20:
                await trio.sleep(0.01)
        await echoed(neighbour, "still here")
        await neighbour.close()
    assert {(over.code, over.by) for over in told} == {(1006, "network")}
