"""scripts/bench limits: what the limits that servers share through Redis cost this process and Redis."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click
import trio

from benchmarks.cluster import Redis, redis_running
from benchmarks.harness import record, versions
from nexios_trio import Rate
from nexios_trio.brokers import Message, PresenceEvent
from nexios_trio.brokers.redis import RedisBroker

RATE: Final = Rate(1_000_000)
TOGETHER: Final = 1000
"""Messages that are let through at the same time."""


class Nobody:
    """A `Receiver` of nothing."""

    async def deliver(self, message: Message) -> None:
        """See `Receiver.deliver`."""

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """See `Receiver.deliver_presence`."""

    async def resync(self, group: str) -> None:
        """See `Receiver.resync`."""


async def measure_limits(redis: Redis, rounds: int) -> dict[str, float]:
    """Microseconds, see the names; ``rounds`` of one, and of `TOGETHER`."""
    broker = RedisBroker(redis.url)
    broker.attach(Nobody())

    async def charge() -> None:
        told = trio.Event()
        broker.quotas.charge("one", 1, RATE, lambda _owed: told.set())
        await told.wait()

    async def charge_many() -> None:
        waiting = TOGETHER
        told = trio.Event()

        def tell(_owed: float) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                told.set()

        for number in range(TOGETHER):
            broker.quotas.charge(f"{number}", 1, RATE, tell)
        await told.wait()

    async def hold() -> None:
        await broker.quotas.hold("user", "connection", 1)

    async def cost(name: str, call: Callable[[], Awaitable[None]], each: int) -> None:
        own, theirs = time.process_time(), redis.cpu_seconds()
        took = []
        for _ in range(rounds):
            begun = time.perf_counter()
            await call()
            took.append(time.perf_counter() - begun)
        done = rounds * each
        figures[f"{name}: until it is answered"] = statistics.median(took) * 1e6
        figures[f"{name}: CPU of this process, each"] = (time.process_time() - own) / done * 1e6
        figures[f"{name}: CPU of Redis, each"] = (redis.cpu_seconds() - theirs) / done * 1e6

    figures: dict[str, float] = {}
    async with broker.serving():
        await cost("a message let through, alone", charge, 1)
        await cost(f"{TOGETHER} at once, of as many users", charge_many, TOGETHER)
        await cost("a handshake of a user with a shared cap", hold, 1)
    return figures


@click.command()
@click.option("--rounds", default=500, show_default=True, help="Of each.")
def limits(rounds: int) -> None:
    """The cost of RateLimit(shared=True) and of connections_per_user_shared."""
    click.echo(versions("trio", "hiredis"))
    with redis_running() as redis:
        figures: dict[str, Any] = trio.run(measure_limits, redis, rounds)
    for name, value in figures.items():
        click.echo(f"{name:75} {value:10.1f} us")
    record("limits", {"versions": versions("trio", "hiredis"), "rounds": rounds, **figures})
