"""python-socketio: AsyncRedisManager, up to where it would look for the members of a room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import socketio

LOOP = "asyncio"


@asynccontextmanager
async def sending(url: str) -> AsyncIterator[Any]:
    manager = socketio.AsyncRedisManager(url)
    manager.set_server(socketio.AsyncServer(client_manager=manager, async_mode="asgi"))
    manager.initialize()

    async def send(group: str, payload: Any) -> None:
        await manager.emit("note", payload, namespace="/", room=group)

    yield send


@asynccontextmanager
async def receiving(url: str, groups: Sequence[str], note: Callable[[Any], None]) -> AsyncIterator[None]:
    wanted = {*groups}

    class Manager(socketio.AsyncRedisManager):
        async def _handle_emit(self, message: Any) -> None:
            if message["room"] in wanted:
                (payload,) = message["data"]
                note(payload)

    manager = Manager(url)
    manager.set_server(socketio.AsyncServer(client_manager=manager, async_mode="asgi"))
    manager.initialize()
    yield


ENGINES = {"socketio": (sending, receiving)}
