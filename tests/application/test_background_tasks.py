"""`app.start_soon`: tasks that live as long as the app."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypercorn.utils import LifespanFailureError
from trio_websocket import ConnectionClosed, open_websocket_url

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.exceptions import WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.testing import TestClient, serve
from tests.application.lifespans import lifespan_of

Clients = Callable[..., TestClient]


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


async def test_a_task_asked_for_before_the_app_runs_starts_with_it() -> None:
    app = NexiosApp()
    ran: list[tuple[int, str]] = []

    async def task(number: int, text: str) -> None:
        ran.append((number, text))

    app.start_soon(task, 1, "early")
    await trio.testing.wait_all_tasks_blocked()
    assert ran == []
    async with lifespan_of(app):
        await trio.testing.wait_all_tasks_blocked()
        assert ran == [(1, "early")]
    async with lifespan_of(app):  # the same app once more, as in the next test of a module
        await trio.testing.wait_all_tasks_blocked()
    assert ran == [(1, "early")] * 2
    with pytest.raises(WrongStateError, match="the app has ended; call start_soon"):
        app.start_soon(task, 2, "late")


async def test_a_task_asked_for_by_a_startup_hook_starts_after_the_hooks() -> None:
    app = NexiosApp()
    ran: list[str] = []

    async def task() -> None:
        ran.append("task")

    @app.on_startup
    async def hook() -> None:
        app.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        ran.append("hook")

    async with lifespan_of(app):
        await trio.testing.wait_all_tasks_blocked()
    assert ran == ["hook", "task"]


async def test_a_task_asked_for_while_the_app_runs_starts_at_once_and_outlives_its_connection(
    nexios_client: Clients,
) -> None:
    app = NexiosApp()
    connection_over, task_done = trio.Event(), trio.Event()

    async def task() -> None:
        await connection_over.wait()
        task_done.set()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        app.start_soon(task)

    async with nexios_client(app).connect("/"):
        pass
    connection_over.set()
    with trio.fail_after(5):
        await task_done.wait()


async def test_background_tasks_are_cancelled_before_the_resources_of_the_lifespan_are_closed() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        yield
        order.append("closed")

    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            order.append("cancelled")

    app = NexiosApp(lifespan=lifespan)
    app.start_soon(task)
    async with lifespan_of(app):
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
    assert order == ["cancelled", "closed"]


class Crashing:
    """Crashes at every call, and notes when."""

    def __init__(self, *, lives: float = 0.0, times: int = 100) -> None:
        self.lives = lives
        self.times = times
        self.calls: list[float] = []

    async def __call__(self) -> None:
        self.calls.append(trio.current_time())
        await trio.sleep(self.lives)
        if len(self.calls) <= self.times:
            raise LookupError(f"crash {len(self.calls)}")

    @property
    def pauses(self) -> list[float]:
        return [
            round(later - earlier - self.lives, 6)
            for earlier, later in zip(self.calls, self.calls[1:], strict=False)
        ]


async def test_a_crashed_task_is_started_again_after_pauses_that_double_up_to_a_minute(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()
    task = Crashing()
    app.start_soon(task)
    async with lifespan_of(app):
        await trio.sleep(300)
    assert task.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(caplog.records) == 10
    first = caplog.records[0]
    assert (first.name, first.levelno) == ("nexios_trio.app", logging.ERROR)
    assert re.search(r"the background task .*Crashing.* failed; restarting it in 1 s", first.getMessage())
    assert "LookupError: crash 1" in caplog.text
    assert "in __call__" in caplog.text


async def test_a_task_that_ran_for_long_before_it_crashed_is_started_again_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    app = NexiosApp()
    task = Crashing(lives=61)
    app.start_soon(task)
    async with lifespan_of(app):
        await trio.sleep(200)
    assert task.pauses == [1, 1, 1]


async def test_a_task_that_returns_is_not_started_again(autojump_clock: trio.testing.MockClock) -> None:
    app = NexiosApp()
    task = Crashing(times=1)
    app.start_soon(task)
    async with lifespan_of(app):
        await trio.sleep(1000)
    assert task.pauses == [1]


async def test_a_crash_of_one_task_leaves_the_others_and_the_app_alone(
    nexios_client: Clients, autojump_clock: trio.testing.MockClock
) -> None:
    app = NexiosApp()
    app.add_ws_route("/", echo)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await trio.sleep(1)
            ticks.append(trio.current_time())

    app.start_soon(tick)
    app.start_soon(Crashing())
    async with nexios_client(app).connect("/") as ws:
        await trio.sleep(10.5)
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
    assert len(ticks) == 10


async def test_several_errors_at_once_are_logged_as_a_group(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    async def fail(error: Exception) -> None:
        raise error

    async def task() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, ValueError("one"))
            nursery.start_soon(fail, KeyError("two"))

    app.start_soon(task)
    async with lifespan_of(app):
        await trio.sleep(0.5)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)


async def test_on_crash_stop_ends_the_app_with_the_error(caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        yield
        await trio.lowlevel.checkpoint()
        order.append("lifespan left")

    async def other() -> None:
        try:
            await trio.sleep_forever()
        finally:
            order.append("other task cancelled")

    app = NexiosApp(lifespan=lifespan)
    app.on_shutdown(lambda: order.append("shutdown hook"))
    app.start_soon(other)
    async with lifespan_of(app) as server:
        await trio.testing.wait_all_tasks_blocked()
        app.start_soon(Crashing(), on_crash="stop", name="the important one")
        await server.ended.wait()
    assert server.kinds == ["startup.complete", "shutdown.failed"]
    assert "LookupError: crash 1" in server.text
    assert "Traceback" in server.text
    assert isinstance(server.error, LookupError)
    assert order == ["other task cancelled", "shutdown hook", "lifespan left"]
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "failed; stopping the app" in record.getMessage()


async def test_an_app_that_a_task_stops_closes_its_connections_before_its_resources() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        yield
        order.append("lifespan left")

    app = NexiosApp(lifespan=lifespan)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        order.append("connection ended")

    async with TestClient(app, lifespan=False) as client, lifespan_of(app) as server:
        async with client.connect("/") as ws:
            app.start_soon(Crashing(), on_crash="stop")
            assert await ws.wait_closed() == (1012, "service restart")
        await server.ended.wait()
    assert server.kinds == ["startup.complete", "shutdown.failed"]
    assert order == ["connection ended", "lifespan left"]


async def test_an_app_that_a_task_stopped_can_run_again() -> None:
    app = NexiosApp()
    async with lifespan_of(app) as server:
        app.start_soon(Crashing(), on_crash="stop")
        await server.ended.wait()
    async with lifespan_of(app) as server:
        pass
    assert server.kinds == ["startup.complete", "shutdown.complete"]


@pytest.mark.parametrize("runner", [True, False])
async def test_on_crash_stop_ends_a_real_worker(runner: bool) -> None:
    app = NexiosApp()
    app.add_ws_route("/", echo)
    crash = trio.Event()

    async def task() -> None:
        await crash.wait()
        raise LookupError("the important one")

    app.start_soon(task, on_crash="stop")
    closed: list[int] = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(LifespanFailureError, match="the important one"),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        async with serve(app, runner=runner) as server:
            async with open_websocket_url(server.url) as ws:
                await ws.send_message("x")
                assert await ws.get_message() == "x"
                crash.set()
                try:
                    await ws.get_message()
                except ConnectionClosed as over:
                    assert over.reason is not None
                    closed.append(over.reason.code)
            await trio.sleep_forever()
    assert closed == [1012]


async def test_tasks_that_wait_in_vain_for_a_lifespan_are_warned_of_once(
    nexios_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()
    app.add_ws_route("/", echo)
    app.start_soon(Crashing())
    app.start_soon(Crashing())
    client = nexios_client(app, lifespan=False)
    for _ in range(2):
        async with client.connect("/"):
            pass
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "2 background tasks wait for the app to start, but its lifespan has not run; a framework around it "
        "must pass the lifespan on (lifespan=lambda _: app.running())"
    )


@pytest.mark.filterwarnings("error")
async def test_a_coroutine_instead_of_a_function_is_an_error_with_the_line_to_write() -> None:
    async def task(argument: int) -> None: ...

    with pytest.raises(
        WrongTypeError,
        match=re.escape(
            "start_soon() takes an async function and its arguments, not coroutine; "
            "write app.start_soon(fn, arg) instead of app.start_soon(fn(arg))"
        ),
    ):
        NexiosApp().start_soon(task(1))  # type: ignore[call-overload, arg-type, unused-ignore]


def test_something_that_cannot_be_called_is_an_error() -> None:
    with pytest.raises(WrongTypeError, match=re.escape("not int; write app.start_soon(fn, arg)")):
        NexiosApp().start_soon(5)  # type: ignore[arg-type]


async def test_a_sync_function_is_reported_with_the_line_to_write(caplog: pytest.LogCaptureFixture) -> None:
    def tick() -> None: ...

    app = NexiosApp()
    app.start_soon(tick, on_crash="stop")  # type: ignore[arg-type]
    async with lifespan_of(app) as server:
        await server.ended.wait()
    assert isinstance(server.error, WrongTypeError)
    assert str(server.error) == "tick is not async; write `async def tick(...)`"


async def test_a_function_that_returns_a_coroutine_is_taken() -> None:
    app = NexiosApp()
    ran: list[int] = []

    async def task(number: int) -> None:
        ran.append(number)

    def make() -> Awaitable[None]:
        return task(1)

    app.start_soon(make)
    async with lifespan_of(app):
        await trio.testing.wait_all_tasks_blocked()
    assert ran == [1]


def test_a_wrong_on_crash_is_an_error_that_lists_the_choices() -> None:
    async def task() -> None: ...

    with pytest.raises(WrongValueError, match=re.escape('on_crash is "restart" or "stop", not \'ignore\'')):
        NexiosApp().start_soon(task, on_crash="ignore")  # type: ignore[arg-type]
