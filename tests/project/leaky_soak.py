"""The soak's app, with each fault that a soak is there to find."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from itertools import count

import trio

from benchmarks.apps.soak import app
from nexios_trio.instrument import Observed

__all__ = ["app"]


class Leak:
    """Each connection leaves something behind."""

    counts = False

    def __init__(self) -> None:
        self.kept: list[object] = []
        self.numbers: Iterator[int] = count()

    def begun(self, connection: Observed) -> None:
        self.kept += [b"x" * 300_000, *([each] for each in range(20))]
        if next(self.numbers) % 10 == 0:
            self.kept.append(os.open(os.devnull, os.O_RDONLY))
            trio.lowlevel.spawn_system_task(trio.sleep_forever)
            logging.getLogger("nexios_trio.app").error("something went wrong")

    def opened(self, connection: Observed) -> None:
        pass

    def ended(self, connection: Observed) -> None:
        pass

    def delivered(self, group: str, seconds: float) -> None:
        pass


app.add_instrument(Leak())
