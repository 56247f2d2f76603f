"""Who keeps the event loop from running.

A Trio `Instrument` would be told of each step of each task, and cost each message. Instead a thread asks the
loop a few times a second whether it still comes round; only when it does not is anything looked at: the stack
of the loop's thread, which names the function that does not let go.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import trio

__all__ = ["SLOW_CALLBACK", "Watchdog", "watching"]

logger = logging.getLogger("nexios_trio.server")

SLOW_CALLBACK: Final = 0.5
"""Seconds without a turn of the event loop that are worth a warning."""

LEAST_PAUSE: Final = 0.1
"""Seconds between two questions at least, however small the threshold is."""

_FRAMEWORKS: Final = frozenset(
    {"anyio", "hypercorn", "nexios_trio", "quart", "quart_trio", "starlette", "trio"}
)
"""Packages that call the functions of others."""

_BETWEEN: Final = frozenset({"contextlib", "functools", "outcome"})
"""What may stand between a function and its caller, and says nothing."""

_LOOP: Final = "unrolled_run"
"""Trio's function that steps from task to task."""

_NAMES: Final = 4
_LINES: Final = 12
"""What a warning shows of a deep stack, from its inner end."""


@contextmanager
def watching(threshold: float) -> Iterator[Watchdog | None]:
    """Watch the event loop that runs this, for the length of the block; 0: watch nothing."""
    if not threshold:
        yield None
        return
    watchdog = Watchdog(threshold)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


class Watchdog:
    """Logs a warning when the loop has not come round for ``threshold`` seconds, and another one when it
    does.

    Any time without a turn that is longer than one and a half thresholds is seen. (Thresholds of less than
    0.2 seconds: a threshold and 0.1 seconds.)
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.turns = 0
        """How often the loop has answered."""
        self._pause = max(threshold / 2, LEAST_PAUSE)
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: end
        self._token = trio.lowlevel.current_trio_token()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="nexios_trio watchdog", daemon=True)

    def start(self) -> None:
        """Begin; called in the loop's thread."""
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks for no time worth mentioning."""
        self._answers.put(False)
        self._thread.join()

    def _watch(self) -> None:
        while True:
            asked = time.monotonic()
            try:
                self._token.run_sync_soon(self._answers.put, True)
            except trio.RunFinishedError:
                return
            answer = self._wait(self.threshold)
            if answer is None:
                self._warn(time.monotonic() - asked)
                answer = self._answers.get()
                logger.warning("the event loop runs again, after %.2f seconds", time.monotonic() - asked)
            if not answer:
                return
            self.turns += 1
            if self._wait(self._pause) is not None:
                return

    def _wait(self, seconds: float) -> bool | None:
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def _warn(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return
        lines = "".join(traceback.format_list(traceback.extract_stack(frame)[-_LINES:]))
        logger.warning(
            "the event loop has not run for %.2f seconds, and all connections wait: it is in %s. What blocks "
            "belongs into a thread: await trio.to_thread.run_sync(...)\n%s",
            seconds,
            named(frame),
            lines.rstrip(),
        )


def named(frame: FrameType) -> str:
    """Who is running there: the handler, or whatever else a framework has called last, and what it has called
    in turn; such as ``chat.room > chat.words.count (line 17)``."""
    names: list[str] = []
    line = frame.f_lineno
    place: FrameType | None = frame
    while place is not None and place.f_code.co_name != _LOOP:  # outside is who has started the loop
        package = _module(place).partition(".")[0]
        if package in _FRAMEWORKS:
            if names:
                break
        elif package not in _BETWEEN:
            if not names:
                line = place.f_lineno
            names.append(f"{_module(place)}.{place.f_code.co_qualname}")
        place = place.f_back
    if not names:  # so many tasks, each of them quick
        return f"{_module(frame)}.{frame.f_code.co_qualname} (line {line})"
    names.reverse()
    if len(names) > _NAMES:
        names[_NAMES - 1 : -1] = ["..."]
    return f"{' > '.join(names)} (line {line})"


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "?")
    return name
