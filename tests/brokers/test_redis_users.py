"""What a user of Redis may do, and what shows that it is not enough; a server that says nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from nexios_trio.brokers import Member, Position
from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.feed import Feed
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.reconnect import Backoff
from nexios_trio.brokers.redis.scripts import SETUP, Keys
from nexios_trio.brokers.redis.subscriber import Subscriber
from nexios_trio.brokers.redis.tracks import Page
from nexios_trio.exceptions import BrokerRefused, BrokerUnavailable
from nexios_trio.publishing import SyncPublisher
from nexios_trio.testing.broker_contract import Recorder, text
from tests.brokers.nodes import node
from tests.brokers.redis_server import RedisServer, free_port, needs_redis

pytestmark = needs_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One of its own, whose users the test may make."""
    server = RedisServer(tmp_path / "redis", port=free_port()).start()
    yield server
    server.kill()


# As docs/scaling.md has it.
LEAST = ("on", ">s3cret", "~nexios:*", "&*", "+@all", "-@dangerous")


async def test_a_user_with_no_more_than_is_documented_may_do_all(redis: RedisServer) -> None:
    redis.ask("ACL", "SETUSER", "chat", *LEAST)
    url = f"redis://chat:s3cret@127.0.0.1:{redis.port}"
    async with node(url, there := Recorder()) as broker:
        await broker.subscribe("g")
        await broker.subscribe("h*", pattern=True)
        await broker.publish("g", evolve(text("1"), id="once", once=True), keep=True)
        await broker.publish("hh", text("2"), keep=False)
        assert (await broker.history("g", since=Position("x", 1))).messages
        await broker.enter("g", member := Member("c", "ann"))
        assert await broker.members("g")
        await broker.presences.renew_now()
        broker.leave("g", member)
        await there.until(lambda: len(there.events) == 2)
        await broker.forget("g")
        await broker.forget()
        await there.until(lambda: there.data() == ["1", "2"])
    with SyncPublisher(url) as outside:
        redis.ask("SCRIPT", "FLUSH")
        assert outside.send("g", "3").offset == 2


async def test_a_user_without_channels_is_refused_at_the_start(redis: RedisServer) -> None:
    redis.ask("ACL", "SETUSER", "chat", *LEAST, "resetchannels")
    url = f"redis://chat:s3cret@127.0.0.1:{redis.port}"
    with pytest.raises(BrokerRefused, match=r"may not do what is needed: .* channels"):
        async with node(url, Recorder()):
            raise AssertionError("it runs")
    with SyncPublisher(url) as outside, pytest.raises(BrokerRefused, match="publish to the channel"):
        outside.send("g", 1)


async def test_a_user_without_channels_for_patterns_is_said_once_and_not_all_the_time(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("ACL", "SETUSER", "chat", *LEAST, "resetchannels", "&nexios:*")
    async with node(f"redis://chat:s3cret@127.0.0.1:{redis.port}", Recorder(), timeout=0.3) as broker:
        await broker.subscribe("g")
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"no subscription within .* channels"):
                await broker.subscribe("h*", pattern=True)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


HELLO = b"%3\r\n+version\r\n+7.0.1\r\n+mode\r\n+standalone\r\n+role\r\n+master\r\n+OK\r\n"


def link_to(address: Address) -> Link:
    return Link(address, timeout=0.05, setup=SETUP, backoff=Backoff(0.001, 0.001))


def subscriber_to(address: Address) -> Subscriber:
    async def read(_requests: Any) -> list[Page]:
        raise AssertionError

    feed = Feed(Keys("p:"), read, check_every=1)
    return Subscriber(address, feed, timeout=0.05, backoff=Backoff(0.001, 0.001))


@pytest.mark.parametrize("made", [link_to, subscriber_to])
async def test_a_server_that_falls_silent_after_the_greeting_is_given_up(
    made: Callable[[Address], Link | Subscriber],
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    again = trio.Event()
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        if connections == 2:
            again.set()
        await stream.receive_some()
        await stream.send_all(HELLO)
        async for _ in stream:
            pass

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(made(Address.parse(f"redis://127.0.0.1:{port}")[0]).run)
            await again.wait()
            nursery.cancel_scope.cancel()
