"""The live connections of an app or a server, and how they are sent away."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import trio

from nexios_trio.types import Drainable

__all__ = ["SERVER_CONNECTIONS", "Connections"]

SERVER_CONNECTIONS: Final = "nexios_trio.connections"
"""A server that puts a `Connections` under this key of ``scope["extensions"]`` can drain them all,
whatever apps they belong to."""

LONGEST_PAUSE: Final = 0.1
"""Seconds between two connections sent away, at the most."""

C = TypeVar("C", bound=Drainable)


class Connections(Generic[C]):
    """A set of live connections: ``len()``, iteration (over a snapshot), and `drain`."""

    def __init__(self) -> None:
        self._live: dict[C, None] = {}
        self._emptied: trio.Event | None = None
        self.draining = False
        """True once `drain` has begun: new connections are to be refused."""
        self.leaving = False
        """True once it is known that `drain` is going to begin: whoever sends clients shall send no more."""

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._live))

    def __contains__(self, connection: object) -> bool:
        return connection in self._live

    def add(self, connection: C) -> None:
        """Enter a connection; it leaves by `discard`."""
        self._live[connection] = None

    def discard(self, connection: C) -> None:
        """Take a connection out; harmless if it is not here."""
        self._live.pop(connection, None)
        if not self._live and self._emptied is not None:
            self._emptied.set()
            self._emptied = None

    async def drain(self, window: float = 0.0) -> None:
        """Close every connection with 1012, in random order, and wait until the last has ended.

        They are spread over ``window`` seconds, each at a random moment of its share, so that not all clients
        come back at once, also where several servers end together; a few go faster, ten a second. New ones
        are refused with 503 from now on.
        A checkpoint. Cancelled, it leaves the rest as they are.
        """
        self.leaving = self.draining = True
        waiting = list(self._live)
        random.shuffle(waiting)
        pause = min(window / len(waiting), LONGEST_PAUSE) if waiting else 0.0
        begun = trio.current_time()
        for number, connection in enumerate(waiting):
            await trio.sleep_until(begun + pause * (number + random.random()))  # noqa: S311 - no secret
            connection.begin_shutdown()
        while self._live:
            if self._emptied is None:
                self._emptied = trio.Event()
            await self._emptied.wait()
        await trio.lowlevel.checkpoint()
