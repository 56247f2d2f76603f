"""What the lower floors tell those who watch them, without knowing who that is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

__all__ = [
    "LATENCY_BOUNDS",
    "LOG_FIELDS",
    "NULL_INSTRUMENT",
    "Backlog",
    "Direction",
    "Histogram",
    "Instrument",
    "Instruments",
    "NullInstrument",
    "Observed",
    "Tally",
    "Watcher",
    "log_fields",
]

Direction: TypeAlias = Literal["in", "out"]
Watcher: TypeAlias = Callable[[Direction, str | bytes], None]
"""Told of each message of one connection, as it comes and as it goes. It must not raise, block or change
anything: it runs between the socket and the handler."""

LATENCY_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds: upper bounds of the classes of a latency."""

TIMED: Final = 16
"""One message in so many has its way timed: the clock costs more than the counting."""


class Histogram:
    """How many values fell into each class: those up to its bound, and in the last one the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """The sum of all values."""

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @staticmethod
    def quantile(part: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
        """The value below which ``part`` (0 to 1) of the values lie, as far as the classes tell: within one
        it is interpolated, in the last one it is that one's lower bound. None: there are no values."""
        wanted = part * sum(counts)
        if not wanted:
            return None
        lower = 0.0
        for bound, count in zip(bounds, counts, strict=False):
            if wanted <= count:
                return lower + (bound - lower) * wanted / count
            wanted -= count
            lower = bound
        return lower


class Tally:
    """What went through one connection since it was accepted. Plain numbers, added up when somebody asks.

    Sizes are bytes, for text characters. Group messages count when they are handed to the socket or, on the
    portable lane, to the server; what an overflow rule took out before that does not.
    """

    __slots__ = (
        "_since",
        "alert",
        "bytes_in",
        "bytes_out",
        "clock",
        "latency",
        "look_at",
        "messages_in",
        "messages_out",
        "opened_at",
        "watchers",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.opened_at = clock()
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.latency: Histogram | None = None
        """Where to count seconds from a message's coming to the next one's going, of one in `TIMED`."""
        self.watchers: tuple[Watcher, ...] = ()
        self.look_at = 1
        """The number of messages received at which `look_in` is due..."""
        self.alert = False
        """...and whether `look_out` is, with each message sent."""
        self._since: float | None = None

    def came(self, message: str | bytes, at: float) -> None:
        """A message was received, at this time of the clock."""
        # The engine has these lines, and those of `went`, in itself: two calls would be 2 % of an echo.
        self.messages_in += 1
        self.bytes_in += len(message)
        if self.messages_in >= self.look_at:
            self.look_in(message, at)

    def look_in(self, message: str | bytes, at: float) -> None:
        """What is not done for each message that comes: the clock, and those who watch."""
        past = (self.messages_in - 1) % TIMED
        if not past:
            self._since, self.alert = at, True
        self.look_at = 0 if self.watchers else self.messages_in - past + TIMED
        if self.watchers:
            self._tell("in", message)

    def went(self, message: str | bytes) -> None:
        """A message was sent."""
        self.messages_out += 1
        self.bytes_out += len(message)
        if self.alert:
            self.look_out(message)

    def look_out(self, message: str | bytes) -> None:
        """The same for those that go."""
        self.alert = bool(self.watchers)
        if self._since is not None:
            if self.latency is not None:
                self.latency.add(self.clock() - self._since)
            self._since = None
        if self.watchers:
            self._tell("out", message)

    def _tell(self, direction: Direction, message: str | bytes) -> None:
        for watcher in self.watchers:
            watcher(direction, message)

    def watch(self, watcher: Watcher) -> None:
        """Tell it of each message from now on."""
        self.watchers = (*self.watchers, watcher)
        self.look_at, self.alert = 0, True

    def unwatch(self, watcher: Watcher) -> None:
        """Take `watch` back; harmless if it was not called."""
        self.watchers = tuple(other for other in self.watchers if other != watcher)


class Backlog(NamedTuple):
    """The outbox of one connection. Messages, but for ``size``: bytes, for text characters."""

    waiting: int = 0
    size: int = 0
    """With what the kernel has not taken."""
    dropped_oldest: int = 0
    dropped_newest: int = 0
    conflated: int = 0


class Observed(Protocol):
    """A connection, as an instrument sees it."""

    @property
    def id(self) -> str:
        """Unique within the app."""

    @property
    def scope(self) -> Any:
        """ASGI's."""

    @property
    def route(self) -> str:
        """The path pattern of its route, once that is known; else empty."""

    @property
    def user_id(self) -> str | None:
        """Who it belongs to, if anybody has said so."""

    @property
    def tally(self) -> Tally | None:
        """Its account, once it is accepted, if the instrument `Instrument.counts`."""

    @property
    def code(self) -> int | None:
        """What it was closed with; None: it is open, or was never accepted."""

    @property
    def by(self) -> Literal["peer", "local", "network"] | None:
        """Who has ended it; None as in `code`."""

    @property
    def backlog(self) -> Backlog:
        """What waits to be sent to its client, and what was thrown away instead."""

    @property
    def seconds(self) -> float:
        """Since it began."""


LOG_FIELDS: Final = ("connection", "path", "route", "peer", "user", "code", "duration")
"""The attributes of log records that are about a connection; ``duration`` is in seconds."""


def log_fields(connection: Observed) -> dict[str, object]:
    """What a log record about a connection takes as ``extra``: the `LOG_FIELDS`."""
    client = connection.scope.get("client")
    return {
        "connection": connection.id,
        "path": connection.scope["path"],
        "route": connection.route,
        "peer": f"{client[0]}:{client[1]}" if client else "unknown peer",
        "user": connection.user_id,
        "code": connection.code,
        "duration": round(connection.seconds, 6),
    }


class Instrument(Protocol):
    """Who watches an app; given to it by ``app.add_instrument(...)``.

    The methods are called in the task of the connection, must not raise and must not block: they are part of
    serving it.
    """

    @property
    def counts(self) -> bool:
        """Whether connections are to keep a `Tally`. Read once for each connection."""

    def begun(self, connection: Observed) -> None:
        """A client was let in by the guard; its handler is about to be called, in this task's context."""

    def opened(self, connection: Observed) -> None:
        """The handshake is done."""

    def ended(self, connection: Observed) -> None:
        """Everything of a connection that has `begun` is over; in the same task."""

    def delivered(self, group: str, seconds: float) -> None:
        """A message of a group has reached this server, ``seconds`` after it was sent by both clocks."""


class NullInstrument:
    """Watches nothing: connections keep no account, and messages cost one look at an empty slot."""

    counts: Final = False

    def begun(self, connection: Observed) -> None:
        """See `Instrument.begun`."""

    def opened(self, connection: Observed) -> None:
        """See `Instrument.opened`."""

    def ended(self, connection: Observed) -> None:
        """See `Instrument.ended`."""

    def delivered(self, group: str, seconds: float) -> None:
        """See `Instrument.delivered`."""


NULL_INSTRUMENT: Final = NullInstrument()


class Instruments:
    """Several as one: told in their order, at the end in the reverse one."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self.all = tuple(instruments)
        self.counts = any(instrument.counts for instrument in self.all)

    def begun(self, connection: Observed) -> None:
        """See `Instrument.begun`."""
        for instrument in self.all:
            instrument.begun(connection)

    def opened(self, connection: Observed) -> None:
        """See `Instrument.opened`."""
        for instrument in self.all:
            instrument.opened(connection)

    def ended(self, connection: Observed) -> None:
        """See `Instrument.ended`."""
        for instrument in reversed(self.all):
            instrument.ended(connection)

    def delivered(self, group: str, seconds: float) -> None:
        """See `Instrument.delivered`."""
        for instrument in self.all:
            instrument.delivered(group, seconds)
