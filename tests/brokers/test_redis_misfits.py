"""What others put into our Redis, or a Redis that is full: it costs the group concerned, and no other one."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import trio

from nexios_trio.brokers import Member
from nexios_trio.exceptions import BrokerCommandError, BrokerUnavailable
from nexios_trio.testing.broker_contract import Recorder, text
from tests.brokers.nodes import PATIENCE, node
from tests.brokers.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

DEEP = "[" * 100_000 + "]" * 100_000


def event(**others: object) -> bytes:
    member = {"connection": "c", "user": "u", "metadata": "{}", "joined_at": 1, "id": "i", **others}
    return json.dumps({"type": "presence.join", "version": 1, "epoch": "e", "member": member}).encode()


@pytest.mark.parametrize(
    ("channel", "data"),
    [
        (b"{\xff}", b"a channel that is no text"),
        (b"{\xff}", b'[0,"","n","",1,"text",null,[],"i"]\nof a channel that is no text'),
        (b"{g}", b'[0,"","n","",1%s,"text",null,[],"i"]\na time beyond all bounds' % (b"0" * 400)),
        (b"{g}", b'{"brackets":%s}' % DEEP.encode()),
        (b"{g}", event(metadata=DEEP)),
    ],
    ids=["channel", "message", "time", "event", "metadata"],
)
async def test_nothing_that_somebody_publishes_ends_a_node(
    shared_redis: RedisServer, prefix: str, channel: bytes, data: bytes
) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        await broker.subscribe("g")
        await broker.subscribe("*", pattern=True)
        await broker.link.call("PUBLISH", prefix.encode() + channel, data)
        await broker.publish("g", text("1"), keep=True)
        assert there.data()[-1] == "1"


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        (":m", "e", b"\xff"),
        (":m", "o", "abc"),
        (":pm", "e", b"\xff"),
        (":pm", "v", "abc"),
        (":m", "l", b"\xff"),
    ],
)
async def test_nothing_that_a_group_says_of_itself_ends_a_node(
    shared_redis: RedisServer, prefix: str, key: str, name: str, value: str | bytes
) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker, trio.open_nursery() as nursery:
        await broker.link.call("HSET", f"{prefix}{{spoilt}}{key}", "e", "e", name, value)
        nursery.start_soon(broker.subscribe, "spoilt")
        await broker.subscribe("g")
        await broker.feed.check_now(broker.feed.tracks.values())
        assert (await broker.publish("g", text("1"), keep=True)).offset == 1
        nursery.cancel_scope.cancel()


async def test_what_others_list_among_the_members_is_left_out(shared_redis: RedisServer, prefix: str) -> None:
    async with node(shared_redis.url, Recorder(), prefix=prefix) as broker:
        await broker.enter("g", Member("c", "ann"))
        await broker.link.call("HSET", f"{prefix}{{g}}:ph", "x", "junk", "y", "1 {", "z", b"\xff \xff")
        assert [member.user for member in await broker.members("g")] == ["ann"]


async def test_a_spoilt_group_keeps_nobody_from_leaving_another_one(
    shared_redis: RedisServer, prefix: str
) -> None:
    async with node(shared_redis.url, there := Recorder(), prefix=prefix) as broker:
        await broker.link.call("ZADD", f"{prefix}due", 1, "spoilt")
        await broker.link.call("SET", f"{prefix}{{spoilt}}:pz", "no zset")
        await broker.subscribe("g")
        await broker.enter("g", ann := Member("c", "ann"))
        broker.leave("g", ann)
        await there.until(lambda: len(there.events) == 2, PATIENCE)
        assert there.told() == [("join", "g", "ann"), ("leave", "g", "ann")]


async def test_a_spoilt_group_keeps_no_other_one_from_being_renewed_or_compared(
    shared_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    caplog.set_level(logging.WARNING)
    async with node(shared_redis.url, there := Recorder(), prefix=prefix, clock=lambda: now) as broker:
        for group in ("spoilt", "g"):
            await broker.subscribe(group)
            await broker.enter(group, Member(f"c in {group}", "ann"))
        await broker.link.call("SET", f"{prefix}{{spoilt}}:pz", "no zset")
        await broker.link.call("SET", f"{prefix}{{spoilt}}:m", "no hash")
        now += broker.settings.lease - 1
        await broker.presences.renew_now()
        now += broker.settings.lease - 1
        assert [member.user for member in await broker.members("g")] == ["ann"]
        assert "presences in group 'spoilt' could not be renewed" in caplog.text
        await broker.link.call("HSET", f"{prefix}{{g}}:m", "o", 5)
        await broker.feed.check_now(broker.feed.tracks.values())
        await there.until(lambda: there.resyncs == ["g"], PATIENCE)


async def test_who_is_here_stays_present_while_the_memory_of_redis_is_full(redis: RedisServer) -> None:
    now = 1000.0
    async with node(redis.url, Recorder(), clock=lambda: now) as broker:
        await broker.enter("g", Member("c", "ann"))
        await trio.to_thread.run_sync(partial(redis.ask, "CONFIG", "SET", "maxmemory", "1"))
        with pytest.raises(BrokerCommandError):
            await broker.enter("g", Member("d", "bob"))
        now += broker.settings.lease - 1
        await broker.presences.renew_now()
        now += broker.settings.lease - 1
        assert [member.user for member in await broker.members("g")] == ["ann"]


async def test_a_user_that_cannot_be_written_is_refused_before_redis_is_back(tmp_path: Path) -> None:
    nowhere = f"redis+unix://{tmp_path}/nothing.sock"
    async with node(nowhere, Recorder(), on_outage="local") as broker:
        with pytest.raises(UnicodeEncodeError):
            await broker.enter("g", Member("c", "\ud800"))
        assert await broker.members("g") == ()


async def test_a_group_that_redis_will_not_read_is_said_once_and_told_to_who_joins(
    shared_redis: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with node(shared_redis.url, Recorder(), prefix=prefix, timeout=0.2) as broker:
        await broker.link.call("SET", f"{prefix}{{spoilt}}:m", "no hash")
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"no subscription within 0\.2 s: answered WRONGTYPE"):
                await broker.subscribe("spoilt")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        await broker.link.call("DEL", f"{prefix}{{spoilt}}:m")
        await broker.feed.tracks["spoilt"].ready.wait()
