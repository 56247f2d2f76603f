"""Token buckets: how much may still come, and how long to wait if it may not.

No clock and no Trio here: ``now`` is an argument, in finite seconds of one clock, best a monotonic one.

A bucket is the moment at which it will be full again, and nothing of the past: GCRA, in the form that ITU-T
I.371 calls the continuous-state leaky bucket. So an idle bucket, one that is full, *is* a fresh one, and a
`BucketTable` may forget it without anybody being able to tell.

**What holds.** Of one bucket, in any interval of ``s`` seconds, what `take` admits and what `reserve` admits
(at the time of the call plus the wait) is together at most ``rate.per_second * s + rate.burst``, whatever the
order of the times. As floats go, add 1e-9 of the burst, once, so that a client which comes back exactly when
it may is not turned away over a last bit; 1e-15 of what is owed for each admission; and for `reserve` what
comes in one grain of ``now + wait`` (1.2e-7 seconds at 1e9), once. Else it does not matter how large ``now``
is.

**A clock that goes back** never admits more and never raises. A bucket waits until the clock is back where it
was: who starts a new clock, as each ``trio.run`` does, starts with new buckets.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

from nexios_trio.config import Rate
from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["Bucket", "BucketTable"]

_TOLERANCE: Final = 1e-9
"""Of the burst."""

_EXAMINED: Final = 2
"""Entries of a table that each call looks at. With n entries a round of the hand takes n / 2 calls, and what
is left at its end was in debt at its start (A entries at most) or was called for since: n <= A + n / 2, so
n <= 2 A, and within a round 3 A. With one entry a call, nothing would bound n."""


class _Meter:
    """The arithmetic of a rate. To it a bucket is two numbers: ``debt`` was owed at the time ``at``.

    ``at + debt / per_second`` is GCRA's theoretical arrival time. That as one float was tried: it counts in
    the grain of ``now``, so at 1e6 a burst of 3 at 3/s admitted 2, and at 1e9 a flood of single units at
    1e8/s was not limited at all. A debt counts in the grain of itself.
    """

    __slots__ = ("burst", "full", "per_second")

    def __init__(self, rate: Rate) -> None:
        self.per_second = rate.per_second
        if not 0 < self.per_second < math.inf:
            raise WrongValueError(f"amount / per of a rate is more than 0 and finite, which {rate!r} is not")
        self.burst = float(rate.burst)
        self.full = self.burst * (1 + _TOLERANCE)

    def owed(self, debt: float, at: float, now: float) -> float:
        """0.0: idle. Before ``at``, when the clock has gone back, more is owed than at it."""
        owed = debt - (now - at) * self.per_second
        # Not max(): a NaN has to come out as one, which admits nothing.
        return 0.0 if owed <= 0.0 else owed

    def take(self, debt: float, at: float, amount: float, now: float) -> tuple[float, float] | None:
        """The bucket after ``amount`` was taken, or None: it cannot be had now."""
        if not 0.0 <= amount <= self.burst:
            self._check(amount)
            return None
        owed = debt - (now - at) * self.per_second
        if owed <= 0.0:
            return amount, now
        if not owed + amount <= self.full:
            return None
        return owed + amount, now

    def wait(self, debt: float, at: float, amount: float, now: float) -> float:
        if not 0.0 <= amount <= self.burst:
            self._check(amount)
            return math.inf
        excess = self.owed(debt, at, now) + amount
        if excess <= self.full:
            return 0.0
        wait = (excess - self.burst) / self.per_second
        # now + wait is rounded to the grain of now, perhaps to a moment that is too early.
        step = math.ulp(now + wait)
        while self.owed(debt, at, now + wait) + amount > self.full:
            wait += step
            step *= 2
        return wait

    def reserve(
        self, debt: float, at: float, amount: float, now: float
    ) -> tuple[float, tuple[float, float] | None]:
        """The wait, and the bucket after ``amount`` was taken; None: it can never be had."""
        wait = self.wait(debt, at, amount, now)
        if not wait < math.inf:
            return wait, None
        if now < at:
            # The same as below, but exact even if the clock went back by years.
            return wait, (debt + amount, at)
        return wait, (self.owed(debt, at, now) + amount, now)

    @staticmethod
    def _check(amount: float) -> None:
        if not amount >= 0.0:
            raise WrongValueError(f"the amount to take from a bucket is 0 or more, not {amount!r}")


class Bucket:
    """One bucket, full at first. ``amount`` is in the units of the rate, whole or not, 0 or more."""

    __slots__ = ("_at", "_debt", "_meter")

    def __init__(self, rate: Rate) -> None:
        self._meter = _Meter(rate)
        self._debt = 0.0
        self._at = -math.inf

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` could be taken if nobody else takes; changes nothing.

        0.0: now, ``math.inf``: never, as it is more than the burst. ``take(amount, now + wait)`` succeeds,
        rounding included.
        """
        return self._meter.wait(self._debt, self._at, amount, now)

    def take(self, amount: float, now: float) -> bool:
        """Takes ``amount`` if it can be had now, and says whether.

        A refusal changes nothing: who keeps trying gets in as soon as one who waited would.
        """
        after = self._meter.take(self._debt, self._at, amount, now)
        if after is None:
            return False
        self._debt, self._at = after
        return True

    def reserve(self, amount: float, now: float) -> float:
        """Takes ``amount`` in any case, and gives the seconds to wait before going on.

        Reservations queue up: each waits for those before it, and `take` for all of them. ``math.inf``: it is
        more than the burst, and nothing was taken. There is no giving back: those behind have their times
        already, so whoever gives up has paid.
        """
        wait, after = self._meter.reserve(self._debt, self._at, amount, now)
        if after is not None:
            self._debt, self._at = after
        return wait

    def idle(self, now: float) -> bool:
        """Whether it is full, and so, from now on, the same as a new one."""
        return self._meter.owed(self._debt, self._at, now) == 0.0


class _Node:
    """An entry of a table, in a ring from the least to the most recently used."""

    __slots__ = ("at", "debt", "key", "newer", "older")

    def __init__(self, key: Hashable, debt: float, at: float) -> None:
        self.key = key
        self.debt = debt
        self.at = at
        self.newer = self
        self.older = self


class BucketTable:
    """A `Bucket` per key, for any number of keys in bounded room.

    ``len(table)`` is at most ``max_keys``, and at most about three times the number of buckets that were in
    debt at one time: each call of `take` and `reserve` examines a few entries and drops the idle ones, which
    changes no outcome.

    A full table that finds none idle among those few forgets the least recently used one, whose key starts
    afresh, and counts it in ``evicted``. A refused `take` is a use, so a flood is not forgotten while it
    lasts; `wait` is none.
    """

    def __init__(self, rate: Rate, max_keys: int = 100_000) -> None:
        if isinstance(max_keys, bool) or not isinstance(max_keys, int):
            raise WrongTypeError(f"max_keys is a whole number, not {max_keys!r}")
        if max_keys < 1:
            raise WrongValueError(f"max_keys is at least 1, not {max_keys!r}")
        self.max_keys = max_keys
        self.evicted = 0
        """Buckets in debt that were forgotten for want of room."""
        self._meter = _Meter(rate)
        self._nodes: dict[Hashable, _Node] = {}
        # Not an OrderedDict: a hand that moves through the entries would have to change their order.
        self._ends = _Node(None, math.inf, 0.0)
        """Between the newest and the oldest; never idle, so the hand passes it without asking."""
        self._hand = self._ends
        """The next to be examined. It goes from new to old: used entries go to the new end, behind it, and do
        not make its round longer."""
        self._fresh_at = -math.inf
        """A key that is not here owes nothing from this time on, that of the last idle entry dropped."""

    def __len__(self) -> int:
        return len(self._nodes)

    def wait(self, key: Hashable, amount: float, now: float) -> float:
        """As `Bucket.wait`."""
        node = self._nodes.get(key)
        if node is None:
            return self._meter.wait(0.0, self._fresh_at, amount, now)
        return self._meter.wait(node.debt, node.at, amount, now)

    def take(self, key: Hashable, amount: float, now: float) -> bool:
        """As `Bucket.take`."""
        node = self._nodes.get(key)
        if node is None:
            after = self._meter.take(0.0, self._fresh_at, amount, now)
        else:
            after = self._meter.take(node.debt, node.at, amount, now)
        self._used(key, node, after, now)
        return after is not None

    def reserve(self, key: Hashable, amount: float, now: float) -> float:
        """As `Bucket.reserve`."""
        node = self._nodes.get(key)
        if node is None:
            wait, after = self._meter.reserve(0.0, self._fresh_at, amount, now)
        else:
            wait, after = self._meter.reserve(node.debt, node.at, amount, now)
        self._used(key, node, after, now)
        return wait

    def owe(self, key: Hashable, debt: float, now: float) -> None:
        """Notes what is owed, by whoever has taken it: maybe more than the burst, no less than is known."""
        node = self._nodes.get(key)
        if node is not None:
            debt = max(debt, self._meter.owed(node.debt, node.at, now))
        if debt > 0.0:
            self._used(key, node, (debt, now), now)

    def _used(self, key: Hashable, node: _Node | None, after: tuple[float, float] | None, now: float) -> None:
        """Keeps what the bucket is ``after`` the call (None: as before), as the newest; moves the hand on."""
        if node is not None:
            if after is not None:
                node.debt, node.at = after
            if self._ends.older is not node:
                self._unlink(node)
                self._append(node)
            self._examine(now)
            return
        # Before the entry is added, so that a full table makes room of itself if it can.
        self._examine(now)
        if after is not None:
            if len(self._nodes) >= self.max_keys:
                self._evict(now)
            node = self._nodes[key] = _Node(key, *after)
            self._append(node)

    def _examine(self, now: float) -> None:
        node, per_second = self._hand, self._meter.per_second
        for _ in range(_EXAMINED):
            examined, node = node, node.older
            if examined.debt <= (now - examined.at) * per_second:
                self._forget(examined, now)
        self._hand = node

    def _evict(self, now: float) -> None:
        oldest = self._ends.newer
        if self._meter.owed(oldest.debt, oldest.at, now) == 0.0:
            self._forget(oldest, now)
        else:
            self._unlink(oldest)
            del self._nodes[oldest.key]
            self.evicted += 1

    def _forget(self, idle: _Node, now: float) -> None:
        self._unlink(idle)
        del self._nodes[idle.key]
        # Should the clock go back before now, the key must not be richer for having been forgotten.
        self._fresh_at = max(self._fresh_at, now)

    def _append(self, node: _Node) -> None:
        newest = self._ends.older
        node.older, node.newer = newest, self._ends
        newest.newer = self._ends.older = node

    def _unlink(self, node: _Node) -> None:
        if self._hand is node:
            self._hand = node.older
        node.older.newer, node.newer.older = node.newer, node.older
