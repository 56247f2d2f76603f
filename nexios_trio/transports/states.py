"""The life of a connection as a table: from a state and an event to a state."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["CURES", "REJECTED_CURE", "TRANSITIONS", "Event", "State"]


class State(Enum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    """The client asked for an upgrade; nobody has answered yet."""
    OPEN = "open"
    """Accepted: messages flow."""
    CLOSING = "closing"
    """We ended it and wait for the peer's half of the closing handshake (RFC 6455 §7.1.2)."""
    CLOSED = "closed"
    """The peer is gone, or counted as gone."""
    REJECTED = "rejected"
    """Answered with HTTP instead of an upgrade."""


class Event(Enum):
    """What can happen to a connection."""

    ACCEPT = "accept"
    REJECT = "reject"
    SEND = "send"
    RECEIVE = "receive"
    CLOSE = "close"
    END = "end"
    """The peer went away, or counts as gone."""


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.CONNECTING, Event.ACCEPT): State.OPEN,
    (State.CONNECTING, Event.REJECT): State.REJECTED,
    (State.CONNECTING, Event.CLOSE): State.REJECTED,
    (State.CONNECTING, Event.END): State.CLOSED,
    (State.OPEN, Event.SEND): State.OPEN,
    (State.OPEN, Event.RECEIVE): State.OPEN,
    (State.OPEN, Event.CLOSE): State.CLOSING,
    (State.OPEN, Event.END): State.CLOSED,
    # What was received before the end stays readable; close() is idempotent.
    (State.CLOSING, Event.RECEIVE): State.CLOSING,
    (State.CLOSING, Event.CLOSE): State.CLOSING,
    (State.CLOSING, Event.END): State.CLOSED,
    (State.CLOSED, Event.RECEIVE): State.CLOSED,
    (State.CLOSED, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.END): State.CLOSED,
    (State.REJECTED, Event.CLOSE): State.REJECTED,
    (State.REJECTED, Event.END): State.REJECTED,
}
"""Every legal pair. A pair that is missing is an error: `WebSocketDisconnect` once the connection is
over, `WrongStateError` otherwise."""

CURES: Final = {
    (
        State.CONNECTING,
        Event.SEND,
    ): "cannot send before the handshake is done; call `await ws.accept()` first",
    (State.CONNECTING, Event.RECEIVE): (
        "cannot receive before the handshake is done; call `await ws.accept()` first"
    ),
    (State.OPEN, Event.ACCEPT): "this connection is accepted already; call accept() once",
    (State.OPEN, Event.REJECT): (
        "this connection is accepted already; end it with `await ws.close(code, reason)` instead of reject()"
    ),
}
"""What to do instead, for illegal pairs on a connection that is not over."""

REJECTED_CURE: Final = "this connection was rejected with an HTTP answer; nothing more can be done with it"
