"""Background tasks that live as long as the app."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, TypeAlias

import trio

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["OnCrash", "Supervisor"]

logger = logging.getLogger("nexios_trio.app")

OnCrash: TypeAlias = Literal["restart", "stop"]

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0


class Supervisor:
    """Runs background tasks in a nursery while it is open; before that, keeps them for later."""

    def __init__(self, around: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """``around`` is entered in each task; it does not come from whoever called `start_soon`."""
        self._around = around
        self._nursery: trio.Nursery | None = None
        self._early: list[tuple[Callable[..., Awaitable[object]], tuple[Any, ...], OnCrash, object]] = []
        self.failure: BaseException | None = None
        """What stopped the app."""

    @property
    def waiting(self) -> int:
        """How many tasks wait for the lifespan to start."""
        return len(self._early)

    def open(self, nursery: trio.Nursery) -> None:
        """Run tasks in ``nursery`` from now on, first those that were asked for early."""
        self._nursery = nursery
        early, self._early = self._early, []
        for async_fn, args, on_crash, name in early:
            self.start_soon(async_fn, args, on_crash, name)

    def close(self) -> None:
        """End all tasks."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None

    def start_soon(
        self,
        async_fn: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        on_crash: OnCrash,
        name: object,
    ) -> None:
        """Run ``async_fn(*args)``, now or as soon as the app runs."""
        if on_crash not in ("restart", "stop"):
            raise WrongValueError(f'on_crash is "restart" or "stop", not {on_crash!r}')
        if not callable(async_fn):
            if inspect.iscoroutine(async_fn):
                async_fn.close()
            raise WrongTypeError(
                f"start_soon() takes an async function and its arguments, not {type(async_fn).__name__}; "
                "write app.start_soon(fn, arg) instead of app.start_soon(fn(arg))"
            )
        if self._nursery is None:
            self._early.append((async_fn, args, on_crash, name))
        else:
            self._nursery.start_soon(self._supervise, async_fn, args, on_crash, name=name or async_fn)

    async def _supervise(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...], on_crash: OnCrash
    ) -> None:
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            crash: list[BaseException] = []
            try:
                with self._around():
                    awaitable = async_fn(*args)
                    if not inspect.isawaitable(awaitable):
                        name = getattr(async_fn, "__name__", repr(async_fn))
                        raise WrongTypeError(f"{name} is not async; write `async def {name}(...)`")
                    await awaitable
            except* Exception as group:
                crash.append(group.exceptions[0] if len(group.exceptions) == 1 else group)
            if not crash:
                return
            if on_crash == "stop":
                logger.critical(
                    "the background task %r failed; stopping the app", async_fn, exc_info=crash[0]
                )
                self.failure = crash[0]
                self.close()
                return
            if trio.current_time() - started > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            logger.error(
                "the background task %r failed; restarting it in %g s", async_fn, pause, exc_info=crash[0]
            )
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
