"""The portable lane: a connection over the ``receive`` and ``send`` of any ASGI server on Trio.

ASGI shows a disconnect only through ``receive``, so `AsgiTransport.read` drains it for as long as the
connection lives, and the handler takes its messages from a bounded inbox. A send after the client has
left raises nothing in ASGI: we know better from the reader and raise.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, Literal

import trio
from trio.lowlevel import ParkingLot, checkpoint, checkpoint_if_cancelled

from nexios_trio.exceptions import WebSocketDisconnect, WrongStateError
from nexios_trio.transports.base import Closure
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET, Inbox
from nexios_trio.transports.outbox import Entry, Outbox
from nexios_trio.transports.states import CURES, REJECTED_CURE, TRANSITIONS, Event, State
from nexios_trio.types import Message, Receive, Scope, Send

__all__ = ["ENDED_BY", "ON_LOST", "AsgiTransport", "ClientGone", "sends_atomically"]

logger = logging.getLogger("nexios_trio.connection")

ON_LOST: Final = "nexios_trio.on_lost"
"""A server that puts a function under this key of ``scope["extensions"]`` calls what is given to it, with a
reason, when it finds the network broken: also while messages wait that nobody receives."""

ENDED_BY: Final = "nexios_trio.by"
"""The key of a ``websocket.disconnect`` that says who has ended the connection, if it was the server:
``"local"``."""

_LOST: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
# hypercorn's close path can raise BusyResourceError out of send(): it calls send_eof() outside its lock.


def _nothing(*_arguments: object) -> None:
    pass


class ClientGone(WebSocketDisconnect, OSError):
    """What `AsgiTransport.asgi_send` raises once the client has left.

    The ASGI specification asks servers for an OSError there, and Starlette and Quart catch one.
    """


def sends_atomically(scope: Scope) -> bool:
    """Whether a cancelled ``send()`` of this server has sent the whole message or nothing.

    hypercorn's does, for a plain frame over HTTP/1.1: it can be cancelled only while it waits for its
    lock. With permessage-deflate, which it always grants, the frame has gone through the compressor by
    then, and every later message would be garbage to the peer; over HTTP/2 a part may have been sent.
    Where the answer is no, we shield the send, which costs about 5 % of an echo.
    """
    if scope.get("http_version") != "1.1":
        return False
    return not any(
        name == b"sec-websocket-extensions" and b"permessage-deflate" in value
        for name, value in scope["headers"]
    )


def _is_longer(data: str | bytes, bound: int) -> bool:
    """Whether the message has more than ``bound`` bytes, text as UTF-8."""
    if len(data) > bound or isinstance(data, bytes) or data.isascii():
        return len(data) > bound
    return len(data.encode("utf-8", "surrogatepass")) > bound


def frame_size(message: Message) -> int:
    """Bytes (characters for text) of a ``websocket.send``."""
    data = message.get("text")
    return len(data if data is not None else message.get("bytes") or b"")


class AsgiTransport:
    """See `nexios_trio.transports.base.Transport`."""

    __slots__ = (
        "_atomic",
        "_close_sent",
        "_connect_told",
        "_denial",
        "_gone_event",
        "_on_accepted",
        "_on_closing",
        "_on_too_big",
        "_on_unread",
        "_patience",
        "_peer_gone",
        "_queue",
        "_receive",
        "_send",
        "_sending",
        "_streak",
        "_wire_close",
        "accepted_early",
        "choked",
        "close_timeout",
        "closure",
        "default_subprotocol",
        "extensions",
        "inbox",
        "max_message",
        "outbox",
        "received_at",
        "spoken",
        "state",
        "take",
        "track_time",
        "unread_timeout",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        extensions: dict[str, Any],
        atomic: bool,
        inbox: Inbox,
        close_timeout: float,
        unread_timeout: float = math.inf,
        max_message: int | None = None,
        on_closing: Callable[[], None],
        on_accepted: Callable[[str | None], None] = _nothing,
        on_unread: Callable[[], None] = _nothing,
        on_too_big: Callable[[], None] = _nothing,
    ) -> None:
        self._receive = receive
        self._send = send
        self.extensions = extensions
        self._atomic = atomic
        self.inbox = inbox
        self.take: Callable[[], Awaitable[str | bytes]] = inbox.get
        """Where received messages are taken from: the inbox, or rate limits in front of it."""
        self.outbox: Outbox | None = None
        """Set with the first group membership; all sends go through it from then on."""
        self.close_timeout = close_timeout
        self.unread_timeout = unread_timeout
        self._on_closing = on_closing
        self._on_accepted = on_accepted
        self._on_unread = on_unread
        self._on_too_big = on_too_big
        self.max_message = sys.maxsize if max_message is None else max_message
        self.state = State.CONNECTING
        self.closure: Closure | None = None
        self.track_time = False
        self.received_at = 0.0
        """When the last message came (`trio.current_time`), kept only while ``track_time`` is set."""
        self.spoken = False
        """Whether a message has come, kept only while ``track_time`` is set."""
        self.accepted_early = False
        """Whether somebody has accepted in the handler's place: the next `accept` finds it done."""
        self.default_subprotocol: str | None = None
        """What an `accept` that names no subprotocol chooses."""
        self.choked = False
        """Whether `read` has stopped reading because the handler does not: a silence of our own making."""
        self._patience = math.inf
        """Until when the handler may leave a full inbox alone."""
        self._sending = False
        self._streak = 0
        self._queue: ParkingLot | None = None
        self._peer_gone = False
        self._gone_event: trio.Event | None = None
        self._close_sent = False
        self._wire_close = (1000, "")
        self._connect_told = False
        self._denial: Message | None = None

    # What the server tells us

    async def read(self) -> None:
        """Move messages from ASGI's receive() to the inbox until the peer is gone. Cancelling it between
        messages loses none; it can then be called again."""
        receive, inbox = self._receive, self.inbox
        if self.choked:
            await self._wait_for_room()
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                data = event.get("text")
                if data is None:
                    data = event.get("bytes") or b""
                if self.track_time:
                    self.received_at = trio.current_time()
                    self.spoken = True
                if len(data) * 4 > self.max_message and _is_longer(data, self.max_message):
                    self._on_too_big()
                elif inbox.put_nowait(data):
                    await self._wait_for_room()
            elif event["type"] == "websocket.disconnect":
                code = event.get("code", 1005)
                by: Literal["peer", "local", "network"] = "network" if code == 1006 else "peer"
                if ENDED_BY in event:
                    by = event[ENDED_BY]
                if by == "local" and code == 1009:
                    self._on_too_big()
                self._gone(Closure(code, event.get("reason") or "", by))
                return

    async def _wait_for_room(self) -> None:
        # A disconnect waits behind the messages that nobody reads, and cannot be seen: patience is bounded.
        if not self.choked:  # or this goes on after a timer has interrupted `read`
            self.choked = True
            self._patience = trio.current_time() + self.unread_timeout
        while self.inbox.full:
            with trio.move_on_at(self._patience) as patience:
                await self.inbox.wait_taken()
                self._patience = trio.current_time() + self.unread_timeout
            if patience.cancelled_caught:
                self._patience = trio.current_time() + self.unread_timeout
                self._on_unread()
        self.choked = False
        if self.track_time:
            self.received_at = trio.current_time()

    def lost(self, reason: str = "") -> None:
        """The server knows that the network has broken, whatever still waits to be received."""
        if not self._peer_gone:
            self._gone(Closure(1006, reason, "network"))

    def let_accept_again(self) -> None:
        """After an `accept` in the handler's place: the handler sees the connection as it began."""
        self.accepted_early = True
        self._connect_told = False

    def declare_dead(self, reason: str) -> None:
        """Treat a silent peer as gone: the handler sees 1006; the wire, should it still work, 1011."""
        if self.state is State.OPEN:
            self._wire_close = (1011, reason)
            self._end(Closure(1006, reason, "network"))

    def _gone(self, closure: Closure) -> None:
        self._peer_gone = True
        if self._gone_event is not None:
            self._gone_event.set()
        self._end(closure)

    def _end(self, closure: Closure) -> None:
        if self.closure is None:
            self.closure = closure
        self.state = TRANSITIONS[self.state, Event.END]
        self.inbox.stop(self.closure.error)
        if self.outbox is not None:
            self.outbox.throw_away()
        self._on_closing()

    # What the handler does

    def refusal(self, event: Event) -> Exception:
        """The error for an event that the table does not allow in the present state."""
        if self.closure is not None:
            return self.closure.error()
        return WrongStateError(CURES.get((self.state, event), REJECTED_CURE))

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self.accepted_early and self.state is not State.CONNECTING:
            if self.closure is not None:
                raise self.closure.error()
            headers = list(headers)
            if subprotocol is not None or headers:
                raise WrongStateError(
                    "this connection was accepted to be authenticated by its first message; give the "
                    "subprotocol and headers to that authenticator, and call accept() without"
                )
            self.accepted_early = False
            await checkpoint()
            return
        if subprotocol is None:
            subprotocol = self.default_subprotocol
        await self._answer(
            Event.ACCEPT,
            {"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers)},
        )

    async def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        if self.accepted_early and self.state is not State.CONNECTING:  # too late for HTTP
            self.accepted_early = False
            await self.close(4000 + status if 400 <= status < 500 else 1011, "")
            return
        if "websocket.http.response" in self.extensions:
            await self._answer(
                Event.REJECT,
                {"type": "websocket.http.response.start", "status": status, "headers": list(headers)},
                {"type": "websocket.http.response.body", "body": body},
            )
        else:
            await self._answer(Event.REJECT, {"type": "websocket.close", "code": 1008, "reason": ""})

    async def _answer(self, event: Event, *messages: Message) -> None:
        if (self.state, event) not in TRANSITIONS:
            raise self.refusal(event)
        await self._take_turn()
        try:
            if (self.state, event) not in TRANSITIONS:
                raise self.refusal(event)
            with trio.CancelScope(shield=True):
                for message in messages:
                    await self._send(message)
            if self.state is State.CONNECTING:  # the peer may have gone meanwhile
                self.state = TRANSITIONS[self.state, event]
            if event is Event.ACCEPT:
                self._on_accepted(messages[0]["subprotocol"])
        except (WebSocketDisconnect, WrongStateError):
            raise
        except Exception as error:
            if not isinstance(error, _LOST):
                # h11, of requests that are half an upgrade: the client's doing, not the handler's
                logger.info("the server did not take the answer to a handshake: %a", error)
            self._gone(Closure(1006, "", "network"))
            raise self.refusal(event) from error
        finally:
            self._give_turn()

    def send_text(self, data: str) -> Coroutine[Any, Any, None]:
        return self._send_message({"type": "websocket.send", "text": data})

    def send_bytes(self, data: bytes) -> Coroutine[Any, Any, None]:
        return self._send_message({"type": "websocket.send", "bytes": data})

    async def _send_message(self, message: Message) -> None:
        if self.state is not State.OPEN:
            raise self.refusal(Event.SEND)
        if self.outbox is not None:
            if not await self.outbox.put(Entry(message, frame_size(message))):
                raise self.refusal(Event.SEND)
            return
        if self._sending:
            await self._wait_turn()
            pause = False
        else:
            self._sending = True
            self._streak += 1
            pause = self._streak >= CHECKPOINT_BUDGET
        try:
            if pause:
                # A server whose client is gone may take messages without ever blocking: let it tell us.
                self._streak = 0
                await checkpoint()
            else:
                await checkpoint_if_cancelled()
            if self.closure is not None:  # while we waited
                raise self.closure.error()
            if self._atomic:
                await self._send(message)
            else:
                with trio.CancelScope(shield=True):
                    await self._send(message)
        except _LOST as error:
            self._gone(Closure(1006, "", "network"))
            raise self.refusal(Event.SEND) from error
        finally:
            if self._queue:
                self._queue.unpark()
            else:
                self._sending = False
        if self.closure is not None and self.closure.by != "local":
            raise self.closure.error()

    async def write(self) -> None:
        """Empty the outbox until the peer is gone. In a task of its own, once there is an outbox."""
        assert self.outbox is not None
        while True:
            frame = await self.outbox.take()
            await self._take_turn()
            try:
                if self._peer_gone:
                    return
                if self._atomic:
                    await self._send(frame)
                else:
                    with trio.CancelScope(shield=True):
                        await self._send(frame)
            except _LOST:
                self._gone(Closure(1006, "", "network"))
                return
            finally:
                self._give_turn()

    async def _take_turn(self) -> None:
        """Sends go out one at a time, in the order in which they were called."""
        if not self._sending:
            await checkpoint_if_cancelled()
            self._sending = True
        else:
            await self._wait_turn()

    async def _wait_turn(self) -> None:
        if self._queue is None:
            self._queue = ParkingLot()
        await self._queue.park()

    def _give_turn(self) -> None:
        if self._queue:
            self._queue.unpark()  # _sending stays True: the turn is that task's
        else:
            self._sending = False

    # The end

    async def close(self, code: int, reason: str) -> None:
        if self.begin_close(code, reason):
            await self.send_close()
        else:
            await checkpoint()

    def begin_close(self, code: int, reason: str) -> bool:
        """End the connection on our side; `send_close` is then owed. False if it was over already."""
        if self.state is not State.OPEN and self.state is not State.CONNECTING:
            return False
        self._wire_close = (code, reason)
        self.closure = Closure(code, reason, "local")
        self.state = TRANSITIONS[self.state, Event.CLOSE]
        self.inbox.stop(self.closure.error)
        if self.outbox is not None:
            self.outbox.close()
        self._on_closing()
        return True

    async def send_close(self) -> None:
        """Send the Close frame (before accept: HTTP 403) that is still owed, if any; before it what waits
        in the outbox, as far as that goes out within ``close_timeout``."""
        if self.outbox is not None:
            with trio.move_on_after(self.close_timeout):
                await self.outbox.wait_sent()
            self.outbox.throw_away()
        with trio.move_on_after(self.close_timeout):
            await self._take_turn()
            try:
                if not self._close_sent and not self._peer_gone:
                    self._close_sent = True
                    code, reason = self._wire_close
                    with trio.move_on_after(self.close_timeout, shield=True):
                        await self._send({"type": "websocket.close", "code": code, "reason": reason})
            except _LOST:
                self._gone(Closure(1006, "", "network"))
            finally:
                self._give_turn()

    @property
    def close_owed(self) -> bool:
        """Whether the connection is over on our side, but the peer has not been told."""
        return self.closure is not None and not self._close_sent and not self._peer_gone

    async def wait_gone(self) -> None:
        """Block until the peer is gone; a checkpoint if it blocks."""
        if not self._peer_gone:
            self._gone_event = trio.Event()
            await self._gone_event.wait()

    def detach(self) -> None:
        """Let go of whoever is told of the end, so that no cycle of references outlives the connection."""
        self._on_closing = self._on_accepted = self._on_unread = self._on_too_big = _nothing
        self.take = self.inbox.get

    # The same as ASGI, for middleware and for foreign apps mounted in ours

    async def asgi_receive(self) -> Message:
        """ASGI's receive(): connect, then messages, then disconnect as often as asked."""
        if not self._connect_told:
            self._connect_told = True
            await checkpoint()
            return {"type": "websocket.connect"}
        try:
            data = await self.take()
        except WebSocketDisconnect as over:
            return {"type": "websocket.disconnect", "code": over.code, "reason": over.reason}
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data, "bytes": None}
        return {"type": "websocket.receive", "text": None, "bytes": data}

    async def asgi_send(self, message: Message) -> None:
        """ASGI's send(). Raises `ClientGone`, an OSError, once the connection is over."""
        kind = message["type"]
        try:
            if kind == "websocket.send":
                await self._send_message(message)
            elif kind == "websocket.accept":
                await self.accept(message.get("subprotocol"), message.get("headers") or ())
            elif kind == "websocket.close":
                await self.close(message.get("code", 1000), message.get("reason") or "")
            elif kind == "websocket.http.response.start":
                await checkpoint()
                self._denial = {**message, "body": b""}
            elif kind == "websocket.http.response.body" and self._denial is not None:
                self._denial["body"] += message.get("body", b"")
                if not message.get("more_body", False):
                    denial = self._denial
                    await self.reject(denial["status"], denial.get("headers") or (), denial["body"])
            else:
                raise WrongStateError(f"the ASGI message {kind!r} is not one of a WebSocket application's")
        except WebSocketDisconnect as over:
            raise ClientGone(over.code, over.reason, by=over.by) from over
