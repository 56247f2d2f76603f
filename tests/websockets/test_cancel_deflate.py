"""With permessage-deflate a cancelled send must not leave the compressor ahead of the peer."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from wsproto.connection import ConnectionState
from wsproto.events import Ping
from wsproto.extensions import PerMessageDeflate

from nexios_trio import Deflate, NexiosApp, WebSocket
from tests.lanes import Serve, SocketPeer

TEXT = "the same words again and again " * 20


@pytest.mark.parametrize("deflate", [True, False])
async def test_a_send_that_is_cancelled_behind_a_blocked_pong_leaves_the_stream_readable(
    serve: Serve,
    deflate: bool,
) -> None:
    app, blocked, resumed = NexiosApp(heartbeat=None, deflate=Deflate()), trio.Event(), trio.Event()
    whole: list[bool] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(TEXT)
        await blocked.wait()
        ws.start_soon(resume_later)
        with trio.CancelScope() as scope:
            ws.start_soon(cancel_when_blocked, scope)
            await ws.send_text("maybe lost: " + TEXT)
            whole.append(True)
        await ws.send_text("after: " + TEXT)

    async def cancel_when_blocked(scope: trio.CancelScope) -> None:
        await wait_all_tasks_blocked()
        scope.cancel()

    async def resume_later() -> None:
        await wait_all_tasks_blocked(0.05)
        resumed.set()

    async with serve(app) as server:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect((server.host, server.port))
        async with trio.SocketStream(sock) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands(server.host, "/", extensions=[PerMessageDeflate()] if deflate else [])
            assert await peer.receive() == TEXT

            async def flood() -> None:
                pings = b"".join(peer.wire.send(Ping(b"p" * 125)) for _ in range(1000))
                with trio.CancelScope() as scope:
                    nursery.start_soon(stop_when_blocked, scope)
                    while True:
                        await stream.send_all(pings)

            async def stop_when_blocked(scope: trio.CancelScope) -> None:
                await wait_all_tasks_blocked(0.05)  # the server answers pings no more: its pong is stuck
                blocked.set()
                await resumed.wait()
                nursery.start_soon(read)
                await done.wait()
                scope.cancel()

            async def read() -> None:
                while not received or not received[-1].startswith("after"):
                    text = await peer.receive()
                    assert isinstance(text, str)
                    received.append(text)
                done.set()

            received: list[str] = []
            done = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
            expected = ["maybe lost: " + TEXT] if whole else []
            assert received == [*expected, "after: " + TEXT]
            assert peer.wire.state is ConnectionState.OPEN
            await peer.drop()
