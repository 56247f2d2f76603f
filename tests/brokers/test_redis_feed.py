"""The feed alone, with a history that the test gives."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing

from nexios_trio.brokers.redis.feed import Feed
from nexios_trio.brokers.redis.scripts import Keys
from nexios_trio.brokers.redis.tracks import Page, Request, Track
from nexios_trio.exceptions import BrokerCommandError
from nexios_trio.testing.broker_contract import Recorder

KEYS = Keys("p:")


class Histories:
    """Of groups that are empty. ``spoilt`` cannot be read."""

    def __init__(self) -> None:
        self.reads: list[list[str]] = []
        self.spoilt: set[str] = set()
        self.open = trio.Event()
        self.open.set()

    async def read(self, requests: Sequence[Request]) -> list[Page]:
        groups = [request.group for request in requests]
        self.reads.append(groups)
        await self.open.wait()
        if self.spoilt.intersection(groups):
            raise BrokerCommandError("here", "WRONGTYPE", "no hash")
        return [Page("e", 0, "", (), False, "", 0, ()) for _ in groups]


@asynccontextmanager
async def filling(histories: Histories) -> AsyncIterator[Feed]:
    feed = Feed(KEYS, histories.read, check_every=math.inf)
    feed.receiver = Recorder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.fill)
        yield feed
        nursery.cancel_scope.cancel()


def follow(feed: Feed, *groups: str) -> list[Track]:
    tracks = [feed.follow(group) for group in groups]
    feed.subscribed([(KEYS.channel(group), False) for group in groups])
    return tracks


async def test_a_history_that_cannot_be_read_delays_no_other_group(autojump_clock: trio.abc.Clock) -> None:
    histories = Histories()
    histories.spoilt = {"spoilt"}
    async with filling(histories) as feed:
        (spoilt,) = follow(feed, "spoilt")
        for number in range(20):
            await trio.sleep(0.3)
            now = trio.current_time()
            (track,) = follow(feed, f"g{number}")
            await track.ready.wait()
            assert trio.current_time() == now
        assert not spoilt.ready.is_set()
        assert len(histories.reads) < 50
        histories.spoilt.clear()
        await spoilt.ready.wait()


async def test_a_spoilt_group_among_many_is_put_aside(autojump_clock: trio.abc.Clock) -> None:
    histories = Histories()
    histories.spoilt = {"g7"}
    async with filling(histories) as feed:
        tracks = follow(feed, *(f"g{number}" for number in range(200)))
        await trio.testing.wait_all_tasks_blocked()
        assert [track.group for track in tracks if not track.ready.is_set()] == ["g7"]
        feed.unfollow("g7")
        await trio.sleep(10)
        assert sum(groups == ["g7"] for groups in histories.reads) == 1


async def test_what_was_read_before_a_reconnect_does_not_count(autojump_clock: trio.abc.Clock) -> None:
    histories = Histories()
    async with filling(histories) as feed:
        histories.open = trio.Event()
        (track,) = follow(feed, "g")
        await trio.testing.wait_all_tasks_blocked()
        feed.lost()
        feed.subscribed([(KEYS.channel("g"), False)])
        histories.open.set()
        await track.ready.wait()
        assert histories.reads == [["g"], ["g"]]


async def test_who_waits_for_an_own_message_is_let_go_when_nobody_follows_any_more() -> None:
    async def read(_requests: Sequence[Request]) -> list[Page]:
        raise AssertionError

    feed = Feed(KEYS, read, check_every=math.inf)
    feed.follow("g")
    feed.follow_pattern("g*")
    feed.live_patterns[KEYS.pattern("g*")] = None
    feed.own["1-n"] = (here := trio.Event(), True, "g")
    feed.own["2-n"] = (there := trio.Event(), True, "other")
    feed.follow("other")
    feed.unfollow("g")
    assert not here.is_set()  # by the pattern
    feed.unfollow_pattern("g*")
    assert here.is_set()
    assert not there.is_set()
