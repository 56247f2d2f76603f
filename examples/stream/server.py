"""The app: a page, a task that is the broadcast, and one WebSocket per viewer for video and chat."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from attrs import define, field

from examples.common.pages import serve_page
from examples.stream.protocol import (
    INIT,
    SEGMENT,
    FromViewer,
    History,
    Ping,
    Problem,
    Said,
    Say,
    Viewers,
    media,
)
from examples.stream.webm import Recording
from nexios_trio import Heartbeat, Limits, NexiosApp, Overflow, PeerError, Rate, RateLimit, WebSocket

HERE: Final = Path(__file__).parent
RECORDING: Final = Recording.read((HERE / "pattern.webm").read_bytes())
VIDEO: Final = "stream.video"
CHAT: Final = "stream.chat"
SHOWN: Final = 30  # messages that who comes gets to see
TALK: Final = RateLimit(Rate(1, burst=5))


@define(eq=False)
class Broadcast:
    """A recording, played as if it were live: whoever comes, comes in the middle."""

    recording: Recording
    number: int = 0
    """Of the next segment."""
    began: float = field(factory=trio.current_time)
    viewers: int = 0
    told: int = -1
    """How many viewers all were told last."""

    async def wait_next(self) -> bytes:
        """The next segment, when its time has come. What a stall has cost is left out, by whole segments."""
        due = self.began + self.number * self.recording.piece_length
        await trio.sleep_until(due)
        behind = trio.current_time() - due
        self.number += int(behind / self.recording.piece_length)
        segment = media(SEGMENT, self.number, self.recording.cluster(self.number))
        self.number += 1
        return segment


@asynccontextmanager
async def lifespan(app: NexiosApp) -> AsyncIterator[dict[str, Broadcast]]:
    app.state.broadcast = Broadcast(RECORDING)
    yield {"broadcast": app.state.broadcast}


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=4096, outbox_messages=64),
    heartbeat=Heartbeat(interval=20, timeout=20, message=msgspec.json.encode(Ping()).decode()),
)
serve_page(app, HERE / "static", policy="media-src blob:")


async def on_air() -> None:
    """Each segment goes out once, for all viewers."""
    broadcast: Broadcast = app.state.broadcast
    while True:
        segment = await broadcast.wait_next()
        await app.channels.send(VIDEO, segment, save_history=False)
        if broadcast.viewers != broadcast.told:
            broadcast.told = broadcast.viewers
            await app.channels.send(VIDEO, Viewers(broadcast.viewers), save_history=False)


app.start_soon(on_air)


def newest(payload: Any) -> str:
    """One segment may wait for a viewer, and one count. Who is slow skips whole segments: the next one that
    he gets begins with a key frame like any other."""
    return "segment" if isinstance(payload, bytes) else "viewers"


async def answer(ws: WebSocket, error: PeerError) -> None:
    await ws.send_json(Problem(error.public_reason))


@app.ws_route("/watch", rate_limit=TALK, on_invalid=answer)
async def watch(ws: WebSocket) -> None:
    await ws.accept()
    broadcast: Broadcast = ws.state.broadcast
    async with ws.join(CHAT) as chat:
        last = [msgspec.convert(message.payload, Said) for message in await chat.history(SHOWN)]
        await ws.send_json(History(last))
        await ws.send_bytes(media(INIT, broadcast.number, broadcast.recording.init))
        async with ws.join(VIDEO, overflow=Overflow.CONFLATE(newest)):
            broadcast.viewers += 1
            try:
                await ws.send_json(Viewers(broadcast.viewers))
                async for message in ws.iter_json(FromViewer):
                    if isinstance(message, Say):
                        await say(ws, message)
            finally:
                broadcast.viewers -= 1


async def say(ws: WebSocket, message: Say) -> None:
    if not message.name:
        await ws.send_json(Problem("a name needs a visible character"))
        return
    said = Said(secrets.token_hex(6), message.name, message.text, datetime.now(UTC))
    await app.channels.send(CHAT, said)
