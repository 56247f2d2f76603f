"""Token buckets against the inequality that they promise, and tables of them against naive ones."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nexios_trio.config import Rate
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.security.buckets import Bucket, BucketTable

# Strategies


RATES = st.builds(
    lambda amount, per, burst: Rate(amount, per=per, burst=burst),
    st.floats(1e-3, 1e9),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e9),
)
Kind = Literal["take", "reserve"]
KINDS: st.SearchStrategy[Kind] = st.sampled_from(("take", "take", "reserve"))
SHARES = st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.5, 1.0, 1.5]) | st.floats(0, 1.2, allow_subnormal=False)
"""Of the burst."""
STARTS = st.sampled_from([0.0, -1e9, 0.1, 1e6 + 0.3, 1e9, 1e9 + 0.7])
STEPS = st.sampled_from([0.0, 0.0, 1e-9, 1e-3, 1 / 3, 1.0, 3.0]) | st.floats(0, 2)
"""Between two calls, in the time that an empty bucket takes to be full."""

Call = tuple[Kind, int, float, float]
"""What is called, the key, the amount, and the time in seconds."""
Traffic = tuple[Rate, list[Call]]


def traffic(
    *, back: bool = False, keys: int = 1, least: int = 1, most: int = 40
) -> st.SearchStrategy[Traffic]:
    def build(rate: Rate, now: float, steps: list[tuple[Kind, int, float, float]]) -> Traffic:
        calls = []
        for kind, key, share, step in steps:
            now += step * rate.burst / rate.per_second
            calls.append((kind, key, share * rate.burst, now))
        return rate, calls

    steps = STEPS | STEPS.map(lambda step: -step) if back else STEPS
    each = st.tuples(KINDS, st.integers(0, keys - 1), SHARES, steps)
    return st.builds(build, RATES, STARTS, st.lists(each, min_size=least, max_size=most))


def admissions(bucket: Bucket, calls: Iterable[Call]) -> list[tuple[float, float]]:
    """The times and amounts of what came in."""
    admitted = []
    for kind, _key, amount, now in calls:
        if kind == "take":
            if bucket.take(amount, now):
                admitted.append((now, amount))
        elif (wait := bucket.reserve(amount, now)) < math.inf:
            admitted.append((now + wait, amount))
    return admitted


def assert_within(rate: Rate, admitted: Iterable[tuple[float, float]], *, reserved: bool = True) -> None:
    """In each interval no more than the module promises, computed without rounding."""
    exact = sorted((Fraction(time), Fraction(amount)) for time, amount in admitted)
    per_second, burst = Fraction(rate.amount) / Fraction(rate.per), Fraction(rate.burst)
    # What is owed is at most a burst for each of them, if all were reserved at one time.
    bound = burst * (1 + Fraction(1e-9) + Fraction(1e-15) * len(exact) ** 2)
    if reserved:
        bound += per_second * Fraction(max((math.ulp(float(time)) for time, _ in exact), default=0.0))
    # Over all first <= last: sum(first .. last) - per_second * (time[last] - time[first]) <= bound.
    total, least = Fraction(0), Fraction(0)
    for number, (time, amount) in enumerate(exact):
        before = total - per_second * time
        least = min(least, before) if number else before
        total += amount
        assert total - per_second * time - least <= bound


# One bucket


@settings(deadline=None)
@given(traffic())
def test_no_interval_admits_more_than_the_rate_and_the_burst(case: Traffic) -> None:
    rate, calls = case
    assert_within(rate, admissions(Bucket(rate), calls))
    only_takes = [call for call in calls if call[0] == "take"]
    assert_within(rate, admissions(Bucket(rate), only_takes), reserved=False)


@settings(deadline=None)
@given(traffic(back=True))
def test_nor_does_one_if_the_clock_goes_back_and_forth(case: Traffic) -> None:
    rate, calls = case
    assert_within(rate, admissions(Bucket(rate), calls))


@settings(deadline=None)
@given(traffic(back=True), SHARES)
def test_after_the_wait_a_take_succeeds(case: Traffic, share: float) -> None:
    rate, calls = case
    bucket, amount, now = Bucket(rate), share * rate.burst, calls[-1][3]
    admissions(bucket, calls)
    wait = bucket.wait(amount, now)
    assert bucket.wait(amount, now) == wait
    assert (wait == math.inf) == (amount > rate.burst)
    if 0 < wait < math.inf:
        assert not bucket.take(amount, now)
        assert bucket.wait(amount, now) == wait
    if wait < math.inf:
        assert bucket.take(amount, now + wait)


@settings(deadline=None)
@given(traffic(), SHARES, st.floats(0, 1e9))
def test_an_earlier_time_never_has_more_to_give(case: Traffic, share: float, back: float) -> None:
    rate, calls = case
    bucket, amount, now = Bucket(rate), share * rate.burst, calls[-1][3]
    admissions(bucket, calls)
    assert bucket.wait(amount, now - back) >= bucket.wait(amount, now)
    assert bucket.idle(now) or not bucket.idle(now - back)


@settings(deadline=None)
@given(traffic(most=10), traffic(most=10))
def test_an_idle_bucket_is_a_fresh_one(before: Traffic, after: Traffic) -> None:
    rate, calls = before
    old, fresh = Bucket(rate), Bucket(rate)
    admissions(old, calls)
    now = calls[-1][3]
    # A burst may be had a billionth of one before the bucket is full.
    now += old.wait(rate.burst, now) + 2e-9 * rate.burst / rate.per_second
    now += 2 * math.ulp(now)
    assert old.idle(now)
    for kind, _key, share, later in after[1]:
        time = now + (later - after[1][0][3])
        amount = share / after[0].burst * rate.burst
        assert old.wait(amount, time) == fresh.wait(amount, time)
        assert getattr(old, kind)(amount, time) == getattr(fresh, kind)(amount, time)


@pytest.mark.parametrize("now", [0.0, -5.0, 0.1, 1e6 + 0.1, 123_456.789, 1e9 + 0.7, float(2**20) - 2**-30])
@pytest.mark.parametrize(
    "rate", [Rate(3), Rate(10), Rate(100, per=60), Rate(7, per=1e9), Rate(1e6, burst=5_000), Rate(0.1)]
)
def test_a_burst_is_admitted_to_the_last_one_at_any_time(rate: Rate, now: float) -> None:
    bucket = Bucket(rate)
    taken = sum(bucket.take(1, now) for _ in range(int(rate.burst) + 100))
    assert taken == int(rate.burst)
    assert bucket.wait(1, now) == pytest.approx(1 / rate.per_second, rel=1e-6, abs=math.ulp(now))


def test_ten_tenths_are_one() -> None:
    bucket = Bucket(Rate(1, burst=1))
    assert [bucket.take(0.1, 0.0) for _ in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize("start", [0.0, 1e6 + 0.1, 1e9])
def test_who_comes_back_exactly_when_he_may_is_let_in(start: float) -> None:
    bucket, now = Bucket(Rate(10, burst=1)), start
    for _ in range(10_000):
        assert bucket.take(1, now)
        now += bucket.wait(1, now)
    assert now - start == pytest.approx(1_000, abs=1e-2)


def test_a_client_that_keeps_to_the_rate_is_not_turned_away_by_rounding() -> None:
    """Its times are tenths, which no float holds."""
    bucket = Bucket(Rate(10, burst=1))
    for number in range(10_000):
        assert bucket.wait(1, number / 10) == 0
        assert bucket.take(1, number / 10)


def test_rounding_gives_away_a_billionth_of_the_burst_and_no_more() -> None:
    bucket = Bucket(Rate(1e-9, burst=100))
    assert bucket.take(100, 0.0)
    assert sum(bucket.take(1e-8, 0.0) for _ in range(1_000)) <= 10


@pytest.mark.parametrize("start", [0.0, 1e9 + 0.7])
@pytest.mark.parametrize("per_second", [1e-6, 0.1, 10, 1e6])
def test_whoever_asks_all_the_time_gets_the_rate(per_second: float, start: float) -> None:
    rate = Rate(per_second, burst=5)
    bucket, step = Bucket(rate), 1 / 64
    taken = sum(bucket.take(per_second / 10, start + number * step) for number in range(64_000))
    expected = min(per_second * 1_000 + rate.burst, 64_000 * per_second / 10)
    assert taken * per_second / 10 == pytest.approx(
        expected if per_second / 10 <= rate.burst else 0, rel=1e-4, abs=per_second / 5
    )


def test_a_debt_survives_a_clock_that_goes_back_by_years() -> None:
    bucket = Bucket(Rate(1e9, burst=100))
    assert bucket.take(100, 1e9)
    assert bucket.reserve(100, -1e9) == pytest.approx(2e9)
    assert bucket.wait(100, 1e9) == pytest.approx(2e-7, abs=math.ulp(1e9))


def test_a_wait_is_found_in_few_steps_where_the_debt_is_coarser_than_the_time() -> None:
    """After millions of reservations; in steps of the time's grain it would take days."""
    bucket = Bucket(Rate(3, burst=1))
    bucket._debt, bucket._at = 648203156359569.8 * 3, -648203156359568.1
    wait = bucket.wait(0.5, 0.951957651735432)
    assert 0.5 < wait < 1
    assert bucket.take(0.5, 0.951957651735432 + wait)


def test_a_flood_of_the_smallest_amounts_is_counted_at_huge_times() -> None:
    """Here ``amount / rate`` is less than the grain of the time."""
    bucket = Bucket(Rate(1e9, burst=1_000))
    assert sum(bucket.take(1, 1e9) for _ in range(5_000)) == 1_000


def test_refusals_do_not_put_off_the_next_admission() -> None:
    bucket = Bucket(Rate(1, burst=2))
    assert bucket.take(2, 10.0)
    for number in range(100):
        assert not bucket.take(1, 10.0 + number / 101)
    assert bucket.take(1, 11.0)


def test_reservations_queue_up_and_take_waits_behind_them() -> None:
    bucket = Bucket(Rate(2, burst=1))
    assert [bucket.reserve(1, 0.0) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert bucket.wait(0.5, 1.0) == 0.75
    assert not bucket.take(0.5, 1.5)
    assert bucket.take(0.5, 1.75)


def test_what_is_more_than_the_burst_can_never_be_had_and_costs_nothing() -> None:
    bucket = Bucket(Rate(1, burst=2))
    assert bucket.wait(2.5, 0.0) == math.inf
    assert bucket.reserve(2.5, 0.0) == math.inf
    assert not bucket.take(2.5, 0.0)
    assert bucket.idle(0.0)
    assert bucket.take(2, 0.0)


def test_a_bucket_is_idle_when_it_is_full() -> None:
    bucket = Bucket(Rate(2, burst=4))
    assert bucket.idle(-1e9)
    assert bucket.take(3, 10.0)
    assert [bucket.idle(now) for now in (9.0, 10.0, 11.4, 11.5, 1e9)] == [False, False, False, True, True]


@pytest.mark.parametrize("amount", [-1, -1e-300, math.nan])
def test_an_amount_below_zero_gives_nothing_back(amount: float) -> None:
    bucket, table = Bucket(Rate(1)), BucketTable(Rate(1))
    for call in (bucket.wait, bucket.take, bucket.reserve):
        with pytest.raises(WrongValueError, match="the amount to take from a bucket is 0 or more, not"):
            call(amount, 0.0)
    with pytest.raises(WrongValueError, match="0 or more"):
        table.take("key", amount, 0.0)
    assert len(table) == 0


@pytest.mark.parametrize("rate", [Rate(1e-200, per=1e200), Rate(1e200, per=1e-200)])
def test_a_rate_that_no_float_holds_is_refused(rate: Rate) -> None:
    with pytest.raises(WrongValueError, match="amount / per of a rate is more than 0 and finite, which Rate"):
        Bucket(rate)


def test_a_time_that_is_none_admits_nothing() -> None:
    bucket = Bucket(Rate(1))
    assert bucket.take(1, 0.0)
    assert not bucket.take(1, math.nan)
    assert math.isnan(bucket.wait(1, math.nan))
    assert math.isnan(bucket.reserve(1, math.nan))
    assert bucket.wait(1, 0.0) == 1.0


# A table


@settings(deadline=None)
@given(traffic(keys=6, least=20, most=80))
def test_a_table_is_as_many_buckets_never_dropped(case: Traffic) -> None:
    """To the last bit, so dropping idle ones changes nothing."""
    rate, calls = case
    table, model = BucketTable(rate), defaultdict[int, Bucket](lambda: Bucket(rate))
    for kind, key, amount, now in calls:
        assert table.wait(key, amount, now) == model[key].wait(amount, now)
        assert getattr(table, kind)(key, amount, now) == getattr(model[key], kind)(amount, now)
        assert len(table) >= sum(not bucket.idle(now) for bucket in model.values())
    assert table.evicted == 0


@settings(deadline=None)
@given(traffic(keys=4, least=20, most=80, back=True))
def test_a_table_admits_no_more_if_the_clock_goes_back_and_forth(case: Traffic) -> None:
    rate, calls = case
    table, admitted = BucketTable(rate), defaultdict[int, list[tuple[float, float]]](list)
    for kind, key, amount, now in calls:
        wait = table.wait(key, amount, now)
        if kind == "reserve":
            assert table.reserve(key, amount, now) == wait
        else:
            assert table.take(key, amount, now) == (wait == 0)
            wait = wait or 0.0 if wait == 0 else math.inf
        if wait < math.inf:
            admitted[key].append((now + wait, amount))
    for of_key in admitted.values():
        assert_within(rate, of_key)


def test_a_key_forgotten_as_idle_is_no_richer_when_the_clock_goes_back() -> None:
    table = BucketTable(Rate(1, burst=2))
    assert table.take("a", 2, 10.0)
    for number in range(10):
        table.take(number, 1, 20.0)
    assert "a" not in str(table._nodes.keys())
    assert not table.take("a", 2, 10.0)
    assert table.take("a", 2, 10.0 + table.wait("a", 2, 10.0))


@pytest.mark.parametrize("calls", range(8))
def test_nor_if_another_key_is_forgotten_after_the_clock_went_back(calls: int) -> None:
    table, examine = BucketTable(Rate(1, burst=2)), ("nobody", 99)
    for number in range(5):
        table.take(number, 1, 0.0)
    for _ in range(6):
        table.reserve("a", 2, 0.0)
    for _ in range(calls):
        table.take(*examine, 0.0)
    table.take(*examine, 20.0)
    table.take(*examine, 11.0)
    assert table.wait("a", 2, 11.0) >= 1.0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([0.0, 0.0, 0.05, 1.0, 100.0]), st.booleans()),
        max_size=400,
    )
)
@example([(key, 0.1, False) for key in range(200)] * 2)
@example([(key % 40 if key % 3 else key, 0.0 if key % 50 else 3.0, False) for key in range(200)])
def test_the_length_follows_the_buckets_in_debt(calls: list[tuple[int, float, bool]]) -> None:
    rate = Rate(1, burst=3)
    table, model = BucketTable(rate), defaultdict[int, Bucket](lambda: Bucket(rate))
    now, most = 0.0, 0
    for key, step, reserve in calls:
        now += step
        if reserve:
            assert table.reserve(key, 1, now) == model[key].reserve(1, now)
        else:
            assert table.take(key, 1, now) == model[key].take(1, now)
        most = max(most, sum(not bucket.idle(now) for bucket in model.values()))
        assert len(table) <= 3 * most + 6
    assert table.evicted == 0


@pytest.mark.untraced
def test_the_length_does_not_grow_with_the_keys_seen() -> None:
    table, longest = BucketTable(Rate(1, burst=1)), 0
    for number in range(100_000):
        assert table.take(number, 1, number / 100)
        longest = max(longest, len(table))
    assert 100 <= longest <= 306
    assert table.evicted == 0


def test_amounts_of_nothing_leave_nothing() -> None:
    table = BucketTable(Rate(1))
    for number in range(100):
        assert table.take(number, 0, 5.0)
        assert len(table) <= 6


def test_users_who_come_back_do_not_keep_the_idle_ones_in() -> None:
    table = BucketTable(Rate(1, burst=5))
    for number in range(10_000):
        table.take(number, 1, 0.0)
    for number in range(10_000):
        table.take(number % 10, 1, 10.0 + number / 1_000)
    assert len(table) <= 36


def test_a_long_queue_of_reservations_does_not_keep_idle_buckets_in() -> None:
    table = BucketTable(Rate(1, burst=1))
    for _ in range(1_000):
        table.reserve("busy", 1, 0.0)
    for number in range(1_000):
        table.take(number, 1, number * 1.0)
    assert len(table) <= 12
    assert table.wait("busy", 1, 999.0) == 1.0


def test_at_max_keys_the_least_recently_used_goes_and_is_counted() -> None:
    table = BucketTable(Rate(1, per=1e6, burst=1), max_keys=3)
    for key in "abc":
        assert table.take(key, 1, 0.0)
    assert not table.take("a", 1, 1.0)  # refused, and a use
    assert table.wait("b", 1, 1.0) > 0  # none
    assert table.take("d", 1, 1.0)
    assert (len(table), table.evicted) == (3, 1)
    assert [table.wait(key, 1, 2.0) > 0 for key in "abcd"] == [True, False, True, True]
    assert table.reserve("e", 1, 2.0) == 0.0
    assert (len(table), table.evicted) == (3, 2)
    assert [table.wait(key, 1, 2.0) > 0 for key in "abcde"] == [True, False, False, True, True]


def test_an_idle_bucket_makes_room_and_is_not_counted() -> None:
    table = BucketTable(Rate(1, burst=10), max_keys=50)
    for key in range(50):
        assert table.take(key, 1 if key == 0 else 10, 0.0)
    assert table.take("the first is idle", 10, 2.0)
    assert (len(table), table.evicted) == (50, 0)
    assert table.take("nobody is", 10, 2.0)
    assert (len(table), table.evicted) == (50, 1)
    for key in range(100, 150):
        assert table.take(key, 1, 20.0)
    assert (len(table) <= 50, table.evicted) == (True, 1)


@settings(deadline=None)
@given(traffic(keys=8, least=20, most=80), st.integers(1, 5))
def test_a_small_table_never_outgrows_its_bound(case: Traffic, max_keys: int) -> None:
    rate, calls = case
    table, model = BucketTable(rate, max_keys), defaultdict[int, Bucket](lambda: Bucket(rate))
    for kind, key, amount, now in calls:
        here = getattr(table, kind)(key, amount, now)
        there = getattr(model[key], kind)(amount, now)
        assert len(table) <= max_keys
        if table.evicted:
            break
        assert here == there
    else:
        return
    # An eviction gives a fresh bucket, and the others are as they were.
    burst = rate.burst
    differs = [other for other in model if table.wait(other, burst, now) != model[other].wait(burst, now)]
    assert [table.wait(other, burst, now) for other in differs] in ([], [0.0])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 3)), min_size=20, max_size=80),
    st.integers(1, 5),
)
def test_evictions_follow_the_order_of_use(calls: list[tuple[int, bool, int]], max_keys: int) -> None:
    """All at one time, so that none gets idle, and then all of them."""
    rate = Rate(1, burst=3)
    table, model, evicted = BucketTable(rate, max_keys), dict[int, Bucket](), 0
    for key, take, reservations in calls:
        bucket = model.pop(key, None) or Bucket(rate)
        if len(model) == max_keys:
            del model[next(iter(model))]
            evicted += 1
        model[key] = bucket
        if take:
            assert table.take(key, 1, 0.0) == bucket.take(1, 0.0)
        for _ in range(reservations + (not take)):
            assert table.reserve(key, 2, 0.0) == bucket.reserve(2, 0.0)
        assert (len(table), table.evicted) == (len(model), evicted)
        for other in range(10):
            assert table.wait(other, 3, 0.0) == model.get(other, Bucket(rate)).wait(3, 0.0)
    for _ in range(max_keys + 2):
        table.take("anything", 0, 1e6)
    assert len(table) <= 1
    assert table.evicted == evicted


@pytest.mark.parametrize("max_keys", [0, -1])
def test_a_table_has_room_for_one_key_at_least(max_keys: int) -> None:
    with pytest.raises(WrongValueError, match="max_keys is at least 1, not"):
        BucketTable(Rate(1), max_keys)


@pytest.mark.parametrize("max_keys", [True, 1.0, None])
def test_max_keys_is_a_whole_number(max_keys: object) -> None:
    with pytest.raises(WrongTypeError, match="max_keys is a whole number, not"):
        BucketTable(Rate(1), max_keys)  # type: ignore[arg-type]


# A table against the definition


class TableMachine(RuleBasedStateMachine):
    """The reference keeps every admission, and asks of each interval that ends now what still fits into it.

    All numbers are such that floats compute exactly, so the answers are equal, not close.
    """

    keys = st.integers(0, 12)
    amounts = st.integers(0, 24).map(lambda quarters: quarters / 4)

    @initialize(
        amount=st.sampled_from([0.25, 1.0, 4.0]),
        per=st.sampled_from([0.5, 1.0, 64.0]),
        burst=st.sampled_from([0.75, 1.0, 3.0, 5.0]),
        start=st.sampled_from([0, 2**20, 2**30]),
    )
    def start(self, amount: float, per: float, burst: float, start: int) -> None:
        self.rate = Rate(amount, per=per, burst=burst)
        self.table = BucketTable(self.rate)
        self.admitted = defaultdict[int, list[tuple[Fraction, Fraction]]](list)
        self.now = Fraction(start)
        self.most_in_debt = 0

    def gaps(self, key: int, amount: Fraction, burst: Fraction) -> Iterable[Fraction]:
        """For each interval, from an admission on, the time at which ``amount`` fits into it as well."""
        total = amount
        for time, before in reversed(self.admitted[key]):
            total += before
            yield time + (total - burst) / Fraction(self.rate.per_second)

    def expected_wait(self, key: int, amount: float) -> float:
        if amount > self.rate.burst:
            return math.inf
        fits = self.gaps(key, Fraction(amount), Fraction(self.rate.burst))
        return float(max(itertools.chain(fits, [self.now])) - self.now)

    def in_debt(self) -> int:
        """Keys of which an interval would not yet hold a whole burst more."""
        return sum(
            max(self.gaps(key, Fraction(0), Fraction(0)), default=self.now) > self.now
            for key in list(self.admitted)
        )

    def admit(self, key: int, amount: float, wait: float) -> None:
        self.admitted[key].append((self.now + Fraction(wait), Fraction(amount)))

    @rule(eighths=st.one_of(st.integers(0, 40), st.integers(0, 10_000)))
    def pass_time(self, eighths: int) -> None:
        self.now += Fraction(eighths, 8)

    @rule(key=keys, amount=amounts)
    def ask(self, key: int, amount: float) -> None:
        assert self.table.wait(key, amount, float(self.now)) == self.expected_wait(key, amount)

    @rule(key=keys, amount=amounts)
    def take(self, key: int, amount: float) -> None:
        expected = self.expected_wait(key, amount) == 0
        assert self.table.take(key, amount, float(self.now)) == expected
        if expected:
            self.admit(key, amount, 0.0)

    @rule(key=keys, amount=amounts)
    def reserve(self, key: int, amount: float) -> None:
        expected = self.expected_wait(key, amount)
        assert self.table.reserve(key, amount, float(self.now)) == expected
        if expected < math.inf:
            self.admit(key, amount, expected)

    @rule(key=keys, amount=amounts)
    def wait_and_take(self, key: int, amount: float) -> None:
        wait = self.table.wait(key, amount, float(self.now))
        if wait < math.inf:
            self.now += Fraction(wait)
            assert self.table.take(key, amount, float(self.now))
            self.admit(key, amount, 0.0)

    @precondition(lambda self: hasattr(self, "table"))
    @invariant()
    def holds_those_in_debt_and_few_more(self) -> None:
        in_debt = self.in_debt()
        self.most_in_debt = max(self.most_in_debt, in_debt)
        assert in_debt <= len(self.table) <= 3 * self.most_in_debt + 6
        assert self.table.evicted == 0


TableMachine.TestCase.settings = settings(deadline=None, max_examples=100, stateful_step_count=60)
TestTableAgainstTheDefinition = pytest.mark.untraced(TableMachine.TestCase)
