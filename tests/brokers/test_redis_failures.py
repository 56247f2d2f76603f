"""What breaks between nodes and Redis, and that nothing is lost in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from nexios_trio.brokers import Draft, Member, Message, Position
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.brokers.redis.scripts import PUBLISH
from nexios_trio.brokers.redis.store import PAGE, PAGE_BYTES
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import BrokerCommandError, BrokerUnavailable
from nexios_trio.testing.broker_contract import ROOMY, Recorder, seen, text
from tests.brokers.nodes import PATIENCE, Process, Wire, node
from tests.brokers.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


async def fill(broker: RedisBroker, group: str, numbers: range) -> list[Message]:
    return [await broker.publish(group, text(str(n)), keep=True) for n in numbers]


async def count(recorder: Recorder, number: int) -> None:
    await recorder.until(lambda: len(recorder.messages) >= number, PATIENCE)


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody tells: looks at each step of Trio."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


def numbers(recorder: Recorder, group: str) -> list[int]:
    return [int(message.data) for message in recorder.of(group)]


def kill_subscribers(server: RedisServer) -> int:
    killed: int = server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    return killed


# Connections


async def test_what_is_sent_while_a_subscription_is_down_is_filled_in(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, here := Recorder(), prefix=prefix) as first:
        async with Wire(shared_redis.path).up() as wire:
            async with node(wire.url, there := Recorder(), prefix=prefix) as second:
                for broker in (first, second):
                    await broker.subscribe("g")
                sent = 0
                for _ in range(5):
                    await fill(first, "g", range(sent, sent + 20))
                    wire.open = False
                    await wire.cut()
                    await until(lambda: not second.available)
                    await fill(first, "g", range(sent + 20, sent + 40))
                    wire.open = True
                    sent += 40
                    await count(there, sent)
                assert numbers(there, "g") == numbers(here, "g") == list(range(200))
                assert there.resyncs == []


async def test_under_kills_all_messages_come_in_order_and_once(
    shared_redis: RedisServer, prefix: str
) -> None:
    """With a load that does not stop: holes, catching up and live messages meet in all ways."""
    groups = [f"g{n}" for n in range(5)]
    async with (
        node(shared_redis.url, here := Recorder(), prefix=prefix) as first,
        node(shared_redis.url, there := Recorder(slow=True), prefix=prefix) as second,
    ):
        for group in groups:
            await first.subscribe(group)
            await second.subscribe(group)

        async def send(group: str) -> None:
            for n in range(100):
                await (first, second)[n % 2].publish(group, text(str(n)), keep=True)

        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(send, group)
            kills = 0
            for level in range(40, 500, 40):
                await count(here, level)
                kills += await trio.to_thread.run_sync(kill_subscribers, shared_redis)
                if level % 120 == 0:
                    await trio.to_thread.run_sync(
                        shared_redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
                    )
        assert kills >= 10
        for recorder in (here, there):
            await count(recorder, 500)
            for group in groups:
                assert numbers(recorder, group) == list(range(100))
                assert [message.offset for message in recorder.of(group)] == list(range(1, 101))
            assert recorder.resyncs == []


@pytest.mark.parametrize("keep", [True, False])
async def test_a_publish_whose_answer_is_lost_is_delivered_once(
    shared_redis: RedisServer, prefix: str, keep: bool
) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as other:
        await other.subscribe("g")
        async with Wire(shared_redis.path).up() as wire:
            async with node(wire.url, Recorder(), prefix=prefix) as broker:
                await broker.publish("g", text("before"), keep=keep)
                connections = wire.connections
                wire.deaf = True
                async with trio.open_nursery() as nursery:
                    sent: list[Message] = []

                    async def publish() -> None:
                        sent.append(await broker.publish("g", text("once"), keep=keep))

                    nursery.start_soon(publish)
                    await there.until(lambda: there.data()[-1:] == ["once"])
                    wire.deaf = False
                assert wire.swallowed
                assert wire.connections > connections
                after = await broker.publish("g", text("after"), keep=keep)
                await there.until(lambda: there.data()[-1:] == ["after"])
        assert there.data() == ["before", "once", "after"]
        if keep:
            assert [message.position for message in there.messages[1:]] == [sent[0].position, after.position]
            assert seen(await other.history("g")) == ["before", "once", "after"]


async def test_a_lost_answer_of_what_is_trimmed_meanwhile_is_no_second_message(
    shared_redis: RedisServer, prefix: str
) -> None:
    limits = HistoryLimits(messages=2)
    async with node(shared_redis.url, Recorder(), limits, prefix=prefix) as broker:
        publishing = broker.store.publishing("g", text("1"), keep=True)
        first = await broker.link.call(*publishing.command)
        await fill(broker, "g", range(2, 6))
        again = await broker.link.call(*publishing.command)
        assert (first[1], again[1], again[5]) == (1, 0, 0)
        assert (await broker.history("g")).position.offset == 5


async def test_many_groups_are_subscribed_anew_in_chunks(shared_redis: RedisServer, prefix: str) -> None:
    groups = [f"g{n}" for n in range(2000)]
    async with (
        node(shared_redis.url, Recorder(), prefix=prefix) as first,
        node(shared_redis.url, there := Recorder(), prefix=prefix) as second,
    ):
        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(second.subscribe, group)
        assert await trio.to_thread.run_sync(kill_subscribers, shared_redis) == 1
        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(fill, first, group, range(1))
        await there.until(lambda: len(there.messages) == len(groups))
        assert {message.group for message in there.messages} == set(groups)
        second.unsubscribe("g0")
        await first.publish("g1", text("x"), keep=False)
        await there.until(lambda: len(there.messages) == len(groups) + 1)


@pytest.mark.parametrize(("count", "size"), [(2600, 1), (40, 50_000)])
async def test_more_than_a_page_is_caught_up_with(
    shared_redis: RedisServer, prefix: str, count: int, size: int
) -> None:
    limits = HistoryLimits(messages=5000, bytes=1 << 30)
    async with node(shared_redis.url, Recorder(), limits, prefix=prefix) as first:
        async with Wire(shared_redis.path).up() as wire:
            async with node(wire.url, there := Recorder(), limits, prefix=prefix) as second:
                await second.subscribe("g")
                start = (await first.publish("g", text("0"), keep=True)).position
                assert start is not None
                await there.until(lambda: len(there.messages) == 1)
                wire.open = False
                await wire.cut()
                for n in range(1, count + 1):
                    draft = text(str(n).ljust(size), id=str(n))
                    first.link.post(first.store.publishing("g", draft, keep=True).command)
                await first.publish("elsewhere", text(""), keep=False)
                wire.open = True
                await there.until(lambda: len(there.messages) == count + 1, PATIENCE)
                assert numbers(there, "g") == list(range(count + 1))
                history = await first.history("g", since=start)
                assert (len(history.messages), history.complete) == (count, True)
                last = [str(n).ljust(size) for n in range(count - 2, count + 1)]
                assert seen(await first.history("g", since=start, limit=3)) == last
                page = first.store.page(
                    "g", await first.link.call(*first.store.reading("g", since=start.offset))
                )
                assert page.more
                assert len(page.messages) <= PAGE
                assert sum(len(message.data) for message, _ in page.messages) < PAGE_BYTES + size


async def test_a_flood_while_catching_up_is_held_in_bounds(shared_redis: RedisServer, prefix: str) -> None:
    limits = HistoryLimits(messages=10_000, bytes=1 << 30)
    async with (
        node(shared_redis.url, Recorder(), limits, prefix=prefix) as first,
        node(shared_redis.url, there := Recorder(), limits, prefix=prefix) as second,
    ):
        await second.subscribe("g")
        track = second.feed.tracks["g"]
        second.feed._fall_behind(track)
        for n in range(3000):
            first.link.post(first.store.publishing("g", text(str(n), id=str(n)), keep=True).command)
        await there.until(lambda: len(there.messages) == 3000, PATIENCE)
        assert numbers(there, "g") == list(range(3000))
        assert not track.held


# Redis itself


async def test_a_redis_that_stands_still_delays_and_loses_nothing(redis: RedisServer) -> None:
    async with (
        node(redis.url, here := Recorder()) as first,
        node(redis.url, there := Recorder()) as second,
    ):
        for broker in (first, second):
            await broker.subscribe("g")
        redis.pause()
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(fill, first, "g", range(n, n + 1))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert first.available
            redis.go_on()
        await there.until(lambda: len(there.messages) == 20)
        assert there.data() == here.data()
        assert there.resyncs == []


async def test_a_redis_that_comes_back_with_its_append_file_has_lost_nothing(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis", "appendonly yes", "appendfsync always").start()
    try:
        async with (
            node(redis.url, here := Recorder()) as first,
            node(redis.url, there := Recorder()) as second,
        ):
            for broker in (first, second):
                await broker.subscribe("g")

            async def send() -> None:
                await fill(first, "g", range(200))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                for level in (50, 100, 150):
                    await count(there, level)
                    redis.kill()
                    await until(lambda: not (first.available or second.available))
                    await trio.to_thread.run_sync(redis.start)
            for recorder in (here, there):
                await count(recorder, 200)
                assert numbers(recorder, "g") == list(range(200))
                assert recorder.resyncs == []
            assert len({message.epoch for message in there.messages}) == 1
    finally:
        redis.kill()


async def test_a_redis_that_has_lost_everything_is_told(redis: RedisServer) -> None:
    async with node(redis.url, there := Recorder(), on_outage="wait") as broker:
        await broker.subscribe("g")
        await broker.subscribe("silent")
        before = await fill(broker, "g", range(3))
        await broker.enter("g", Member("c", "ann"))
        redis.kill()
        await trio.to_thread.run_sync(redis.start)
        await there.until(lambda: {"g", "silent"} <= set(there.resyncs), PATIENCE)
        history = await broker.history("g", since=before[-1].position)
        assert (seen(history), history.complete) == ([], False)
        after = await broker.publish("g", text("3"), keep=True)
        assert after.offset == 1
        assert after.epoch != before[0].epoch
        assert there.data() == ["0", "1", "2", "3"]
        await until_members(broker, "g", ["ann"])  # who is still here is entered again


async def until_members(broker: RedisBroker, group: str, users: list[str]) -> None:
    with trio.fail_after(PATIENCE):
        while [member.user for member in await broker.members(group)] != users:
            pass


@pytest.mark.parametrize("since_then", [0, 2, 3, 5])
async def test_an_offset_that_was_rolled_back_within_an_epoch_is_found_and_told(
    redis: RedisServer, since_then: int
) -> None:
    """The last writes are lost, and other messages get their numbers: fewer, as many, or more."""
    async with (
        node(redis.url, Recorder()) as first,
        node(redis.url, there := Recorder()) as second,
    ):
        await second.subscribe("g")
        old = await fill(first, "g", range(5))
        await there.until(lambda: len(there.messages) == 5)
        redis.ask("SAVE")
        lost = await fill(first, "g", range(5, 8))
        await there.until(lambda: len(there.messages) == 8)
        redis.kill()
        await trio.to_thread.run_sync(redis.start)
        new = await fill(first, "g", range(100, 100 + since_then))
        await there.until(lambda: there.resyncs == ["g"], PATIENCE)
        history = await second.history("g")
        assert history.position.epoch == old[0].epoch
        assert history.position.offset == 5 + since_then
        for message in lost:
            assert message.position is not None
            assert not (await second.history("g", since=message.position)).complete
        for message in (*old, *new):
            assert message.position is not None
            assert (await second.history("g", since=message.position)).complete
        last = await first.publish("g", text("200"), keep=True)
        await there.until(lambda: there.data()[-1:] == ["200"])
        assert there.messages[-1].position == last.position
        assert there.resyncs == ["g"]


async def test_a_rollback_that_only_a_position_of_a_client_shows_is_found(redis: RedisServer) -> None:
    async with node(redis.url, Recorder()) as broker:
        await fill(broker, "g", range(2))
        redis.ask("SAVE")
        (lost,) = await fill(broker, "g", range(2, 3))
    redis.kill()
    redis.start()
    async with node(redis.url, Recorder()) as broker:
        (new,) = await fill(broker, "g", range(100, 101))
        assert (new.epoch, new.offset) == (lost.epoch, lost.offset)
        assert lost.position is not None
        history = await broker.history("g", since=lost.position)
        assert (seen(history), history.complete) == (["0", "1", "100"], False)
        assert not (await broker.history("g", since=Position(new.epoch, 3))).complete  # its nonce cut off


async def test_a_lost_last_message_is_found_by_comparing(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix, check=0.05) as broker:
        await broker.subscribe("g")
        await fill(broker, "g", range(2))
        command = [*broker.store.publishing("g", text("2", id="x"), keep=True).command]
        assert command[1] == PUBLISH.sha
        command[6] = "elsewhere"  # recorded, and published where nobody listens
        await broker.link.call(*command)
        await there.until(lambda: len(there.messages) == 3)
        assert numbers(there, "g") == [0, 1, 2]
        assert broker.feed.gaps == 0


async def test_a_full_redis_says_so(redis: RedisServer) -> None:
    async with node(redis.url, Recorder()) as broker:
        redis.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BrokerCommandError) as caught:
            await broker.publish("g", text("1"), keep=True)
        assert caught.value.code == "OOM"
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        assert (await broker.publish("g", text("1"), keep=True)).offset == 1


async def test_keys_that_were_evicted_start_a_new_numbering(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        (first, second) = await fill(broker, "g", range(2))
        await trio.to_thread.run_sync(shared_redis.ask, "DEL", f"{prefix}{{g}}:m")
        assert second.position is not None
        history = await broker.history("g", since=second.position)
        assert (seen(history), history.complete, history.position.offset) == ([], False, 0)
        await trio.to_thread.run_sync(shared_redis.ask, "DEL", f"{prefix}{{g}}:m", f"{prefix}{{g}}:s")
        (third,) = await fill(broker, "g", range(1))
        assert (third.offset, third.epoch == first.epoch) == (1, False)


# Nodes


def _has_told(recorder: Recorder, number: int) -> bool:
    return len(recorder.told()) >= number


async def test_a_dead_node_is_swept_up_once(shared_redis: RedisServer, prefix: str) -> None:
    recorders = [Recorder(), Recorder()]
    dead = Process(shared_redis.url, prefix, 1.0, "ann", "bob")
    try:
        async with (
            node(shared_redis.url, recorders[0], prefix=prefix, lease=1.0) as first,
            node(shared_redis.url, recorders[1], prefix=prefix, lease=1.0) as second,
        ):
            for broker in (first, second):
                await broker.subscribe("g")
            await first.enter("g", Member("c", "cy"))
            await dead.until("ready")
            await dead.until("presence.join g bob")
            await until_members(second, "g", ["cy", "ann", "bob"])
            dead.kill()
            await until_members(second, "g", ["cy"])
            for recorder in recorders:
                await recorder.until(partial(_has_told, recorder, 5), PATIENCE)
            await first.enter("g", Member("d", "dan"))  # behind whatever else might have come
            for recorder in recorders:
                await recorder.until(partial(_has_told, recorder, 6), PATIENCE)
                told = recorder.told()
                assert sorted(told[3:5]) == [("leave", "g", "ann"), ("leave", "g", "bob")]
                assert told[5:] == [("join", "g", "dan")]
            assert [member.user for member in await second.members("g")] == ["cy", "dan"]
    finally:
        dead.kill()


async def test_a_node_that_ends_in_order_takes_its_members_along(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, recorder := Recorder(), prefix=prefix) as first:
        await first.subscribe("g")
        async with node(shared_redis.url, Recorder(), prefix=prefix) as second:
            await second.enter("g", Member("c", "ann"))
        await recorder.until(lambda: recorder.told() == [("join", "g", "ann"), ("leave", "g", "ann")])
        assert await first.members("g") == ()


async def test_presence_events_of_an_outage_are_told_afterwards(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as first:
        async with Wire(shared_redis.path).up() as wire:
            async with node(wire.url, there := Recorder(), prefix=prefix) as second:
                await second.subscribe("g")
                await first.enter("g", Member("a", "ann"))
                await there.until(lambda: len(there.events) == 1)
                wire.open = False
                await wire.cut()
                await until(lambda: not second.available)
                first.leave("g", Member("a", "ann"))
                await first.enter("g", Member("b", "bob"))
                wire.open = True
                await there.until(lambda: len(there.events) == 3, PATIENCE)
                assert sorted(there.told()[1:]) == [("join", "g", "bob"), ("leave", "g", "ann")]
                assert there.resyncs == []


async def test_a_process_that_stands_still_costs_redis_little_and_is_told(tmp_path: Path) -> None:
    """Its history is shorter than what it misses, and Redis drops its subscription."""
    redis = RedisServer(tmp_path / "redis", "client-output-buffer-limit pubsub 1mb 1mb 1").start()
    still = Process(redis.url, "p:", 60.0)
    try:
        await still.until("ready")
        limits = HistoryLimits(messages=100, bytes=1 << 30)
        async with node(redis.url, Recorder(), limits, prefix="p:") as broker:
            await fill(broker, "g", range(1))
            await still.until("message g 1 0")
            still.stop()
            data = "x" * 10_000
            for _ in range(3000):
                await broker.publish("g", text(data), keep=True)
            info = await broker.link.call("INFO", "memory")
            highest = int(info.split(b"used_memory_peak:")[1].split(b"\r")[0])
            assert highest < 40 << 20
            still.go_on()
            lines = await still.until("resync g")
            last = await broker.publish("g", text("last"), keep=True)
            lines = await still.until(f"message g {last.offset} last")
            offsets = [int(line.split()[2]) for line in lines if line.startswith("message")]
            assert offsets == sorted(set(offsets))
    finally:
        still.go_on()
        still.kill()
        redis.kill()


async def test_a_process_that_stands_still_for_a_moment_misses_nothing(
    shared_redis: RedisServer, prefix: str
) -> None:
    still = Process(shared_redis.url, prefix, 60.0)
    try:
        await still.until("ready")
        async with node(shared_redis.url, Recorder(), HistoryLimits(messages=100), prefix=prefix) as broker:
            still.stop()
            await fill(broker, "g", range(50))
            still.go_on()
            lines = await still.until("message g 50 49")
            assert lines[1:] == [f"message g {n + 1} {n}" for n in range(50)]
    finally:
        still.go_on()
        still.kill()


# The outage policy


async def test_wait_waits_for_redis_but_not_for_ever(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis", "appendonly yes", "appendfsync always").start()
    try:
        async with node(redis.url, there := Recorder(), on_outage="wait") as broker:
            await broker.subscribe("g")
            redis.kill()
            await until(lambda: not broker.link.up)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill, broker, "g", range(1))
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert there.messages == []
                await trio.to_thread.run_sync(redis.start)
            assert there.data() == ["0"]
        redis.kill()
        async with node(redis.url, Recorder(), on_outage="wait", timeout=0.05) as broker:
            calls: list[Callable[[], Any]] = [
                lambda: broker.publish("g", text("1"), keep=True),
                lambda: broker.subscribe("g"),
                lambda: broker.subscribe("*", pattern=True),
                lambda: broker.history("g"),
                lambda: broker.members("g"),
                lambda: broker.enter("g", Member("c", "ann")),
                lambda: broker.forget(),
            ]
            for call in calls:
                with pytest.raises(BrokerUnavailable):
                    await call()
            broker.leave("g", Member("c", "ann"))
            broker.unsubscribe("g")
    finally:
        redis.kill()


async def test_fail_fails_at_once(redis: RedisServer) -> None:
    async with node(redis.url, there := Recorder(), on_outage="fail", timeout=3600.0) as broker:
        await broker.subscribe("g")
        redis.kill()
        await until(lambda: not broker.link.up)
        calls: list[Callable[[], Any]] = [
            lambda: broker.publish("g", text("1"), keep=True),
            lambda: broker.publish("g", text("1"), keep=False),
            lambda: broker.subscribe("h"),
            lambda: broker.history("g"),
            lambda: broker.members("g"),
            lambda: broker.enter("g", Member("c", "ann")),
        ]
        for call in calls:
            with pytest.raises(BrokerUnavailable):
                await call()
        assert there.messages == []
        await trio.to_thread.run_sync(redis.start)
        await until(lambda: broker.available)
        await fill(broker, "g", range(1))


async def test_local_reaches_the_members_here_and_says_that_it_is_not_recorded(redis: RedisServer) -> None:
    async with node(redis.url, here := Recorder(), on_outage="local") as broker:
        await broker.subscribe("g")
        (recorded,) = await fill(broker, "g", range(1))
        redis.ask("SAVE")
        redis.kill()
        await until(lambda: not broker.link.up)
        message = await broker.publish("g", text("1"), keep=True)
        assert (message.offset, message.position) == (None, None)
        assert here.data() == ["0", "1"]
        await broker.subscribe("new")
        assert (await broker.history("new")).messages == ()
        assert recorded.position is not None
        assert not (await broker.history("g", since=recorded.position)).complete
        await broker.enter("new", ann := Member("c", "ann"))
        assert await broker.members("new") == (ann,)
        await trio.to_thread.run_sync(redis.start)
        await here.until(lambda: here.resyncs == ["new"], PATIENCE)  # who knows what it missed
        await until_members(broker, "new", ["ann"])
        assert (await broker.publish("g", text("2"), keep=True)).offset == 2


async def test_local_does_not_deliver_twice_what_was_recorded_after_all(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with Wire(shared_redis.path).up() as wire:
        options: dict[str, Any] = {"prefix": prefix, "on_outage": "local", "timeout": 1.0}
        async with node(wire.url, here := Recorder(), **options) as broker:
            await broker.subscribe("g")
            wire.deaf = True
            message = await broker.publish("g", text("1"), keep=True)
            assert message.offset is None
            assert here.data() == ["1"]
            wire.deaf = False
            await until(lambda: broker.available)
            assert (await broker.publish("g", text("2"), keep=True)).offset == 2
            assert here.data() == ["1", "2"]
            assert seen(await broker.history("g")) == ["1", "2"]


# Bounds, garbage, names


async def test_the_history_is_bounded_in_messages_bytes_and_age(
    shared_redis: RedisServer, prefix: str
) -> None:
    now = 1e9
    limits = HistoryLimits(messages=5, bytes=10, age=100)
    async with node(shared_redis.url, Recorder(), limits, prefix=prefix, clock=lambda: now) as broker:
        for data in ("aaaa", "bbbb", "cc"):
            await broker.publish("g", text(data), keep=True)
        assert seen(await broker.history("g")) == ["aaaa", "bbbb", "cc"]
        await broker.publish("g", text("d"), keep=True)
        assert seen(await broker.history("g")) == ["bbbb", "cc", "d"]
        await broker.publish("g", text("e" * 11), keep=True)
        history = await broker.history("g")
        assert (seen(history), history.position.offset) == ([], 5)
        for n in range(7):
            now += 30
            await broker.publish("g", text(str(n)), keep=True)
        assert seen(await broker.history("g")) == ["3", "4", "5", "6"]  # 100 s, the youngest first
        now += 1000
        history = await broker.history("g", since=history.position)
        assert (seen(history), history.complete) == ([], False)


async def test_what_is_no_message_is_left_out_and_logged_once(
    shared_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        await broker.subscribe("g")
        garbage: list[bytes] = [b"", b"\xff\xfe", b"{}", b"[]\n", b'{"type":"presence.join"}', b"[1,2\n3"]
        garbage.append(b'[0,"","n","",1,"text",null,[],"i"]\n\xff')
        for data in garbage:
            await broker.link.call("PUBLISH", f"{prefix}{{g}}", data)
        await fill(broker, "g", range(1))
        assert there.data() == ["0"]
        assert broker.feed.garbage == len(garbage)
        assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_what_others_put_into_a_history_is_left_out(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        await broker.subscribe("g")
        (first,) = await fill(broker, "g", range(1))
        await broker.link.call("XADD", f"{prefix}{{g}}:s", "2-0", "m", b"\xff", "c", 0)
        await broker.link.call("HSET", f"{prefix}{{g}}:m", "o", 2)
        await fill(broker, "g", range(1, 2))
        assert seen(await broker.history("g")) == ["0", "1"]
        assert first.position is not None
        assert not (await broker.history("g", since=first.position)).complete
        assert there.resyncs == ["g"]


async def test_a_group_whose_keys_are_spoilt_spoils_no_other_one(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        groups = [f"g{n}" for n in range(20)]
        for group in groups:
            await broker.subscribe(group)
            await fill(broker, group, range(1))
        await trio.to_thread.run_sync(shared_redis.ask, "SET", f"{prefix}{{g7}}:s", "no stream")
        assert await trio.to_thread.run_sync(kill_subscribers, shared_redis) == 1
        for group in groups:
            if group != "g7":
                await fill(broker, group, range(1, 2))
        await count(there, 39)
        await trio.to_thread.run_sync(shared_redis.ask, "DEL", f"{prefix}{{g7}}:s")
        await fill(broker, "g7", range(1, 2))
        await until(lambda: not broker.feed.tracks["g7"].behind)


async def test_a_message_id_cannot_be_chosen_to_hit_another_groups_keys(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        await broker.publish("a", text("1", id="x{}:s", once=True), keep=True)
        await broker.publish("a", text("1", id="x{}:i:y", once=True), keep=True)
        assert (await broker.publish("a}:i:x{", text("2", id="y", once=True), keep=True)).offset == 1
        assert seen(await broker.history("a}:i:x{")) == ["2"]


async def test_databases_do_not_meet(shared_redis: RedisServer, prefix: str) -> None:
    urls = [f"{shared_redis.url}?db={number}" for number in range(3)]
    async with (
        node(urls[0], zero := Recorder(), prefix=prefix) as broker,
        node(urls[1], one := Recorder(), prefix=prefix) as other,
        node(urls[2], two := Recorder(), prefix=prefix) as third,
    ):
        brokers = (broker, other, third)
        for number, each in enumerate(brokers):
            await each.subscribe("g")
            await each.subscribe("*", pattern=True)
            await each.publish("g", text(f"kept {number}"), keep=True)
            await each.publish("g", text(f"unkept {number}"), keep=False)
            await each.enter("g", Member("c", f"user {number}"))
        for each in brokers:
            await each.publish("g", text("end"), keep=True)
        for number, there in enumerate((zero, one, two)):
            assert there.data() == [f"kept {number}", f"unkept {number}", "end"]
            assert there.told() == [("join", "g", f"user {number}")]
        assert [each.feed.gaps for each in brokers] == [0, 0, 0]


async def test_a_history_that_was_forgotten_still_goes_by_itself(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        for group in (None, "g"):
            await fill(broker, "g", range(1))
            await broker.forget(group)
            await fill(broker, "g", range(1))
            assert await broker.link.call("PTTL", f"{prefix}{{g}}:s") > 0
            assert len((await broker.history("g")).messages) == 1


async def test_prefixes_do_not_meet(shared_redis: RedisServer, prefix: str) -> None:
    async with (
        node(shared_redis.url, here := Recorder(), prefix=prefix) as first,
        node(shared_redis.url, there := Recorder(), prefix=f"{prefix}b*") as second,
    ):
        await first.subscribe("*", pattern=True)
        await second.subscribe("*", pattern=True)
        await fill(first, "g", range(2))
        await fill(second, "g", range(3))
        await second.forget()
        assert (numbers(here, "g"), numbers(there, "g")) == ([0, 1], [0, 1, 2])
        assert len((await first.history("g")).messages) == 2
        assert (await second.history("g")).messages == ()


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a?c", ["abc", "aäc"], ["ac", "abbc"]),
        ("[!a]b", ["cb", "]b"], ["ab", "b"]),
        ("[]a]b", ["]b", "ab"], ["cb"]),
        ("a[b", ["a[b"], ["ab"]),
        ("a\\*", ["a\\bc"], ["a*", "abc"]),
        ("a{b}*", ["a{b}c"], ["abc"]),
        ("*", ["x", "a*b?[c]^\\"], []),
    ],
)
async def test_patterns_mean_what_fnmatch_means(
    shared_redis: RedisServer, prefix: str, pattern: str, matching: list[str], others: list[str]
) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        await broker.subscribe(pattern, pattern=True)
        for group in (*matching, *others):
            await broker.subscribe("exact")
            await broker.publish(group, text("1"), keep=True)
        await broker.publish("exact", text("end"), keep=False)
        expected = [*matching, *(["exact"] if pattern == "*" else []), *([] if pattern == "*" else ["exact"])]
        await there.until(lambda: there.data()[-1:] == ["end"])
        assert [message.group for message in there.messages] == expected


async def test_a_pattern_and_a_name_that_come_and_go_lose_nothing(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with (
        node(shared_redis.url, Recorder(), prefix=prefix) as first,
        node(shared_redis.url, there := Recorder(), prefix=prefix) as second,
    ):
        await second.subscribe("g*", pattern=True)
        stop = False

        async def flap() -> None:
            while not stop:
                await second.subscribe("g1")
                await trio.lowlevel.checkpoint()
                second.unsubscribe("g1")
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flap)
            await fill(first, "g1", range(300))
            stop = True
        await there.until(lambda: len(there.messages) >= 300)
        assert numbers(there, "g1") == list(range(300))


async def test_big_and_odd_payloads_pass(shared_redis: RedisServer, prefix: str) -> None:
    drafts = [
        Draft("bytes", b"\r\n\0\n" * 100_000),
        Draft("text", "a\nb\u2028\U0001f600"),
        Draft("json", '["\\n"]', 'me "and" you', frozenset({'x"\n'}), 'id "\n'),
    ]
    async with node(shared_redis.url, there := Recorder(), ROOMY, prefix=prefix) as broker:
        await broker.subscribe("g")
        for draft in drafts:
            await broker.publish("g", draft, keep=True)
        assert there.data() == [draft.data for draft in drafts]
        assert [message.data for message in (await broker.history("g")).messages] == there.data()
        assert (there.messages[2].sender, there.messages[2].exclude) == ('me "and" you', frozenset({'x"\n'}))


async def test_a_publish_does_not_wait_for_a_member_that_leaves(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix, timeout=4 * PATIENCE) as broker:
        await broker.subscribe("g")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(broker.publish, "g", text("1"), keep=True))
                await until(lambda: bool(broker.feed.own))
                broker.unsubscribe("g")
