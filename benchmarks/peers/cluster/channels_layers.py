"""channels_redis: both of its layers, spoken to as a consumer of Django Channels does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

LOOP = "asyncio"


def layer_of(kind: str, url: str) -> Any:
    if kind == "pubsub":
        return RedisPubSubChannelLayer(hosts=[url])
    # By default a channel takes 100 messages, and what comes on top is dropped.
    return RedisChannelLayer(hosts=[url], capacity=1_000_000)


@asynccontextmanager
async def sending(url: str, kind: str) -> AsyncIterator[Any]:
    layer = layer_of(kind, url)

    async def send(group: str, payload: Any) -> None:
        await layer.group_send(group, {"type": "note", "payload": payload})

    yield send


@asynccontextmanager
async def receiving(
    url: str, groups: Sequence[str], note: Callable[[Any], None], kind: str
) -> AsyncIterator[None]:
    layer = layer_of(kind, url)
    channel = await layer.new_channel()
    for group in groups:
        await layer.group_add(group, channel)

    async def receive() -> None:
        while True:
            note((await layer.receive(channel))["payload"])

    task = asyncio.create_task(receive())
    try:
        yield
    finally:
        task.cancel()


ENGINES = {
    "channels": (partial(sending, kind="core"), partial(receiving, kind="core")),
    "channels-pubsub": (partial(sending, kind="pubsub"), partial(receiving, kind="pubsub")),
}
