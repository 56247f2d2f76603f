"""What `Connection.receive_data` gives besides messages, which are plain ``str`` and ``bytes``."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

__all__ = ["Close", "Event", "Failure", "Ping", "Pong"]


@frozen
class Ping:
    """A Ping frame (RFC 6455 §5.5.2); its answer is in `Connection.data_to_send`."""

    payload: bytes


@frozen
class Pong:
    """A Pong frame, asked for or not (RFC 6455 §5.5.3)."""

    payload: bytes


@frozen
class Close:
    """The peer ended the connection; no event follows.

    ``code`` and ``reason`` are those of its Close frame (RFC 6455 §7.1.5): 1005 for a frame without a
    code, 1006 if the stream ended without such a frame. `Connection.encode_close` gives the answer.
    """

    code: int
    reason: str


@frozen
class Failure:
    """The peer broke the protocol or a limit; no event follows, and whatever else it sends is ignored.

    ``code`` and ``reason`` are those of the Close frame that `Connection.encode_close` gives
    (RFC 6455 §7.1.7). Messages that came before it stand before it.
    """

    code: int
    reason: str


Event: TypeAlias = str | bytes | Ping | Pong | Close | Failure
