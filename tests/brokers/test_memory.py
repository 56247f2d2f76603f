"""The broker contract on the embedded engine, and that engine's own bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from nexios_trio.brokers import Broker, Draft, Member, MemoryBroker
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.testing.broker_contract import ROOMY, BrokerContract, Recorder, seen, text


@asynccontextmanager
async def memory(
    receiver: Recorder, limits: HistoryLimits = ROOMY, grace: float = 0.5
) -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(limits, presence_grace=grace)
    broker.attach(receiver)
    async with broker.serving():
        yield broker


class TestMemoryBroker(BrokerContract):
    @asynccontextmanager
    async def node(self, receiver: Recorder, *, limits: HistoryLimits = ROOMY) -> AsyncIterator[Broker]:
        async with memory(receiver, limits, self.grace) as broker:
            yield broker


async def fill(broker: Broker, group: str, *payloads: str) -> None:
    for payload in payloads:
        await broker.publish(group, text(payload), keep=True)


async def test_a_ring_is_bounded_in_messages(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), HistoryLimits(messages=3)) as broker:
        await fill(broker, "g", *"abcdefg")
        assert seen(await broker.history("g")) == ["e", "f", "g"]


async def test_a_ring_is_bounded_in_bytes_and_not_wiped_whole(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), HistoryLimits(bytes=10)) as broker:
        await fill(broker, "g", "aaaa", "bbbb", "cc")
        assert seen(await broker.history("g")) == ["aaaa", "bbbb", "cc"]
        await fill(broker, "g", "d")
        assert seen(await broker.history("g")) == ["bbbb", "cc", "d"]


async def test_a_message_larger_than_the_ring_is_numbered_but_not_kept(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder(), HistoryLimits(bytes=10)) as broker:
        await fill(broker, "g", "a", "b" * 11)
        history = await broker.history("g")
        assert (seen(history), history.position.offset) == ([], 2)
        assert not (await broker.history("g", since=recorder.messages[0].position)).complete
        assert (await broker.history("g", since=recorder.messages[1].position)).complete


async def test_messages_older_than_the_age_are_gone(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder(), HistoryLimits(age=10)) as broker:
        await fill(broker, "g", "a")
        await trio.sleep(6)
        await fill(broker, "g", "b")
        assert seen(await broker.history("g")) == ["a", "b"]
        await trio.sleep(5)
        assert seen(await broker.history("g")) == ["b"]
        assert (await broker.history("g", since=recorder.messages[0].position)).complete
        await trio.sleep(5)
        assert seen(await broker.history("g")) == []
        assert not (await broker.history("g", since=recorder.messages[0].position)).complete
        assert (await broker.history("g", since=recorder.messages[1].position)).complete


async def test_the_history_of_a_silent_group_goes_when_another_one_sends(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), HistoryLimits(age=10)) as broker:
        for n in range(20):
            await fill(broker, f"silent.{n}", "x" * 1000)
        await broker.forget("silent.3")
        await trio.sleep(11)
        await fill(broker, "loud", "y")
        assert sum(len(log.ring) for log in broker._logs.values()) == 1
        assert list(broker._filled) == ["loud"]
        assert (await broker.history("silent.1")).position.offset == 1  # the number stays


async def test_the_group_used_least_recently_goes_and_starts_anew(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder(), HistoryLimits(groups=2)) as broker:
        await fill(broker, "a", "1")
        await fill(broker, "b", "1")
        await broker.history("a")
        await fill(broker, "c", "1")  # b goes
        assert seen(await broker.history("a")) == ["1"]
        old = recorder.of("b")[0]
        history = await broker.history("b", since=old.position)  # c goes: a was used after it
        assert (history.complete, history.position.offset) == (False, 0)
        assert history.position.epoch != old.epoch
        await fill(broker, "b", "2")
        assert recorder.of("b")[1].offset == 1
        assert seen(await broker.history("a")) == ["1"]
        assert len(broker._logs) == 2


async def test_messages_that_are_not_kept_need_no_room(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), HistoryLimits(groups=1)) as broker:
        await fill(broker, "a", "1")
        await broker.publish("b", text("2"), keep=False)
        assert seen(await broker.history("a")) == ["1"]


async def test_memory_stays_flat_over_many_messages(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), HistoryLimits(messages=10, groups=5)) as broker:
        broker.attach(_Nobody())
        for n in range(2000):
            await fill(broker, f"g{n % 50}", "x")
        assert len(broker._logs) == 5
        assert sum(len(log.ring) for log in broker._logs.values()) <= 50
        assert broker._filled.keys() <= broker._logs.keys()


class _Nobody(Recorder):
    async def deliver(self, message: object) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()


async def test_ids_of_messages_are_forgotten_after_some_minutes(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder()) as broker:
        for pause, count in ((0, 1), (299, 1), (2, 2), (0, 2)):
            await trio.sleep(pause)
            await broker.publish("g", text("1", id="order 7", once=True), keep=True)
            assert len(recorder.messages) == count
        for n in range(10_001):
            await broker.publish("g", text("", id=str(n), once=True), keep=False)
        assert len(broker._once) == 10_000


async def test_nothing_is_left_of_presences_that_have_ended(autojump_clock: MockClock) -> None:
    async with memory(Recorder(), grace=1) as broker:
        for n in range(10):
            member = Member(f"c{n}", f"u{n % 3}")
            await broker.enter("g", member)
            broker.leave("g", member)
        await trio.sleep(2)
        assert not broker._present
        assert not broker._devices
        assert not broker._leaving


async def test_no_grace_means_at_once(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder(), grace=0) as broker:
        await broker.enter("g", Member("c", "ann"))
        broker.leave("g", Member("c", "ann"))
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.told() == [("join", "g", "ann"), ("leave", "g", "ann")]


async def test_nobody_is_told_of_leaves_after_the_end(autojump_clock: MockClock) -> None:
    async with memory(recorder := Recorder(), grace=5) as broker:
        await broker.enter("g", Member("c", "ann"))
        broker.leave("g", Member("c", "ann"))
    await trio.sleep(10)
    assert recorder.told() == [("join", "g", "ann")]


async def test_other_tasks_run_between_the_publishes_of_a_loop(autojump_clock: MockClock) -> None:
    async with memory(Recorder()) as broker:
        steps = 0

        async def count() -> None:
            nonlocal steps
            while True:
                await trio.lowlevel.checkpoint()
                steps += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(100):
                await broker.publish("g", Draft("text", "x"), keep=False)
            nursery.cancel_scope.cancel()
        assert steps >= 90


def test_the_byte_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNEL_BOX_HISTORY_SIZE", "1234")
    assert HistoryLimits().bytes == 1234
    assert MemoryBroker().limits.bytes == 1234
    for wrong in ("", "0", "-1", "many"):
        monkeypatch.setenv("CHANNEL_BOX_HISTORY_SIZE", wrong)
        assert HistoryLimits().bytes == 1 << 20


def test_a_grace_that_is_no_time_is_refused() -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(WrongValueError, match="presence_grace is 0 or more seconds"):
            MemoryBroker(presence_grace=wrong)
    for other in ("2", True, None):
        with pytest.raises(WrongTypeError, match="presence_grace is a number of seconds"):
            MemoryBroker(presence_grace=other)  # type: ignore[arg-type]
