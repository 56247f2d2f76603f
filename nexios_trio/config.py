"""Settings: frozen, checked when they are made, with the default and its meaning beside each."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, Literal

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["ConnectionSettings", "Deflate", "Heartbeat", "HistoryLimits", "Limits", "Overflow", "Rate"]


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


def _flag(_instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise WrongTypeError(f"{attribute.name} is True or False, not {value!r}")


def _bound(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None:
        _positive(instance, attribute, value)


def _between(least: int, most: int) -> Any:
    def check(_instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongTypeError(f"{attribute.name} is a whole number, not {value!r}")
        if not least <= value <= most:
            raise WrongValueError(f"{attribute.name} is between {least} and {most}, not {value!r}")

    return check


def _above_zero(_instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongTypeError(f"{attribute.name} is a number, not {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise WrongValueError(f"{attribute.name} is more than 0 and finite, not {value!r}")


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
class Deflate:
    """What this side wants of permessage-deflate (RFC 7692); without one of these, it is neither offered nor
    accepted. Sizes are bytes.

    The defaults are those for many connections: no compressor is kept between messages, a broadcast is
    compressed once, and a connection holds at most 4 KiB for what its peer refers back to. On hypercorn's
    lane of ``nexios-trio run`` only the two about takeover hold, the rest is as hypercorn has it; the plain
    ``hypercorn`` command grants compression to every client that offers it, whatever the app says.
    """

    server_no_context_takeover: bool = True
    """The server compresses each message by itself, so that one compressed message can go to many clients.
    False: better compression, for some 30 KiB to 260 KiB of memory per connection."""
    client_no_context_takeover: bool = False
    """The client does; spares a server ``1 << client_max_window_bits`` bytes per connection."""
    server_max_window_bits: int = field(default=12, validator=_between(8, 15))
    """The server refers back to at most ``1 << bits`` bytes; a client that wants less gets less."""
    client_max_window_bits: int = field(default=12, validator=_between(8, 15))
    """The same for the client, if it lets the server choose."""
    threshold: int = field(default=256, validator=_between(1, 1 << 62))
    """Messages of fewer bytes are sent as they are."""
    level: int = field(default=6, validator=_between(1, 9))
    """zlib's: 1 is fast, 9 is thorough."""
    memory_level: int = field(default=5, validator=_between(1, 9))
    """zlib's: how much memory a compressor takes for its tables, ``1 << (memory_level + 9)`` bytes."""


_RATE: Final = re.compile(r"(?P<amount>\d+(?:\.\d+)?)(?P<unit>|[kKmM]i?B|B)/(?P<per>\d*)(?P<time>s|min|h)")
_UNITS: Final = {"": 1, "B": 1, "KB": 1000, "KIB": 1024, "MB": 1000**2, "MIB": 1024**2}
_TIMES: Final = {"s": 1, "min": 60, "h": 3600}


@frozen
class Rate:
    """So much in a time: ``Rate(10)`` is ten a second, ``Rate(100, per=60)`` a hundred a minute.

    ``burst`` is what may come at once after a pause; default: ``amount``, at least 1.
    """

    amount: float = field(validator=_above_zero)
    per: float = field(default=1.0, kw_only=True, validator=_above_zero)
    """Seconds."""
    burst: float = field(kw_only=True, validator=_above_zero)

    @burst.default
    def _default_burst(self) -> float:
        return max(1.0, self.amount) if isinstance(self.amount, int | float) else 1.0

    @property
    def per_second(self) -> float:
        """``amount / per``."""
        return self.amount / self.per

    @classmethod
    def parse(cls, text: str | Rate) -> Rate:
        """``"10/s"``, ``"100/min"``, ``"5/10s"``, ``"64KiB/s"`` as a `Rate`. Raises `WrongValueError`."""
        if isinstance(text, Rate):
            return text
        match = _RATE.fullmatch(text) if isinstance(text, str) else None
        if match is None or float(match["amount"]) == 0 or match["per"].strip("0") == "" != match["per"]:
            raise WrongValueError(
                f'a rate is a Rate, or a str such as "10/s", "100/min", "5/10s" or "64KiB/s", not {text!r}'
            )
        amount = float(match["amount"]) * _UNITS[match["unit"].upper()]
        return cls(amount, per=float(match["per"] or 1) * _TIMES[match["time"]])


def _rate_or_none(rate: Rate | str | None) -> Rate | None:
    if rate is None:
        return None
    rate = Rate.parse(rate)
    if rate.burst < 1:
        raise WrongValueError(f"a burst of {rate.burst:g} lets no handshake pass; give 1 or more")
    return rate


@frozen(kw_only=True)
class Limits:
    """Bounds that hold before anybody configures them; ``None`` takes one away (``math.inf`` for times).

    What is counted is this process's, but for `connections_per_user_shared`. Sizes are bytes; text in queues
    counts a character as one.
    """

    # The opening handshake
    connections: int | None = field(default=10_000, validator=_bound)
    """Connections of the app at a time; one more gets HTTP 503 with Retry-After."""
    connections_per_address: int | None = field(default=1_000, validator=_bound)
    """Connections of one client address at a time (IPv6: of one /64 network); one more gets HTTP 429."""
    connections_per_user: int | None = field(default=100, validator=_bound)
    """Connections of one user at a time, once `WebSocket.identify` or ``authenticate=`` has named him; one
    more gets HTTP 429, or 1008 after accept."""
    connections_per_user_shared: bool = field(default=False, validator=_flag)
    """Count those of all servers that share the app's broker, at the price of a question to it per handshake
    of a user. While it cannot be asked, each server counts its own."""
    handshakes_per_address: Rate | None = field(default=Rate(100, burst=1_000), converter=_rate_or_none)
    """Opening handshakes of one client address (IPv6: /64); one too early gets HTTP 429 with Retry-After."""
    header_bytes: int | None = field(default=16 << 10, validator=_bound)
    """All request headers together, names and values; beyond: HTTP 431."""
    query_bytes: int | None = field(default=4 << 10, validator=_bound)
    """The query string, still encoded; beyond: HTTP 414."""
    accept_timeout: float = field(default=10.0, validator=_seconds(zero=False))
    """Seconds in which a handler accepts or rejects; then it is cancelled, and the client gets HTTP 503."""

    # What comes in
    message_bytes: int | None = field(default=1 << 20, validator=_bound)
    """One message from the client (text as UTF-8); a larger one closes with 1009."""
    json_depth: int | None = field(default=64, validator=_bound)
    """Arrays and objects inside each other in a JSON message; beyond: `InvalidJSON`, 1007."""
    json_items: int | None = field(default=10_000, validator=_bound)
    """Values in a JSON message, all levels together; beyond: `InvalidJSON`, 1007."""
    inbox_messages: int = field(default=64, validator=_positive)
    """Messages received and not yet taken by the handler; at the bound, reading from the socket stops."""
    inbox_bytes: int = field(default=1 << 20, validator=_positive)
    """The same in bytes; a single larger message is still taken."""
    first_message_timeout: float = field(default=math.inf, validator=_seconds(zero=False))
    """Seconds after accept in which the client sends something; else it is closed with 1008."""
    lifetime: float = field(default=math.inf, validator=_seconds(zero=False))
    """Seconds after accept; then the connection is closed with 1001, and the client may come back."""

    # What goes out
    outbox_messages: int = field(default=256, validator=_positive)
    """Messages that wait to be sent to a member of a group; at the bound, direct sends wait, and for messages
    of groups the `Overflow` rule decides (1013 by default)."""
    outbox_bytes: int = field(default=4 << 20, validator=_positive)
    """The same in bytes; the message that crosses the bound is still taken."""

    # Groups
    groups: int | None = field(default=256, validator=_bound)
    """Groups that one connection is in at a time; joining one more raises `LimitError`, unhandled 1008."""
    group_name_length: int = field(default=200, validator=_positive)
    """Characters of a group's name; using a longer one raises `LimitError`, unhandled 1008."""

    def __attrs_post_init__(self) -> None:
        if self.connections_per_user_shared and self.connections_per_user is None:
            raise WrongValueError("connections_per_user_shared needs a number of connections_per_user")

    @classmethod
    def none(cls) -> Limits:
        """No bound but those on queues: for measurements, and behind something that bounds already."""
        return cls(
            connections=None,
            connections_per_address=None,
            connections_per_user=None,
            handshakes_per_address=None,
            header_bytes=None,
            query_bytes=None,
            message_bytes=None,
            json_depth=None,
            json_items=None,
            groups=None,
        )


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
    """Groups that have a history; the one used least recently goes. For ``memory://``; in Redis, groups that
    are silent and unread go by themselves."""


@frozen
class ConnectionSettings:
    """What `NexiosApp` passes down to each connection. All times in seconds."""

    limits: Limits = Limits()
    heartbeat: Heartbeat | None = Heartbeat()
    idle_timeout: float = field(default=math.inf, validator=_seconds(zero=False))
    """No message from the client for so long closes the connection with 1001; pongs do not count."""
    close_timeout: float = field(default=5.0, validator=_seconds(zero=False))
    """How long we wait for the peer's half of the closing handshake (RFC 6455 §7.1.1)."""
    unread_timeout: float = field(default=60.0, validator=_seconds(zero=False))
    """A full inbox from which the handler has taken nothing for so long closes the connection with 1008:
    behind it we cannot see whether the client is still there."""
    disconnect_grace: float = field(default=5.0, validator=_seconds(zero=True))
    """How long a handler may go on once its connection is over; 0: cancelled at once, inf: never."""
    deflate: Deflate | None = None
    """Whether a client that offers permessage-deflate is granted it, and how; None: no."""
    debug: bool = False
    """Whether clients are told what went wrong: for development only."""
