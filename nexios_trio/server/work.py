"""What a worker process does: serve until it is told to end, by a signal or by its parent, then drain."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from hypercorn.config import Config, Sockets

from nexios_trio.server.hypercorn import (
    DRAIN_WINDOW,
    HANDSHAKE_TIMEOUT,
    WAITING_CONNECTIONS,
    serve_hypercorn,
)
from nexios_trio.server.watchdog import SLOW_CALLBACK, watching
from nexios_trio.types import ASGIApp

__all__ = ["HANGUP", "ending_signals", "problem_of", "work"]

HANGUP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)
"""None on Windows."""


async def work(
    app: ASGIApp,
    config: Config,
    sockets: Sockets | None,
    shutdown: Callable[[], Awaitable[object]] | None = None,
    *,
    fast_lane: bool,
    heard: list[int] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``shutdown()`` returns, or SIGTERM, SIGHUP or SIGINT comes, then drain; a second
    SIGINT cuts it short. ``config`` may hold settings of our own, in seconds: ``drain_window``,
    ``drain_notice`` and ``slow_callback``.

    Signals are heard in the main thread only. ``heard`` holds those that came before, and gets the others.
    """
    with watching(getattr(config, "slow_callback", SLOW_CALLBACK)):
        async with _signals([] if heard is None else heard) as (stop, hurry):

            async def wait_shutdown() -> None:
                async with trio.open_nursery() as nursery:
                    if shutdown is not None:
                        nursery.start_soon(_then_set, shutdown, stop)
                    await stop.wait()
                    nursery.cancel_scope.cancel()

            await serve_hypercorn(
                app,
                config,
                sockets=sockets,
                shutdown=wait_shutdown,
                hurry=hurry.wait,
                drain_window=float(getattr(config, "drain_window", DRAIN_WINDOW)),
                drain_notice=float(getattr(config, "drain_notice", 0.0)),
                fast_lane=fast_lane,
                task_status=task_status,
            )


def problem_of(config: Config) -> str | None:
    """What is wrong with our own settings in a hypercorn Config, as a sentence."""
    for name, default, least in (
        ("drain_window", DRAIN_WINDOW, "0 or more"),
        ("drain_notice", 0.0, "0 or more"),
        ("slow_callback", SLOW_CALLBACK, "0 or more"),
        ("handshake_timeout", HANDSHAKE_TIMEOUT, "more than 0"),
    ):
        value: Any = getattr(config, name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (value > 0 if name == "handshake_timeout" else 0 <= value < math.inf):
            return f"{name} is a number of seconds, {least}, not {value!r}"
    most = getattr(config, "waiting_connections", WAITING_CONNECTIONS)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        return f"waiting_connections is a whole number, at least 1, not {most!r}"
    return None


async def _then_set(wait: Callable[[], Awaitable[object]], event: trio.Event) -> None:
    await wait()
    event.set()


def ending_signals() -> list[signal.Signals]:
    """Those by which a worker is ended. SIGHUP is not among them where it is ignored, as under ``nohup``."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        numbers.append(HANGUP)
    return numbers


@asynccontextmanager
async def _signals(heard: list[int]) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    stop, hurry = trio.Event(), trio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop, hurry
        return
    with trio.open_signal_receiver(*ending_signals()) as arrivals:
        if heard:
            stop.set()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in arrivals:
                    heard.append(number)
                    if heard.count(signal.SIGINT) > 1:
                        hurry.set()
                    stop.set()

            nursery.start_soon(watch)
            yield stop, hurry
            nursery.cancel_scope.cancel()
