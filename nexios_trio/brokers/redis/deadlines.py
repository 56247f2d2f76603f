"""One timer for all calls of a link: a cancel scope for each would cost as much as the call itself."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import trio

__all__ = ["Call", "Deadlines"]


class Call:
    """Commands that belong together, and who waits for the replies."""

    __slots__ = ("data", "deadline", "dropped", "needed", "replies", "sent", "task")

    def __init__(self, data: bytes, needed: int) -> None:
        self.data = data
        self.needed = needed
        self.replies: list[Any] = []
        self.task: trio.lowlevel.Task | None = None
        """Who waits; None: nobody does, or it was woken."""
        self.deadline = math.inf
        self.dropped = False
        """Nobody waits any more: not to be sent, or if it was, its replies go nowhere."""
        self.sent = False
        """It was on its way at least once."""

    def wake(self) -> None:
        """Wake who waits, if anybody does."""
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None

    def drop(self) -> None:
        """Wake who waits, if anybody does, without replies."""
        if self.task is not None:
            self.dropped = True
            self.wake()

    async def wait(self) -> None:
        """Block until it is woken; cancelled, it is dropped."""
        self.task = trio.lowlevel.current_task()

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self.task = None
            self.dropped = True
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class Deadlines:
    """Calls that wait, by how long they may: those of one length end in the order in which they came."""

    def __init__(self) -> None:
        self._running = False
        self._calls: dict[float, deque[Call]] = {}
        self._next = math.inf
        self._sooner = trio.Event()

    async def wait(self, call: Call, limit: float) -> None:
        """Block until the call is woken, or dropped after ``limit`` seconds; at once when `run` ends."""
        call.deadline = trio.current_time() + limit
        if not self._running:
            with trio.move_on_after(limit):
                await call.wait()
            return
        calls = self._calls.setdefault(limit, deque())
        while calls and calls[0].task is None:
            calls.popleft()
        calls.append(call)
        if call.deadline < self._next:
            self._sooner.set()
        await call.wait()

    async def run(self) -> None:
        """Drop calls as their time comes, until cancelled; then all that wait."""
        self._running = True
        try:
            while True:
                self._next = self._drop_until(trio.current_time())
                self._sooner = trio.Event()
                with trio.move_on_at(self._next):
                    await self._sooner.wait()
        finally:
            self._running = False
            self._drop_until(math.inf)
            self._calls.clear()

    def _drop_until(self, now: float) -> float:
        """Returns the next deadline."""
        for calls in self._calls.values():
            while calls and (calls[0].task is None or calls[0].deadline <= now):
                calls.popleft().drop()
        return min((calls[0].deadline for calls in self._calls.values() if calls), default=math.inf)
