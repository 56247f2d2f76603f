"""What becomes of worker processes that have ended, without processes."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from nexios_trio.server.processes import Workers


class Parent:
    """hypercorn's loop, turn by turn, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workers: int = 1) -> None:
        self.workers = Workers()
        self.wanted = workers
        self.now = 1000.0
        self.running: list[Any] = []
        self.delays: list[float] = []
        monkeypatch.setattr("nexios_trio.server.processes.time.monotonic", lambda: self.now)
        self.populate()

    def populate(self) -> None:
        self.delays = []
        self.workers.populate(self._populate, self.running, SimpleNamespace(Process=self._process))

    def _populate(self, running: list[Any], context: Any) -> None:
        for _ in range(self.wanted - len(running)):
            running.append(context.Process(target=print, kwargs={}))

    def _process(self, target: Any, kwargs: dict[str, Any]) -> Any:
        self.delays.append(target.keywords["delay"])
        return _Process()

    def ends(self, code: int, *, after: float, which: int = 0) -> int:
        """A worker ends so many seconds from now; what the parent makes of it."""
        self.now += after
        self.running[which].exitcode = code
        ending = self.workers.join_exited(self._join, self.running)
        if not ending:
            self.populate()
        return ending

    def _join(self, running: list[Any]) -> None:
        running[:] = [process for process in running if process.exitcode is None]


class _Process:
    pid = 1
    exitcode: int | None = None


def test_a_worker_that_had_lived_long_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent(monkeypatch)
    assert parent.ends(-signal.SIGKILL, after=10) == 0
    assert parent.delays == [0]


def test_short_lives_in_a_row_are_replaced_ever_later_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent(monkeypatch)
    delays = []
    for _ in range(7):
        waited = parent.delays[0]  # which is no life
        assert parent.ends(-signal.SIGSEGV, after=waited + 9) == 0
        delays += parent.delays
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    parent.ends(-signal.SIGSEGV, after=30 + 10)
    assert parent.delays == [0]
    parent.ends(-signal.SIGSEGV, after=1)
    assert parent.delays == [1]


def test_the_others_are_not_delayed_by_one_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent(monkeypatch, workers=2)
    parent.now += 60
    parent.running[0].exitcode = -signal.SIGKILL
    parent.ends(0, after=0, which=1)
    assert parent.delays == [0, 0]
    parent.running[0].exitcode = -signal.SIGKILL
    parent.ends(0, after=1, which=1)
    assert sorted(parent.delays) == [0, 1]


def test_a_worker_that_has_failed_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent(monkeypatch)
    assert parent.ends(3, after=1) == 3
    assert parent.workers.codes == [3]


def test_a_worker_that_hung_up_ends_all_only_if_its_parent_was_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = Parent(monkeypatch)
    assert parent.ends(128 + signal.SIGHUP, after=1) == 0
    assert parent.ends(-signal.SIGHUP, after=1) == 0
    assert parent.workers.codes == []
    before = signal.getsignal(signal.SIGHUP)
    told = []
    try:
        parent.workers.signals().signal(signal.SIGHUP, lambda *arguments: told.append(arguments[0]))
        signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told == [signal.SIGHUP]
    assert parent.ends(128 + signal.SIGHUP, after=1) == 128 + signal.SIGHUP
