"""How much one WebSocket message may be, and what becomes of a client that sends more."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, TextMessage
from wsproto.extensions import PerMessageDeflate

from nexios_trio import Deflate, Limits, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.server.wire import TURN, BoundedDeflate, Wire
from nexios_trio.testing import TestServer
from tests.lanes import Serve, SocketPeer
from tests.server.clients import H2Client
from tests.server.frames import BINARY, MORE, PING, PONG, TEXT, deflate, frame, header

LIMIT = 1000
REASON = f"a message has at most {LIMIT} bytes"


class App(NexiosApp):
    """Echoes the length of each message, and notes how its connections end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"limits": Limits(message_bytes=LIMIT), "deflate": Deflate(), **options})
        self.ends: list[tuple[int, str]] = []
        self.ended = trio.Event()
        self.lengths: list[int] = []
        self.ws_route("/")(self.serve)

    async def serve(self, ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                message = await ws.receive()
                if message["type"] == "websocket.disconnect":
                    continue
                text = message["text"]
                self.lengths.append(len(message["bytes"] if text is None else text))
                await ws.send_text(str(self.lengths[-1]))
        except WebSocketDisconnect as over:
            self.ends.append((over.code, over.reason))
            self.ended.set()


@asynccontextmanager
async def connected(server: TestServer, **options: Any) -> AsyncIterator[SocketPeer]:
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands(server.host, "/", **options)
        yield peer


def pieces(data: str | bytes, size: int) -> Iterator[Event]:
    """The message in fragments of so many characters or bytes."""
    kind: Any = TextMessage if isinstance(data, str) else BytesMessage
    for start in range(0, len(data), size):
        yield kind(data[start : start + size], message_finished=start + size >= len(data))


MESSAGES: dict[str, tuple[str | bytes, str | bytes]] = {
    "binary": (b"x" * LIMIT, b"x" * (LIMIT + 1)),
    "text": ("x" * LIMIT, "x" * (LIMIT + 1)),
    "text of two bytes a character": ("é" * (LIMIT // 2), "é" * (LIMIT // 2) + "x"),
    "text of four bytes a character": ("💥" * (LIMIT // 4), "x" + "💥" * (LIMIT // 4)),
}


@pytest.mark.untraced
@pytest.mark.parametrize("size", [LIMIT * 2, 7, 1], ids=["whole", "in sevens", "in ones"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", MESSAGES)
async def test_a_message_at_the_limit_passes_and_one_byte_more_ends_with_1009(
    serve: Serve, kind: str, packed: bool, size: int
) -> None:
    app = App()
    fits, too_big = MESSAGES[kind]
    async with serve(app) as server:
        async with connected(server, extensions=[PerMessageDeflate()] if packed else []) as peer:
            for _ in range(2):  # each message is counted anew
                for event in pieces(fits, size):
                    await peer._put(event)
                assert await peer.receive() == str(len(fits))
            for event in pieces(too_big, size):
                await peer._put(event)
            assert await peer.wait_closed() == (1009, REASON)
            await app.ended.wait()
    assert app.lengths == [len(fits)] * 2
    assert app.ends == [(1009, REASON)]


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


async def test_what_follows_is_not_collected_and_the_connection_ends(
    serve: Serve, fast_clock: MockClock
) -> None:
    """hypercorn alone says 1009, and keeps whatever the client goes on to send."""
    app = App()
    async with serve(app) as server:
        async with connected(server) as peer:
            await peer.stream.send_all(header(BINARY, 1 << 40))
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await peer.stream.send_all(bytes(1 << 16))
            await app.ended.wait()
            assert app.ends == [(1009, REASON)]


async def test_a_client_that_sends_on_reads_the_1009_all_the_same(serve: Serve) -> None:
    app = App()
    async with serve(app) as server:
        async with connected(server) as peer:
            await peer.stream.send_all(frame(BINARY, bytes(1 << 20)))
            assert await peer.wait_closed() == (1009, REASON)


async def test_a_limit_of_the_users_config_wins(serve: Serve) -> None:
    app = App(limits=Limits(message_bytes=LIMIT * 10))
    async with serve(app, websocket_max_message_size=LIMIT) as server:
        async with connected(server) as peer:
            await peer.send("x" * (LIMIT + 1))
            assert await peer.wait_closed() == (1009, REASON)


async def test_without_a_limit_there_is_none(serve: Serve) -> None:
    app = App(limits=Limits(message_bytes=None))
    async with serve(app) as server:
        async with connected(server, extensions=[PerMessageDeflate()]) as peer:
            await peer.send(bytes(17 << 20))
            assert await peer.receive() == str(17 << 20)
            await peer.close()


async def test_over_http2_the_other_websockets_go_on(serve: Serve) -> None:
    app = App()
    async with serve(app) as server:
        client = H2Client(await trio.open_tcp_stream(server.host, server.port))
        await client.start()
        bad, good = await client.connect("/"), await client.connect("/")
        for _ in range(3):  # also what comes when the stream is no more
            await bad.send("x" * (LIMIT + 1))
        assert await bad.receive() == (1009, REASON)
        client.http.send_data(bad.stream_id, frame(TEXT, b"still here"))
        await good.send("hello")
        assert await good.receive() == "5"
        assert app.ends == [(1009, REASON)]
        await client.stream.aclose()


async def test_a_bomb_is_not_unpacked(serve: Serve) -> None:
    """200 KB that would be 200 MiB, of which hypercorn alone unpacks 64 MiB at once."""
    app = App(limits=Limits(message_bytes=1 << 20))
    bomb = deflate(bytes(200 << 20))
    async with serve(app) as server:
        async with connected(server, extensions=[PerMessageDeflate()]) as peer:
            tracemalloc.start()
            try:
                await peer.stream.send_all(frame(BINARY, bomb, rsv1=True))
                assert (await peer.wait_closed())[0] == 1009
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert peak < 16 << 20
    assert app.lengths == []


async def test_what_is_behind_the_last_block_of_a_message_is_not_kept(
    serve: Serve, server_lane: str, fast_clock: MockClock
) -> None:
    """zlib would, outside of any message's size."""
    app = App()
    async with serve(app) as server:
        async with connected(server, extensions=[PerMessageDeflate()]) as peer:
            await peer.stream.send_all(header(BINARY, 1 << 40, rsv1=True) + deflate(b"hello", last=True))
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await peer.stream.send_all(bytes(1 << 16))
            await app.ended.wait()
            # The engine refuses the frame for its announced length, and unpacks nothing.
            assert app.ends[0][0] == (1009 if server_lane == "engine" else 1007)


async def test_a_message_with_a_last_block_is_one_like_others(serve: Serve) -> None:
    """RFC 7692 section 7.2.3.4; wsproto alone fails at the next message."""
    async with serve(App()) as server:
        async with connected(server, extensions=[PerMessageDeflate()]) as peer:
            last = deflate(b"hello", last=True)
            for packed in (last + b"\x00", deflate(b"four"), last):
                await peer.stream.send_all(frame(BINARY, packed, rsv1=True))
            assert [await peer.receive() for _ in range(3)] == ["5", "4", "5"]
            await peer.stream.send_all(frame(BINARY, b"plain"))
            assert await peer.receive() == "5"
            await peer.close()


VIOLATIONS = {
    "an opcode that there is not": (frame(3), 1002),
    "a frame without a mask": (b"\x81\x02hi", 1002),
    "text that is no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "a fragment of nothing": (frame(MORE, b"x"), 1002),
    "a new message inside another": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    "a packed ping": (frame(PING, b"x", rsv1=True), 1002),
    "a packed fragment": (frame(TEXT, b"x", fin=False) + frame(MORE, b"x", rsv1=True), 1002),
    "what cannot be unpacked": (frame(BINARY, b"\xff" * 50, rsv1=True), 1007),
}


WORDS = {
    "text that is no UTF-8": "a text message is not valid UTF-8",
    "what cannot be unpacked": "a compressed message is not a valid deflate stream",
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_who_breaks_the_protocol_is_told_so(
    serve: Serve, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, code = VIOLATIONS[name]
    app = App()
    async with serve(app) as server:
        async with connected(server, extensions=[PerMessageDeflate()]) as peer:
            await peer.stream.send_all(data)
            seen, reason = await peer.wait_closed()
            assert seen == code
            assert reason == WORDS.get(name, reason)
            await app.ended.wait()
    assert app.ends == [(code, reason)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_violation_while_we_close_ends_the_connection(serve: Serve) -> None:
    app = NexiosApp(close_timeout=1000)

    @app.ws_route("/")
    async def close(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4000)

    async with serve(app) as server:
        async with connected(server) as peer:
            event = await peer._event()
            while not isinstance(event, CloseConnection):
                event = await peer._event()
            await peer.stream.send_all(frame(3))
            assert await peer.stream.receive_some(100) == b""


def test_a_turn_is_over_after_so_many_events_and_none_is_lost() -> None:
    wire = Wire(LIMIT, *server_side())
    wire.receive_data(frame(PONG) * (TURN + 1) + frame(BINARY, b"x") + frame(PONG) * (TURN * 2))
    turns = []
    while True:
        turns.append(len(list(wire.events())))
        if not wire.more:
            break
    assert sum(turns) == TURN * 3 + 2
    assert max(turns) == TURN


def server_side(*extensions: Any) -> tuple[Any, Any]:
    return ConnectionType.SERVER, list(extensions)


@pytest.mark.parametrize("takeover", [True, False])
def test_unpacking_goes_on_from_message_to_message(takeover: bool) -> None:
    ours = BoundedDeflate(LIMIT, Deflate())
    theirs = PerMessageDeflate(client_no_context_takeover=not takeover)
    accepted = ours.accept("permessage-deflate; " + str(theirs.offer()))
    assert isinstance(accepted, str)
    theirs.finalize("permessage-deflate; " + accepted)
    client, wire = Connection(ConnectionType.CLIENT, [theirs]), Wire(LIMIT, *server_side(ours))
    seen = []
    for number in range(5):
        text = f"message {number} " * 20
        for event in pieces(text, 50):
            wire.receive_data(client.send(event))
        seen.append("".join(str(event.data) for event in wire.events() if isinstance(event, TextMessage)))
    assert seen == [f"message {number} " * 20 for number in range(5)]
