"""Clients that send more than anybody wants: the others are served all the same, and memory does not grow."""

from __future__ import annotations

import gc
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h2.errors
import h2.events
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket
from nexios_trio.testing import TestServer
from tests.lanes import Serve, SocketPeer
from tests.server.clients import H2Client, read_to_end, stalled
from tests.server.frames import MORE, PING, PONG, TEXT, frame
from tests.server.test_hostile_and_dead_clients import UPGRADE
from tests.server.test_http2_and_tls import certificate

__all__ = ["certificate"]

GROWTH = 32 << 20
"""Bytes that a process may grow by meanwhile, for whatever reason."""


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp(close_timeout=0.1, disconnect_grace=0.1, heartbeat=None)

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/deaf")
    async def deaf(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep_forever()

    return app


@asynccontextmanager
async def neighbour(server: TestServer) -> AsyncIterator[SocketPeer]:
    """A client like any other; it is served at the end of the block, too."""
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        peer = SocketPeer(stream)
        await peer.shake_hands(server.host, "/")
        yield peer
        await served(peer)
        await peer.close()


async def served(peer: SocketPeer) -> None:
    await peer.send("still there?")
    assert await peer.receive() == "still there?"


def memory() -> int:
    """What the process has in RAM, in bytes."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("NO /proc HERE: memory stays unmeasured")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


FLOODS = {
    "pings, their pongs unread": (b"", frame(PING)),
    "large pings": (b"", frame(PING, b"x" * 125)),
    "pongs": (b"", frame(PONG)),
    "fragments of nothing": (frame(TEXT, fin=False), frame(MORE, fin=False)),
    "tiny messages, the answers unread": (b"", frame(TEXT, b"x")),
    "messages of nothing": (b"", frame(TEXT)),
}


@pytest.mark.untraced
@pytest.mark.parametrize("path", ["/", "/deaf"])
@pytest.mark.parametrize(("first", "again"), FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_of_frames_keeps_nobody_else_from_being_served(
    serve: Serve, first: bytes, again: bytes, path: str, app: NexiosApp
) -> None:
    async with serve(app) as server, neighbour(server) as peer:
        async with stalled(server.host, server.port, path) as stream, trio.open_nursery() as nursery:
            await stream.send_all(first)
            before = memory()

            async def flood() -> None:
                while True:
                    await stream.send_all(again * 10_000)

            nursery.start_soon(flood)
            for _ in range(10):
                await served(peer)
            assert memory() - before < GROWTH
            nursery.cancel_scope.cancel()


HEADS = {
    "one header": b"X: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "many headers": b"X: " + b"x" * 28 + b"\r\n" + b"X: xxxxxxxx\r\n" * 87_000 + b"\r\n",
    "a header without an end": b"X: " + b"x" * (1 << 20),
    "a name without an end": b"x" * (1 << 20),
}


@pytest.mark.parametrize("rest", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: x\r\n", UPGRADE[:-2]], ids=["http", "ws"])
async def test_a_mebibyte_of_headers_is_answered_431(
    serve: Serve, start: bytes, rest: bytes, app: NexiosApp
) -> None:
    async with serve(app) as server, neighbour(server):
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(start + rest)
            assert (await read_to_end(stream)).startswith(b"HTTP/1.1 431 ")


async def test_so_it_is_over_tls(serve: Serve, app: NexiosApp, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    async with serve(app, certfile=cert, keyfile=key) as server:
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", server.port, ssl_context=trust, https_compatible=True
        )
        await stream.send_all(UPGRADE[:-2] + HEADS["one header"])
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 431 ")
        await trio.aclose_forcefully(stream)


async def test_over_http2_the_connection_ends_with_a_word(serve: Serve, app: NexiosApp) -> None:
    async with serve(app) as server, neighbour(server):
        client = H2Client(await trio.open_tcp_stream(server.host, server.port))
        await client.start()
        pseudo = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/"}
        large = [(f"x-{number}", "y" * 1000) for number in range(1000)]
        client.http.send_headers(1, [*pseudo.items(), *large], end_stream=True)
        await client.flush()
        over = await client.wait_for(h2.events.ConnectionTerminated)
        assert over.error_code is h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        assert await client.next_event() is None
        await client.stream.aclose()


HEAD = UPGRADE[:-2] + b"X: " + b"x" * 40_000 + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("bound", "config", "answer"),
    [
        (64 << 10, {}, b"101"),
        (64 << 10, {"h11_max_incomplete_size": 16 << 10}, b"431"),
        (None, {}, b"101"),
        (None, {"h11_max_incomplete_size": 16 << 10}, b"431"),
    ],
)
async def test_a_heads_bound_is_the_apps_or_that_of_the_configuration(
    serve: Serve, bound: int | None, config: dict[str, int], answer: bytes
) -> None:
    app = NexiosApp(limits=Limits(header_bytes=bound), close_timeout=0.1)

    @app.ws_route("/")
    async def accept(ws: WebSocket) -> None:
        await ws.accept()

    async with serve(app, **config) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(HEAD[:30_000])
            await wait_all_tasks_blocked(0.01)  # it is bounded only while it is not whole
            await stream.send_all(HEAD[30_000:])
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 " + answer)
