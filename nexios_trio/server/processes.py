"""The worker processes as their parent sees them: how each has ended, and when the next one begins.

hypercorn's own loop starts and joins them; `Workers` stands where it makes a process, where it looks at
those that have ended, and where it sets its handlers of signals.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any, Final

from nexios_trio.server.work import HANGUP

__all__ = ["KILLED", "Workers", "say"]

KILLED: Final = 128
"""With the number of a signal it is the exit code for a worker that was killed by it, as in a shell."""

SHORT_LIFE: Final = 10.0
"""Seconds: a worker that is killed sooner is likely to be killed again."""

FIRST_DELAY: Final = 1.0
"""Seconds until such a worker's successor begins; twice as long each time it happens again..."""

LONGEST_DELAY: Final = 30.0
"""...up to this."""


class Workers:
    """The processes of one `run`."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        """Exit codes of those that did not end well."""
        self._begun: dict[BaseProcess, tuple[float, int]] = {}
        """When each begins, on the monotonic clock, and how many before it had a short life."""
        self._due: list[int] = []
        """For each that has to be replaced after a short life, how many there were in a row."""
        self._hung_up = False

    def populate(self, populate: Any, *arguments: Any) -> None:
        """What hypercorn's ``_populate`` does, with `_start` in the place of the last argument's Process."""
        self._hung_up = False
        *others, context = arguments
        populate(*others, SimpleNamespace(Process=partial(self._start, context)))

    def _start(self, context: Any, target: Callable[..., None], kwargs: dict[str, Any]) -> BaseProcess:
        # It is the process itself that waits: the parent goes on looking after the others.
        short = self._due.pop() if self._due else 0
        delay = _delay(short)
        process: BaseProcess = context.Process(target=partial(target, delay=delay), kwargs=kwargs)
        self._begun[process] = (time.monotonic() + delay, short)
        return process

    def join_exited(self, join_exited: Any, processes: list[BaseProcess]) -> int:
        """What hypercorn's ``_join_exited`` says: how a worker has ended. By 0 it is replaced, by all else
        the others end too, since an app that does not start would fail for good. A worker that was killed (by
        the kernel for want of memory, by a fault in C) is no reason to end the others."""
        ending = 0
        for process in processes:
            if (code := process.exitcode) is None:
                continue
            begun, short = self._begun.pop(process, (0.0, 0))
            hung_up = HANGUP is not None and code in (-HANGUP, KILLED + HANGUP)
            if code == 0 or (hung_up and not self._hung_up):  # told alone: it is to be replaced
                continue
            delay, lived = 0.0, time.monotonic() - begun
            if code < 0 and lived < SHORT_LIFE:
                self._due.append(short + 1)
                delay = _delay(short + 1)
            say(f"worker {process.pid} {_how(code, max(lived, 0.0), delay)}")
            self.codes.append(code)
            if code > 0 or hung_up:
                ending = ending or code
        join_exited(processes)
        return ending

    def signals(self) -> SimpleNamespace:
        """The module `signal` for hypercorn. SIGHUP has it replace all workers; a terminal that is closed
        sends it to them as well, and then they are not to be replaced."""
        seen = SimpleNamespace(**vars(signal))
        seen.signal = self._set_handler
        return seen

    def _set_handler(self, number: int, handler: Any) -> Any:
        if number == HANGUP and callable(handler):
            handler = partial(self._hang_up, handler)
        return signal.signal(number, handler)

    def _hang_up(self, handler: Callable[..., None], *arguments: object) -> None:
        self._hung_up = True
        handler(*arguments)


def _delay(short: int) -> float:
    return min(FIRST_DELAY * 2 ** min(short - 1, 10), LONGEST_DELAY) if short else 0.0


def _how(code: int, lived: float, delay: float) -> str:
    """How a process has ended that did not end well."""
    if code > 0:
        return f"has failed with exit code {code}; the others drain"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of real time
        name = f"signal {-code}"
    text = f"was killed by {name}"
    return f"{text} after {lived:.1f} s; the next one waits for {delay:g} s" if delay else text


def say(text: str) -> None:
    """Tell whoever has typed the command."""
    print(f"nexios-trio: {text}", file=sys.stderr, flush=True)  # noqa: T201
