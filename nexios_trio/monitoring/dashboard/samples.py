"""How an app was, second by second: the points that the dashboard draws."""

from __future__ import annotations

import time
from collections import Counter, deque
from heapq import nlargest
from typing import Any, Final

import trio
from attrs import evolve

from nexios_trio.application import NexiosApp
from nexios_trio.instrument import LATENCY_BOUNDS, Backlog, Histogram, Observed
from nexios_trio.monitoring.recorder import OWN, Recorder, Totals

__all__ = ["HISTORY", "Sampler"]

HISTORY: Final = 600
"""Points that are kept."""

SLOWEST: Final = 10
"""Slow consumers that are named."""

YIELD_EVERY: Final = 500
"""Connections that are looked at before other tasks run: about a millisecond."""

WATCHED: Final = 1.0
"""Seconds between two points while somebody looks..."""
UNWATCHED: Final = 5.0
"""...and while nobody does."""


class Sampler:
    """Takes points of an app for as long as it runs, without what dashboards themselves cause."""

    def __init__(self, app: NexiosApp) -> None:
        self.recorder = Recorder.of(app)
        self.points: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.viewers = 0
        self.taken = trio.Event()
        """Set, and replaced, when there is a new point."""
        self.totals: dict[str, Totals] = {}
        """By route, at the last point."""
        self.slow: list[Observed] = []
        """Those for whom most waits, at the last point."""
        self._before: tuple[float, int, int] | None = None
        self._latencies = [0] * (len(LATENCY_BOUNDS) + 1)
        self._rushed = trio.Event()
        app.start_soon(self._run, name="points of the dashboard")

    def rush(self) -> None:
        """Somebody begins to look: take a point now."""
        self._rushed.set()

    async def _run(self) -> None:
        self._before = None  # an app may run twice
        while True:
            self.points.append(await self._point())
            taken, self.taken = self.taken, trio.Event()
            taken.set()
            self._rushed = trio.Event()
            with trio.move_on_after(WATCHED if self.viewers else UNWATCHED):
                await self._rushed.wait()

    async def _point(self) -> dict[str, Any]:
        """Look at every connection, and let others run in between."""
        now = trio.current_time()
        routes = [route for name, route in self.recorder.routes.items() if name != OWN]
        backlogs: list[tuple[Backlog, Observed]] = []
        seen, totals = 0, {}
        for route in routes:
            account, live = evolve(route.ended), tuple(route.live)
            for connection in live:
                backlog = account.take(connection)
                if backlog.waiting or backlog.size:
                    backlogs.append((backlog, connection))
                seen += 1
                if seen % YIELD_EVERY == 0:
                    await trio.lowlevel.checkpoint()
            totals[route.name] = account
        self.totals = totals
        self.slow = [each for _, each in nlargest(SLOWEST, backlogs, key=lambda entry: entry[0][:2])]
        came = sum(total.messages_in for total in totals.values())
        went = sum(total.messages_out for total in totals.values())
        rates = (0.0, 0.0)
        if self._before is not None and now > self._before[0]:
            then, came_then, went_then = self._before
            rates = ((came - came_then) / (now - then), (went - went_then) / (now - then))
        self._before = (now, came, went)
        lag, self.recorder.worst_loop_lag = self.recorder.worst_loop_lag, 0.0
        return {
            "time": time.time(),
            "connections": seen,
            "in": rates[0],
            "out": rates[1],
            "waiting": sum(backlog.waiting for backlog, _ in backlogs),
            "waiting_bytes": sum(backlog.size for backlog, _ in backlogs),
            "loop_lag": lag,
            **self._percentiles([route.latency for route in routes]),
        }

    def _percentiles(self, histograms: list[Histogram]) -> dict[str, float | None]:
        """Of what was timed since the last point."""
        counts = [sum(column) for column in zip(*(each.counts for each in histograms), strict=True)]
        counts = counts or [0] * len(self._latencies)
        fresh = [now - then for now, then in zip(counts, self._latencies, strict=True)]
        self._latencies = counts
        return {
            name: Histogram.quantile(part, LATENCY_BOUNDS, fresh)
            for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        }

    def closed(self) -> Counter[str]:
        """Connections that are over, by close code."""
        codes: Counter[str] = Counter()
        for name, route in self.recorder.routes.items():
            if name != OWN:
                for (code, _), count in route.closed.items():
                    codes[code] += count
        return codes
