"""Clients of the server tests that no library offers: one that does not read, one that speaks HTTP/2."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from trio_websocket import ConnectionClosed
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, TextMessage

from nexios_trio.types import Receive, Scope, Send
from tests.lanes import SocketPeer


async def closed_with(ws: Any) -> tuple[int, str | None]:
    """The code and reason that a trio-websocket connection is closed with; messages before are skipped."""
    with pytest.raises(ConnectionClosed) as over:
        while True:
            await ws.get_message()
    assert over.value.reason is not None
    return over.value.reason.code, over.value.reason.reason


@asynccontextmanager
async def stalled(host: str, port: int, path: str, window: int = 4096) -> AsyncIterator[trio.SocketStream]:
    """A WebSocket client that does not read, with a small receive buffer."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    await sock.connect((host, port))
    async with trio.SocketStream(sock) as stream:
        await SocketPeer(stream).shake_hands(host, path)
        yield stream


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """All bytes until the server ends the connection, by EOF or by reset."""
    received = b""
    try:
        async for data in stream:
            received += data
    except trio.BrokenResourceError:
        pass
    return received


async def http_flood(scope: Scope, _receive: Receive, send: Send) -> None:
    """An app that answers a request without an end."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})


class H2Client:
    """HTTP/2 with prior knowledge, and WebSockets over it (RFC 8441)."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []
        self.ended = False

    async def start(self) -> None:
        self.http.initiate_connection()
        await self.flush()
        await self.wait_for(h2.events.RemoteSettingsChanged)

    async def flush(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def next_event(self) -> h2.events.Event | None:
        """The next event; None once the server has ended the connection."""
        while not self.events:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self.events += self.http.receive_data(data)
            for event in self.events:
                if isinstance(event, h2.events.DataReceived):
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            await self.flush()
        return self.events.pop(0)

    async def wait_for(self, kind: type[Any], stream_id: int | None = None) -> Any:
        while True:
            event = await self.next_event()
            assert event is not None, f"the connection ended before {kind.__name__}"
            if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                return event

    async def request(self, **pseudo: str) -> int:
        """Send a request of these pseudo headers; the number of its stream."""
        headers = {"method": "GET", "scheme": "http", "authority": "server", "path": "/"} | pseudo
        stream_id = self.http.get_next_available_stream_id()
        self.http.send_headers(
            stream_id,
            [(f":{name}", value) for name, value in headers.items()] + [("sec-websocket-version", "13")],
            end_stream="protocol" not in pseudo,
        )
        await self.flush()
        return stream_id

    async def connect(self, path: str) -> H2WebSocket:
        stream_id = await self.request(method="CONNECT", protocol="websocket", path=path)
        response = await self.wait_for(h2.events.ResponseReceived, stream_id)
        assert dict(response.headers)[":status"] == "200", response.headers
        return H2WebSocket(self, stream_id)


class H2WebSocket:
    """One WebSocket in one stream of HTTP/2."""

    def __init__(self, client: H2Client, stream_id: int) -> None:
        self.client = client
        self.stream_id = stream_id
        self.wire = Connection(ConnectionType.CLIENT)

    async def send(self, text: str) -> None:
        await self._put(TextMessage(text))

    async def _put(self, event: Event) -> None:
        self.client.http.send_data(self.stream_id, self.wire.send(event))
        await self.client.flush()

    async def receive(self) -> str | tuple[int, str | None]:
        """The next text, or the code and reason of the Close frame."""
        while True:
            for event in self.wire.events():
                if isinstance(event, TextMessage):
                    return event.data
                if isinstance(event, CloseConnection):
                    await self._put(event.response())
                    return event.code, event.reason
            data = await self.client.wait_for(h2.events.DataReceived, self.stream_id)
            self.wire.receive_data(data.data)
