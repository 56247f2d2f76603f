"""One member that never reads, over a real hypercorn, and the Close frame behind a queue."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.config import Overflow
from nexios_trio.testing import TestClient
from tests.lanes import Lane, Serve, SocketPeer

MEMBERS, MESSAGES, SIZE = 200, 60, 200_000
ROOM = 4096
"""Bytes that the kernel keeps for who never reads, about."""
LIMITS = Limits(outbox_messages=8)


@pytest.mark.untraced
async def test_a_member_that_never_reads_holds_up_nobody_and_is_dropped_by_its_rule(serve: Serve) -> None:
    app = NexiosApp(
        limits=LIMITS, heartbeat=None
    )  # which ends it as well, on a slow machine before the rule does
    ends: list[WebSocketDisconnect] = []
    most = 0

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room"):
            await ws.send_text("in")
            try:
                await ws.receive_text()
            except WebSocketDisconnect as over:
                ends.append(over)
                raise

    async def read(peer: SocketPeer, number: int) -> None:
        data = await peer.receive()
        assert len(data) == SIZE
        assert int(data[:10]) == number

    async with serve(app) as server, AsyncExitStack() as stack:
        peers = []
        for number in range(MEMBERS):
            sock = trio.socket.socket()
            if number == 0:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, ROOM)
            await sock.connect((server.host, server.port))
            stream = await stack.enter_async_context(trio.SocketStream(sock))
            peers.append(SocketPeer(stream))
            await peers[-1].shake_hands(server.host, "/")
            assert await peers[-1].receive() == "in"
        stalled, *others = peers
        for number in range(MESSAGES):
            with trio.fail_after(30):
                await app.channels.send("room", f"{number:010}".ljust(SIZE), save_history=False)
                async with trio.open_nursery() as nursery:
                    for peer in others:
                        nursery.start_soon(read, peer, number)
            for connection in app.connections:
                if connection.transport.outbox is not None:
                    most = max(most, len(connection.transport.outbox))
            if ends:
                break
        (end,) = ends
        assert (end.code, end.reason, end.by) == (1013, "too slow", "local")
        assert most <= LIMITS.outbox_messages
        assert len(app.channels.hub.groups["room"].members) == MEMBERS - 1
        await stalled.drop()
        for peer in others:
            await peer.drop()


async def test_what_was_queued_goes_out_before_the_close_frame(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room") as group:
            for number in range(100):
                await group.send(str(number))
        await ws.close(4000, "done")

    async with lane.serving(app), lane.connect() as peer:
        assert [await peer.receive() for _ in range(100)] == [str(number) for number in range(100)]
        assert await peer.wait_closed() == (4000, "done")


async def test_the_close_frame_waits_for_a_slow_client_but_not_for_ever(autojump_clock: MockClock) -> None:
    app = NexiosApp(close_timeout=5)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room") as group:
            for number in range(20):
                await group.send(str(number))

    got = []
    async with TestClient(app, window=1, timeout=100) as client, client.connect("/") as ws:
        try:
            while True:
                await trio.sleep(1)
                got.append(await ws.receive_text())
        except WebSocketDisconnect as over:
            assert over.code == 1000
    assert got == [str(number) for number in range(len(got))]
    assert 5 <= len(got) < 20
    assert len(app.connections) == 0


async def test_a_kicked_client_is_not_kept_for_its_queue(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=LIMITS)
    told: list[tuple[float, int]] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room"):
            try:
                await ws.receive_text()
            except WebSocketDisconnect as over:
                told.append((trio.current_time(), over.code))
                await ws.close()

    async with TestClient(app, window=1) as client, client.connect("/") as ws:
        await wait_all_tasks_blocked()
        before = trio.current_time()
        for number in range(12):
            await app.channels.send("room", number)
            await wait_all_tasks_blocked()
        assert told == [(before, 1013)]
        assert await ws.receive_text() == "0"
        assert await ws.receive_text() == "1"
        assert await ws.wait_closed() == (1013, "too slow")


async def test_the_outbox_stays_bounded_while_thousands_of_messages_are_sent(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(limits=LIMITS)
    sockets: list[WebSocket] = []

    @app.ws_route("/{rule}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        rules = {
            "oldest": Overflow.DROP_OLDEST,
            "newest": Overflow.DROP_NEWEST,
            "last": Overflow.CONFLATE("n"),
        }
        async with ws.join("room", overflow=rules[ws.path_params["rule"]]):
            sockets.append(ws)
            await ws.receive_text()

    async with TestClient(app, window=1) as client, AsyncExitStack() as stack:
        for rule in ("oldest", "newest", "last"):
            await stack.enter_async_context(client.connect(f"/{rule}"))
        await wait_all_tasks_blocked()
        for number in range(5000):
            await app.channels.send("room", {"n": number % 100, "v": number})
            assert all(ws.statistics().waiting_messages <= LIMITS.outbox_messages for ws in sockets)
        for ws in sockets:
            outbox = ws._transport.outbox
            assert outbox is not None
            assert len(outbox._keyed) <= LIMITS.outbox_messages


async def test_a_server_that_will_not_take_a_message_ends_that_connection_alone(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room"):
            await ws.send_text("in")
            await ws.receive_text()

    async def picky(scope, receive, send):  # type: ignore[no-untyped-def]
        async def wrapped(message):  # type: ignore[no-untyped-def]
            if message.get("text") == "poison" and scope["path"] == "/" and scope["query_string"]:
                raise ValueError("no")
            await send(message)

        await app(scope, receive, wrapped)

    async with TestClient(picky) as client, client.connect("/?picky") as a, client.connect("/") as b:
        await a.receive_text(), await b.receive_text()
        await app.channels.send("room", "poison")
        assert await b.receive_text() == "poison"
        assert await a.wait_closed() == (1011, "internal error")
        await app.channels.send("room", "more")
        assert await b.receive_text() == "more"
