"""Litestar: both of its Redis backends for channels, with the encoding that its plugin uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from litestar.channels.backends.redis import RedisChannelsPubSubBackend, RedisChannelsStreamBackend
from litestar.serialization import decode_json, encode_json
from redis.asyncio import Redis

LOOP = "asyncio"


@asynccontextmanager
async def backend_of(url: str, kind: str) -> AsyncIterator[Any]:
    redis = Redis.from_url(url)
    if kind == "pubsub":
        backend: Any = RedisChannelsPubSubBackend(redis=redis)
    else:
        backend = RedisChannelsStreamBackend(redis=redis, history=100)
    await backend.on_startup()
    yield backend


@asynccontextmanager
async def sending(url: str, kind: str) -> AsyncIterator[Any]:
    async with backend_of(url, kind) as backend:

        async def send(group: str, payload: Any) -> None:
            await backend.publish(encode_json(payload), [group])

        yield send


@asynccontextmanager
async def receiving(
    url: str, groups: Sequence[str], note: Callable[[Any], None], kind: str
) -> AsyncIterator[None]:
    async with backend_of(url, kind) as backend:
        await backend.subscribe(groups)

        async def receive() -> None:
            async for _, data in backend.stream_events():
                note(decode_json(data))

        task = asyncio.create_task(receive())
        try:
            yield
        finally:
            task.cancel()


ENGINES = {
    "litestar": (partial(sending, kind="pubsub"), partial(receiving, kind="pubsub")),
    "litestar-streams": (partial(sending, kind="streams"), partial(receiving, kind="streams")),
}
