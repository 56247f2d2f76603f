"""Background tasks that live as long as the app."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, TypeAlias

import trio

from nexios_trio.exceptions import WrongStateError, WrongValueError
from nexios_trio.websockets.children import check_async_fn, checked_awaitable

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
        self._permanent: list[tuple[Callable[..., Awaitable[object]], tuple[Any, ...], OnCrash, object]] = []
        self._ended = False
        self.failure: BaseException | None = None
        """What stopped the app."""

    @property
    def waiting(self) -> int:
        """How many tasks wait for the lifespan to start for the first time."""
        return 0 if self._ended or self._nursery is not None else len(self._permanent)

    def open(self, nursery: trio.Nursery) -> None:
        """Run tasks in ``nursery`` from now on; those asked for before the first time run every time."""
        self._nursery = nursery
        for async_fn, args, on_crash, name in self._permanent:
            self.start_soon(async_fn, args, on_crash, name)

    def close(self) -> None:
        """End all tasks."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None
            self._ended = True

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
        check_async_fn(async_fn, "app")
        if self._nursery is not None:
            self._nursery.start_soon(self._supervise, async_fn, args, on_crash, name=name or async_fn)
        elif self._ended:
            raise WrongStateError(
                "the app has ended; call start_soon() before it first runs, or while it runs"
            )
        else:
            self._permanent.append((async_fn, args, on_crash, name))

    async def _supervise(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...], on_crash: OnCrash
    ) -> None:
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            crash: list[BaseException] = []
            try:
                with self._around():
                    await checked_awaitable(async_fn, args)
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
