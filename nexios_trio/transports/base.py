"""What a connection needs from whatever carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Literal, Protocol

from attrs import frozen

from nexios_trio.exceptions import WebSocketDisconnect
from nexios_trio.transports.inbox import Inbox
from nexios_trio.transports.states import Event, State

__all__ = ["Closure", "Transport"]


@frozen
class Closure:
    """How a connection ended: the code and reason that a handler is told, and who ended it."""

    code: int
    reason: str = ""
    by: Literal["peer", "local", "network"] = "peer"

    def error(self) -> WebSocketDisconnect:
        """A fresh exception that says so."""
        return WebSocketDisconnect(self.code, self.reason, by=self.by)


class Transport(Protocol):
    """One connection, below the user's `WebSocket`: moves whole messages, knows its state."""

    state: State
    closure: Closure | None
    inbox: Inbox
    take: Callable[[], Awaitable[str | bytes]]
    accepted_early: bool

    @property
    def latency(self) -> float | None:
        """Seconds from the last answered Ping to its Pong, where it is known."""

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Complete the opening handshake."""

    async def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer the opening handshake with an HTTP response instead."""

    def refusal(self, event: Event) -> Exception:
        """The error for an event that the table of states does not allow now."""

    # Plain functions that return a coroutine: one frame less to step through per message.

    def send_text(self, data: str) -> Coroutine[Any, Any, None]:
        """Send one text message. Cancelled, it has sent the whole message or nothing."""

    def send_bytes(self, data: bytes) -> Coroutine[Any, Any, None]:
        """Send one binary message. Cancelled, it has sent the whole message or nothing."""

    async def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; does nothing on a connection that is over."""
