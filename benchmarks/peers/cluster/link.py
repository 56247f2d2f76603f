"""Our link to Redis by itself: ``python -m benchmarks.peers.cluster.link publish | receive URL SECONDS``.

``publish`` prints its rate of pipelined PUBLISH; ``receive`` prints "ready", and what it got once its
standard input says how much was sent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import trio

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.subscriber import Key, Subscriber

DATA = b"x" * 64
TASKS, AT_ONCE = 8, 50


async def publish(url: str, seconds: float) -> None:
    link = Link(Address.parse(url)[0])
    sent = 0

    async def steadily(until: float) -> None:
        nonlocal sent
        while time.perf_counter() < until:
            await link.pipeline([("PUBLISH", "bench", DATA)] * AT_ONCE)
            sent += AT_ONCE

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.wait_tried()
        begun, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(steadily, begun + seconds)
        took, used = time.perf_counter() - begun, time.process_time() - cpu
        print(json.dumps({"messages": sent, "seconds": took, "cpu": used}), flush=True)
        nursery.cancel_scope.cancel()


class Counter:
    """A `nexios_trio.brokers.redis.subscriber.Listener`."""

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = 0.0
        self.cpu = 0.0
        self.ready = trio.Event()

    async def came(self, key: Key, channel: str, data: bytes) -> None:
        if not self.count:
            self.first, self.cpu = time.perf_counter(), time.process_time()
        self.count += 1

    def subscribed(self, keys: Sequence[Key]) -> None:
        self.ready.set()

    def lost(self) -> None:
        pass


async def receive(url: str) -> None:
    counter = Counter()
    subscriber = Subscriber(Address.parse(url)[0], counter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscriber.run)
        subscriber.add(("bench", False))
        await counter.ready.wait()
        print("ready", flush=True)
        expected = int(await trio.to_thread.run_sync(sys.stdin.readline))
        with trio.move_on_after(10):
            while counter.count < expected:
                await trio.sleep(0.001)
        took, used = time.perf_counter() - counter.first, time.process_time() - counter.cpu
        print(json.dumps({"messages": counter.count, "seconds": took, "cpu": used}), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    role, url, seconds = sys.argv[1:]
    if role == "publish":
        trio.run(publish, url, float(seconds))
    else:
        trio.run(receive, url)
