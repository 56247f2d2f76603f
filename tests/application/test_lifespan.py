"""Startup and shutdown: the lifespan function, hooks, their order and their failures."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.utils import LifespanFailureError

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.testing import TestClient, serve
from nexios_trio.types import Receive, Scope, Send
from tests.application.lifespans import lifespan_of

Clients = Callable[..., TestClient]


class Journal(list[str]):
    """What happened, in order."""

    def note(self, what: str) -> Callable[[], None]:
        return lambda: self.append(what)

    def lifespan(self, name: str, state: Any = None) -> Any:
        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            self.append(f"{name} up")
            try:
                yield state
            finally:
                await trio.lowlevel.checkpoint()  # an orderly end, not one under cancellation
                self.append(f"{name} down")

        return lifespan


async def test_a_lifespan_is_entered_with_the_app_at_startup_and_left_at_shutdown() -> None:
    given: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        given.append(app)
        yield
        given.append("left")

    app = NexiosApp(lifespan=lifespan)
    async with lifespan_of(app) as server:
        assert server.kinds == ["startup.complete"]
        assert given == [app]
    assert server.kinds == ["startup.complete", "shutdown.complete"]
    assert given == [app, "left"]
    assert server.error is None


async def test_an_app_without_a_lifespan_answers_the_protocol_too() -> None:
    async with lifespan_of(NexiosApp()) as server:
        pass
    assert server.kinds == ["startup.complete", "shutdown.complete"]


async def test_what_the_lifespan_yields_is_in_the_state_of_every_connection(nexios_client: Clients) -> None:
    app = NexiosApp(lifespan=Journal().lifespan("app", {"pool": "the pool"}))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.state.pool)

    client = nexios_client(app)
    for _ in range(2):
        async with client.connect("/") as ws:
            assert await ws.receive_text() == "the pool"


async def test_app_state_is_set_in_the_lifespan_and_read_in_handlers(nexios_client: Clients) -> None:
    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        app.state.greeting = "hello"
        yield

    app = NexiosApp(lifespan=lifespan)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.app.state.greeting)

    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_text() == "hello"


async def test_everything_starts_and_ends_in_order() -> None:
    journal = Journal()
    app = NexiosApp(lifespan=journal.lifespan("lifespan"))
    app.mount("/first", NexiosApp(lifespan=journal.lifespan("first mounted")))
    app.mount("/second", NexiosApp(lifespan=journal.lifespan("second mounted")))

    @app.on_startup
    async def startup() -> None:
        await trio.lowlevel.checkpoint()
        journal.append("first startup hook")

    app.on_startup()(journal.note("second startup hook"))
    app.on_shutdown(journal.note("first shutdown hook"))

    @app.on_shutdown()
    async def shutdown() -> None:
        await trio.lowlevel.checkpoint()
        journal.append("second shutdown hook")

    async def background() -> None:
        journal.append("background up")
        try:
            await trio.sleep_forever()
        finally:
            journal.append("background down")

    app.start_soon(background)
    async with lifespan_of(app) as server:
        await trio.testing.wait_all_tasks_blocked()
        journal.append("serving")
    assert server.kinds == ["startup.complete", "shutdown.complete"]
    assert journal == [
        "lifespan up",
        "first mounted up",
        "second mounted up",
        "first startup hook",
        "second startup hook",
        "background up",
        "serving",
        "background down",
        "first shutdown hook",
        "second shutdown hook",
        "second mounted down",
        "first mounted down",
        "lifespan down",
    ]


def test_hook_decorators_give_the_function_back() -> None:
    app = NexiosApp()

    def hook() -> None: ...

    assert app.on_startup(hook) is hook
    assert app.on_startup()(hook) is hook
    assert app.on_shutdown(hook) is hook
    assert app.on_shutdown()(hook) is hook


@pytest.mark.parametrize("register", [NexiosApp.on_startup, NexiosApp.on_shutdown])
def test_a_hook_that_cannot_be_called_is_an_error(register: Any) -> None:
    with pytest.raises(WrongTypeError, match="a hook is a function without arguments, not int"):
        register(NexiosApp(), 5)


@pytest.mark.parametrize("kind", ["async generator", "generator", "coroutine", "object"])
def test_a_lifespan_function_without_its_decorator_is_an_error_with_the_line_to_write(kind: str) -> None:
    async def async_generator(app: Any) -> Any:
        yield

    def generator(app: Any) -> Any:
        yield

    async def coroutine(app: Any) -> None: ...

    lifespan: Any = {
        "async generator": async_generator,
        "generator": generator,
        "coroutine": coroutine,
        "object": 5,
    }[kind]
    name = getattr(lifespan, "__name__", "lifespan")
    with pytest.raises(
        WrongTypeError,
        match=re.escape(f"write `@contextlib.asynccontextmanager async def {name}(app): ...; yield; ...`"),
    ):
        NexiosApp(lifespan=lifespan)


# Failures


async def test_a_failing_startup_is_reported_with_its_traceback() -> None:
    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    async with lifespan_of(NexiosApp(lifespan=lifespan)) as server:
        pass
    assert server.kinds == ["startup.failed"]
    assert "Traceback" in server.text
    assert "in lifespan" in server.text
    assert "LookupError: no database" in server.text
    assert isinstance(server.error, LookupError)


async def test_a_failing_startup_hook_leaves_the_lifespan_and_mounted_apps_in_order() -> None:
    journal = Journal()
    app = NexiosApp(lifespan=journal.lifespan("lifespan"))
    app.mount("/inner", NexiosApp(lifespan=journal.lifespan("mounted")))
    app.on_shutdown(journal.note("shutdown hook"))

    @app.on_startup
    def hook() -> None:
        raise LookupError("no database")

    async with lifespan_of(app) as server:
        pass
    assert server.kinds == ["startup.failed"]
    assert "LookupError: no database" in server.text
    assert "in hook" in server.text
    assert journal == ["lifespan up", "mounted up", "mounted down", "lifespan down"]


async def test_the_lifespan_function_sees_the_very_error_of_a_startup_hook() -> None:
    seen: list[BaseException] = []

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        try:
            yield
        except LookupError as error:
            seen.append(error)
            raise

    app = NexiosApp(lifespan=lifespan)
    app.mount("/inner", NexiosApp())

    @app.on_startup
    def hook() -> None:
        raise LookupError("no database")

    async with lifespan_of(app) as server:
        pass
    assert server.kinds == ["startup.failed"]
    assert len(seen) == 1


@pytest.mark.parametrize("where", ["lifespan", "hook"])
async def test_a_failing_shutdown_is_reported_with_its_traceback(where: str) -> None:
    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        yield
        if where == "lifespan":
            raise LookupError("cannot flush")

    app = NexiosApp(lifespan=lifespan)

    @app.on_shutdown
    def hook() -> None:
        if where == "hook":
            raise LookupError("cannot flush")

    async with lifespan_of(app) as server:
        assert server.kinds == ["startup.complete"]
    assert server.kinds == ["startup.complete", "shutdown.failed"]
    assert "LookupError: cannot flush" in server.text
    assert f"in {where}" in server.text
    assert isinstance(server.error, LookupError)


async def test_a_failing_startup_ends_a_real_server_which_says_why() -> None:
    app = NexiosApp()

    @app.on_startup
    def hook() -> None:
        raise LookupError("no database")

    with pytest.RaisesGroup(
        pytest.RaisesExc(LifespanFailureError, match="no database"),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        async with serve(app):
            await trio.sleep_forever()


# Again


async def test_an_app_can_run_again_after_it_has_ended() -> None:
    journal = Journal()
    app = NexiosApp(lifespan=journal.lifespan("lifespan"))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("served")

    for _ in range(2):
        async with TestClient(app) as client, client.connect("/") as ws:
            assert await ws.receive_text() == "served"
    assert journal == ["lifespan up", "lifespan down"] * 2


async def test_a_scope_without_state_is_given_one(nexios_client: Clients) -> None:
    scopes: list[Scope] = []
    app = NexiosApp(lifespan=Journal().lifespan("app", {"x": 1}))

    async def without_state(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            del scope["state"]
            scopes.append(scope)
        await app(scope, receive, send)

    async with lifespan_of(without_state):
        pass
    assert scopes[0]["state"] == {"x": 1}


async def test_an_unknown_kind_of_scope_is_an_error_that_lists_the_known_ones() -> None:
    async def nothing(*_: Any) -> Any: ...

    with pytest.raises(ValueError, match="NexiosApp knows websocket, http and lifespan scopes, not 'mqtt'"):
        await NexiosApp()({"type": "mqtt"}, nothing, nothing)


# Draining


async def test_shutdown_closes_connections_before_hooks_and_lifespan_run(nexios_client: Clients) -> None:
    journal = Journal()
    app = NexiosApp(lifespan=journal.lifespan("lifespan"))
    app.on_shutdown(journal.note("shutdown hook"))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        journal.append("connection ended")

    async with TestClient(app, lifespan=False) as client, lifespan_of(app) as server:
        async with client.connect("/") as ws:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.stop)
                assert await ws.wait_closed() == (1012, "service restart")
    assert journal == ["lifespan up", "connection ended", "shutdown hook", "lifespan down"]


async def test_every_shutdown_hook_runs_although_one_fails() -> None:
    app, called = NexiosApp(), []

    @app.on_shutdown
    async def first() -> None:
        called.append("first")
        raise ValueError("first")

    @app.on_shutdown
    def second() -> None:
        called.append("second")
        raise KeyError("second")

    @app.on_shutdown
    async def third() -> None:
        called.append("third")

    with pytest.raises(ExceptionGroup) as failed:
        async with TestClient(app):
            pass
    assert called == ["first", "second", "third"]
    assert [type(error) for error in failed.value.exceptions] == [ValueError, KeyError]


async def test_an_app_whose_lifespan_has_ended_serves_again() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("served")

    for _ in range(2):
        async with TestClient(app):
            pass
        async with TestClient(app, lifespan=False) as client, client.connect("/") as ws:
            assert await ws.receive_text() == "served"
