"""A group, in a process that measures how long each task keeps all others waiting.

``/listen``: what comes is sent to the group, and from the first message on the clock runs. ``/pauses`` tells
what it saw.
"""

from __future__ import annotations

import gc
import time
from collections import Counter

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse

from nexios_trio import NexiosApp, WebSocket

WORTH_TELLING = 0.001
"""Seconds."""


class Pauses(trio.abc.Instrument):
    """Steps: what a task does between two yields. Passes: what all tasks do between two looks at I/O."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, str]] = []
        self.step_count = 0
        self.longest_step = self.longest_pass = self.longest_collection = 0.0
        self.collections: Counter[str] = Counter()
        self.sends: list[float] = []
        self._step_began = self._pass_began = self._collection_began = time.perf_counter()

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._step_began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.perf_counter() - self._step_began
        self.step_count += 1
        self.longest_step = max(self.longest_step, took)
        if took >= WORTH_TELLING and len(self.steps) < 10_000:
            self.steps.append((took, task.name))

    def after_io_wait(self, _timeout: float) -> None:
        self._pass_began = time.perf_counter()

    def before_io_wait(self, _timeout: float) -> None:
        self.longest_pass = max(self.longest_pass, time.perf_counter() - self._pass_began)

    def collecting(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.perf_counter()
        else:
            self.longest_collection = max(
                self.longest_collection, time.perf_counter() - self._collection_began
            )
            self.collections[f"generation {info['generation']}"] += 1

    def start(self) -> None:
        trio.lowlevel.add_instrument(self)
        gc.callbacks.append(self.collecting)


app = NexiosApp()
started: list[Pauses] = []


@app.ws_route("/listen")
async def listen(ws: WebSocket) -> None:
    await ws.accept()
    async with ws.join("all") as group:
        async for text in ws.iter_text():
            if not started:
                started.append(Pauses())
                started[0].start()
            began = time.perf_counter()
            await group.send(text)
            started[0].sends.append(time.perf_counter() - began)


@app.get("/pauses")
async def tell(_request: Request) -> JSONResponse:
    (pauses,) = started
    longest = sorted(pauses.steps, reverse=True)
    return JSONResponse(
        {
            "sends": len(pauses.sends),
            "longest_send_ms": max(pauses.sends) * 1e3,
            "steps": pauses.step_count,
            "longest_step_ms": pauses.longest_step * 1e3,
            "longest_pass_ms": pauses.longest_pass * 1e3,
            "steps_over_1_ms": len(longest),
            "longest_steps": [[round(took * 1e3, 3), name] for took, name in longest[:8]],
            "collections": dict(pauses.collections),
            "longest_collection_ms": pauses.longest_collection * 1e3,
        }
    )
