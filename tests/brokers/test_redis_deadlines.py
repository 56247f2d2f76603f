"""One timer for all calls of a link."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.deadlines import Call, Deadlines
from nexios_trio.brokers.redis.link import Link
from nexios_trio.exceptions import BrokerUnavailable


async def wait(deadlines: Deadlines, call: Call, limit: float, ends: dict[float, float]) -> None:
    begun = trio.current_time()
    await deadlines.wait(call, limit)
    assert call.dropped
    ends[limit] = trio.current_time() - begun


async def test_each_call_ends_after_its_own_time_whatever_came_before(autojump_clock: MockClock) -> None:
    deadlines, ends = Deadlines(), dict[float, float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as waiting:
            for limit in (5.0, 1.0, 3.0):  # the timer is set for 5 already when 1 comes
                waiting.start_soon(wait, deadlines, Call(b"", 1), limit, ends)
                await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ends == {1.0: pytest.approx(1), 3.0: pytest.approx(3), 5.0: pytest.approx(5)}


async def test_a_call_that_was_answered_is_not_dropped_when_its_time_comes(autojump_clock: MockClock) -> None:
    deadlines, call = Deadlines(), Call(b"", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        nursery.start_soon(deadlines.wait, call, 1.0)
        await wait_all_tasks_blocked()
        call.wake()
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert not call.dropped


async def test_a_cancelled_call_is_dropped_and_costs_no_other_its_time(autojump_clock: MockClock) -> None:
    deadlines, cancelled, ends = Deadlines(), Call(b"", 1), dict[float, float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as scope:
            await deadlines.wait(cancelled, 2.0)
        assert scope.cancelled_caught
        assert cancelled.dropped
        await wait(deadlines, Call(b"", 1), 2.0, ends)
        nursery.cancel_scope.cancel()
    assert ends == {2.0: pytest.approx(2)}


async def test_calls_end_in_time_without_a_timer_as_well(autojump_clock: MockClock) -> None:
    ends: dict[float, float] = {}
    await wait(Deadlines(), Call(b"", 1), 3.0, ends)
    assert ends == {3.0: pytest.approx(3)}


async def test_a_call_that_waits_when_the_link_ends_is_told_so_at_once(autojump_clock: MockClock) -> None:
    link = Link(Address.parse("redis+unix:///nonexistent/redis.sock")[0], timeout=60)
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.wait_tried()

        async def end() -> None:
            await trio.sleep(1)
            link_scope.cancel()

        async with trio.open_nursery() as other:
            other.start_soon(end)
            link_scope = nursery.cancel_scope
            with trio.CancelScope(shield=True), pytest.raises(BrokerUnavailable, match="has ended") as caught:
                await link.call("PING")
    assert not caught.value.uncertain
    assert trio.current_time() - begun == pytest.approx(1)
