"""One interface to a connection in memory and over a real server, so that a test runs on both."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

from nexios_trio import WebSocketDisconnect
from nexios_trio.testing import TestClient, TestServer, TestWebSocket
from nexios_trio.testing import serve as serve_app
from nexios_trio.types import ASGIApp

__all__ = ["Lane", "Peer", "Serve", "lane", "lane_clock", "lane_name", "serve", "server_lane"]

SERVERS = ("hypercorn", "engine")
LANES = ("memory", *SERVERS)

Serve = Callable[..., AbstractAsyncContextManager[TestServer]]
"""`nexios_trio.testing.serve` on the lane of the test."""


class Peer:
    """A client of a test."""

    async def send(self, data: str | bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> str | bytes:
        """The next message; `WebSocketDisconnect` with the server's code and reason at the end."""
        raise NotImplementedError

    async def close(self, code: int = 1000, reason: str = "") -> None:
        raise NotImplementedError

    async def drop(self) -> None:
        """Break the connection without a Close frame."""
        raise NotImplementedError

    async def wait_closed(self) -> tuple[int, str]:
        """What the server's Close frame says."""
        while True:
            try:
                await self.receive()
            except WebSocketDisconnect as over:
                return over.code, over.reason


class MemoryPeer(Peer):
    def __init__(self, ws: TestWebSocket) -> None:
        self.ws = ws

    async def send(self, data: str | bytes) -> None:
        await (self.ws.send_text(data) if isinstance(data, str) else self.ws.send_bytes(data))

    async def receive(self) -> str | bytes:
        message = await self.ws.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"], message["reason"])
        return message["text"] if message.get("text") is not None else message["bytes"]  # type: ignore[no-any-return]

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.ws.close(code, reason)

    async def drop(self) -> None:
        await self.ws.drop()


class SocketPeer(Peer):
    """A plain client on wsproto: pongs, and answers a Close; nothing happens in the background."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.parts: list[str | bytes] = []

    async def shake_hands(self, host: str, path: str, **options: Any) -> None:
        await self.stream.send_all(self.wire.send(Request(host=host, target=path, **options)))
        event = await self._event()
        assert isinstance(event, AcceptConnection), event

    async def _event(self) -> Event:
        while True:
            for event in self.wire.events():
                return event
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            self.wire.receive_data(data or None)

    async def _put(self, event: Event) -> None:
        try:
            await self.stream.send_all(self.wire.send(event))
        except (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
            pass  # receive() tells why

    async def send(self, data: str | bytes) -> None:
        await self._put(TextMessage(data) if isinstance(data, str) else BytesMessage(data))

    async def receive(self) -> str | bytes:
        while True:
            match await self._event():
                case TextMessage() | BytesMessage() as message:
                    self.parts.append(message.data if isinstance(message.data, str) else bytes(message.data))
                    if message.message_finished:
                        parts, self.parts = self.parts, []
                        return "".join(parts) if isinstance(parts[0], str) else b"".join(parts)  # type: ignore[arg-type]
                case Ping() as ping:
                    await self._put(ping.response())
                case CloseConnection() as close:
                    if self.wire.state is ConnectionState.REMOTE_CLOSING:
                        await self._put(close.response())
                    raise WebSocketDisconnect(close.code, close.reason)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._put(CloseConnection(code, reason))
        await self.wait_closed()

    async def drop(self) -> None:
        reset(self.stream.socket)
        await trio.aclose_forcefully(self.stream)


def reset(sock: Any) -> None:
    """Make closing this socket send RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Lane:
    """Where the app of a test is served; started with the first connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nursery: trio.Nursery | None = None
        self._client: TestClient | None = None
        self.server: TestServer | None = None

    @asynccontextmanager
    async def serving(self, app: ASGIApp, **options: Any) -> AsyncIterator[Lane]:
        if self.name == "memory":
            async with TestClient(app, timeout=60) as self._client:
                yield self
        else:
            async with serve_app(app, fast_lane=self.name == "engine", **options) as self.server:
                yield self

    @asynccontextmanager
    async def connect(self, path: str = "/", **options: Any) -> AsyncIterator[Peer]:
        if self._client is not None:
            async with self._client.connect(path, **options) as ws:
                yield MemoryPeer(ws)
            return
        assert self.server is not None
        async with await trio.open_tcp_stream(self.server.host, self.server.port) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands(self.server.host, path, **options)
            try:
                yield peer
            finally:
                with trio.move_on_after(100, shield=True):
                    if peer.wire.state is ConnectionState.OPEN and stream.socket.fileno() >= 0:
                        await peer.close()


@pytest.fixture(params=LANES)
def lane_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def lane_clock(lane_name: str) -> MockClock:
    """Time jumps in memory; over sockets it runs 20 times as fast, since the network cannot be jumped."""
    return MockClock(autojump_threshold=0) if lane_name == "memory" else MockClock(rate=20)


@pytest.fixture
def lane(lane_name: str, lane_clock: MockClock) -> Lane:
    return Lane(lane_name)


@pytest.fixture(params=SERVERS)
def server_lane(request: pytest.FixtureRequest) -> str:
    """Which of our servers serves plain WebSockets in this test."""
    name: str = request.param
    return name


@pytest.fixture
def serve(server_lane: str) -> Serve:
    """Serve an app on a real socket, once by each of our servers."""
    return partial(serve_app, fast_lane=server_lane == "engine")
