"""WebSockets over HTTP/2 and TLS, as browsers use them, through the same server."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import h2.events
import h2.settings
import httpx2
import pytest
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import open_websocket_url

from nexios_trio import Heartbeat, NexiosApp, WebSocket
from nexios_trio.testing import TestServer, serve
from tests.server.clients import H2Client, closed_with, http_flood


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp(heartbeat=Heartbeat(interval=1000), disconnect_grace=1.0, close_timeout=1.0)

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.get("/")
    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    app.mount("/flood", http_flood)
    return app


async def _h2(server: TestServer) -> H2Client:
    client = H2Client(await trio.open_tcp_stream(server.host, server.port))
    await client.start()
    return client


async def test_websockets_over_http2_are_offered_and_work(app: NexiosApp) -> None:
    async with serve(app) as server:
        client = await _h2(server)
        assert client.http.remote_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
        first, second = await client.connect("/echo"), await client.connect("/echo")
        assert len(app.connections) == 2
        for text in ("a", "b"):
            await second.send(text)
            assert await second.receive() == text
            await first.send(text)
            assert await first.receive() == text
        await client.stream.aclose()


async def test_a_rejection_over_http2_has_its_status(app: NexiosApp) -> None:
    async with serve(app) as server:
        client = await _h2(server)
        stream_id = await client.request(method="CONNECT", protocol="websocket", path="/nowhere")
        response = await client.wait_for(h2.events.ResponseReceived, stream_id)
        assert dict(response.headers)[":status"] == "404"
        await client.stream.aclose()


@pytest.mark.parametrize("length", [1, 1600, 80_000])  # all in one frame, or several and flow control
async def test_websockets_and_requests_over_http2_end_well_at_shutdown(length: int, app: NexiosApp) -> None:
    under_way, go = trio.Event(), trio.Event()

    @app.get("/slow")
    async def slow(_request: Request) -> PlainTextResponse:
        under_way.set()
        await go.wait()
        return PlainTextResponse("x" * length)

    async with serve(app) as server:
        client = await _h2(server)
        ws = await client.connect("/echo")
        await client.request(path="/slow")
        await under_way.wait()
        server.stop()
        assert await ws.receive() == (1012, "service restart")
        go.set()
        received = 0
        while (event := await client.next_event()) is not None:
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data)
        assert received == length
        # Whether END_STREAM comes before the connection ends is hypercorn's luck at shutdown.
        await server.wait_stopped()
        await client.stream.aclose()


@pytest.fixture
def fast_clock() -> MockClock:
    return MockClock(rate=20)


async def test_an_http2_client_that_never_reads_does_not_hold_up_the_end(
    app: NexiosApp, fast_clock: MockClock
) -> None:
    async with serve(app, graceful_timeout=2) as server:
        client = await _h2(server)
        client.http.increment_flow_control_window(2**30)
        stream_id = await client.request(path="/flood")
        client.http.increment_flow_control_window(2**30, stream_id)
        await client.flush()
        await wait_all_tasks_blocked(0.1)
        server.stop()
        await server.wait_stopped()
        await client.stream.aclose()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl IS NOT INSTALLED: TLS stays untested")
    folder: Path = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


async def test_tls_is_served_and_drained(app: NexiosApp, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    async with serve(app, certfile=cert, keyfile=key) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}"
        assert server.http_url == f"https://127.0.0.1:{server.port}"
        async with httpx2.AsyncClient(verify=trust) as http:
            assert (await http.get(server.http_url)).text == "page"
        async with open_websocket_url(server.url + "/echo", ssl_context=trust) as ws:
            await ws.send_message("hello")
            assert await ws.get_message() == "hello"
            server.stop()
            assert await closed_with(ws) == (1012, "service restart")
        await server.wait_stopped()


async def test_a_tls_client_that_never_reads_does_not_hold_up_the_end(
    app: NexiosApp, certificate: tuple[str, str], fast_clock: MockClock
) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    async with serve(app, certfile=cert, keyfile=key, graceful_timeout=2) as server:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=trust)
        await stream.send_all(b"GET /flood HTTP/1.1\r\nHost: server\r\n\r\n")
        await wait_all_tasks_blocked(0.1)
        server.stop()
        await server.wait_stopped()
        await trio.aclose_forcefully(stream)
