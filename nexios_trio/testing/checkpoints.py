"""Cancel a task at each of its steps in turn, to see that nothing is lost or left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Literal

import trio

__all__ = ["Interrupter", "cancel_at_each_step"]


class Interrupter(trio.abc.Instrument):
    """Cancels a scope when one task reaches its k-th step.

    A task's step runs from one point where it blocks to the next. ``when="before"`` cancels as the k-th
    step begins, so that the next checkpoint inside it raises; ``when="after"`` cancels as it ends, so
    that whatever the task blocks on is interrupted.
    """

    def __init__(self, k: int, when: Literal["before", "after"]) -> None:
        self.k = k
        self.when = when
        self.scope = trio.CancelScope()
        self.steps = 0
        self._task: trio.lowlevel.Task | None = None

    @property
    def struck(self) -> bool:
        """Whether the task lived long enough to be cancelled."""
        return self.steps >= self.k

    async def run(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``async_fn(*args)`` in this task, counting its steps from here on."""
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                await async_fn(*args)
        finally:
            self._task = None
            trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        if task is self._task and self.when == "before":
            self._count()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        if task is self._task and self.when == "after":
            self._count()

    def _count(self) -> None:
        self.steps += 1
        if self.steps == self.k:
            self.scope.cancel()


def cancel_at_each_step(limit: int = 1000) -> AsyncIterator[Interrupter]:
    """Iterate with ``async for`` over one `Interrupter` after the other, for k = 1, 2, … and both kinds
    of moment, until the task that runs under it ends before it is struck.

    Run the scenario once for each, the task in question through ``interrupter.run``. Raises
    AssertionError if a task is still struck after ``limit`` steps.
    """
    return _Steps(_interrupters(limit))


def _interrupters(limit: int) -> Iterator[Interrupter]:
    kinds: tuple[Literal["before", "after"], ...] = ("before", "after")
    for when in kinds:
        for k in range(1, limit + 1):
            interrupter = Interrupter(k, when)
            yield interrupter
            if not interrupter.struck:
                break
        else:
            raise AssertionError(f"the task still runs after {limit} steps")


class _Steps:
    """No async generator: those complain when a failing test leaves them unfinished."""

    def __init__(self, interrupters: Iterator[Interrupter]) -> None:
        self._interrupters = interrupters

    def __aiter__(self) -> _Steps:
        return self

    async def __anext__(self) -> Interrupter:
        await trio.lowlevel.checkpoint()
        for interrupter in self._interrupters:
            return interrupter
        raise StopAsyncIteration
