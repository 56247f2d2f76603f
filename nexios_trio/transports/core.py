"""What both lanes share: the state of a connection, how it ends, and how it looks as ASGI."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

import trio
from trio.lowlevel import checkpoint

from nexios_trio.config import Limits
from nexios_trio.exceptions import WebSocketDisconnect, WrongStateError
from nexios_trio.instrument import Tally
from nexios_trio.transports.base import Closure
from nexios_trio.transports.inbox import Inbox
from nexios_trio.transports.outbox import Outbox
from nexios_trio.transports.states import CURES, REJECTED_CURE, TRANSITIONS, Event, State
from nexios_trio.types import Message

__all__ = ["ClientGone", "Core", "Hooks", "close_code_of"]


def close_code_of(status: int) -> int:
    """The close code for an HTTP status that comes too late: 4404 for 404."""
    return 4000 + status if 400 <= status < 500 else 1011


class ClientGone(WebSocketDisconnect, OSError):
    """What `Core.asgi_send` raises once the client has left.

    The ASGI specification asks servers for an OSError there, and Starlette and Quart catch one.
    """


class Hooks(Protocol):
    """Whom a transport tells what happens."""

    def closing(self) -> None:
        """The connection is over, on our side or on both; called once or twice."""

    def accepted(self, subprotocol: str | None) -> None:
        """The handshake is done, with this subprotocol."""

    def unread(self) -> None:
        """The inbox is full, and the handler has taken nothing for `Core.unread_timeout`."""

    def too_big(self) -> None:
        """A message came that is larger than `Core.max_message`."""


class _Nobody:
    def closing(self) -> None:
        pass

    def accepted(self, subprotocol: str | None) -> None:
        pass

    def unread(self) -> None:
        pass

    def too_big(self) -> None:
        pass


NO_HOOKS: Final = _Nobody()


class Core(ABC):
    """The part of a `nexios_trio.transports.base.Transport` that does not depend on what carries it."""

    __slots__ = (
        "_close_sent",
        "_connect_told",
        "_denial",
        "_gone_event",
        "_peer_gone",
        "_wire_close",
        "accepted_early",
        "choked",
        "close_timeout",
        "closure",
        "default_subprotocol",
        "extensions",
        "hooks",
        "inbox",
        "max_message",
        "outbox",
        "received_at",
        "spoken",
        "state",
        "take",
        "tally",
        "track_time",
        "unread_timeout",
    )

    def __init__(self, extensions: dict[str, Any], limits: Limits) -> None:
        self.extensions = extensions
        self.outbox: Outbox | None = None
        self.hooks: Hooks = NO_HOOKS
        self.state = State.CONNECTING
        self.closure: Closure | None = None
        self.close_timeout = 5.0
        self.unread_timeout = math.inf
        self.set_limits(limits)
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
        """Whether reading has stopped because the handler does not: a silence of our own making."""
        self._peer_gone = False
        self._gone_event: trio.Event | None = None
        self._close_sent = False
        self._wire_close = (1000, "")
        self._connect_told = False
        self._denial: Message | None = None
        self.tally: Tally | None = None
        """The account of this connection, if somebody watches it; set together with ``track_time``."""

    def set_limits(self, limits: Limits) -> None:
        """Hold the client to these; before `accept` only."""
        self.max_message = sys.maxsize if limits.message_bytes is None else limits.message_bytes
        self.inbox = Inbox(limits.inbox_messages, limits.inbox_bytes)
        self.take: Callable[[], Awaitable[str | bytes]] = self.inbox.get
        """Where received messages are taken from: the inbox, or rate limits in front of it."""

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
        self.hooks.closing()

    # What the handler does

    def refusal(self, event: Event) -> Exception:
        """The error for an event that the table does not allow in the present state."""
        if self.closure is not None:
            return self.closure.error()
        return WrongStateError(CURES.get((self.state, event), REJECTED_CURE))

    def _is_accepted_early(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether this `accept` finds the connection accepted by an authenticator."""
        if not self.accepted_early or self.state is State.CONNECTING:
            return False
        if self.closure is not None:
            raise self.closure.error()
        if subprotocol is not None or list(headers):
            raise WrongStateError(
                "this connection was accepted to be authenticated by its first message; give the "
                "subprotocol and headers to that authenticator, and call accept() without"
            )
        self.accepted_early = False
        return True

    def _is_late(self) -> bool:
        """Whether this `reject` finds the connection accepted by an authenticator: too late for HTTP."""
        late = self.accepted_early and self.state is not State.CONNECTING
        self.accepted_early = self.accepted_early and not late
        return late

    @abstractmethod
    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """See `Transport.accept`."""

    @abstractmethod
    async def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """See `Transport.reject`."""

    @abstractmethod
    def send_text(self, data: str) -> Coroutine[Any, Any, None]:
        """See `Transport.send_text`."""

    @abstractmethod
    def send_bytes(self, data: bytes) -> Coroutine[Any, Any, None]:
        """See `Transport.send_bytes`."""

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
        self.hooks.closing()
        return True

    @abstractmethod
    async def send_close(self) -> None:
        """Send the Close frame (before accept: HTTP 403) that is still owed, if any."""

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
        self.hooks = NO_HOOKS
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
                text = message.get("text")
                if text is None:
                    await self.send_bytes(message.get("bytes") or b"")
                else:
                    await self.send_text(text)
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
