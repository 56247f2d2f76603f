"""A handler that does not let go of the event loop is named in the log."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import trio
from websockets.sync.client import connect

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.server.watchdog import Watchdog, named, watching
from nexios_trio.testing import TestClient
from tests.server.test_runner import BIND, PATIENCE, running


@contextmanager
def warned() -> Iterator[Callable[[], None]]:
    """Gives a function that blocks its thread until our log has a warning."""
    seen = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.set()

    handler = Seen(logging.WARNING)
    logging.getLogger("nexios_trio.server").addHandler(handler)
    try:
        yield lambda: None if seen.wait(PATIENCE) else pytest.fail("no warning")
    finally:
        logging.getLogger("nexios_trio.server").removeHandler(handler)


async def test_who_blocks_the_loop_is_named_while_he_does(caplog: pytest.LogCaptureFixture) -> None:
    with warned() as block, watching(0.1) as watchdog:
        assert watchdog is not None

        def count_words() -> None:
            block()

        async def room() -> None:
            count_words()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(room)
        turns = watchdog.turns
        with trio.fail_after(PATIENCE):
            while watchdog.turns == turns:
                await trio.sleep(0.001)
    first, second = (record.getMessage() for record in caplog.records)
    summary, *stack = first.splitlines()
    assert re.search(r"has not run for 0\.\d\d seconds, and all connections wait", summary)
    where = "test_watchdog.test_who_blocks_the_loop_is_named_while_he_does.<locals>."
    assert re.search(rf"it is in tests\.server\.{where}room > tests\.server\.{where}count_words > ", summary)
    assert re.search(r"> \.\.\. > threading\.\S+ \(line \d+\)\. What blocks belongs", summary)
    assert any("count_words()" in line for line in stack)
    assert re.fullmatch(r"the event loop runs again, after \d+\.\d\d seconds", second)


async def test_a_loop_that_comes_round_is_not_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(PATIENCE)
    watchdog._pause = 0.001
    watchdog.start()
    with trio.fail_after(PATIENCE):
        while watchdog.turns < 5:
            await trio.sleep(0.001)
    watchdog.stop()
    assert not caplog.records
    assert not watchdog._thread.is_alive()


async def test_nobody_watches_if_the_threshold_is_0() -> None:
    before = threading.active_count()
    with watching(0) as watchdog:
        assert watchdog is None
        assert threading.active_count() == before


def test_the_thread_ends_with_its_loop() -> None:
    async def leave() -> Watchdog:
        watchdog = Watchdog(PATIENCE)
        watchdog._pause = 0.001
        watchdog.start()
        return watchdog

    watchdog = trio.run(leave)  # and nobody stops it
    watchdog._thread.join(PATIENCE)
    assert not watchdog._thread.is_alive()


async def test_stopping_waits_for_nothing() -> None:
    begun = time.monotonic()
    with watching(1000):
        await trio.lowlevel.checkpoint()
    assert time.monotonic() - begun < PATIENCE


def here() -> FrameType:
    return sys._getframe(1)


def test_a_frame_is_named_from_the_outer_end_to_the_inner() -> None:
    def inner() -> str:
        return named(here())

    def outer() -> str:
        return inner()

    names = outer().partition(" (line")[0].split(" > ")
    assert len(names) == 5
    assert names[-2] == "..."
    assert names[-1].endswith("<locals>.inner")


async def test_middleware_and_frameworks_around_a_handler_are_left_out() -> None:
    found: list[str] = []

    @contextmanager
    def told() -> Iterator[None]:
        found.append(named(here()))
        yield

    async def middleware(_ws: WebSocket, call_next: Callable[[], Awaitable[None]]) -> None:
        await call_next()

    app = NexiosApp(middleware=[middleware])

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with told():
            pass

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.receive()
    prefix = (
        "tests.server.test_watchdog.test_middleware_and_frameworks_around_a_handler_are_left_out.<locals>."
    )
    names, _, line = found[0].partition(" (line ")
    assert names == f"{prefix}handler > {prefix}told"
    assert int(line[:-1]) == told.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]


async def test_where_only_frameworks_run_the_innermost_function_is_named() -> None:
    found: list[str] = []

    class Instrument(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            found.append(named(here().f_back or here()))

    trio.lowlevel.add_instrument(instrument := Instrument())
    await trio.sleep(0.001)
    trio.lowlevel.remove_instrument(instrument)
    assert re.fullmatch(r"trio\._core\.\S+ \(line \d+\)", found[0])


BLOCKING = """
import logging, threading
from nexios_trio import NexiosApp, WebSocket

seen = threading.Event()


class Seen(logging.Handler):
    def emit(self, record):
        if record.levelno == logging.WARNING:
            seen.set()


logging.getLogger("nexios_trio.server").addHandler(Seen())
app = NexiosApp()


@app.ws_route("/")
async def stubborn(ws: WebSocket) -> None:
    await ws.accept()
    seen.wait({patience})
    await ws.send_text("done")
"""


@pytest.mark.parametrize("server", ["engine", "hypercorn"])
def test_the_command_names_the_handler_that_blocks(server: str, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(BLOCKING.format(patience=PATIENCE))
    options = ("--server", server, "--slow-callback", "0.1", "-w", "0")
    with running(tmp_path, "served:app", *BIND, *options) as runner:
        with connect(runner.url()) as ws:
            assert ws.recv(timeout=PATIENCE) == "done"
        runner.process.terminate()
        assert runner.wait() == 0
    assert re.search(r"WARNING\] nexios_trio\.server: .* it is in served\.stubborn > ", runner.text)


def test_a_threshold_that_is_no_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(BLOCKING.format(patience=1))
    (tmp_path / "settings.toml").write_text('slow_callback = "soon"\n')
    with running(tmp_path, "served:app", "--config", "settings.toml") as runner:
        assert runner.wait() == 2
    assert "slow_callback is a number of seconds, 0 or more, not 'soon'" in runner.text
