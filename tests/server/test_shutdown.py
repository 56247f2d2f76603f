"""The end of a server: everybody is told, whoever works gets time, and nobody can hold it up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionRejected, open_websocket_url
from websockets.asyncio.client import connect as asyncio_connect
from websockets.exceptions import ConnectionClosed

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.server.hypercorn import hypercorn_config, serve_hypercorn
from nexios_trio.testing import TestServer
from tests.lanes import Serve
from tests.server.clients import closed_with, http_flood, read_to_end, stalled


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


def waiting_app(**options: Any) -> NexiosApp:
    app = NexiosApp(heartbeat=None, **options)

    @app.ws_route("/wait")
    async def wait(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("here")
        await ws.receive_text()

    return app


async def _get(server: TestServer, path: str) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(server.host, server.port)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: server\r\n\r\n".encode())
    return stream


async def test_every_connection_is_closed_with_1012_in_an_order_that_nobody_knows(
    serve: Serve,
    fast_clock: MockClock,
) -> None:
    orders: list[list[int]] = []
    for _ in range(2):
        app = waiting_app()
        order: list[int] = []

        async def stay(
            number: int, url: str, task_status: trio.TaskStatus[None], order: list[int] = order
        ) -> None:
            async with open_websocket_url(url) as ws:
                assert await ws.get_message() == "here"
                task_status.started()
                assert await closed_with(ws) == (1012, "service restart")
                order.append(number)

        async with trio.open_nursery() as nursery, serve(app, drain_window=2) as server:
            for number in range(20):

                async def start(
                    *, task_status: trio.TaskStatus[None], number: int = number, url: str = server.url
                ) -> None:
                    await stay(number, url + "/wait", task_status)

                await nursery.start(start)
            began = trio.current_time()
            server.stop()
            await server.wait_stopped()
            assert trio.current_time() - began > 1.5  # spread over the window
        assert sorted(order) == list(range(20))
        assert len(app.connections) == 0
        orders.append(order)
    assert orders[0] != orders[1]


async def test_another_library_sees_1012_too(serve: Serve) -> None:
    async with serve(waiting_app()) as server:
        connected = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def client() -> tuple[int, str]:
            async with asyncio_connect(server.url + "/wait") as ws:
                await ws.recv()
                token.run_sync_soon(connected.set)
                with pytest.raises(ConnectionClosed) as over:
                    await ws.recv()
                assert over.value.rcvd is not None
                return over.value.rcvd.code, over.value.rcvd.reason

        async def stop() -> None:
            await connected.wait()
            server.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            seen = await trio.to_thread.run_sync(lambda: asyncio.run(client()))
        assert seen == (1012, "service restart")


async def test_whoever_comes_while_an_app_drains_gets_a_503(serve: Serve) -> None:
    app = waiting_app(disconnect_grace=60.0)
    go = trio.Event()

    @app.ws_route("/slow")
    async def slow(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect:
            await go.wait()

    async with serve(app) as server, trio.open_nursery() as nursery:
        async with open_websocket_url(server.url + "/slow") as ws:
            nursery.start_soon(app.drain)
            assert await closed_with(ws) == (1012, "service restart")
            with pytest.raises(ConnectionRejected) as rejected:
                async with open_websocket_url(server.url + "/wait"):
                    pass
            assert rejected.value.status_code == 503
            go.set()


async def test_handlers_get_their_grace(serve: Serve, fast_clock: MockClock) -> None:
    app = waiting_app(disconnect_grace=30.0)
    finished: list[bool] = []

    @app.ws_route("/tidy")
    async def tidy(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("here")
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            assert gone.by == "local"
            await trio.sleep(15)
            finished.append(True)

    async with serve(app) as server:
        async with open_websocket_url(server.url + "/tidy") as ws:
            await ws.get_message()
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
    assert finished == [True]


async def test_a_handler_that_ignores_its_end_is_cancelled_after_its_grace(
    serve: Serve, fast_clock: MockClock
) -> None:
    app = waiting_app(disconnect_grace=3.0)
    cancelled: list[float] = []

    @app.ws_route("/deaf")
    async def deaf(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("here")
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())

    async with serve(app) as server:
        async with open_websocket_url(server.url + "/deaf") as ws:
            await ws.get_message()
            server.stop()
            began = trio.current_time()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()
    assert cancelled[0] - began >= 2.9


@pytest.fixture
def flood_app() -> NexiosApp:
    app = waiting_app(disconnect_grace=1.0, close_timeout=1.0)

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_bytes(bytes(1 << 20))

    app.mount("/http-flood", http_flood)
    return app


async def test_a_client_that_never_reads_does_not_hold_up_the_end(
    serve: Serve, flood_app: NexiosApp, fast_clock: MockClock
) -> None:
    """hypercorn shields its sends; without force its worker would wait for this client for ever."""
    async with serve(flood_app, graceful_timeout=2) as server:
        async with (
            stalled(server.host, server.port, "/flood") as stream,
            open_websocket_url(server.url + "/wait") as other,
        ):
            await other.get_message()
            await wait_all_tasks_blocked(0.1)
            server.stop()
            assert await closed_with(other) == (1012, "service restart")
            await server.wait_stopped()
            assert len(await read_to_end(stream)) > 0
    assert len(flood_app.connections) == 0


async def test_an_http_client_that_never_reads_does_not_hold_up_the_end(
    serve: Serve, flood_app: NexiosApp, fast_clock: MockClock
) -> None:
    async with serve(flood_app, graceful_timeout=2) as server:
        stream = await _get(server, "/http-flood")
        await wait_all_tasks_blocked(0.1)
        server.stop()
        await server.wait_stopped()
        assert len(await read_to_end(stream)) > 0
        await stream.aclose()


async def test_a_client_that_never_reads_does_not_hold_up_a_kill(
    serve: Serve, flood_app: NexiosApp, fast_clock: MockClock
) -> None:
    async with serve(flood_app) as server, stalled(server.host, server.port, "/flood"):
        await wait_all_tasks_blocked(0.1)
        server.kill()
        await server.wait_stopped()


@pytest.fixture
def frozen_clock() -> MockClock:
    return MockClock()


async def test_the_end_does_not_wait_for_any_clock_when_all_is_quiet(
    serve: Serve, frozen_clock: MockClock
) -> None:
    app = waiting_app()
    async with serve(app) as server:
        async with open_websocket_url(server.url + "/wait") as ws:
            await ws.get_message()
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await wait_all_tasks_blocked(0.2)
        stopped = server._stopped.is_set()
        frozen_clock.rate = 20
    assert stopped


async def test_hurry_cuts_the_drain_short_and_still_says_1012(serve: Serve, fast_clock: MockClock) -> None:
    app = waiting_app(disconnect_grace=3000.0)
    cancelled: list[bool] = []

    @app.ws_route("/deaf")
    async def deaf(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("here")
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(True)

    async with serve(app, drain_window=2000) as server:
        async with (
            open_websocket_url(server.url + "/deaf") as ws,
            open_websocket_url(server.url + "/wait") as other,
        ):
            await ws.get_message()
            await other.get_message()
            server.stop()
            await wait_all_tasks_blocked(0.05)
            server.hurry()
            assert await closed_with(ws) == (1012, "service restart")
            assert await closed_with(other) == (1012, "service restart")
            await server.wait_stopped()
    assert cancelled == [True]
    assert trio.current_time() < 1000


async def test_a_request_under_way_is_answered(serve: Serve) -> None:
    app = waiting_app()
    under_way, go = trio.Event(), trio.Event()

    @app.get("/slow")
    async def slow(_request: Request) -> PlainTextResponse:
        under_way.set()
        await go.wait()
        return PlainTextResponse("the whole answer")

    async with serve(app) as server:
        stream = await _get(server, "/slow")
        await under_way.wait()
        server.stop()
        await wait_all_tasks_blocked(0.02)
        go.set()
        answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"the whole answer")
        await server.wait_stopped()
        await stream.aclose()


async def test_a_request_that_takes_too_long_is_cancelled(serve: Serve, fast_clock: MockClock) -> None:
    app = waiting_app(disconnect_grace=1.0, close_timeout=1.0)
    under_way = trio.Event()
    ended: list[bool] = []

    @app.get("/slow")
    async def slow(_request: Request) -> PlainTextResponse:
        under_way.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async with serve(app, graceful_timeout=3) as server:
        stream = await _get(server, "/slow")
        await under_way.wait()
        server.stop()
        await server.wait_stopped()
        await stream.aclose()
    assert ended == [True]


async def test_idle_http_connections_are_ended_at_once(serve: Serve) -> None:
    app = waiting_app()
    async with serve(app, keep_alive_timeout=3000) as server:
        used = await _get(server, "/nowhere")
        assert b"404" in await used.receive_some(65536)
        fresh = await trio.open_tcp_stream(server.host, server.port)
        await wait_all_tasks_blocked(0.02)
        server.stop()
        await read_to_end(used)
        await read_to_end(fresh)
        await server.wait_stopped()
        await used.aclose()
        await fresh.aclose()


async def test_a_request_for_shutdown_before_the_first_connection_ends_the_server(serve: Serve) -> None:
    async with serve(NexiosApp()) as server:
        server.stop()
        await server.wait_stopped()


async def test_without_a_trigger_the_server_runs_until_it_is_cancelled(fast_clock: MockClock) -> None:
    config: Config = hypercorn_config(bind=["127.0.0.1:0"], errorlog=None)
    with trio.move_on_after(5) as scope:
        await serve_hypercorn(waiting_app(), config)
    assert scope.cancelled_caught


async def test_whoever_hurries_does_not_wait_for_the_notice_either(serve: Serve) -> None:
    app = waiting_app()
    async with serve(app, drain_notice=3600) as server:
        async with open_websocket_url(server.url + "/wait") as ws:
            assert await ws.get_message() == "here"
            server.stop()
            while not app.leaving:
                await trio.lowlevel.checkpoint()
            async with open_websocket_url(server.url + "/wait") as late:  # it serves as ever
                assert await late.get_message() == "here"
                assert len(app.connections) == 2
                server.hurry()
                assert await closed_with(ws) == (1012, "service restart")
                assert await closed_with(late) == (1012, "service restart")
        await server.wait_stopped()
