"""The life of a connection after its opening handshake, as a table: from a state and an event to a state."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["CURES", "TRANSITIONS", "State", "WireEvent"]


class State(Enum):
    """Who has ended the connection, and whether the other has answered."""

    OPEN = "open"
    """Nobody has ended it."""
    CLOSING = "closing"
    """We sent a Close frame, the peer's has not come yet; what it sends until then is still read."""
    PEER_CLOSED = "peer_closed"
    """The peer's Close frame came, our answer is due. Until it is sent, messages may go out before it: RFC
    6455 §5.5.1 lets an endpoint finish what it is sending."""
    FAILED = "failed"
    """The peer broke the protocol. Our Close frame is due; nothing more is read (RFC 6455 §7.1.7)."""
    CLOSED = "closed"
    """Nothing is read, nothing can be sent: both have closed, or the stream has ended."""


class WireEvent(Enum):
    """What can happen to a connection."""

    SEND = "send"
    """A message, a Ping or a Pong of ours."""
    SEND_CLOSE = "send_close"
    RECEIVE = "receive"
    """Bytes that are neither a Close frame nor a violation."""
    RECEIVE_CLOSE = "receive_close"
    VIOLATION = "violation"
    EOF = "eof"


_S, _E = State, WireEvent

TRANSITIONS: Final[dict[tuple[State, WireEvent], State]] = {
    (_S.OPEN, _E.SEND): _S.OPEN,
    (_S.OPEN, _E.SEND_CLOSE): _S.CLOSING,
    (_S.OPEN, _E.RECEIVE): _S.OPEN,
    (_S.OPEN, _E.RECEIVE_CLOSE): _S.PEER_CLOSED,
    (_S.OPEN, _E.VIOLATION): _S.FAILED,
    (_S.OPEN, _E.EOF): _S.CLOSED,
    (_S.CLOSING, _E.SEND_CLOSE): _S.CLOSING,
    (_S.CLOSING, _E.RECEIVE): _S.CLOSING,
    (_S.CLOSING, _E.RECEIVE_CLOSE): _S.CLOSED,
    # One Close frame is sent, not two: a violation after ours just ends the reading.
    (_S.CLOSING, _E.VIOLATION): _S.CLOSED,
    (_S.CLOSING, _E.EOF): _S.CLOSED,
    (_S.PEER_CLOSED, _E.SEND): _S.PEER_CLOSED,
    (_S.PEER_CLOSED, _E.SEND_CLOSE): _S.CLOSED,
    # RFC 6455 §1.4: after a Close frame "a peer discards any further data received"; the peer may have ended
    # only its half of the TCP connection.
    (_S.PEER_CLOSED, _E.RECEIVE): _S.PEER_CLOSED,
    (_S.PEER_CLOSED, _E.EOF): _S.PEER_CLOSED,
    (_S.FAILED, _E.SEND): _S.FAILED,
    (_S.FAILED, _E.SEND_CLOSE): _S.CLOSED,
    (_S.FAILED, _E.RECEIVE): _S.FAILED,
    (_S.FAILED, _E.EOF): _S.FAILED,
    (_S.CLOSED, _E.SEND_CLOSE): _S.CLOSED,
    (_S.CLOSED, _E.RECEIVE): _S.CLOSED,
    (_S.CLOSED, _E.EOF): _S.CLOSED,
}
"""Every legal pair. Those that are missing: SEND after our Close frame is the caller's mistake
(`WrongStateError`); RECEIVE_CLOSE and VIOLATION cannot happen where bytes are no longer looked at."""

CURES: Final[dict[State, str]] = {
    State.CLOSING: "a Close frame was sent; nothing may follow it (RFC 6455 §5.5.1)",
    State.CLOSED: "the connection is over; look at Connection.state before you encode",
}
"""What to say about a SEND in these states."""
