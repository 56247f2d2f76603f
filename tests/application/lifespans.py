"""A server's half of ASGI's lifespan protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from nexios_trio.types import ASGIApp, Message

__all__ = ["Lifespan", "lifespan_of"]


class Lifespan:
    """One run of an app's lifespan: what it said, what it raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.said: list[Message] = []
        self.error: Exception | None = None
        self.ended = trio.Event()
        self._heard = trio.Event()
        self._to_app, self._app_receives = trio.open_memory_channel[Message](2)

    @property
    def kinds(self) -> list[str]:
        """The types of the messages that the app sent."""
        return [message["type"].removeprefix("lifespan.") for message in self.said]

    @property
    def text(self) -> str:
        """What the last message says."""
        return str(self.said[-1]["message"])

    async def run(self) -> None:
        async def send(message: Message) -> None:
            await trio.lowlevel.checkpoint()
            self.said.append(message)
            self._heard.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        try:
            await self.app(scope, self._app_receives.receive, send)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()
            self._heard.set()

    async def start(self) -> None:
        await self._to_app.send({"type": "lifespan.startup"})
        await self._heard.wait()

    async def stop(self) -> None:
        await self._to_app.send({"type": "lifespan.shutdown"})
        await self.ended.wait()


@asynccontextmanager
async def lifespan_of(app: ASGIApp) -> AsyncIterator[Lifespan]:
    """Start ``app`` and, if that went well, stop it at the end of the block."""
    lifespan = Lifespan(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifespan.run)
        await lifespan.start()
        yield lifespan
        if not lifespan.ended.is_set():
            await lifespan.stop()
