"""The app: a page, a task that samples, a WebSocket per viewer, and an echo to make some noise with."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import define, field
from msgspec import Struct

from examples.common.pages import serve_page
from examples.dashboard.metrics import Meter, Sample
from nexios_trio import Heartbeat, Limits, NexiosApp, Overflow, WebSocket

GROUP: Final = "dashboard"
INTERVAL: Final = 0.5  # seconds
KEPT: Final = 240  # samples: two minutes
NOISE: Final = 64  # characters of an echo, at most


class History(Struct, tag="history"):
    """First of all: the samples so far, and how many seconds lie between two."""

    interval: float
    samples: list[Sample]
    boot: str
    """Another one than before: another process."""


@define(eq=False)
class Board:
    """What is measured, and what was."""

    boot: str
    meter: Meter = field(factory=Meter)
    samples: deque[Sample] = field(factory=lambda: deque(maxlen=KEPT))
    viewers: dict[str, WebSocket] = field(factory=dict)
    conflated: int = 0
    """Of viewers that have gone; see `conflated_in_all`."""

    def conflated_in_all(self) -> int:
        return self.conflated + sum(viewer.statistics().conflated for viewer in self.viewers.values())


@asynccontextmanager
async def lifespan(app: NexiosApp) -> AsyncIterator[dict[str, Board]]:
    app.state.board = Board(boot=secrets.token_hex(4))
    yield {"board": app.state.board}


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=1024),
    # A viewer says nothing: without an answer to the ping its connection ends.
    heartbeat=Heartbeat(interval=20, timeout=20, message='{"type":"ping"}'),
)
serve_page(app, Path(__file__).parent / "static")


async def sample() -> None:
    """Measure at even intervals, and send each sample once for all viewers."""
    board: Board = app.state.board
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.meter.watch_lag)
        due = trio.current_time()
        sent = 0  # by the group since the last sample
        while True:
            due = max(due + INTERVAL, trio.current_time())
            await trio.sleep_until(due)
            made = board.meter.sample(
                connections=len(app.connections),
                viewers=len(board.viewers),
                sent=sent,
                conflated=board.conflated_in_all(),
            )
            board.samples.append(made)
            sent = len(board.viewers)
            await app.channels.send(GROUP, made, save_history=False)


app.start_soon(sample)


@app.ws_route("/samples", rate_limit="5/s")
async def samples(ws: WebSocket) -> None:
    await ws.accept()
    board: Board = ws.state.board
    async with ws.join(GROUP, overflow=Overflow.CONFLATE("type")):
        board.viewers[ws.id] = ws
        try:
            await ws.send_json(History(INTERVAL, list(board.samples), board.boot))
            async for _ in ws.iter_text():  # answers to pings
                pass
        finally:
            board.conflated += ws.statistics().conflated
            del board.viewers[ws.id]


@app.ws_route("/echo", rate_limit="50/s")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    meter: Meter = ws.state.board.meter
    async for text in ws.iter_text():
        meter.received += 1
        if text != '{"type":"pong"}':
            await ws.send_text(text[:NOISE])
            meter.sent += 1
