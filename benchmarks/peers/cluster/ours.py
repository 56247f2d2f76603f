"""nexios_trio: what `Group.send` does, and where the node hands messages to its members."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from nexios_trio.brokers import Message, PresenceEvent
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.websockets.payloads import draft_of

LOOP = "trio"


class Node:
    """A `nexios_trio.brokers.base.Receiver`."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        self.note = note

    async def deliver(self, message: Message) -> None:
        self.note(message.payload)

    async def deliver_presence(self, event: PresenceEvent) -> None:
        raise AssertionError(f"nobody is present: {event}")

    async def resync(self, group: str) -> None:
        raise AssertionError(f"messages of {group} were lost")


@asynccontextmanager
async def sending(url: str, keep: bool) -> AsyncIterator[Any]:
    broker = RedisBroker(url, prefix="bench:")

    async def send(group: str, payload: Any) -> None:
        await broker.publish(group, draft_of(payload), keep=keep)

    broker.attach(Node(lambda _: None))
    async with broker.serving():
        yield send


@asynccontextmanager
async def receiving(url: str, groups: Sequence[str], note: Callable[[Any], None]) -> AsyncIterator[None]:
    import trio  # the other engines' nodes run without it

    broker = RedisBroker(url, prefix="bench:", timeout=60)
    broker.attach(Node(note))
    async with broker.serving():
        for start in range(0, len(groups), 500):
            async with trio.open_nursery() as nursery:
                for group in groups[start : start + 500]:
                    nursery.start_soon(broker.subscribe, group)
        yield


ENGINES = {
    "nexios": (partial(sending, keep=True), receiving),
    "nexios-unkept": (partial(sending, keep=False), receiving),
}
