"""scripts/bench frozen: a node stands still under load; what that costs, and what it knows afterwards."""

from __future__ import annotations

import signal
import time
from typing import Any, Final

import click
import trio

from benchmarks.cluster import Node, Redis, redis_running, start
from benchmarks.harness import Failed, record, resident_kib, versions
from nexios_trio.config import HistoryLimits
from nexios_trio.publishing import Publisher

CATCHING_UP: Final = 60.0
"""Seconds that the node has for that."""


class Load:
    """Sends ``[number, padding]`` to all groups in turn, at a steady rate."""

    def __init__(self, redis: Redis, groups: int, history: int, rate: float, size: int) -> None:
        self.redis, self.groups, self.rate = redis, groups, rate
        self.history = HistoryLimits(messages=history, bytes=1 << 28)
        self.padding = "x" * size
        self.sent = 0
        self.slowest = 0.0
        self.most_kib = 0

    async def send(self, seconds: float) -> None:
        async with Publisher(self.redis.url, self.history) as publisher:
            begun, before = trio.current_time(), self.sent
            while trio.current_time() < begun + seconds:
                await trio.sleep_until(begun + (self.sent - before) / self.rate)
                asked = trio.current_time()
                group, number = self.sent % self.groups, self.sent // self.groups
                await publisher.send(f"g{group}", [number, self.padding])
                self.slowest = max(self.slowest, trio.current_time() - asked)
                self.sent += 1
                if self.sent % 100 == 0:
                    self.most_kib = max(self.most_kib, resident_kib(self.redis.process.pid))


def freeze(seconds: float, groups: int, history: int, rate: float, size: int) -> dict[str, Any]:
    """Load, stop the node in the middle of it, and let it go on; see the fields."""
    with redis_running(unbounded=False) as redis:
        process = start("benchmarks.apps.frozen_node", redis.url, groups, history)
        try:
            node = Node(process)
            node.answer()
            load = Load(redis, groups, history, rate, size)
            trio.run(load.send, 2.0)
            kib, load.slowest = resident_kib(process.pid), 0.0
            redis_kib = resident_kib(redis.process.pid)
            process.send_signal(signal.SIGSTOP)
            trio.run(load.send, seconds)
            most_kib, slowest = load.most_kib, load.slowest
            process.send_signal(signal.SIGCONT)
            begun = time.monotonic()
            trio.run(load.send, 2.0)
            while (found := node.ask())["newest"] < load.sent:
                if time.monotonic() > begun + CATCHING_UP:
                    raise Failed(f"the node did not catch up: {found}, sent {load.sent}")
                time.sleep(0.05)
            return {
                "history": history,
                "sent": load.sent,
                **{name: found.get(name, 0) for name in ("received", "told")},
                **{name: found.get(name, 0) for name in ("holes told", "holes in silence", "again")},
                "caught_up_seconds": time.monotonic() - begun,
                "slowest_send_ms": slowest * 1000,
                "redis_kib": [redis_kib, most_kib],
                "node_kib": [kib, resident_kib(process.pid)],
            }
        finally:
            process.kill()
            process.communicate()


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="For which the node stands still.")
@click.option("--groups", default=50, show_default=True, help="That it follows.")
@click.option("--rate", default=500.0, show_default=True, help="Messages per second, over all groups.")
@click.option("--size", default=4096, show_default=True, help="Bytes of a message.")
def frozen(seconds: float, groups: int, rate: float, size: int) -> None:
    """A node is stopped (SIGSTOP) under load; once with a history that holds what it misses, once without.

    Redis has its own default bounds on what it keeps for a subscriber. Fails if a hole was not told.
    """
    click.echo(versions("trio", "hiredis"))
    missed = int(rate * (seconds + 5) / groups)
    for history in (2 * missed, max(1, missed // 10)):
        found = freeze(seconds, groups, history, rate, size)
        record("frozen", {"versions": versions("trio", "hiredis"), "seconds": seconds, **found})
        for name, value in found.items():
            click.echo(f"{name:20} {value if not isinstance(value, float) else round(value, 2)}")
        click.echo("")
        if found["holes in silence"] or found["again"]:
            raise click.ClickException("messages were lost in silence, or came again")
