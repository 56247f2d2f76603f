"""The client in memory starts and ends its app, and hands on what the app raises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from trio.testing import MockClock

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.testing import TestClient
from nexios_trio.testing.lifespan import LifespanFailed
from nexios_trio.types import Receive, Scope, Send

Client = Callable[..., TestClient]


class Failure(Exception):
    """An error of a test's app."""


async def greet(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text(ws.state.greeting)


async def test_the_lifespan_runs_once_around_all_connections() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: NexiosApp) -> AsyncIterator[dict[str, str]]:
        events.append("up")
        yield {"greeting": "hello"}
        events.append("down")

    app = NexiosApp(lifespan=lifespan)
    app.add_ws_route("/", greet)
    async with TestClient(app) as client:
        for _ in range(3):
            async with client.connect("/") as ws:
                assert await ws.receive_text() == "hello"
        assert events == ["up"]
    assert events == ["up", "down"]


async def test_the_fixture_starts_the_app_with_the_first_connection(nexios_client: Client) -> None:
    app = NexiosApp()
    app.add_ws_route("/", greet)
    started: list[str] = []

    @app.on_startup
    def start() -> None:
        started.append("now")

    client = nexios_client(app)
    client.state["greeting"] = "from the test"
    assert started == []
    async with client.connect("/") as ws:
        assert await ws.receive_text() == "from the test"
    async with client.connect("/"):
        assert started == ["now"]


async def test_without_lifespan_the_app_is_not_started() -> None:
    app = NexiosApp()
    app.on_startup(lambda: pytest.fail("started"))

    @app.ws_route("/")
    async def accept(ws: WebSocket) -> None:
        await ws.accept()

    async with TestClient(app, lifespan=False) as client, client.connect("/"):
        pass


@pytest.mark.parametrize("error", [Failure("no database"), KeyError("SECRET"), AssertionError("no")])
async def test_a_failing_startup_raises_its_own_error_bare(error: Exception) -> None:
    app = NexiosApp()

    @app.on_startup
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        async with TestClient(app):
            raise AssertionError("the block was entered")
    assert raised.value is error


async def test_a_failing_startup_raises_its_own_error_from_connect(
    nexios_client: Client,
) -> None:
    app = NexiosApp()

    @app.on_startup
    async def fail() -> None:
        raise Failure("no database")

    client = nexios_client(app)
    for _ in range(2):
        with pytest.raises(Failure, match="no database"):
            async with client.connect("/"):
                pass


async def test_a_failing_shutdown_raises_its_own_error_bare() -> None:
    app = NexiosApp()

    @app.on_shutdown
    def fail() -> None:
        raise Failure("cannot flush")

    with pytest.raises(Failure, match="cannot flush"):
        async with TestClient(app):
            pass


async def test_a_startup_that_is_only_said_to_have_failed_is_an_error_with_its_message() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "disk full"})

    with pytest.raises(LifespanFailed, match="its startup failed: disk full"):
        async with TestClient(app):
            pass


async def test_a_shutdown_that_is_only_said_to_have_failed_is_an_error() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed"})

    with pytest.raises(LifespanFailed, match="its shutdown failed: no reason given"):
        async with TestClient(app):
            pass


@pytest.mark.parametrize("step", ["startup", "failure", "shutdown"])
async def test_a_lifespan_that_hangs_is_reported(step: str, autojump_clock: MockClock) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if step == "failure":
            await send({"type": "lifespan.startup.failed"})
        elif step == "shutdown":
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            await receive()
        await trio.sleep_forever()

    what = {"startup": "start up", "failure": "end after its failed startup", "shutdown": "shut down"}[step]
    with pytest.raises(trio.TooSlowError, match=f"lifespan did not {what} within 6 s"):
        async with TestClient(app, timeout=6):
            pass


async def _returns(scope: Scope, _receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})


async def _asserts(scope: Scope, _receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    await send({"type": "websocket.accept"})


async def _raises(scope: Scope, _receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise ValueError("what is this?")
    await send({"type": "websocket.accept"})


async def _ignores_the_type(_scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})


async def _ignores_the_error_too(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    try:
        await send({"type": "websocket.accept"})
    finally:
        if scope["type"] == "lifespan":
            await receive()


@pytest.mark.parametrize("app", [_returns, _asserts, _raises, _ignores_the_type, _ignores_the_error_too])
async def test_an_app_that_knows_no_lifespan_is_served_without(app: object, nexios_client: Client) -> None:
    async with nexios_client(app).connect("/"):
        pass


async def test_an_app_of_another_framework_runs(nexios_client: Client) -> None:
    up = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        up.append(True)
        yield
        up.append(False)

    async def endpoint(ws: StarletteWebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.close(4000)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=lifespan)
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"
        assert await ws.wait_closed() == (4000, "")
    assert up == [True, False]


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    await send({"type": "websocket.accept"})
    await receive()
    await receive()
    raise Failure("in the app")


async def test_what_an_app_raises_ends_the_test_with_that_error() -> None:
    with pytest.raises(Failure, match="in the app"):
        async with TestClient(failing) as client, client.connect("/") as ws:
            await ws.send_text("go")
            await trio.sleep_forever()


async def test_what_an_app_raises_before_it_accepts_is_not_taken_for_a_rejection() -> None:
    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        assert scope["type"] == "websocket"
        raise Failure("in the app")

    with pytest.raises(Failure, match="in the app"):
        async with TestClient(app) as client, client.connect("/"):
            raise AssertionError("connected")


async def test_what_the_test_raises_comes_out_bare_with_the_app_shut_down() -> None:
    app = NexiosApp()
    app.add_ws_route("/", greet)
    down: list[bool] = []
    app.on_shutdown(lambda: down.append(True))
    error = Failure("in the test")
    with pytest.raises(Failure) as raised:
        async with TestClient(app) as client, client.connect("/"):
            raise error
    assert raised.value is error
    assert down == [True]


async def test_when_both_fail_none_of_the_two_errors_is_lost() -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with TestClient(failing) as client, client.connect("/") as ws:
            await ws.send_text("go")
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("in the test")
    kinds = [type(error) for error in raised.value.exceptions]
    assert kinds == [KeyError, Failure]


async def test_a_background_task_that_stops_the_app_ends_the_test_with_its_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    async def crash() -> None:
        await trio.sleep(5)
        raise Failure("in the background")

    app.start_soon(crash, on_crash="stop")
    with pytest.raises(Failure, match="in the background"):
        async with TestClient(app):
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_a_test_that_is_cancelled_cancels_its_app(autojump_clock: MockClock) -> None:
    down: list[bool] = []

    @asynccontextmanager
    async def lifespan(_app: NexiosApp) -> AsyncIterator[None]:
        try:
            yield
        finally:
            down.append(True)

    with trio.move_on_after(1) as scope:
        async with TestClient(NexiosApp(lifespan=lifespan)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert down == [True]
