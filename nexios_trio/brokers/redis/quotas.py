"""What the nodes count together in Redis: buckets of rate limits, and places."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import trio
from attrs import define, field

from nexios_trio.brokers.base import Charge
from nexios_trio.brokers.redis.connection import Command
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.scripts import HOLD, TAKE
from nexios_trio.brokers.redis.store import Store, milliseconds
from nexios_trio.exceptions import BrokerError, BrokerUnavailable

__all__ = ["RedisQuotas"]

logger = logging.getLogger("nexios_trio.redis")

PATIENCE: Final = 1.0
"""Seconds that an answer may take, and, once one has not come, that nobody asks: a client waits for it."""
COMPLAIN: Final = 10.0
"""Seconds between two lines about commands that fail."""
AT_ONCE: Final = 200
"""Places renewed by one command."""


@define(eq=False)
class _Turn:
    """Those who want the same buckets ask one after the other; what one is refused, who wants as much and has
    waited behind him is refused as well. So a token costs two questions, however many wait for it."""

    lock: trio.Lock = field(factory=trio.Lock)
    users: int = 0
    refused: tuple[float, ...] = ()
    """The amounts."""
    until: tuple[float, ...] = ()

    def still(self, charges: Sequence[Charge], now: float) -> list[float] | None:
        """What is known without a question."""
        if not self.refused or max(self.until) <= now:
            return None
        if any(charge.amount < amount for charge, amount in zip(charges, self.refused, strict=True)):
            return None
        return [max(0.0, until - now) for until in self.until]


class RedisQuotas:
    """See `nexios_trio.brokers.base.Quotas`. ``lease`` in seconds."""

    def __init__(self, link: Link, store: Store, *, lease: float) -> None:
        self._link = link
        self._store = store
        self._lease = lease
        self._turns: dict[tuple[str, ...], _Turn] = {}
        self._held: dict[tuple[str, str], None] = {}
        """The places of this node: name and holder."""
        self._silent_until = self._complain_at = -math.inf

    async def take(self, charges: Sequence[Charge]) -> Sequence[float]:
        """See `Quotas.take`."""
        names = tuple(charge.bucket for charge in charges)
        turn = self._turns.setdefault(names, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                known = turn.still(charges, trio.current_time())
                if known is not None:
                    return known
                reply = await self._ask(
                    "EVALSHA",
                    TAKE.sha,
                    len(names),
                    *map(self._store.keys.bucket, names),
                    self._store.now(),
                    *(
                        repr(float(number))
                        for charge in charges
                        for number in (charge.amount, charge.rate.per_second, charge.rate.burst)
                    ),
                )
                waits = [float(wait) for wait in reply]
                if any(waits):
                    now = trio.current_time()
                    turn.refused = tuple(charge.amount for charge in charges)
                    turn.until = tuple(now + wait for wait in waits)
                return waits
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[names]

    async def hold(self, name: str, holder: str, most: int) -> bool:
        """See `Quotas.hold`."""
        try:
            held = bool(await self._ask(*self._holding([(name, holder)], most)))
        except BrokerError:
            self._held[name, holder] = None
            raise
        if held:
            self._held[name, holder] = None
        return held

    def release(self, name: str, holder: str) -> None:
        """See `Quotas.release`."""
        self._held.pop((name, holder), None)
        self._link.post(("ZREM", self._store.keys.places(name), holder))

    async def renew_now(self) -> None:
        """Renew the leases of all places of this node once."""
        held = [*self._held]
        for start in range(0, len(held), AT_ONCE):
            # One that is given back while the answer is on its way is taken out after this has put it in.
            some = [place for place in held[start : start + AT_ONCE] if place in self._held]
            try:
                if some:
                    await self._link.call(*self._holding(some, 0))
            except BrokerError as error:
                logger.warning("places of users could not be renewed: %s", error)
                return

    def _holding(self, places: Sequence[tuple[str, str]], most: int) -> Command:
        return (
            "EVALSHA",
            HOLD.sha,
            len(places),
            *(self._store.keys.places(name) for name, _ in places),
            self._store.now(),
            milliseconds(self._lease),
            most,
            *(holder for _, holder in places),
        )

    async def _ask(self, *command: Any) -> Any:
        if not self._link.up or trio.current_time() < self._silent_until:
            await trio.lowlevel.checkpoint()
            raise BrokerUnavailable(str(self._link.address), f"is away: {self._link.problem.problem}")
        try:
            return await self._link.call(*command, timeout=PATIENCE)
        except BrokerUnavailable:
            self._silent_until = trio.current_time() + PATIENCE
            raise
        except BrokerError as error:
            now = trio.current_time()
            if now >= self._complain_at:
                self._complain_at = now + COMPLAIN
                logger.warning("shared limits hold for this server alone: %s", error)
            raise
