"""What can be known about this process without any package: figures of one moment, and rates between two."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from attrs import define, field
from msgspec import Struct

NAP: Final = 0.02  # seconds; what a sleep takes longer is the loop's lag
STATM: Final = Path("/proc/self/statm")


class Sample(Struct, tag="sample"):
    """The figures since the sample before. ``at`` is Unix time in seconds; lag is in ms, memory in bytes,
    ``cpu`` a share of one core; rates are per second; ``conflated`` counts up."""

    seq: int
    at: float
    lag: float
    worst_lag: float
    connections: int
    received: float
    sent: float
    memory: int
    cpu: float
    tasks: int
    viewers: int
    conflated: int


def memory() -> int:
    """Bytes of this process in memory; where there is no /proc, the most it ever had."""
    try:
        return int(STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


@define
class Meter:
    """Counts what is counted between two samples. Handlers add to ``received`` and ``sent``."""

    received: int = 0
    sent: int = 0
    _seq: int = 0
    _lags: list[float] = field(factory=list)
    _since: float = field(factory=trio.current_time)
    _cpu: float = field(factory=time.process_time)
    _wall: Callable[[], float] = time.time

    async def watch_lag(self) -> None:
        """Runs for good: notes how much longer than asked for each nap has taken."""
        while True:
            due = trio.current_time() + NAP
            await trio.sleep_until(due)
            self._lags.append(max(0.0, trio.current_time() - due))

    def sample(self, *, connections: int, viewers: int, sent: int, conflated: int) -> Sample:
        """The figures since the last call. ``sent`` are messages beside those counted here."""
        now, cpu = trio.current_time(), time.process_time()
        span = max(now - self._since, 1e-6)
        lags = self._lags or [0.0]
        sample = Sample(
            seq=self._seq,
            at=round(self._wall(), 3),
            lag=round(1000 * sum(lags) / len(lags), 3),
            worst_lag=round(1000 * max(lags), 3),
            connections=connections,
            received=round(self.received / span, 1),
            sent=round((self.sent + sent) / span, 1),
            memory=memory(),
            cpu=round((cpu - self._cpu) / span, 4),
            tasks=trio.lowlevel.current_statistics().tasks_living,
            viewers=viewers,
            conflated=conflated,
        )
        self._seq += 1
        self._since, self._cpu = now, cpu
        self._lags.clear()
        self.received = self.sent = 0
        return sample
