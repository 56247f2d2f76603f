"""What has happened in one app, in numbers: what metrics and the dashboard are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import trio
from attrs import define, evolve, field

from nexios_trio.application import NexiosApp
from nexios_trio.instrument import Backlog, Histogram, Observed

__all__ = ["DURATION_BOUNDS", "OWN", "Recorder", "Totals", "is_own"]

DURATION_BOUNDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Seconds: upper bounds of the classes of a connection's length."""

LOOP_EVERY: Final = 0.5
"""Seconds between two looks at how late the event loop is."""

NO_ROUTE: Final = "other"
"""Stands for connections that no route of ours has found, such as those of mounted apps."""

OWN: Final = "dashboard"
"""Stands for the connections of dashboards. A route of the user's has a slash in front."""

OWN_KEY: Final = "nexios_trio.dashboard"
"""The scope key that such a connection has."""

PRIVATE_CODES: Final = 3000
"""From here on close codes are what clients and apps make up (RFC 6455 §7.4.2)."""


@define
class Totals:
    """What went through the connections of one route, or of the whole app."""

    opened: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped_oldest: int = 0
    dropped_newest: int = 0
    conflated: int = 0

    def take(self, connection: Observed) -> Backlog:
        """Add the account of a connection; gives what waits for it."""
        tally = connection.tally
        if tally is not None:
            self.messages_in += tally.messages_in
            self.messages_out += tally.messages_out
            self.bytes_in += tally.bytes_in
            self.bytes_out += tally.bytes_out
        backlog = connection.backlog
        self.dropped_oldest += backlog.dropped_oldest
        self.dropped_newest += backlog.dropped_newest
        self.conflated += backlog.conflated
        return backlog


@define(eq=False)
class Route:
    """The account of one route: `ended` is of the connections that are over."""

    name: str
    ended: Totals = field(factory=Totals)
    live: dict[Observed, None] = field(factory=dict)
    closed: Counter[tuple[str, str]] = field(factory=Counter)
    """Connections by close code and by who has closed."""
    rejected: int = 0
    latency: Histogram = field(factory=Histogram)
    durations: Histogram = field(factory=lambda: Histogram(DURATION_BOUNDS))

    def totals(self) -> Totals:
        """Of all connections so far."""
        totals = evolve(self.ended)
        for connection in self.live:
            totals.take(connection)
        return totals


class Recorder:
    """An instrument that adds up by route. One per app: `of` gives it."""

    counts: Final = True

    def __init__(self, app: NexiosApp) -> None:
        """Use `of`."""
        self.app = app
        self.routes: dict[str, Route] = {}
        self.live: dict[str, Observed] = {}
        """Accepted connections by id."""
        self._routes_of: dict[str, Route] = {}
        """The same connections: middleware may accept before there is a route, so it may change."""
        self.broker_lag = Histogram()
        self.loop_lag = Histogram()
        self.worst_loop_lag = 0.0
        """Seconds, since somebody last set it to 0."""
        app.add_instrument(self)
        app.start_soon(self._watch_loop, name="how late the event loop is")

    @classmethod
    def of(cls, app: NexiosApp) -> Recorder:
        """The one of this app, made now if there is none.

        Raises `WrongStateError` if it would have to be made and the app has served a connection already.
        """
        for instrument in app.instruments:
            if isinstance(instrument, cls):
                return instrument
        return cls(app)

    async def _watch_loop(self) -> None:
        while True:
            due = trio.current_time() + LOOP_EVERY
            await trio.sleep_until(due)
            lag = trio.current_time() - due
            self.loop_lag.add(lag)
            self.worst_loop_lag = max(self.worst_loop_lag, lag)

    def _route(self, connection: Observed) -> Route:
        name = OWN if is_own(connection) else connection.route or NO_ROUTE
        route = self.routes.get(name)
        if route is None:
            route = self.routes[name] = Route(name)
        return route

    # Instrument

    def begun(self, connection: Observed) -> None:
        """See `Instrument.begun`."""

    def opened(self, connection: Observed) -> None:
        """See `Instrument.opened`."""
        route = self._route(connection)
        route.ended.opened += 1
        route.live[connection] = None
        self.live[connection.id] = connection
        self._routes_of[connection.id] = route
        if connection.tally is not None:
            connection.tally.latency = route.latency

    def ended(self, connection: Observed) -> None:
        """See `Instrument.ended`."""
        if self.live.pop(connection.id, None) is None:
            self._route(connection).rejected += 1
            return
        route = self._routes_of.pop(connection.id)
        del route.live[connection]
        route.ended.take(connection)
        route.durations.add(connection.seconds)
        route.closed[code_label(connection), connection.by or "network"] += 1

    def delivered(self, group: str, seconds: float) -> None:
        """See `Instrument.delivered`."""
        self.broker_lag.add(max(0.0, seconds))

    # Answers

    def largest_groups(self, most: int) -> list[tuple[str, int]]:
        """The groups with the most members on this server, the largest first."""
        groups = self.app.channels.hub.groups
        sizes = Counter({name: len(local.members) for name, local in groups.items()})
        return sizes.most_common(most)

    def connections(self) -> Iterator[Observed]:
        """Those that are accepted, and not over."""
        return iter(tuple(self.live.values()))


def is_own(connection: Observed) -> bool:
    """Whether it is a dashboard's own."""
    return OWN_KEY in connection.scope


def code_label(connection: Observed) -> str:
    """The close code; of a private one that the client chose its class only, for there are 2,000 of them."""
    code = connection.code
    if code is None:
        return "1006"
    if connection.by == "peer" and code >= PRIVATE_CODES:
        return f"{code // 1000}xxx"
    return str(code)
