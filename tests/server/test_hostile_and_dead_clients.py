"""What one client can do to the server it is connected to: nothing beyond its own connection."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
import trio

from nexios_trio import Heartbeat, NexiosApp, WebSocket, WebSocketDisconnect
from tests.lanes import Serve, SocketPeer

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FRAME = b"\x81\x82\x00\x00\x00\x00hi"

HOSTILE = {
    "a frame behind the request": UPGRADE + FRAME,
    "junk behind the request": UPGRADE + b"\xff" * 100,
    "a bad key and junk": UPGRADE.replace(b"dGhl", b"\xff\xff") + b"junk",
    "no version and junk": UPGRADE.replace(b"Version: 13", b"Version: 99") + FRAME,
    "not HTTP": b"\x00\x01\x02" * 50,
    "a half request": UPGRADE[:40],
    "two requests": UPGRADE * 2,
    "a header without an end": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    "content-length with an upgrade": UPGRADE[:-2] + b"Content-Length: 5\r\n\r\n12345" + FRAME,
    "chunked with an upgrade": UPGRADE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
    "bytes that are no UTF-8 in the path": UPGRADE.replace(b"GET / ", b"GET /\xff\xfe "),
    "percent-encoded junk in the path": UPGRADE.replace(b"GET / ", b"GET /%ff%00%0a "),
    "a subprotocol that is no ASCII": UPGRADE[:-2] + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
    "an extension that is no ASCII": UPGRADE[:-2] + b"Sec-WebSocket-Extensions: \xff\r\n\r\n",
    "window bits that are no number": (
        UPGRADE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=abc\r\n\r\n"
    ),
    "HTTP/1.0": UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/2 from the start, then junk": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 50,
    "h2c with settings of junk": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: ////\r\n\r\n"
    ),
}


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp()

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    return app


@pytest.mark.parametrize("wait", [True, False], ids=["reads the answer", "leaves at once"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_no_request_ends_the_worker_or_another_connection_or_fills_the_log(
    serve: Serve, data: bytes, wait: bool, app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            neighbour = SocketPeer(stream)
            await neighbour.shake_hands(server.host, "/")
            for _ in range(3):
                async with await trio.open_tcp_stream(server.host, server.port) as hostile:
                    await hostile.send_all(data)
                    if wait:
                        with trio.move_on_after(0.2):
                            async for _ in hostile:
                                pass
            await neighbour.send("still there?")
            assert await neighbour.receive() == "still there?"
            async with await trio.open_tcp_stream(server.host, server.port) as another:
                peer = SocketPeer(another)
                await peer.shake_hands(server.host, "/")
                await peer.close()
            await neighbour.close()
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


REFUSED = {
    # The engine takes a frame behind the request for what it is: an early message.
    "hypercorn": (UPGRADE + FRAME, "ended a connection that broke the protocol"),
    "engine": (UPGRADE.replace(b"dGhl", b"\xff\xff"), "refused a handshake with 400"),
}


async def test_a_broken_protocol_is_one_line_in_the_log(
    serve: Serve, server_lane: str, app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nexios_trio.server")
    data, line = REFUSED[server_lane]
    async with serve(app) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as hostile:
            await hostile.send_all(data)
            async for _ in hostile:
                pass
    (record,) = [record for record in caplog.records if record.name == "nexios_trio.server"]
    assert record.levelno == logging.INFO
    assert line in record.getMessage()
    assert record.exc_info is None


async def test_an_error_in_hypercorn_itself_is_logged_with_its_traceback(
    serve: Serve, app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            send.__self__.send = None  # what hypercorn would not do by itself
        await app(scope, receive, send)

    async with serve(broken) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(UPGRADE)
            async for _ in stream:
                pass
        async with await trio.open_tcp_stream(server.host, server.port):
            pass
    assert "Traceback" in caplog.text


async def test_a_peer_that_tcp_gives_up_ends_as_heartbeat_timeout(serve: Serve) -> None:
    """A client that never reads: TCP_USER_TIMEOUT ends it as it would a dead one."""
    app, told = NexiosApp(heartbeat=Heartbeat(interval=60, timeout=0.3)), trio.Event()
    seen: list[WebSocketDisconnect] = []

    @app.ws_route("/")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_bytes(b"x" * 1_000_000)
        except WebSocketDisconnect as over:
            seen.append(over)
        told.set()

    async with serve(app) as server:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect((server.host, server.port))
        async with trio.SocketStream(sock) as stream:
            await SocketPeer(stream).shake_hands(server.host, "/")
            await told.wait()
    assert (seen[0].code, seen[0].reason, seen[0].by) == (1006, "heartbeat timeout", "network")
