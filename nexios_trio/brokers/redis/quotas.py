"""What the nodes count together in Redis: buckets of rate limits, and places."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
from attrs import define, field

from nexios_trio.brokers.redis.connection import Command
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.scripts import CHARGE, HOLD
from nexios_trio.brokers.redis.store import Store, milliseconds
from nexios_trio.config import Rate
from nexios_trio.exceptions import BrokerError, BrokerOverloaded, BrokerUnavailable

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

    rate: Rate
    at: float
    amount: float = 0.0
    own: float = 0.0
    """What would be owed at the time ``at`` if nothing else had been taken."""
    told: dict[Callable[[float], None], None] = field(factory=dict)

    def flow(self, now: float) -> None:
        """Let flow off what does."""
        self.own = max(0.0, self.own - (now - self.at) * self.rate.per_second)
        self.at = now


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
        self._given_back: dict[tuple[str, str], float] = {}
        """Places that Redis could not hear of as they were given back, and when that was."""
        self._due = trio.Event()
        self._untold = trio.Event()
        """Set if Redis may not know of places that were taken or given back."""
        self._silent_until = self._complain_at = -math.inf

    # Buckets

    def charge(self, bucket: str, amount: float, rate: Rate, told: Callable[[float], None]) -> None:
        """See `Quotas.charge`."""
        now = trio.current_time()
        charge = self._charges.get(bucket)
        if charge is None:
            if not self._link.up or now < self._silent_until:
                return
            charge = self._charges[bucket] = _Charge(rate, now)
            self._due.set()
        charge.flow(now)
        charge.own += amount
        charge.amount += amount
        charge.told[told] = None

    async def run(self) -> None:
        """Tell Redis of what was taken, all that has come up since it answered last; until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            charges, self._charges = [*self._charges.items()], {}
            for start in range(0, len(charges), AT_ONCE):
                await self._tell(charges[start : start + AT_ONCE])

    async def _tell(self, charges: Sequence[tuple[str, _Charge]]) -> None:
        # The link may do this twice, and then it counts twice: a client waits a little longer than it should.
        sent = trio.current_time()
        numbers: list[str] = []
        for _, charge in charges:
            charge.flow(sent)
            numbers += [repr(float(n)) for n in (charge.amount, charge.rate.per_second, charge.own)]
        keys = [self._store.keys.bucket(bucket) for bucket, _ in charges]
        try:
            reply = await self._link.call(
                "EVALSHA", CHARGE.sha, len(keys), *keys, self._store.now(), *numbers, timeout=PATIENCE
            )
        except BrokerError as error:  # it was taken here all the same
            if isinstance(error, BrokerUnavailable):
                self._charges.clear()  # what came up since would be told late, and so owed at once
            self._failed(error)
            return
        passed = trio.current_time() - sent
        for (bucket, charge), owed in zip(charges, reply, strict=True):
            since = self._charges.get(bucket)
            debt = max(0.0, float(owed) - passed * charge.rate.per_second)
            debt += 0.0 if since is None else since.amount
            for told in charge.told:
                try:
                    told(debt)
                except Exception:
                    logger.exception("what is owed to %r could not be told", bucket)

    # Places

    async def hold(self, name: str, holder: str, most: int) -> bool:
        """See `Quotas.hold`."""
        place = name, holder
        self._given_back.pop(place, None)
        try:
            held = bool(await self._ask(*self._holding([place], most)))
        except BrokerError as error:
            self._held[place] = None
            self._tell_later(error)
            raise
        if held:
            self._held[place] = None
        else:
            self._held.pop(place, None)
        return held

    def release(self, name: str, holder: str) -> None:
        """See `Quotas.release`."""
        place = name, holder
        self._held.pop(place, None)
        if self._link.up:
            self._link.post(self._releasing(place))
        else:  # so much could wait that the link takes nothing else
            self._given_back[place] = trio.current_time()
            self._untold.set()

    async def tell_again(self) -> None:
        """Tell Redis of places that it could not hear of; until cancelled."""
        while True:
            await self._untold.wait()
            await trio.sleep(PATIENCE)
            self._untold = trio.Event()
            await self.renew_now()

    async def renew_now(self) -> None:
        """Tell Redis of all places of this node, and of those that it has no more."""
        ended = trio.current_time() - self._lease  # by itself, in Redis
        self._given_back = {place: at for place, at in self._given_back.items() if at > ended}
        given_back = [*self._given_back]
        try:
            for start in range(0, len(given_back), AT_ONCE):
                # One that is taken meanwhile is taken again after this has given it back.
                some = [place for place in given_back[start : start + AT_ONCE] if place in self._given_back]
                await self._link.pipeline([self._releasing(place) for place in some])
                for place in some:
                    self._given_back.pop(place, None)
            held = [*self._held]
            for start in range(0, len(held), AT_ONCE):
                # One that is given back meanwhile is given back after this has taken it.
                some = [place for place in held[start : start + AT_ONCE] if place in self._held]
                if some:
                    await self._link.call(*self._holding(some, 0))
        except BrokerError as error:
            self._failed(error)
            self._tell_later(error)

    def _tell_later(self, error: BrokerError) -> None:
        if isinstance(error, BrokerUnavailable | BrokerOverloaded):
            self._untold.set()

    def _releasing(self, place: tuple[str, str]) -> Command:
        name, holder = place
        return ("ZREM", self._store.keys.places(name), holder)

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
