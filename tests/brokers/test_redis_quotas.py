"""What several servers count together: buckets, places, and the limits of an app that are made of them."""

from __future__ import annotations

import logging
import math
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import Factory, define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from nexios_trio import Identity, Limits, NexiosApp, Rate, RateLimit, WebSocket, WebSocketDisconnect
from nexios_trio.brokers import MemoryBroker
from nexios_trio.brokers.redis import RedisBroker, quotas
from nexios_trio.exceptions import (
    BrokerCommandError,
    BrokerUnavailable,
    LimitError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.security.buckets import Bucket, BucketTable
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected
from nexios_trio.testing.broker_contract import Recorder
from nexios_trio.types import ASGIApp, Receive, Scope, Send
from tests.brokers.nodes import Wire, node
from tests.brokers.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

THREE = Rate(3, per=60)


@define
class Clock:
    """POSIX time in seconds, as the test says."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def about(owed: float) -> Any:
    """Some of it flows off while Redis is asked."""
    return pytest.approx(owed, abs=0.2)


async def charged(broker: RedisBroker, amount: float, bucket: str = "b", rate: Rate = THREE) -> float:
    """What is owed after it."""
    owed: list[float] = []
    told = trio.Event()

    def tell(debt: float) -> None:
        owed.append(debt)
        told.set()

    broker.quotas.charge(bucket, amount, rate, tell)
    with trio.fail_after(20):
        await told.wait()
    return owed[0]


# Buckets


async def test_nodes_charge_one_bucket(shared_redis: RedisServer, prefix: str) -> None:
    clock = Clock()
    async with (
        node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as one,
        node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as two,
    ):
        assert await charged(one, 2) == about(2)
        assert await charged(two, 3) == about(5)  # more than the burst: it was taken, before anybody knew
        assert await charged(one, 1, "another") == about(1)
        clock.now += 20
        assert await charged(one, 1) == about(5)
        clock.now -= 3600  # of a replica that took over, say: nobody is locked out for an hour
        assert await charged(one, 1) == about(6)
        clock.now += 60
        assert await charged(two, 1) == about(4)


async def test_a_bucket_goes_when_it_is_empty(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        await charged(broker, 2)
        assert 39_000 < shared_redis.ask("PTTL", f"{prefix}bucket:b") <= 40_001
        for rate in (Rate(1, per=1e18), Rate(5e-324), Rate(1e300), Rate(1, burst=1e300)):
            assert 0 <= await charged(broker, 1, f"{rate}", rate) <= 1


STEPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.001, 25.0, 100.0, 700.0])), max_size=25)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, per=st.sampled_from([50.0, 100.0, 400.0]))
def test_it_is_the_bucket_of_one_server(
    shared_redis: RedisServer, steps: list[tuple[int, float]], per: float
) -> None:
    rate, clock = Rate(1, per=per, burst=1000), Clock()

    async def compare() -> None:
        async with node(shared_redis.url, Recorder(), prefix=f"{uuid.uuid4()}:", clock=clock) as broker:
            model = Bucket(rate)
            for amount, pause in steps:
                clock.now = round(clock.now + pause, 3)
                assert model.take(amount, clock.now)
                # who wants the whole burst waits for all that is owed
                owed = await charged(broker, amount, rate=rate)
                assert owed == pytest.approx(model.wait(1000, clock.now) / per, abs=0.2)

    trio.run(compare)


async def test_what_comes_up_while_redis_is_asked_goes_together(
    shared_redis: RedisServer, prefix: str
) -> None:
    told: list[float] = []
    async with node(shared_redis.url, Recorder(), prefix=prefix, clock=Clock()) as broker:
        before = broker.link.calls
        for n in range(1000):
            broker.quotas.charge("b", 1, THREE, told.append)
            broker.quotas.charge(f"{n}", 1, THREE, lambda owed: None)
        await charged(broker, 1, "last")
        assert told == [about(1000)]
        assert broker.link.calls - before <= 1000 // quotas.AT_ONCE + 3
        assert not broker.quotas._charges


async def test_what_is_taken_meanwhile_is_owed_as_well(redis: RedisServer) -> None:
    told: list[float] = []
    async with node(redis.url, Recorder()) as broker:
        redis.pause()
        broker.quotas.charge("b", 1, THREE, told.append)
        await trio.testing.wait_all_tasks_blocked()
        broker.quotas.charge("b", 1, THREE, told.append)
        redis.go_on()
        with trio.fail_after(20):
            while len(told) < 2:
                await trio.sleep(0.001)
    assert told == [about(2), about(2)]


async def test_what_was_taken_slowly_is_not_owed_at_once(shared_redis: RedisServer, prefix: str) -> None:
    """A bucket told of late: 12 units in 6 seconds at 2/s leave nothing owed, whatever was before."""
    clock = Clock()
    rate = Rate(2, burst=4)
    async with node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as broker:
        assert await charged(broker, 4, rate=rate) == pytest.approx(4, abs=0.5)
        clock.now += 6
        told: list[float] = []
        late = quotas._Charge(rate, trio.current_time() - 6, 12.0, 0.5, {told.append: None})
        late.at = trio.current_time()
        await broker.quotas._tell([("b", late)])
        assert told == [pytest.approx(4, abs=0.1)]  # 4 - 12 + 12; 0.5 if that were less
        clock.now += 100
        await broker.quotas._tell([("b", late)])
        assert told[1] == pytest.approx(0.5, abs=0.1)


async def test_what_could_not_be_told_is_not_told_late(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "PATIENCE", 0.05)
    async with node(redis.url, Recorder()) as broker:
        redis.pause()
        broker.quotas.charge("b", 1, THREE, lambda owed: pytest.fail("nobody answered"))
        await trio.testing.wait_all_tasks_blocked()
        broker.quotas.charge("b", 1, THREE, lambda owed: pytest.fail("nobody was asked"))
        with trio.fail_after(20):
            while broker.quotas._charges:
                await trio.sleep(0.01)
        broker.quotas._silent_until = trio.current_time() + 1000
        broker.quotas.charge("b", 1, THREE, lambda owed: pytest.fail("nobody was asked"))
        assert not broker.quotas._charges
        redis.go_on()


async def test_who_cannot_be_told_keeps_nobody_else_from_it(
    shared_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(owed: float) -> None:
        raise ValueError("a mistake of the engine's user")

    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        broker.quotas.charge("b", 1, THREE, fails)
        assert await charged(broker, 1) == about(2)
    assert "could not be told" in caplog.text


def test_an_answer_never_empties_a_bucket() -> None:
    table = BucketTable(THREE)
    assert table.take("k", 3, 0.0)
    table.owe("k", 1.0, 0.0)
    assert table.wait("k", 1, 0.0) == pytest.approx(20)
    table.owe("k", 5.0, 0.0)
    assert table.wait("k", 1, 0.0) == pytest.approx(60)
    table.owe("another", 0.0, 0.0)
    assert len(table) == 1


# Places


async def test_places_are_those_of_all_nodes(shared_redis: RedisServer, prefix: str) -> None:
    async with (
        node(shared_redis.url, Recorder(), prefix=prefix) as one,
        node(shared_redis.url, Recorder(), prefix=prefix) as two,
    ):
        assert await one.quotas.hold("ann", "c1", 2)
        assert await two.quotas.hold("ann", "c2", 2)
        assert await two.quotas.hold("ann", "c2", 2)  # has it already
        assert not await one.quotas.hold("ann", "c3", 2)
        assert await one.quotas.hold("bob", "c3", 2)
        two.quotas.release("ann", "c2")
        two.quotas.release("ann", "nobody")
        assert not await two.quotas.hold("ann", "c4", 1)
        assert await two.quotas.hold("ann", "c4", 2)


async def test_places_of_a_dead_node_end_with_their_lease(shared_redis: RedisServer, prefix: str) -> None:
    clock = Clock()
    async with node(shared_redis.url, Recorder(), prefix=prefix, clock=clock, lease=60) as alive:
        async with node(shared_redis.url, Recorder(), prefix=prefix, clock=clock, lease=60) as dies:
            assert await dies.quotas.hold("ann", "c1", 2)
        assert await alive.quotas.hold("ann", "c2", 2)
        clock.now += 40
        await alive.quotas.renew_now()
        assert not await alive.quotas.hold("ann", "c3", 2)
        clock.now += 21
        assert await alive.quotas.hold("ann", "c3", 2)
        assert not await alive.quotas.hold("ann", "c4", 2)


async def test_a_redis_that_has_forgotten_learns_of_them_again(redis: RedisServer) -> None:
    async with node(redis.url, Recorder()) as broker:
        for n in range(quotas.AT_ONCE + 1):
            assert await broker.quotas.hold(f"user {n}", "c", 1)
        broker.quotas.release("user 7", "c")
        redis.ask("FLUSHALL")
        redis.ask("SET", "nexios:places:user 3", "spoilt")
        await broker.quotas.renew_now()
        assert not await broker.quotas.hold("user 2", "another", 1)
        assert not await broker.quotas.hold(f"user {quotas.AT_ONCE}", "another", 1)
        assert await broker.quotas.hold("user 7", "another", 1)


async def test_a_connection_to_redis_that_comes_back_renews_them(redis: RedisServer) -> None:
    wire = Wire(redis.path)
    async with wire.up(), node(wire.url, Recorder()) as broker:
        assert await broker.quotas.hold("ann", "c1", 1)
        redis.ask("FLUSHALL")
        await wire.cut()
        with trio.fail_after(20):
            while not redis.ask("EXISTS", "nexios:places:ann"):
                await trio.sleep(0.01)


async def test_places_taken_while_redis_hangs_are_told_when_it_goes_on(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "PATIENCE", 0.1)
    async with node(redis.url, Recorder()) as broker:
        redis.pause()
        for holder in ("c1", "c2"):
            with pytest.raises(BrokerUnavailable):
                await broker.quotas.hold("ann", holder, 1)
        redis.go_on()
        with trio.fail_after(15):  # not by the lease, which is renewed after 18 seconds
            while redis.ask("ZCARD", "nexios:places:ann") != 2:
                await trio.sleep(0.01)


async def test_nobody_asks_a_redis_that_has_not_answered(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        broker.quotas._silent_until = trio.current_time() + 1000
        calls = broker.link.calls
        with pytest.raises(BrokerUnavailable):
            await broker.quotas.hold("ann", "c2", 1)
        assert broker.link.calls == calls


async def test_whoever_has_less_patience_spares_the_next_one(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "PATIENCE", 0.1)
    async with node(redis.url, Recorder()) as broker:
        redis.pause()
        with trio.move_on_after(0.05) as scope:
            await broker.quotas.hold("ann", "c1", 1)
        assert scope.cancelled_caught
        with pytest.raises(BrokerUnavailable):
            await broker.quotas.hold("ann", "c2", 1)
        redis.go_on()


async def test_who_leaves_while_redis_is_away_gives_the_place_back(redis: RedisServer) -> None:
    wire = Wire(redis.path)
    async with wire.up(), node(wire.url, Recorder()) as broker:
        for n in range(quotas.AT_ONCE + 1):
            assert await broker.quotas.hold(f"u{n}", "c", 1)
        wire.open = False
        await wire.cut()
        with trio.fail_after(20):
            while broker.link.up:
                await trio.sleep(0.01)
        for n in range(quotas.AT_ONCE + 1):
            broker.quotas.release(f"u{n}", "c")
        broker.quotas._given_back["long ago", "c"] = trio.current_time() - 61
        wire.open = True
        with trio.fail_after(20):
            while broker.quotas._given_back:
                await trio.sleep(0.01)
        assert redis.ask("KEYS", "nexios:places:*") == []
        assert await broker.quotas.hold("u0", "another", 1)


async def test_without_redis_nothing_piles_up(redis: RedisServer) -> None:
    async with node(redis.url, Recorder(), timeout=0.5) as broker:
        assert await broker.quotas.hold("ann", "c1", 1)
        redis.kill()
        with trio.fail_after(20):
            while broker.link.up:
                await trio.sleep(0.01)
        waiting = broker.link.waiting
        for n in range(1000):
            broker.quotas.charge(f"{n}", 1, THREE, lambda owed: None)
            broker.quotas.release(f"{n}", "c1")
        assert broker.link.waiting == waiting
        broker.quotas.release("ann", "c1")
        assert not broker.quotas._charges
        assert not broker.quotas._held


async def test_what_redis_cannot_do_is_said_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("SET", "nexios:places:ann", "spoilt")
    redis.ask("HSET", "nexios:bucket:spoilt", "a", "b")
    redis.ask("SET", "nexios:bucket:odd", "what is this?")
    async with node(redis.url, Recorder()) as broker:
        for holder in ("c1", "c2"):
            with pytest.raises(BrokerCommandError, match="WRONGTYPE"):
                await broker.quotas.hold("ann", holder, 1)
        for bucket in ("spoilt", "odd"):  # which is worth less than what comes now
            assert await charged(broker, 1, bucket) == about(1)
        redis.ask("CONFIG", "SET", "maxmemory", "1")
        broker.quotas.charge("full", 1, THREE, lambda owed: pytest.fail("it was taken"))
        await trio.testing.wait_all_tasks_blocked()
        await broker.link.call("PING")
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        assert await charged(broker, 1, "free") == about(1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "limits of all servers hold for this one alone" in caplog.text


def test_a_broker_that_runs_again_forgets_the_last_clock(redis: RedisServer) -> None:
    broker = RedisBroker(redis.url)
    broker.attach(Recorder())

    async def run(holder: str) -> None:
        async with broker.serving():
            assert await broker.quotas.hold("ann", holder, 2)
            broker.quotas._silent_until = math.inf

    trio.run(run, "c1")
    trio.run(run, "c2")


# Apps


async def user_of(ws: WebSocket) -> Identity:
    return Identity(ws.query_params["user"])


def capped(url: str, prefix: str, **options: Any) -> NexiosApp:
    limits = Limits(connections_per_user=2, connections_per_user_shared=True)
    app = NexiosApp(broker=RedisBroker(url, prefix=prefix, **options), limits=limits, disconnect_grace=0)

    @app.ws_route("/", authenticate=user_of)
    async def named(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("in")
        await ws.receive()

    @app.ws_route("/early/{user}")
    async def early(ws: WebSocket) -> None:
        ws.identify(ws.path_params["user"])
        await named(ws)

    @app.ws_route("/late/{user}")
    async def late(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive()
        ws.identify(ws.path_params["user"])
        await ws.send_text("in")
        await ws.receive()

    return app


@asynccontextmanager
async def two(make: Callable[[], NexiosApp]) -> AsyncIterator[tuple[TestClient, TestClient]]:
    async with TestClient(make(), timeout=20) as one, TestClient(make(), timeout=20) as other:
        yield one, other


def app_of(client: TestClient) -> NexiosApp:
    assert isinstance(client.app, NexiosApp)
    return client.app


async def told(ws: TestWebSocket) -> str:
    return await ws.receive_text()


async def until_let_in(client: TestClient, path: str) -> None:
    with trio.fail_after(20):
        while True:
            try:
                async with client.connect(path) as ws:
                    assert await told(ws) == "in"
                    return
            except WebSocketRejected as rejected:
                assert rejected.status == 429
                await trio.sleep(0.01)


async def test_a_user_has_so_many_connections_to_all_servers(shared_redis: RedisServer, prefix: str) -> None:
    async with two(lambda: capped(shared_redis.url, prefix)) as (one, other):
        async with one.connect("/?user=ann") as first, other.connect("/early/ann") as second:
            assert [await told(first), await told(second)] == ["in", "in"]
            for client in (one, other):
                for path in ("/?user=ann", "/early/ann"):
                    with pytest.raises(WebSocketRejected) as refused:
                        async with client.connect(path):
                            pass
                    assert refused.value.status == 429
                async with client.connect("/late/ann") as late:
                    await late.send_text("go on")
                    with pytest.raises(WebSocketDisconnect) as closed:
                        while True:
                            await late.receive_text()
                    assert (closed.value.code, closed.value.reason) == (
                        1008,
                        "too many connections of this user",
                    )
            async with other.connect("/?user=bob") as third:
                assert await told(third) == "in"
        await until_let_in(one, "/?user=ann")
        hubs = [app_of(client).channels.hub for client in (one, other)]
        assert not any(hub._places or hub.owners for hub in hubs)
    assert shared_redis.ask("KEYS", f"{prefix}places:*") == []


async def test_a_user_who_becomes_another_gives_his_place_back(
    shared_redis: RedisServer, prefix: str
) -> None:
    app = capped(shared_redis.url, prefix)
    names: list[str] = []

    @app.ws_route("/changing")
    async def changing(ws: WebSocket) -> None:
        await ws.accept()
        async for name in ws.iter_text():
            ws.identify(name)
            names.append(name)
            await ws.send_text("in")

    async with TestClient(app, timeout=20) as client, client.connect("/changing") as ws:
        for name in ("ann", "ann", "bob"):
            await ws.send_text(name)
            assert await told(ws) == "in"
        with trio.fail_after(20):
            while shared_redis.ask("KEYS", f"{prefix}places:*") != [f"{prefix}places:bob".encode()]:
                await trio.sleep(0.01)


async def test_while_redis_is_away_each_server_counts_its_own(redis: RedisServer) -> None:
    async with two(lambda: capped(redis.url, "p:", timeout=0.5, on_outage="local")) as (one, other):
        async with one.connect("/?user=ann") as first, one.connect("/?user=ann") as second:
            assert [await told(first), await told(second)] == ["in", "in"]
            redis.kill()
            with trio.fail_after(20):
                while app_of(other).broker.available or app_of(one).broker.available:
                    await trio.sleep(0.01)
            async with other.connect("/?user=ann") as third, other.connect("/early/ann") as fourth:
                assert [await told(third), await told(fourth)] == ["in", "in"]
                with pytest.raises(WebSocketRejected):
                    async with other.connect("/?user=ann"):
                        pass
                redis.start()
                with trio.fail_after(20):
                    while redis.ask("ZCARD", "p:places:ann") != 4:
                        await trio.sleep(0.01)


async def test_a_client_that_goes_while_redis_is_asked_leaves_no_place(redis: RedisServer) -> None:
    app = capped(redis.url, "p:")
    async with TestClient(app, timeout=20) as client:
        redis.pause()
        with trio.move_on_after(0.05):
            async with client.connect("/?user=ann"):
                raise AssertionError("it was let in")
        redis.go_on()
        with trio.fail_after(20):
            while app.channels.hub._places:
                await trio.sleep(0.01)
        assert isinstance(app.broker, RedisBroker)
        await app.broker.quotas.renew_now()
        await app.broker.link.call("PING")
        assert redis.ask("EXISTS", "p:places:ann") == 0


def limited(url: str, prefix: str, limit: RateLimit, **options: Any) -> NexiosApp:
    app = NexiosApp(broker=RedisBroker(url, prefix=prefix, **options), disconnect_grace=0)

    @app.ws_route("/{user}", rate_limit=limit)
    async def echo(ws: WebSocket) -> None:
        ws.identify(ws.path_params["user"])
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/json/{user}", rate_limit=limit)
    async def echo_json(ws: WebSocket) -> None:
        ws.identify(ws.path_params["user"])
        await ws.accept()
        async for message in ws.iter_json():
            await ws.send_json(message)

    return app


async def answers(ws: TestWebSocket, *texts: str) -> list[str]:
    """What comes back of these, the last of which does."""
    for text in texts:
        await ws.send_text(text)
    found: list[str] = []
    while texts[-1] not in found:
        found.append(await ws.receive_text())
    return found


async def settled(*clients: TestClient) -> None:
    """All servers have told, and been told."""
    for client in clients:
        broker = app_of(client).broker
        assert isinstance(broker, RedisBroker)
        await trio.testing.wait_all_tasks_blocked()
        await broker.link.call("PING")
        await trio.testing.wait_all_tasks_blocked()


async def test_a_rate_is_that_of_all_servers(shared_redis: RedisServer, prefix: str) -> None:
    limit = RateLimit(THREE, bytes=Rate(1e6), per="user", action="close", name="n", shared=True)
    async with two(lambda: limited(shared_redis.url, prefix, limit)) as (one, other):
        async with one.connect("/ann") as here, other.connect("/ann") as there, other.connect("/bob") as bob:
            assert await answers(here, "1", "2") == ["1", "2"]
            await settled(one)
            assert await answers(there, "3") == ["3"]
            await settled(other)
            await there.send_text("4")
            assert await there.wait_closed() == (1008, "rate limit exceeded")
            assert await answers(bob, "1", "2", "3") == ["1", "2", "3"]
    assert app_of(other).guard.counts == {"rate_limit.close": 1}


async def test_what_is_too_much_is_dropped_by_type(shared_redis: RedisServer, prefix: str) -> None:
    limit = RateLimit(
        THREE, per=lambda ws: uuid.UUID(int=7), types={"chat"}, action="drop", name="n", shared=True
    )
    async with two(lambda: limited(shared_redis.url, prefix, limit)) as (one, other):
        async with one.connect("/json/ann") as here, other.connect("/json/bob") as there:
            chat, move = '{"type":"chat","n":%d}', '{"type":"move"}'
            assert await answers(here, chat % 1, chat % 2, move) == [chat % 1, chat % 2, move]
            await settled(one)
            assert await answers(there, chat % 3) == [chat % 3]
            await settled(other)
            assert await answers(there, chat % 4, move) == [move]
    assert app_of(other).guard.counts == {"rate_limit.drop": 1}


async def test_without_redis_a_rate_holds_for_each_server(redis: RedisServer) -> None:
    limit = RateLimit(THREE, per="user", action="drop", name="n", shared=True)

    def make() -> NexiosApp:
        return limited(redis.url, "p:", limit, timeout=0.5)

    async with two(make) as (one, other), one.connect("/ann") as here, other.connect("/ann") as there:
        redis.kill()
        with trio.fail_after(20):
            while app_of(other).broker.available or app_of(one).broker.available:
                await trio.sleep(0.01)
        for ws in (here, there):
            assert await answers(ws, "1", "2", "3") == ["1", "2", "3"]
            await ws.send_text("4")
        with trio.fail_after(20):
            while not all(app_of(client).guard.counts["rate_limit.drop"] for client in (one, other)):
                await trio.sleep(0.01)


# On an engine whose time is the test's


class Engine(MemoryBroker):
    """Of several servers, so it says, and counts nothing for them."""

    @property
    def shared(self) -> bool:
        return True


@define(eq=False)
class Counting:
    """Counts for several servers, and answers after ``delay`` seconds."""

    delay: float = 0.01
    places: dict[str, set[str]] = Factory(lambda: defaultdict(set))
    debts: dict[str, tuple[float, float]] = Factory(dict)
    nursery: trio.Nursery | None = None

    def charge(self, bucket: str, amount: float, rate: Rate, told: Callable[[float], None]) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._charge, bucket, amount, rate, told)

    async def _charge(self, bucket: str, amount: float, rate: Rate, told: Callable[[float], None]) -> None:
        await trio.sleep(self.delay)
        now = trio.current_time()
        debt, at = self.debts.get(bucket, (0.0, now))
        debt = max(0.0, debt - (now - at) * rate.per_second) + amount
        self.debts[bucket] = debt, now
        told(debt)

    async def hold(self, name: str, holder: str, most: int) -> bool:
        free = len(self.places[name] - {holder}) < most
        if free:
            self.places[name].add(holder)
        await trio.sleep(self.delay)
        return free

    def release(self, name: str, holder: str) -> None:
        self.places[name].discard(holder)


class CountingEngine(Engine):
    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.counting = counting

    @property
    def quotas(self) -> Counting:
        return self.counting


@pytest.mark.parametrize("action", ["drop", "delay"])
async def test_in_the_long_run_servers_let_through_what_one_would(
    action: Any, autojump_clock: MockClock
) -> None:
    limit = RateLimit(Rate(10, burst=5), per="address", action=action, name="n", shared=True)
    counting, passed = Counting(), 0

    def make() -> NexiosApp:
        app = NexiosApp(broker=CountingEngine(counting), disconnect_grace=0)

        @app.ws_route("/", rate_limit=limit)
        async def handler(ws: WebSocket) -> None:
            nonlocal passed
            await ws.accept()
            async for _ in ws.iter_text():
                passed += 1

        return app

    async def flood(ws: TestWebSocket) -> None:
        while True:
            await ws.send_text("x")
            await trio.sleep(0.02)

    async with trio.open_nursery() as engine, AsyncExitStack() as stack:
        counting.nursery = engine
        for _ in range(4):
            client = await stack.enter_async_context(TestClient(make()))
            ws = await stack.enter_async_context(client.connect("/"))
            engine.start_soon(flood, ws)
        await trio.sleep(100)
        # each server may let a burst through before it hears of the others
        assert 10 * 100 * 0.95 < passed < 10 * 100 + 4 * 5 + 4
        engine.cancel_scope.cancel()


def places_app(counting: Counting) -> NexiosApp:
    limits = Limits(connections_per_user=1, connections_per_user_shared=True)
    return NexiosApp(broker=CountingEngine(counting), limits=limits, disconnect_grace=0)


async def test_a_refusal_of_who_it_was_before_is_not_held_against_him(autojump_clock: MockClock) -> None:
    counting = Counting()
    counting.places["ann"].add("another")
    app = places_app(counting)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify("ann")
        await trio.sleep(0.005)
        ws.identify("bob")
        await trio.sleep(1)
        assert counting.places == {"ann": {"another"}, "bob": {ws._connection.id}}
        await ws.send_text("still here")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "still here"
    assert counting.places["bob"] == set()
    assert not app.channels.hub._places


async def never(ws: WebSocket) -> None:
    raise AssertionError("it was let in")


async def test_a_client_that_leaves_while_it_is_refused_is_no_failure(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting(delay=1)
    counting.places["ann"].add("another")
    app = places_app(counting)
    app.add_ws_route("/", never, authenticate=user_of)
    async with TestClient(app) as client:
        with trio.move_on_after(0.5):
            async with client.connect("/?user=ann"):
                raise AssertionError("it was let in")
        await trio.sleep(5)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert counting.places["ann"] == {"another"}
    assert not app.channels.hub._places


async def test_who_becomes_another_in_the_handshake_is_asked_about(autojump_clock: MockClock) -> None:
    counting = Counting()
    app = places_app(counting)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        async def rename() -> None:
            await trio.sleep(0.005)
            ws.identify("bob")

        ws.identify("ann")
        ws.start_soon(rename)
        await ws.accept()
        assert counting.places == {"ann": set(), "bob": {ws._connection.id}}
        await ws.send_text("in")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "in"
    assert counting.places["bob"] == set()


async def test_a_claim_that_is_cancelled_leaves_another_one_alone(autojump_clock: MockClock) -> None:
    class Quick(Counting):
        async def hold(self, name: str, holder: str, most: int) -> bool:
            self.delay = 0.0 if name == "bob" else 1.0
            return await super().hold(name, holder, most)

    counting = Quick()
    app = places_app(counting)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        async def child() -> None:
            await trio.sleep(0.01)
            ws.identify("bob")
            await ws.accept()

        ws.identify("ann")
        ws.start_soon(child)
        with trio.move_on_after(0.05):
            await ws.accept()
        await ws.send_text("in")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "in"
    assert counting.places == {"ann": set(), "bob": set()}
    assert not app.channels.hub._places


async def test_an_app_around_that_knows_the_user_has_his_place(autojump_clock: MockClock) -> None:
    counting = Counting()
    outer, inner = places_app(counting), NexiosApp()

    @inner.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        assert counting.places == {"ann": {ws._connection.id}}
        await ws.send_text("in")

    class Names:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                scope["nexios_trio.connection"].plain_websocket().identify("ann")
            await self.app(scope, receive, send)

    outer.mount("/inner", inner)
    outer.add_middleware(Names)
    async with TestClient(outer) as client, client.connect("/inner/") as ws:
        assert await ws.receive_text() == "in"
    assert counting.places["ann"] == set()


async def test_who_becomes_known_while_the_answer_goes_out_is_asked_about(autojump_clock: MockClock) -> None:
    counting = Counting()
    counting.places["ann"].add("another")
    app = places_app(counting)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        ws.start_soon(known, ws)
        await ws.accept()
        await ws.receive()

    async def known(ws: WebSocket) -> None:
        ws.identify("ann")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.wait_closed() == (1008, "too many connections of this user")
    assert app.guard.counts == {"closed.LimitError": 1}


async def test_a_token_does_not_last_longer_for_what_was_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = places_app(Counting(delay=1))
    start: float = trio.current_time()
    monkeypatch.setattr("time.time", lambda: 1_800_000_000 + trio.current_time() - start)

    async def soon_over(ws: WebSocket) -> Identity:
        return Identity("ann", expires=1_800_000_002)

    @app.ws_route("/", authenticate=soon_over)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive()

    async with TestClient(app) as client, client.connect("/") as ws:
        assert (await ws.wait_closed())[0] == 4401
        assert trio.current_time() - start == pytest.approx(2)


async def test_equal_limits_have_one_bucket_and_others_have_others(
    shared_redis: RedisServer, prefix: str
) -> None:
    one, five = Rate(1, per=60, burst=5), Rate(5, per=300)
    common: dict[str, Any] = {"action": "drop", "name": "caf\udce9", "shared": True}
    limits = {
        "a": RateLimit(one, per=lambda ws: 1, **common),
        "b": RateLimit(Rate(1.0, per=60.0, burst=5.0), per=lambda ws: 1.0, **common),
        "c": RateLimit(one, per=lambda ws: True, **common),
        "d": RateLimit(one, bytes=Rate(1, burst=1e6), per=lambda ws: 1, **common),
        "e": RateLimit(five, per=lambda ws: 1, **common),
        "f": RateLimit(one, per="user", **common),
        "g": RateLimit(one, per="user", types={"a"}, **common),
    }
    app = NexiosApp(broker=RedisBroker(shared_redis.url, prefix=prefix))

    @app.ws_route("/{name}")
    async def handler(ws: WebSocket) -> None:
        ws.rate_limit(limits[ws.path_params["name"]])
        await ws.accept()
        await ws.receive_json()

    async with TestClient(app, timeout=20) as client:
        for n, name in enumerate(limits, 1):
            async with client.connect(f"/{name}") as ws:
                await ws.send_text('{"type":"a"}')
                await ws.wait_closed()
            await settled(client)
            found = len(shared_redis.ask("KEYS", f"{prefix}bucket:*"))
            assert found == {1: 1, 2: 1, 3: 1, 4: 3, 5: 4, 6: 5, 7: 6}[n]


# Misuse


def test_what_cannot_be_shared_is_refused() -> None:
    for per in ("connection", ("connection", "route")):
        with pytest.raises(WrongValueError, match="a connection is on one server"):
            RateLimit("1/s", per=per, shared=True)
    with pytest.raises(WrongValueError, match=r'give name="\.\.\."'):
        RateLimit("1/s", per="user", shared=True)
    with pytest.raises(WrongTypeError, match="shared is True or False, not 1"):
        RateLimit("1/s", per="user", shared=1)  # type: ignore[arg-type]
    with pytest.raises(WrongTypeError, match="connections_per_user_shared is True or False"):
        Limits(connections_per_user_shared="yes")  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="needs a number of connections_per_user"):
        Limits(connections_per_user=None, connections_per_user_shared=True)


async def test_an_engine_that_counts_nothing_is_refused() -> None:
    with pytest.raises(WrongValueError, match="needs a broker that counts for all servers"):
        NexiosApp(broker=Engine(), limits=Limits(connections_per_user_shared=True))
    app = NexiosApp(broker=Engine())
    caught: list[BaseException] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        try:
            ws.rate_limit(RateLimit("1/s", per="user", name="n", shared=True))
        except Exception as error:
            caught.append(error)

    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected):
            async with client.connect("/"):
                pass
    assert "needs a broker that counts for all servers" in str(caught[0])


async def test_one_server_needs_no_engine() -> None:
    limits = Limits(connections_per_user=1, connections_per_user_shared=True)
    app = NexiosApp(limits=limits)

    @app.ws_route("/", rate_limit=RateLimit(THREE, per="user", action="drop", name="n", shared=True))
    async def handler(ws: WebSocket) -> None:
        ws.identify("ann")
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await answers(ws, "1", "2", "3") == ["1", "2", "3"]
        with pytest.raises(WebSocketRejected):
            async with client.connect("/"):
                pass


async def test_a_key_that_differs_between_processes_is_refused(
    shared_redis: RedisServer, prefix: str
) -> None:
    app = NexiosApp(broker=RedisBroker(shared_redis.url, prefix=prefix))
    caught: list[BaseException] = []

    @app.ws_route("/", rate_limit=RateLimit("9/s", per=lambda ws: object(), name="n", shared=True))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive()
        except WrongTypeError as error:
            caught.append(error)

    @app.ws_route(
        "/long", rate_limit=RateLimit("9/s", per=lambda ws: ("x" * 9999, b"1", 2), name="n", shared=True)
    )
    async def long(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive()

    async with TestClient(app, timeout=20) as client:
        for path in ("/", "/long"):
            async with client.connect(path) as ws:
                await ws.send_text("a")
                await ws.wait_closed()
    assert "is a str, a number, bytes, a UUID" in str(caught[0])
    (name,) = shared_redis.ask("KEYS", f"{prefix}bucket:*")
    assert len(name) < 100


async def test_the_refusal_says_which_limit(shared_redis: RedisServer, prefix: str) -> None:
    caught: list[LimitError] = []
    app = capped(shared_redis.url, prefix)

    @app.ws_route("/third")
    async def third(ws: WebSocket) -> None:
        ws.identify("ann")
        try:
            await ws.accept()
        except LimitError as error:
            caught.append(error)

    async with two(lambda: capped(shared_redis.url, prefix)) as (one, other), TestClient(app) as client:
        async with one.connect("/?user=ann") as first, other.connect("/?user=ann") as second:
            assert [await told(first), await told(second)] == ["in", "in"]
            with pytest.raises(WebSocketRejected):
                async with client.connect("/third"):
                    pass
    assert (caught[0].limit, caught[0].bound) == ("connections_per_user", 2)
