"""`serve` and the fixture around it: a real hypercorn for the length of a block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
import trio
from hypercorn.utils import LifespanFailureError
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, open_websocket_url

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.exceptions import WrongValueError
from nexios_trio.testing import TestServer, serve
from tests.lanes import SocketPeer

Server = Callable[..., Awaitable[TestServer]]


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp(disconnect_grace=0.0)

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.get("/")
    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    return app


async def closed_with(ws: Any) -> tuple[int, str | None]:
    with pytest.raises(ConnectionClosed) as over:
        await ws.get_message()
    assert over.value.reason is not None
    return over.value.reason.code, over.value.reason.reason


async def test_any_client_can_talk_to_it(nexios_server: Server, app: NexiosApp) -> None:
    server = await nexios_server(app)
    assert server.url == f"ws://{server.host}:{server.port}"
    assert server.port > 0
    async with open_websocket_url(server.url + "/echo") as ws:
        await ws.send_message("hello")
        assert await ws.get_message() == "hello"
    async with httpx2.AsyncClient() as http:
        assert (await http.get(server.http_url + "/")).text == "page"


async def test_several_servers_run_at_once(nexios_server: Server, app: NexiosApp) -> None:
    first, second = await nexios_server(app), await nexios_server(NexiosApp())
    assert first.port != second.port
    async with httpx2.AsyncClient() as http:
        assert (await http.get(first.http_url)).status_code == 200
        assert (await http.get(second.http_url)).status_code == 404


async def test_options_are_hypercorns(nexios_server: Server, app: NexiosApp) -> None:
    server = await nexios_server(app, include_server_header=False, root_path="/below")
    async with httpx2.AsyncClient() as http:
        assert "server" not in (await http.get(server.http_url)).headers


@pytest.mark.parametrize(
    ("option", "complaint"),
    [("keep_alive_timout", "did you mean 'keep_alive_timeout'"), ("zzz", "hypercorn's Config has no 'zzz'$")],
)
async def test_an_option_that_hypercorn_does_not_know_is_refused(
    option: str, complaint: str, app: NexiosApp
) -> None:
    with pytest.raises(WrongValueError, match=complaint):
        async with serve(app, **dict[str, Any]({option: 1})):
            pass


async def test_its_log_can_be_turned_on(app: NexiosApp, capfd: pytest.CaptureFixture[str]) -> None:
    async with serve(app, errorlog="-") as server:
        pass
    assert f"Running on {server.http_url}" in capfd.readouterr().err


async def test_it_listens_on_ipv6_too(app: NexiosApp) -> None:
    async with serve(app, host="::1") as server:
        assert server.url == f"ws://[::1]:{server.port}"
        assert server.host == "::1"
        async with httpx2.AsyncClient() as http:
            assert (await http.get(server.http_url)).text == "page"


async def test_stop_closes_with_1012_and_ends_the_server(app: NexiosApp) -> None:
    async with serve(app) as server:
        async with open_websocket_url(server.url + "/echo") as ws:
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(server.host, server.port)


async def test_kill_cancels_the_server_and_nothing_else(app: NexiosApp) -> None:
    went_on = False
    async with serve(app) as server:
        async with open_websocket_url(server.url + "/echo") as ws:
            server.kill()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
        await trio.lowlevel.checkpoint()
        went_on = True
    assert went_on


async def test_a_bare_hypercorn_that_is_killed_says_1012_as_well(
    nexios_server: Server, app: NexiosApp
) -> None:
    server = await nexios_server(app, runner=False)
    async with open_websocket_url(server.url + "/echo") as ws:
        server.kill()
        assert await closed_with(ws) == (1012, "service restart")
    await server.wait_stopped()


async def test_without_the_runner_it_is_hypercorn_as_it_is(app: NexiosApp) -> None:
    """No draining: its own patience, then cancellation."""
    seen: list[int] = []

    @app.ws_route("/watch")
    async def watch(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            seen.append(gone.code)

    async with serve(app, runner=False, graceful_timeout=0.1) as server:
        async with open_websocket_url(server.url + "/watch") as ws:
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
    assert seen == []  # cancelled, not told


async def test_the_end_of_the_block_stops_the_server(app: NexiosApp) -> None:
    down: list[bool] = []
    app.on_shutdown(lambda: down.append(True))
    async with trio.open_nursery() as nursery:
        started = trio.Event()
        codes = []

        async def stay(url: str) -> None:
            async with open_websocket_url(url) as ws:
                started.set()
                codes.append(await closed_with(ws))

        async with serve(app) as server:
            nursery.start_soon(stay, server.url + "/echo")
            await started.wait()
    assert codes == [(1012, "service restart")]
    assert down == [True]


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


async def test_a_client_that_does_not_read_is_dropped_at_the_end_of_the_block(
    app: NexiosApp, fast_clock: MockClock
) -> None:
    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_bytes(bytes(1 << 20))

    async with serve(app) as server:
        stream = await trio.open_tcp_stream(server.host, server.port)
        await SocketPeer(stream).shake_hands(server.host, "/flood")
        await wait_all_tasks_blocked(0.1)
    assert len(app.connections) == 0
    await stream.aclose()


class Failure(Exception):
    """An error of a test."""


async def test_what_the_test_raises_comes_out_bare(app: NexiosApp) -> None:
    with pytest.raises(Failure, match="in the test"):
        async with serve(app):
            raise Failure("in the test")


async def test_a_startup_that_fails_is_hypercorns_error_with_ours_in_it() -> None:
    app = NexiosApp()

    @app.on_startup
    def fail() -> None:
        raise Failure("no database")

    with pytest.raises(LifespanFailureError, match="Failure: no database"):
        async with serve(app):
            raise AssertionError("the block was entered")


async def test_a_server_that_fails_later_ends_the_test_with_its_error() -> None:
    app = NexiosApp()
    crash = trio.Event()

    async def background() -> None:
        await crash.wait()
        raise Failure("in the background")

    app.start_soon(background, on_crash="stop")
    with pytest.raises(LifespanFailureError, match="in the background"):
        async with serve(app):
            crash.set()
            await trio.sleep_forever()


async def test_when_both_fail_none_of_the_two_errors_is_lost() -> None:
    app = NexiosApp()

    @app.on_shutdown
    def fail() -> None:
        raise Failure("in the app")

    with pytest.raises(BaseExceptionGroup) as raised:
        async with serve(app):
            raise Failure("in the test")
    assert [type(error) for error in raised.value.exceptions] == [Failure, LifespanFailureError]
