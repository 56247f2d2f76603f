"""Settings: frozen, checked when they are made, with the default and its meaning beside each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["ConnectionSettings", "Heartbeat", "HistoryLimits", "Limits", "Overflow"]


def _seconds(*, zero: bool) -> Callable[[Any, Any, Any], None]:
    def check(_instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongTypeError(f"{attribute.name} is a number of seconds, not {value!r}")
        if math.isnan(value) or value < 0 or (value == 0 and not zero):
            least = "0 or more" if zero else "more than 0"
            raise WrongValueError(f"{attribute.name} is {least} seconds (math.inf: never), not {value!r}")

    return check


def _positive(_instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongTypeError(f"{attribute.name} is a whole number, not {value!r}")
    if value < 1:
        raise WrongValueError(f"{attribute.name} is at least 1, not {value!r}")


def _payload(_instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not isinstance(value, str | bytes):
        raise WrongTypeError(f"{attribute.name} is a str, bytes or None, not {type(value).__name__}")


@frozen
class Heartbeat:
    """How a dead peer is found.

    Protocol pings (RFC 6455 §5.5.2) are the server's business: ``nexios-trio run`` sets hypercorn's
    ping interval from ``interval``, and ``TCP_USER_TIMEOUT`` from ``timeout``, so a client whose
    machine is gone ends as 1006. With ``message`` the application pings as well: the payload is
    sent whenever the client has been silent for ``interval`` seconds, and if no message of any kind
    comes within ``timeout`` seconds after it, the handler gets
    ``WebSocketDisconnect(1006, "heartbeat timeout")``.
    """

    interval: float = field(default=20.0, validator=_seconds(zero=False))
    """Seconds of silence before a ping."""
    timeout: float = field(default=20.0, validator=_seconds(zero=False))
    """Seconds that the peer has for an answer."""
    message: str | bytes | None = field(default=None, validator=_payload)
    """The application ping, sent as text or binary after its type; None: protocol pings only."""


@frozen
class Limits:
    """Bounds on what one connection may hold in memory."""

    inbox_messages: int = field(default=64, validator=_positive)
    """Messages received and not yet taken by the handler; at the bound, reading from the socket stops."""
    inbox_bytes: int = field(default=1 << 20, validator=_positive)
    """The same in bytes (characters for text); a single larger message is still taken."""
    outbox_messages: int = field(default=256, validator=_positive)
    """Messages that wait to be sent to a member of a group; at the bound, direct sends wait, and for messages
    of groups the `Overflow` rule decides."""
    outbox_bytes: int = field(default=4 << 20, validator=_positive)
    """The same in bytes (characters for text); the message that crosses the bound is still taken."""


@frozen
class _Field:
    """Equal for equal names, so that a message's key is found once for all members."""

    name: str

    def __call__(self, payload: Any) -> Hashable:
        return payload.get(self.name) if isinstance(payload, dict) else None


@frozen
class Overflow:
    """What happens to a message for a client whose outbox is full.

    | rule | |
    |---|---|
    | ``Overflow.BLOCK`` | the sender waits; what direct sends do, not to be had for groups |
    | ``Overflow.DROP_OLDEST`` | the group's oldest waiting message goes |
    | ``Overflow.DROP_NEWEST`` | the new message goes |
    | ``Overflow.CONFLATE(key)`` | a waiting message of the same key is replaced; if none is, as DROP_OLDEST |
    | ``Overflow.DISCONNECT`` | the client is closed with 1013, and may resume; the default for groups |

    A group's rule never takes what is not the group's own: where only direct sends and messages of other
    groups wait, the new message goes.
    """

    rule: Literal["block", "drop_oldest", "drop_newest", "conflate", "disconnect"]
    key: Callable[[Any], Hashable] | None = None

    def __attrs_post_init__(self) -> None:
        rules = ("block", "drop_oldest", "drop_newest", "conflate", "disconnect")
        if self.rule not in rules or (self.rule == "conflate") != (self.key is not None):
            raise WrongValueError(
                "write Overflow.DISCONNECT, Overflow.DROP_OLDEST, Overflow.DROP_NEWEST or "
                f"Overflow.CONFLATE(key), not Overflow({self.rule!r}, {self.key!r})"
            )

    BLOCK: ClassVar[Overflow]
    DROP_OLDEST: ClassVar[Overflow]
    DROP_NEWEST: ClassVar[Overflow]
    DISCONNECT: ClassVar[Overflow]

    @classmethod
    def CONFLATE(cls, key: str | Callable[[Any], Hashable]) -> Overflow:  # noqa: N802 - reads as the others
        """Only the last waiting value per key: a function of the payload, or the name of a field.

        A message whose key is None stands alone, and so does one for which the function raises: that is
        logged once per group and counted in ``group.statistics().key_errors``. The function must not change
        the payload, which all members share.
        """
        if isinstance(key, str):
            return cls("conflate", _Field(key))
        if not callable(key):
            raise WrongTypeError(f"key is a field's name or a function of the payload, not {key!r}")
        return cls("conflate", key)


Overflow.BLOCK = Overflow("block")
Overflow.DROP_OLDEST = Overflow("drop_oldest")
Overflow.DROP_NEWEST = Overflow("drop_newest")
Overflow.DISCONNECT = Overflow("disconnect")


def _history_bytes() -> int:
    text = os.environ.get("CHANNEL_BOX_HISTORY_SIZE", "")
    return int(text) if text.isdigit() and int(text) > 0 else 1 << 20


@frozen
class HistoryLimits:
    """Bounds on the history of groups; beyond them the oldest messages go."""

    messages: int = field(default=100, validator=_positive)
    """Messages kept per group."""
    bytes: int = field(factory=_history_bytes, validator=_positive)
    """Bytes (characters for text) kept per group; default: ``CHANNEL_BOX_HISTORY_SIZE``, or 1 MiB."""
    age: float = field(default=600.0, validator=_seconds(zero=False))
    """Seconds that a message is kept."""
    groups: int = field(default=10_000, validator=_positive)
    """Groups that have a history; the one used least recently goes."""


@frozen
class ConnectionSettings:
    """What `NexiosApp` passes down to each connection. All times in seconds."""

    limits: Limits = Limits()
    heartbeat: Heartbeat | None = Heartbeat()
    accept_timeout: float = field(default=10.0, validator=_seconds(zero=False))
    """A handler that has neither accepted nor rejected by then is cancelled; the client gets HTTP 503."""
    idle_timeout: float = field(default=math.inf, validator=_seconds(zero=False))
    """No message from the client for so long closes the connection with 1001; pongs do not count."""
    close_timeout: float = field(default=5.0, validator=_seconds(zero=False))
    """How long we wait for the peer's half of the closing handshake (RFC 6455 §7.1.1)."""
    unread_timeout: float = field(default=60.0, validator=_seconds(zero=False))
    """A full inbox from which the handler has taken nothing for so long closes the connection with 1008:
    behind it we cannot see whether the client is still there."""
    disconnect_grace: float = field(default=5.0, validator=_seconds(zero=True))
    """How long a handler may go on once its connection is over; 0: cancelled at once, inf: never."""
