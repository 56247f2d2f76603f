"""``--server engine``: which connection is the engine's, which is hypercorn's, and that both work."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from trio_websocket import open_websocket_url

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.server import handoff
from nexios_trio.server.handoff import LOOKS, PAUSE
from nexios_trio.testing import TestServer, serve
from nexios_trio.wire.classify import Kind, classify
from tests.lanes import SocketPeer
from tests.server.clients import H2Client
from tests.server.test_engine import HELLO, UPGRADE
from tests.server.test_http2_and_tls import certificate

__all__ = ["certificate"]

ENGINE, HYPERCORN = "EngineTransport", "AsgiTransport"


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp(heartbeat=None)  # hypercorn would begin with a Ping

    @app.ws_route("/echo")
    async def lane(ws: WebSocket) -> None:
        """Tells which lane it is in, and then echoes."""
        await ws.accept()
        await ws.send_text(type(ws._transport).__name__)
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.get("/page")
    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    @app.route("/post", methods=["POST"])
    async def post(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"got {len(await request.body())}")

    return app


@asynccontextmanager
async def tcp(server: TestServer) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        yield stream


async def until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    """What comes, until it ends with these bytes."""
    received = b""
    with trio.fail_after(60):
        while not received.endswith(end):
            data = await stream.receive_some(65536)
            assert data, received
            received += data
    return received


def text(message: str) -> bytes:
    """A server's frame."""
    return bytes([0x81, len(message)]) + message.encode()


async def echoes(stream: trio.abc.Stream, lane: str) -> bytes:
    """Whether a WebSocket works over this stream, from behind its request on; gives the answer to it."""
    answer = await until(stream, text(lane))
    await stream.send_all(HELLO)
    assert await until(stream, text("hello")) == text("hello")
    return answer


PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"

TAKEN = {
    "a plain upgrade": UPGRADE,
    "names in any case": UPGRADE.replace(b"Upgrade: websocket", b"UPGRADE: WebSocket"),
    "an absolute target": UPGRADE.replace(b"GET /echo", b"GET http://x/echo"),
    "an upgrade that expects 100": UPGRADE.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"),
    "one that offers h2c besides": UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
}


@pytest.mark.parametrize("request_", TAKEN.values(), ids=TAKEN.keys())
async def test_an_upgrade_to_websocket_is_the_engine_s(request_: bytes, app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(request_)
        answer = await echoes(stream, ENGINE)
        assert answer.startswith(b"HTTP/1.1 101")


async def test_what_a_proxy_adds_makes_no_difference(app: NexiosApp) -> None:
    head = UPGRADE.replace(
        b"Host: x\r\n",
        b"Host: x\r\nX-Forwarded-For: 198.51.100.9\r\nX-Forwarded-Proto: https\r\nVia: 1.1 proxy\r\n"
        b"X-Request-Id: " + b"r" * 3000 + b"\r\n",
    )
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(head)
        await echoes(stream, ENGINE)


@pytest.mark.parametrize("cut", [1, 3, 4, 20, len(UPGRADE) - 1])
async def test_a_request_in_two_parts_is_waited_for(cut: int, app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(UPGRADE[:cut])
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(UPGRADE[cut:])
        await echoes(stream, ENGINE)


async def test_a_request_byte_by_byte_is_not_looked_at_for_each_byte(
    app: NexiosApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def counting(beginning: bytes) -> Kind:
        looks.append(len(beginning))
        return classify(beginning)

    monkeypatch.setattr(handoff, "classify", counting)
    head = UPGRADE.replace(b"Host: x\r\n", b"Host: x\r\nX: " + b"x" * 3000 + b"\r\n")
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = trio.current_time()
        for byte in head:
            await stream.send_all(bytes([byte]))
        await echoes(stream, ENGINE)
        took = trio.current_time() - begun
    assert len(looks) <= LOOKS + 1 + took / PAUSE


async def test_frames_may_follow_the_request_in_the_same_packet_and_byte_by_byte(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await stream.send_all(UPGRADE + HELLO + HELLO[:3])
        for byte in HELLO[3:] + HELLO:
            await stream.send_all(bytes([byte]))
        answer = await until(stream, text(ENGINE) + text("hello") * 3)
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_upgrade_after_a_request_on_the_same_connection_is_hypercorn_s(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        for _ in range(2):
            await stream.send_all(PAGE)
            assert (await until(stream, b"page")).startswith(b"HTTP/1.1 200")
        await stream.send_all(UPGRADE)
        assert (await echoes(stream, HYPERCORN)).startswith(b"HTTP/1.1 101")


async def test_also_if_both_come_in_one_packet(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(PAGE + UPGRADE)
        answer = await echoes(stream, HYPERCORN)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"page" in answer.partition(b"HTTP/1.1 101")[0]


async def test_a_body_that_waits_for_100_continue_is_asked_for(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(
            b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await stream.send_all(b"hello")
        assert (await until(stream, b"got 5")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), b"HTTP/1.1 4"),
        (UPGRADE.replace(b"GET", b"POST"), b"HTTP/1.1 40"),
        (UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c"), b"HTTP/1.1 101"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
    ],
)
async def test_what_is_no_upgrade_of_http_1_1_is_answered_by_hypercorn(
    request_: bytes, status: bytes, app: NexiosApp
) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        await stream.send_all(request_ + b"\r\n")
        with trio.fail_after(60):
            answer = await stream.receive_some(65536)
        assert answer.startswith(status), answer


async def test_http2_with_prior_knowledge_is_hypercorn_s(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server, tcp(server) as stream:
        client = H2Client(stream)
        await client.start()
        ws = await client.connect("/echo")
        assert await ws.receive() == HYPERCORN
        await ws.send("hello")
        assert await ws.receive() == "hello"


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_tls_is_hypercorn_s_whatever_alpn_says(
    protocol: str, app: NexiosApp, certificate: tuple[str, str]
) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    trust.set_alpn_protocols([protocol])
    async with serve(app, fast_lane=True, certfile=cert, keyfile=key) as server:
        assert server.url.startswith("wss://")
        async with tcp(server) as plain:
            stream = trio.SSLStream(plain, trust, server_hostname="127.0.0.1", https_compatible=True)
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == protocol
            if protocol == "http/1.1":
                await stream.send_all(UPGRADE)
                await echoes(stream, HYPERCORN)
            else:
                client = H2Client(stream)
                await client.start()
                ws = await client.connect("/echo")
                assert await ws.receive() == HYPERCORN
                await ws.send("hello")
                assert await ws.receive() == "hello"


async def test_wss_and_ws_are_served_side_by_side(app: NexiosApp, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        insecure = f"127.0.0.1:{free.getsockname()[1]}"
    async with serve(app, fast_lane=True, certfile=cert, keyfile=key, insecure_bind=[insecure]) as server:
        for url, lane in ((server.url, HYPERCORN), (f"ws://{insecure}", ENGINE)):
            context = trust if url.startswith("wss") else None
            async with open_websocket_url(url + "/echo", ssl_context=context) as ws:
                assert await ws.get_message() == lane
                await ws.send_message("hello")
                assert await ws.get_message() == "hello"


async def test_with_server_names_set_hypercorn_checks_them(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True, server_names=["x"]) as server:
        async with tcp(server) as stream:
            await stream.send_all(UPGRADE)
            await echoes(stream, HYPERCORN)
        async with tcp(server) as stream:
            await stream.send_all(UPGRADE.replace(b"Host: x", b"Host: y"))
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 404")


async def test_many_on_both_lanes_at_once_do_not_meet(app: NexiosApp) -> None:
    async with serve(app, fast_lane=True) as server:

        async def one(number: int) -> None:
            async with tcp(server) as stream:
                if number % 2:
                    peer = SocketPeer(stream)
                    await peer.shake_hands("x", "/echo")
                    assert await peer.receive() == ENGINE
                    await peer.send(f"number {number}")
                    assert await peer.receive() == f"number {number}"
                    await peer.close()
                else:
                    await stream.send_all(PAGE)
                    await until(stream, b"page")

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
