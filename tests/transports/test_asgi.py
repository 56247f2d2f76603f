"""A connection over a server's receive and send, whatever these do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.exceptions import WrongStateError
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.transports.asgi import AsgiTransport, sends_atomically
from nexios_trio.transports.core import ClientGone
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET
from nexios_trio.transports.states import State
from nexios_trio.types import Message, Receive, Scope, Send

LOST = [OSError("gone"), trio.BrokenResourceError(), trio.ClosedResourceError(), trio.BusyResourceError()]


class Server:
    """Takes messages, or raises at the one of a given type."""

    def __init__(self, fail_at: str = "", error: Exception | None = None) -> None:
        self.fail_at = fail_at
        self.error = error
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == self.fail_at and self.error is not None:
            raise self.error
        self.sent.append(message)

    def transport(self, *, atomic: bool = True, denial: bool = True) -> AsgiTransport:
        transport = AsgiTransport(
            self.receive,
            self.send,
            extensions={"websocket.http.response": {}} if denial else {},
            atomic=atomic,
            limits=Limits(inbox_messages=10, inbox_bytes=1000),
        )
        transport.close_timeout = 1
        return transport


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fail_at", ["websocket.accept", "websocket.send"])
@pytest.mark.parametrize("atomic", [True, False])
async def test_an_error_of_the_network_out_of_send_is_a_disconnect(
    error: Exception, fail_at: str, atomic: bool
) -> None:
    transport = Server(fail_at, error).transport(atomic=atomic)
    with pytest.raises(WebSocketDisconnect) as over:
        await transport.accept(None, [])
        await transport.send_text("x")
    assert (over.value.code, over.value.by) == (1006, "network")
    assert over.value.__cause__ is error
    assert transport.state is State.CLOSED
    with pytest.raises(WebSocketDisconnect):
        await transport.send_bytes(b"x")
    await transport.close(1000, "")


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_close_that_the_network_does_not_take_is_no_error(error: Exception) -> None:
    transport = Server("websocket.close", error).transport()
    await transport.accept(None, [])
    await transport.close(4000, "bye")
    assert transport.state is State.CLOSED
    assert transport.closure is not None
    assert (transport.closure.code, transport.closure.by) == (4000, "local")
    assert not transport.close_owed


async def test_another_error_of_the_server_passes_and_the_turn_with_it() -> None:
    server = Server("websocket.send", ValueError("a bug of the server"))
    transport = server.transport()
    await transport.accept(None, [])
    with pytest.raises(ValueError, match="a bug of the server"):
        await transport.send_text("x")
    server.error = None
    await transport.send_text("y")
    assert [message.get("text") for message in server.sent] == [None, "y"]


async def test_asgi_messages_do_what_the_methods_do() -> None:
    server = Server()
    transport = server.transport()
    assert await transport.asgi_receive() == {"type": "websocket.connect"}
    await transport.asgi_send({"type": "websocket.accept", "subprotocol": "v1", "headers": [(b"a", b"b")]})
    await transport.asgi_send({"type": "websocket.send", "text": "t", "bytes": None})
    transport.inbox.put_nowait("in")
    transport.inbox.put_nowait(b"in")
    assert (await transport.asgi_receive())["text"] == "in"
    assert (await transport.asgi_receive())["bytes"] == b"in"
    await transport.asgi_send({"type": "websocket.close", "code": 4000})
    for _ in range(2):
        disconnect = await transport.asgi_receive()
        assert disconnect == {"type": "websocket.disconnect", "code": 4000, "reason": ""}
    with pytest.raises(ClientGone) as over:
        await transport.asgi_send({"type": "websocket.send", "text": "t"})
    assert isinstance(over.value, OSError)
    assert over.value.code == 4000
    assert [message["type"] for message in server.sent] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]


async def test_a_denial_comes_in_pieces_and_goes_out_whole() -> None:
    server = Server()
    transport = server.transport()
    await transport.asgi_send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await transport.asgi_send({"type": "websocket.http.response.body", "body": b"a", "more_body": True})
    await transport.asgi_send({"type": "websocket.http.response.body", "body": b"b"})
    assert server.sent == [
        {"type": "websocket.http.response.start", "status": 401, "headers": []},
        {"type": "websocket.http.response.body", "body": b"ab"},
    ]
    assert transport.state is State.REJECTED


async def test_a_denial_without_the_extension_is_a_plain_close() -> None:
    server = Server()
    await server.transport(denial=False).reject(401, [], b"no")
    assert server.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


@pytest.mark.parametrize("kind", ["websocket.http.response.body", "http.response.start", "chat"])
async def test_a_message_that_does_not_belong_here_is_named(kind: str) -> None:
    with pytest.raises(WrongStateError, match=f"the ASGI message '{kind}' is not one of"):
        await Server().transport().asgi_send({"type": kind, "body": b""})


async def test_a_server_that_never_blocks_does_not_keep_others_from_running() -> None:
    transport = Server().transport()

    async def send(message: Message) -> None:
        pass

    transport._send = send
    await transport.accept(None, [])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(5 * CHECKPOINT_BUDGET):
            await transport.send_text("x")
        nursery.cancel_scope.cancel()
    assert turns >= 4


async def test_sends_that_meet_while_one_lets_others_run_still_go_one_at_a_time() -> None:
    busy = 0

    class Slow(Server):
        async def send(self, message: Message) -> None:
            nonlocal busy
            busy += 1
            assert busy == 1
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            busy -= 1
            self.sent.append(message)

    server = Slow()
    transport = server.transport()
    await transport.accept(None, [])

    async def sender(name: str) -> None:
        for number in range(3 * CHECKPOINT_BUDGET):
            await transport.send_text(f"{name}{number}")

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(sender, name)
    assert len(server.sent) == 1 + 9 * CHECKPOINT_BUDGET
    for name in "abc":
        mine = [message["text"] for message in server.sent[1:] if message["text"].startswith(name)]
        assert mine == [f"{name}{number}" for number in range(3 * CHECKPOINT_BUDGET)]


async def test_senders_who_wait_when_the_connection_ends_are_told() -> None:
    async def never(message: Message) -> None:
        if message["type"] == "websocket.send":
            await blocked.wait()

    blocked = trio.Event()
    transport = Server().transport()
    transport._send = never
    await transport.accept(None, [])
    told: list[int] = []

    async def sender() -> None:
        try:
            await transport.send_text("x")
        except WebSocketDisconnect as over:
            told.append(over.code)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(sender)
        await wait_all_tasks_blocked()
        nursery.start_soon(transport.close, 4000, "")
        await wait_all_tasks_blocked()
        blocked.set()
    assert told == [4000, 4000]  # the first one's message was on its way


@pytest.mark.parametrize(
    ("version", "extensions", "atomic"),
    [
        ("1.1", b"", True),
        ("1.1", b"permessage-deflate; client_max_window_bits", False),
        ("1.1", b"x-other", True),
        ("2", b"", False),
        ("3", b"", False),
    ],
)
def test_which_connections_send_atomically(version: str, extensions: bytes, atomic: bool) -> None:
    headers = [(b"host", b"x"), (b"sec-websocket-extensions", extensions)]
    assert sends_atomically({"http_version": version, "headers": headers}) is atomic


# Through middleware that stands in between

Handler = Callable[[WebSocket], Awaitable[None]]


def between(wrap_send: Callable[[Send], Send] = lambda send: send) -> Callable[[Any], Any]:
    """ASGI middleware that wraps receive and send."""

    def middleware(app: Any) -> Any:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def receive_through() -> Message:
                return await receive()

            await app(scope, receive_through, wrap_send(send))

        return wrapped

    return middleware


async def run_through(handler: Handler, wrap_send: Callable[[Send], Send] = lambda send: send) -> TestClient:
    app = NexiosApp(middleware=[between(wrap_send)])
    app.add_ws_route("/", handler)
    return TestClient(app)


async def test_bytes_a_close_and_its_code_pass_through_middleware(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_bytes(await ws.receive_bytes())
        await ws.close(4000, "through")
        await ws.close()
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive_text()
        assert (over.value.code, over.value.by) == (4000, "local")

    def pass_on(send: Send) -> Send:
        async def passed(message: Message) -> None:
            await send(message)

        return passed

    async with await run_through(handler, pass_on) as client, client.connect("/") as ws:
        await ws.send_bytes(b"x")
        assert await ws.receive_bytes() == b"x"
        assert await ws.wait_closed() == (4000, "through")


async def test_a_rejection_passes_through_middleware(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.reject(402, "pay")

    def pass_on(send: Send) -> Send:
        async def passed(message: Message) -> None:
            await send(message)

        return passed

    async with await run_through(handler, pass_on) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert (rejected.value.status, rejected.value.body) == (402, b"pay")


@pytest.mark.parametrize("error", [OSError("by middleware"), ClientGone(1001)], ids=["OSError", "ClientGone"])
async def test_an_oserror_of_middleware_is_a_disconnect_for_the_handler(
    error: OSError, autojump_clock: MockClock
) -> None:
    seen: list[WebSocketDisconnect] = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.send_text("x")
        except WebSocketDisconnect as over:
            seen.append(over)

    def fail(send: Send) -> Send:
        async def failing(message: Message) -> None:
            if message["type"] == "websocket.send":
                raise error
            await send(message)

        return failing

    async with await run_through(handler, fail) as client, client.connect("/") as ws:
        await ws.wait_closed()
    assert seen[0].code == (1001 if isinstance(error, ClientGone) else 1006)
