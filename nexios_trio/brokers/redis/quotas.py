"""What the nodes count together in Redis: buckets of rate limits, and places."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
from attrs import define

from nexios_trio.brokers.redis.connection import Command
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.scripts import CHARGE, HOLD
from nexios_trio.brokers.redis.store import Store, milliseconds
from nexios_trio.config import Rate
from nexios_trio.exceptions import BrokerError, BrokerUnavailable

__all__ = ["RedisQuotas"]

logger = logging.getLogger("nexios_trio.redis")

PATIENCE: Final = 1.0
"""Seconds that an answer may take. Once one has not come, nobody who would wait for it asks for as long."""
COMPLAIN: Final = 10.0
"""Seconds between two lines about commands that fail."""
AT_ONCE: Final = 200
"""Buckets charged, or places renewed, by one command."""


@define(eq=False)
class _Charge:
    """What was taken from a bucket here, and is not known to the others."""

    amount: float
    rate: Rate
    told: Callable[[float], None]


class RedisQuotas:
    """See `nexios_trio.brokers.base.Quotas`. ``lease`` in seconds."""

    def __init__(self, link: Link, store: Store, *, lease: float) -> None:
        self._link = link
        self._store = store
        self._lease = lease
        self.reset()

    def reset(self) -> None:
        """Forget a former `run`, whose clock was another."""
        self._charges: dict[str, _Charge] = {}
        self._held: dict[tuple[str, str], None] = {}
        """The places of this node: name and holder."""
        self._untold = False
        """Whether Redis may not know of some of them."""
        self._due = trio.Event()
        self._silent_until = self._complain_at = -math.inf

    # Buckets

    def charge(self, bucket: str, amount: float, rate: Rate, told: Callable[[float], None]) -> None:
        """See `Quotas.charge`."""
        charge = self._charges.get(bucket)
        if charge is not None:
            charge.amount += amount
        elif self._link.up:
            self._charges[bucket] = _Charge(amount, rate, told)
            self._due.set()

    async def run(self) -> None:
        """Tell Redis of what was taken, all that has come up since it answered last; until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            charges, self._charges = [*self._charges.items()], {}
            for start in range(0, len(charges), AT_ONCE):
                await self._tell(charges[start : start + AT_ONCE])
            if self._untold:
                await trio.sleep_until(self._silent_until)
                await self.renew_now()

    async def _tell(self, charges: Sequence[tuple[str, _Charge]]) -> None:
        numbers = [
            repr(float(number)) for _, charge in charges for number in (charge.amount, charge.rate.per_second)
        ]
        keys = [self._store.keys.bucket(bucket) for bucket, _ in charges]
        try:
            reply = await self._link.call(
                "EVALSHA", CHARGE.sha, len(keys), *keys, self._store.now(), *numbers, timeout=PATIENCE
            )
        except BrokerError as error:  # it was taken here all the same
            self._failed(error)
            return
        for (bucket, charge), owed in zip(charges, reply, strict=True):
            since = self._charges.get(bucket)
            charge.told(float(owed) + (0.0 if since is None else since.amount))

    # Places

    async def hold(self, name: str, holder: str, most: int) -> bool:
        """See `Quotas.hold`."""
        try:
            held = bool(await self._ask(*self._holding([(name, holder)], most)))
        except BrokerError as error:
            self._held[name, holder] = None
            self._tell_later(error)
            raise
        if held:
            self._held[name, holder] = None
        else:
            self._held.pop((name, holder), None)
        return held

    def release(self, name: str, holder: str) -> None:
        """See `Quotas.release`."""
        self._held.pop((name, holder), None)
        if self._link.up:  # else it ends with its lease
            self._link.post(("ZREM", self._store.keys.places(name), holder))

    async def renew_now(self) -> None:
        """Renew the leases of all places of this node once."""
        self._untold = False
        held = [*self._held]
        for start in range(0, len(held), AT_ONCE):
            # One that is given back while the answer is on its way is taken out after this has put it in.
            some = [place for place in held[start : start + AT_ONCE] if place in self._held]
            try:
                if some:
                    await self._link.call(*self._holding(some, 0))
            except BrokerError as error:
                self._failed(error)
                self._tell_later(error)
                return

    def _tell_later(self, error: BrokerError) -> None:
        if isinstance(error, BrokerUnavailable):
            self._untold = True
            self._due.set()

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
        start = trio.current_time()
        if not self._link.up or start < self._silent_until:
            await trio.lowlevel.checkpoint()
            raise BrokerUnavailable(str(self._link.address), f"is away: {self._link.problem.problem}")
        try:
            return await self._link.call(*command, timeout=PATIENCE)
        except BrokerError as error:
            self._failed(error)
            raise
        except trio.Cancelled:
            if trio.current_time() - start > PATIENCE / 4:  # who asks next may have as little time
                self._silent_until = trio.current_time() + PATIENCE
            raise

    def _failed(self, error: BrokerError) -> None:
        now = trio.current_time()
        if isinstance(error, BrokerUnavailable):  # of which the link tells
            self._silent_until = now + PATIENCE
        elif now >= self._complain_at:
            self._complain_at = now + COMPLAIN
            logger.warning("limits of all servers hold for this one alone: %s", error)
