"""The portable lane: a connection over the ``receive`` and ``send`` of any ASGI server on Trio.

ASGI shows a disconnect only through ``receive``, so `AsgiTransport.read` drains it for as long as the
connection lives, and the handler takes its messages from a bounded inbox. A send after the client has
left raises nothing in ASGI: we know better from the reader and raise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal

import trio
from trio.lowlevel import ParkingLot, checkpoint, checkpoint_if_cancelled

from nexios_trio.config import Limits
from nexios_trio.exceptions import WebSocketDisconnect, WrongStateError
from nexios_trio.transports.base import Closure
from nexios_trio.transports.core import ClientGone, Core, close_code_of
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET
from nexios_trio.transports.outbox import Entry, Outbox
from nexios_trio.transports.states import TRANSITIONS, Event, State
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


def _data_of(message: Message) -> str | bytes:
    data: str | bytes | None = message.get("text")
    return data if data is not None else message.get("bytes") or b""


def frame_size(message: Message) -> int:
    """Bytes (characters for text) of a ``websocket.send``."""
    return len(_data_of(message))


class AsgiTransport(Core):
    """See `nexios_trio.transports.base.Transport`."""

    __slots__ = ("_atomic", "_patience", "_queue", "_receive", "_send", "_sending", "_streak")

    unsent: Final = 0
    """What the kernel has not taken, the server keeps."""
    latency: Final = None
    """ASGI tells nothing of Pongs."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        extensions: dict[str, Any] | None = None,
        atomic: bool,
        limits: Limits,
    ) -> None:
        super().__init__(extensions or {}, limits)
        self._receive = receive
        self._send = send
        self._atomic = atomic
        self._patience = math.inf
        """Until when the handler may leave a full inbox alone."""
        self._sending = False
        self._streak = 0
        self._queue: ParkingLot | None = None

    def open_outbox(self, limits: Limits) -> Outbox:
        """Make the outbox that all sends go through from now on."""
        self.outbox = Outbox(limits.outbox_messages, limits.outbox_bytes)
        return self.outbox

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
                    if self.tally is not None:
                        self.tally.came(data, self.received_at)
                if len(data) * 4 > self.max_message and _is_longer(data, self.max_message):
                    self.hooks.too_big()
                elif inbox.put_nowait(data):
                    await self._wait_for_room()
            elif event["type"] == "websocket.disconnect":
                code = event.get("code", 1005)
                by: Literal["peer", "local", "network"] = "network" if code == 1006 else "peer"
                if ENDED_BY in event:
                    by = event[ENDED_BY]
                if by == "local" and code == 1009:
                    self.hooks.too_big()
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
                self.hooks.unread()
        self.choked = False
        if self.track_time:
            self.received_at = trio.current_time()

    # What the handler does

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._is_accepted_early(subprotocol, headers):
            await checkpoint()
            return
        if subprotocol is None:
            subprotocol = self.default_subprotocol
        await self._answer(
            Event.ACCEPT,
            {"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers)},
        )

    async def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        if self._is_late():
            await self.close(close_code_of(status), "")
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
                self.hooks.accepted(messages[0]["subprotocol"])
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
            if self.tally is not None:
                self.tally.went(_data_of(message))
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
                if self.tally is not None:
                    self.tally.went(_data_of(frame))
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
