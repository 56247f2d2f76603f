"""A node that follows groups, and says what came; its arguments are URL, groups and history.

Payloads are ``[number, padding]``. For each line of its standard input it prints one of JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import trio

from nexios_trio.brokers import Message, PresenceEvent
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.config import HistoryLimits


class Follower:
    """A `nexios_trio.brokers.base.Receiver`."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}
        self.told: set[str] = set()
        self.counts: Counter[str] = Counter()

    async def deliver(self, message: Message) -> None:
        number = message.payload[0]
        last = self.newest.get(message.group, -1)
        if number <= last:
            self.counts["again"] += 1
        elif number > last + 1:
            self.counts["holes told" if message.group in self.told else "holes in silence"] += 1
        self.told.discard(message.group)
        self.newest[message.group] = number
        self.counts["received"] += 1

    async def deliver_presence(self, event: PresenceEvent) -> None:
        raise AssertionError(f"nobody is present: {event}")

    async def resync(self, group: str) -> None:
        self.told.add(group)
        self.counts["told"] += 1


async def main(url: str, groups: int, history: int) -> None:
    follower = Follower()
    broker = RedisBroker(url, HistoryLimits(messages=history, bytes=1 << 28))
    broker.attach(follower)
    async with broker.serving():
        for number in range(groups):
            await broker.subscribe(f"g{number}")
        print("{}", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            answer = {**follower.counts, "newest": sum(follower.newest.values()) + len(follower.newest)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
