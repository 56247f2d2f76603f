"""The client in memory misbehaves, as clients do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.testing import TestClient, TestWebSocket
from nexios_trio.types import Receive, Scope, Send

Client = Callable[..., TestClient]


def frames(*events: Event) -> bytes:
    wire = Connection(ConnectionType.CLIENT)
    return b"".join(wire.send(event) for event in events)


class Recorder:
    """An app that keeps what its connection received, and how it ended."""

    def __init__(self) -> None:
        self.app = NexiosApp()
        self.messages: list[str | bytes] = []
        self.over: WebSocketDisconnect | None = None

        @self.app.ws_route("/")
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            try:
                while True:
                    message = await ws.receive()
                    for kind in ("text", "bytes"):
                        if message.get(kind) is not None:
                            self.messages.append(message[kind])
            except WebSocketDisconnect as over:
                self.over = over


async def put(data: bytes, *more: bytes) -> Recorder:
    recorder = Recorder()
    async with TestClient(recorder.app) as client, client.connect("/") as ws:
        for part in (data, *more):
            await ws.garbage(part)
    assert recorder.over is not None
    return recorder


async def test_a_dropped_client_is_1006_to_both_sides() -> None:
    recorder = Recorder()
    async with TestClient(recorder.app) as client, client.connect("/") as ws:
        await ws.send_text("read me first")
        await ws.drop()
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive()
        assert (over.value.code, over.value.by) == (1006, "network")
        await ws.drop()
    assert recorder.messages == ["read me first"]
    assert recorder.over is not None
    assert recorder.over.code == 1006


async def test_whole_frames_among_raw_bytes_reach_the_app_as_messages() -> None:
    sent = frames(TextMessage("grüße"), BytesMessage(b"\x01\x02"), Ping(b"?"), TextMessage(""))
    recorder = await put(sent)
    assert recorder.messages == ["grüße", b"\x01\x02", ""]
    assert recorder.over is not None
    assert recorder.over.code == 1000


async def test_fragments_are_one_message_however_the_bytes_are_cut() -> None:
    sent = frames(
        TextMessage("grü", message_finished=False),
        Ping(),
        TextMessage("ße"),
        BytesMessage(b"ab", message_finished=False),
        BytesMessage(b"", message_finished=False),
        BytesMessage(b"c"),
    )
    whole = await put(sent)
    cut = await put(*(sent[i : i + 1] for i in range(len(sent))))
    assert whole.messages == cut.messages == ["grüße", b"abc"]


async def test_a_close_frame_among_raw_bytes_carries_its_code_and_reason() -> None:
    recorder = await put(frames(TextMessage("x"), CloseConnection(4005, "by hand")))
    assert recorder.messages == ["x"]
    assert recorder.over is not None
    assert (recorder.over.code, recorder.over.reason) == (4005, "by hand")
    recorder = await put(b"\x88\x80\x00\x00\x00\x00")  # without a code
    assert recorder.over is not None
    assert recorder.over.code == 1005


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x81\x01x",  # unmasked
        b"\x83\x80\x00\x00\x00\x00",  # reserved opcode
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x81\x81\x00\x00\x00\x00\xff",  # no UTF-8
        b"\x80\x80\x00\x00\x00\x00",  # a continuation of nothing
    ],
)
async def test_garbage_ends_the_connection_as_1006(junk: bytes) -> None:
    recorder = await put(frames(TextMessage("before")) + junk)
    assert recorder.messages == ["before"]
    assert recorder.over is not None
    assert recorder.over.code == 1006


class Flood:
    """An app that sends until it is blocked; `sent` counts what went out."""

    def __init__(self) -> None:
        self.app = NexiosApp()
        self.sent = 0
        self.patience = 0.0
        self.cancelled = 0

        @self.app.ws_route("/flood")
        async def flood(ws: WebSocket) -> None:
            await ws.accept()
            while True:
                with trio.move_on_after(self.patience) if self.patience else trio.CancelScope() as scope:
                    await ws.send_text(str(self.sent))
                    self.sent += 1
                if scope.cancelled_caught:
                    self.cancelled += 1
                    await ws.receive_text()

        @self.app.ws_route("/echo")
        async def echo(ws: WebSocket) -> None:
            await ws.accept()
            async for text in ws.iter_text():
                await ws.send_text(text)


async def _goes_on(neighbour: TestWebSocket) -> None:
    await neighbour.send_text("still there?")
    assert await neighbour.receive_text() == "still there?"


async def test_a_client_that_stalls_blocks_the_apps_sends_and_nobody_else(nexios_client: Client) -> None:
    flood = Flood()
    client = nexios_client(flood.app, window=20)
    async with client.connect("/echo") as neighbour, client.connect("/flood") as ws:
        await ws.stall()
        await ws.stall()
        await wait_all_tasks_blocked()
        blocked_at = flood.sent
        assert blocked_at in (20, 21)
        await _goes_on(neighbour)
        await wait_all_tasks_blocked()
        assert flood.sent == blocked_at
        await ws.resume()
        for number in range(50):
            assert await ws.receive_text() == str(number)
        await ws.drop()


async def test_what_waits_for_a_stalled_client_reads_on_after_resume(
    nexios_client: Client, autojump_clock: MockClock
) -> None:
    async with nexios_client(Flood().app).connect("/echo") as ws:
        await ws.stall()
        await ws.send_text("x")
        with pytest.raises(trio.TooSlowError):
            await ws.receive_text()
        got: list[str] = []

        async def read() -> None:
            got.append(await ws.receive_text())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            await ws.stall()
            await ws.resume()
        assert got == ["x"]


async def test_a_cancelled_send_to_a_stalled_client_leaves_the_connection_usable(
    nexios_client: Client, autojump_clock: MockClock
) -> None:
    flood = Flood()
    flood.patience = 1.0
    client = nexios_client(flood.app, window=5)
    async with client.connect("/flood") as ws:
        await ws.stall()
        await trio.sleep(3)
        assert flood.cancelled == 1
        await ws.resume()
        await ws.send_text("go on")
        for number in range(12):
            assert await ws.receive_text() == str(number)


async def test_a_stalled_client_can_leave(nexios_client: Client, autojump_clock: MockClock) -> None:
    flood = Flood()
    client = nexios_client(flood.app, window=3)
    async with client.connect("/flood") as ws:
        await ws.stall()
        await wait_all_tasks_blocked()
    async with client.connect("/flood") as ws:
        await ws.stall()
        await wait_all_tasks_blocked()
        await ws.drop()
    assert len(flood.app.connections) == 0


async def test_a_send_to_a_client_that_left_raises_nothing_in_a_plain_asgi_app() -> None:
    sends = 0

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sends
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        for _ in range(200):  # more than any window
            await send({"type": "websocket.send", "text": "x"})
            sends += 1

    async with TestClient(app, lifespan=False) as client, client.connect("/") as ws:
        await ws.drop()
    assert sends == 200


async def test_a_blocked_send_of_a_plain_asgi_app_ends_when_the_client_leaves() -> None:
    sends = 0

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sends
        await send({"type": "websocket.accept"})
        for _ in range(10):
            await send({"type": "websocket.send", "text": "x"})
            sends += 1

    async with TestClient(app, lifespan=False, window=4) as client, client.connect("/") as ws:
        await wait_all_tasks_blocked()
        assert sends < 10
        await ws.drop()
    assert sends == 10
