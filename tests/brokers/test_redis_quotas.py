"""What several servers count together: buckets, places, and the limits of an app that are made of them."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from nexios_trio import Identity, Limits, NexiosApp, Rate, RateLimit, WebSocket, WebSocketDisconnect
from nexios_trio.brokers import Charge, MemoryBroker
from nexios_trio.brokers.redis import RedisBroker, quotas
from nexios_trio.exceptions import (
    BrokerCommandError,
    BrokerUnavailable,
    ConcurrentReceiveError,
    LimitError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.security.buckets import Bucket
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected
from nexios_trio.testing.broker_contract import Recorder
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


def charge(amount: float = 1, bucket: str = "b", rate: Rate = THREE) -> Charge:
    return Charge(bucket, amount, rate)


# Buckets


async def test_nodes_take_out_of_one_bucket(shared_redis: RedisServer, prefix: str) -> None:
    clock = Clock()
    async with (
        node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as one,
        node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as two,
    ):
        assert await one.quotas.take([charge(2)]) == [0.0]
        assert await two.quotas.take([charge()]) == [0.0]
        assert await two.quotas.take([charge()]) == [20.0]
        assert await one.quotas.take([charge(bucket="another")]) == [0.0]
        clock.now += 19.9
        (wait,) = await one.quotas.take([charge()])
        assert wait == pytest.approx(0.1)
        clock.now += 0.1
        assert await one.quotas.take([charge()]) == [0.0]
        assert await two.quotas.take([charge()]) == [20.0]


async def test_of_several_all_are_taken_or_none(shared_redis: RedisServer, prefix: str) -> None:
    clock = Clock()
    async with node(shared_redis.url, Recorder(), prefix=prefix, clock=clock) as broker:
        large = Rate(100, per=1)
        assert await broker.quotas.take([charge(60, "bytes", large), charge(3)]) == [0.0, 0.0]
        assert await broker.quotas.take([charge(20, "bytes", large), charge(1)]) == [0.0, 20.0]
        assert await broker.quotas.take([charge(50, "bytes", large), charge(1)]) == [0.1, 20.0]
        assert await broker.quotas.take([charge(40, "bytes", large)]) == [0.0]


async def test_a_bucket_goes_when_it_is_full_again(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        await broker.quotas.take([charge(2)])
        assert 39_000 < shared_redis.ask("PTTL", f"{prefix}bucket:b") <= 40_001


STEPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.001, 25.0, 100.0, 700.0])), max_size=25)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, per=st.sampled_from([50.0, 100.0, 400.0]), burst=st.sampled_from([1.0, 2.5, 5.0]))
def test_it_is_the_bucket_of_one_server(
    shared_redis: RedisServer, steps: list[tuple[int, float]], per: float, burst: float
) -> None:
    rate, clock = Rate(1, per=per, burst=burst), Clock()

    async def compare() -> None:
        async with node(shared_redis.url, Recorder(), prefix=f"{uuid.uuid4()}:", clock=clock) as broker:
            model = Bucket(rate)
            for amount, pause in steps:
                clock.now = round(clock.now + pause, 3)
                if amount > burst:
                    continue  # which nobody is asked about
                expected = model.wait(amount, clock.now)
                (wait,) = await broker.quotas.take([charge(amount, rate=rate)])
                assert wait == pytest.approx(expected, abs=2e-6)
                assert model.take(amount, clock.now) == (expected == 0)

    trio.run(compare)


async def test_many_who_wait_for_a_bucket_ask_once(shared_redis: RedisServer, prefix: str) -> None:
    results: list[tuple[float, ...]] = []
    async with node(shared_redis.url, Recorder(), prefix=prefix, clock=Clock()) as broker:
        before = broker.link.calls

        async def ask(amount: float) -> None:
            results.append(tuple(await broker.quotas.take([charge(amount)])))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask, 1)
        assert broker.link.calls - before == 4
        assert results.count((0.0,)) == 3
        assert all(19 < wait <= 20 for (wait,) in results if wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 3)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, 0)  # who wants less may have it, so he asks
        assert results[-1] == (0.0,)
        assert broker.quotas._turns == {}


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


async def test_while_redis_is_away_nobody_waits_for_it_long(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "PATIENCE", 0.1)
    wire = Wire(redis.path)
    async with wire.up(), node(wire.url, Recorder()) as broker:
        wire.deaf = True
        with pytest.raises(BrokerUnavailable):
            await broker.quotas.take([charge()])
        broker.quotas._silent_until = trio.current_time() + 1000
        calls = broker.link.calls
        with pytest.raises(BrokerUnavailable):
            await broker.quotas.take([charge()])
        with pytest.raises(BrokerUnavailable):
            await broker.quotas.hold("ann", "c1", 1)
        assert broker.link.calls == calls
        wire.deaf = False
        await wire.cut()
        with trio.fail_after(20):  # held all the same, so it is put there
            while not redis.ask("EXISTS", "nexios:places:ann"):
                await trio.sleep(0.01)


async def test_what_redis_cannot_do_is_said_once_and_others_are_asked_on(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("HSET", "nexios:bucket:spoilt", "a", "b")
    redis.ask("SET", "nexios:bucket:odd", "what is this?")
    async with node(redis.url, Recorder()) as broker:
        for _ in range(2):
            with pytest.raises(BrokerCommandError, match="WRONGTYPE"):
                await broker.quotas.take([charge(bucket="spoilt")])
        assert await broker.quotas.take([charge(bucket="odd")]) == [0.0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "shared limits hold for this server alone" in caplog.text


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


async def test_a_rate_is_that_of_all_servers(shared_redis: RedisServer, prefix: str) -> None:
    limit = RateLimit(THREE, per="user", action="close", shared=True)
    async with two(lambda: limited(shared_redis.url, prefix, limit)) as (one, other):
        async with one.connect("/ann") as here, other.connect("/ann") as there, other.connect("/bob") as bob:
            assert await answers(here, "1", "2") == ["1", "2"]
            assert await answers(there, "3") == ["3"]
            await there.send_text("4")
            assert await there.wait_closed() == (1008, "rate limit exceeded")
            assert await answers(bob, "1", "2", "3") == ["1", "2", "3"]
    assert app_of(other).guard.counts == {"rate_limit.close": 1}


async def test_what_is_too_much_is_dropped_by_type(shared_redis: RedisServer, prefix: str) -> None:
    limit = RateLimit(THREE, per=lambda ws: uuid.UUID(int=7), types={"chat"}, action="drop", shared=True)
    async with two(lambda: limited(shared_redis.url, prefix, limit)) as (one, other):
        async with one.connect("/json/ann") as here, other.connect("/json/bob") as there:
            chat, move = '{"type":"chat","n":%d}', '{"type":"move"}'
            assert await answers(here, chat % 1, chat % 2, move) == [chat % 1, chat % 2, move]
            assert await answers(there, chat % 3, chat % 4, move) == [chat % 3, move]
    assert app_of(other).guard.counts == {"rate_limit.drop": 1}


async def test_what_is_too_much_comes_later(shared_redis: RedisServer, prefix: str) -> None:
    fast = Rate(20, per=1, burst=1)
    limit = RateLimit(fast, bytes=Rate(1e6), per=("address", "route"), shared=True, name="fast")
    async with two(lambda: limited(shared_redis.url, prefix, limit)) as (one, other):
        async with one.connect("/ann") as here, other.connect("/bob") as there:
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answers, here, "1", "2", "3")
                nursery.start_soon(answers, there, "1", "2", "3")
            assert trio.current_time() - start > 5 / 20 - 0.01
    assert sum(app_of(client).guard.counts["rate_limit.delay"] for client in (one, other)) >= 4


async def test_without_redis_a_rate_holds_for_each_server(redis: RedisServer) -> None:
    limit = RateLimit(THREE, per="user", action="drop", shared=True)
    make = lambda: limited(redis.url, "p:", limit, timeout=0.5)  # noqa: E731
    async with two(make) as (one, other), one.connect("/ann") as here, other.connect("/ann") as there:
        assert await answers(here, "1") == ["1"]
        redis.kill()
        with trio.fail_after(20):
            while app_of(other).broker.available or app_of(one).broker.available:
                await trio.sleep(0.01)
        assert await answers(here, "2", "3") == ["2", "3"]
        assert await answers(there, "1", "2", "3") == ["1", "2", "3"]
        await there.send_text("4")
        with trio.fail_after(20):
            while not app_of(other).guard.counts["rate_limit.drop"]:
                await trio.sleep(0.01)


class Engine(MemoryBroker):
    """Of several servers, perhaps; it counts nothing for them."""

    @property
    def shared(self) -> bool:
        return True


class SlowEngine(Engine):
    """It takes a second to say that all may be had."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    @property
    def quotas(self) -> SlowEngine:  # type: ignore[override]
        return self

    async def take(self, charges: Sequence[Charge]) -> Sequence[float]:
        await trio.sleep(1)
        self.asked += 1
        return [0.0 for _ in charges]

    async def hold(self, name: str, holder: str, most: int) -> bool:
        raise AssertionError("no cap is shared")

    def release(self, name: str, holder: str) -> None:
        raise AssertionError("no cap is shared")


async def test_a_message_whose_question_is_cancelled_comes_once(autojump_clock: MockClock) -> None:
    app = NexiosApp(broker=(engine := SlowEngine()))
    got: list[tuple[float, Any]] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        ws.rate_limit(RateLimit(Rate(100), per="route", shared=True))
        ws.rate_limit(RateLimit(Rate(100), per="address", types={"chat"}, shared=True))
        await ws.accept()
        # as the first limit is asked, as the second one is, and never
        for patience in (0.5, 1.5, 0.5, math.inf, math.inf):
            with trio.move_on_after(patience):
                got.append((trio.current_time() - start, await ws.receive_json()))

    start = trio.current_time()
    async with TestClient(app) as client, client.connect("/") as ws:
        for n in range(2):
            await ws.send_json({"type": "chat", "n": n})
        await ws.wait_closed()
    assert [message["n"] for _, message in got] == [0, 1]
    assert engine.asked == 4  # each limit once for each message


async def test_two_tasks_cannot_wait_for_what_is_asked_about(autojump_clock: MockClock) -> None:
    app = NexiosApp(broker=SlowEngine())
    failures: list[Exception] = []

    @app.ws_route("/", rate_limit=RateLimit(Rate(100), per="route", shared=True))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()

        async def second() -> None:
            await trio.sleep(0.5)
            try:
                await ws.receive_text()
            except ConcurrentReceiveError as error:
                failures.append(error)

        ws.start_soon(second)
        await ws.send_text(await ws.receive_text())

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await answers(ws, "a") == ["a"]
    assert len(failures) == 1


# Misuse


def test_what_cannot_be_shared_is_refused() -> None:
    for per in ("connection", ("connection", "route")):
        with pytest.raises(WrongValueError, match="a connection is on one server"):
            RateLimit("1/s", per=per, shared=True)
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
            ws.rate_limit(RateLimit("1/s", per="user", shared=True))
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

    @app.ws_route("/", rate_limit=RateLimit(THREE, per="user", action="drop", shared=True))
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

    @app.ws_route("/", rate_limit=RateLimit("9/s", per=lambda ws: object(), shared=True))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive()
        except WrongTypeError as error:
            caught.append(error)

    @app.ws_route("/long", rate_limit=RateLimit("9/s", per=lambda ws: ("x" * 9999, b"1", None), shared=True))
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
