"""Keep one connection up: connect, serve, and when it is lost connect again after a pause."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.connection import Connection, connect
from nexios_trio.exceptions import BrokerError, BrokerRefused, BrokerUnavailable

__all__ = ["Backoff", "Kept"]

logger = logging.getLogger("nexios_trio.redis")

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


class Backoff:
    """Pauses in seconds that double, each cut by chance, so that many nodes do not come at once."""

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self._chance = random.Random()  # noqa: S311 - no secret
        self._ceiling = first

    def reset(self) -> None:
        """The next pause is a first one."""
        self._ceiling = self._first

    def pause(self) -> float:
        """The next pause: between half of the ceiling and the ceiling."""
        pause = self._ceiling * self._chance.uniform(0.5, 1.0)
        self._ceiling = min(2 * self._ceiling, self._longest)
        return pause


class Kept:
    """A connection that is kept up by `run`. ``name`` says what for, in the log.

    ``serve(connection)`` runs while it is up and raises `BrokerUnavailable` when it is lost, which it always
    is in the end; ``lost()`` is called after that.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        serve: Callable[[Connection], Awaitable[None]],
        lost: Callable[[BrokerError], None],
        *,
        timeout: float,
        backoff: Backoff | None = None,
    ) -> None:
        self.address = address
        self.name = name
        self.up = False
        """Set by ``serve`` once the connection can be used, and cleared here."""
        self.problem: BrokerError = BrokerUnavailable(str(address), "not connected yet")
        """Why it is down, if it is."""
        self.connects = 0
        """How often it was made."""
        self._serve = serve
        self._lost = lost
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._tried = trio.Event()

    def reset(self) -> None:
        """Forget a former `run`."""
        self.up = False
        self.connects = 0
        self._backoff.reset()
        self._tried = trio.Event()

    def usable(self) -> None:
        """``serve`` says that the connection is set up."""
        if self.connects > 1:
            logger.info("the %s connection to Redis is back: %s", self.name, self.address)
        self.up = True
        self._backoff.reset()
        self._tried.set()

    async def wait_tried(self) -> None:
        """Block until the first attempt has ended. Raises `BrokerRefused` if trying again will not help."""
        await self._tried.wait()
        if not self.up and isinstance(self.problem, BrokerRefused):
            raise self.problem

    async def run(self) -> None:
        """Runs until it is cancelled."""
        said = ""
        while True:
            connection: Connection | None = None
            try:
                connection = await connect(self.address, self._timeout)
                self.connects += 1
                await self._serve(connection)
                raise AssertionError("serve() ends by an error")
            except* BrokerError as group:
                self.problem = _first(group)
            finally:
                was_up, self.up = self.up, False
                if connection is not None:
                    await connection.aclose()
            self._lost(self.problem)
            self._tried.set()
            refused = isinstance(self.problem, BrokerRefused)
            if (was_up and not refused) or str(self.problem) != said:
                said = str(self.problem)
                level = logging.ERROR if refused else logging.WARNING
                logger.log(level, "the %s connection to Redis is down: %s; trying again", self.name, said)
            # A connection that is up and then refuses would come and go twenty times a second.
            await trio.sleep(LONGEST_PAUSE if was_up and refused else self._backoff.pause())


def _first(group: BaseExceptionGroup[BrokerError]) -> BrokerError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BrokerError)
    return error
