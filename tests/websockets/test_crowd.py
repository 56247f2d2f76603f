"""Five hundred clients on one real server, some of them badly behaved."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack

import pytest
import trio

from nexios_trio import NexiosApp, WebSocket
from tests.lanes import Serve, SocketPeer

CLIENTS, DROPPED, STALLED = 500, 50, 50


@pytest.mark.untraced
async def test_dropped_and_stalled_clients_leave_the_others_and_the_count_alone(serve: Serve) -> None:
    app = NexiosApp()
    stuck = 0

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        nonlocal stuck
        await ws.accept()
        await ws.receive_text()
        stuck += 1
        while True:
            await ws.send_bytes(b"x" * 1_000_000)

    async with serve(app) as server, AsyncExitStack() as stack:

        async def connect(path: str) -> SocketPeer:
            stream = await stack.enter_async_context(await trio.open_tcp_stream(server.host, server.port))
            peer = SocketPeer(stream)
            await peer.shake_hands(server.host, path)
            return peer

        peers = [await connect("/echo") for _ in range(CLIENTS - STALLED)]
        stalled = [await connect("/flood") for _ in range(STALLED)]
        assert len(app.connections) == CLIENTS

        async def exchange(peer: SocketPeer, rounds: int) -> None:
            for number in range(rounds):
                text = f"{id(peer)}.{number}"
                await peer.send(text)
                assert await peer.receive() == text

        async def misbehave() -> None:
            for peer in stalled:
                await peer.send("go")  # and never read what comes
            for peer in peers[:DROPPED]:
                await peer.drop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(misbehave)
            for peer in peers[DROPPED:]:
                nursery.start_soon(exchange, peer, 10)

        async def count_is(expected: int) -> None:
            with trio.fail_after(2):
                while len(app.connections) != expected:
                    await trio.sleep(0.01)

        await count_is(CLIENTS - DROPPED)
        assert stuck == STALLED
        async with trio.open_nursery() as nursery:
            for peer in peers[DROPPED:]:
                nursery.start_soon(exchange, peer, 5)
        for peer in stalled:
            await peer.drop()
        await count_is(CLIENTS - DROPPED - STALLED)
        for peer in peers[DROPPED:]:
            await peer.close()
        await count_is(0)
        gc.collect()
