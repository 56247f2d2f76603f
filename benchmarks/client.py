"""A client that can also end badly: `nexios_trio.wire`, and h11 for HTTP, over Trio's sockets."""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import h11
import trio
from attrs import define

from nexios_trio.wire import ClientHandshake, Close, Connection, Event, Failure, Ping, Pong

__all__ = ["Client", "Ended", "Wrong", "ask", "dial", "reset"]

ADDRESSES: Final = 50
"""That the clients come from: one may not shake hands as often as it likes."""
_CHUNK: Final = 1 << 16


class Wrong(Exception):
    """A client saw what it should not have seen."""


class Ended(Exception):
    """The server closed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code} {reason}".rstrip())
        self.code = code


async def dial(port: int, number: int, receive_buffer: int | None = None) -> trio.SocketStream:
    """TCP, from one of many addresses."""
    sock = trio.socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await sock.bind((f"127.0.0.{1 + number % ADDRESSES}", 0))
        await sock.connect(("127.0.0.1", port))
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


async def ask(stream: trio.SocketStream, method: str, target: str, body: bytes = b"") -> bytes:
    """One HTTP request on a connection; returns the body. Raises `Wrong` if the answer is not 200."""
    http = h11.Connection(h11.CLIENT)
    head = h11.Request(
        method=method, target=target, headers=[("Host", "soak"), ("Content-Length", str(len(body)))]
    )
    parts = (head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
    await stream.send_all(b"".join(http.send(part) or b"" for part in parts))
    found = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_CHUNK)))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise Wrong(f"{method} {target} was answered with {event.status_code}")
        elif isinstance(event, h11.Data):
            found += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return found
        elif isinstance(event, h11.ConnectionClosed):
            raise Wrong(f"{method} {target} was not answered")


def reset(stream: trio.SocketStream) -> None:
    """End it with RST."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@define(eq=False)
class Client:
    """A WebSocket; closed hard at the end of the block, unless `close` was called."""

    stream: trio.SocketStream
    wire: Connection
    events: deque[Event]

    @classmethod
    async def connect(cls, port: int, number: int, target: str, receive_buffer: int | None = None) -> Client:
        """Raises `nexios_trio.wire.HandshakeError` if it is refused."""
        stream = await dial(port, number, receive_buffer)
        try:
            handshake = ClientHandshake(f"127.0.0.1:{port}", target, nonce=os.urandom(16))
            await stream.send_all(handshake.request)
            while handshake.receive_data(data := bytes(await stream.receive_some(4096))) is None:
                if not data:
                    raise Wrong("no answer to the handshake")
        except BaseException:
            reset(stream)
            raise
        wire = Connection.client(lambda: os.urandom(4))
        return cls(stream, wire, deque(wire.receive_data(handshake.trailing)))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.stream.socket.fileno() >= 0:
            reset(self.stream)

    async def send(self, message: str | bytes) -> None:
        encode: Callable[[Any], bytes] = (
            self.wire.encode_text if isinstance(message, str) else self.wire.encode_binary
        )
        await self.stream.send_all(encode(message))

    async def receive(self) -> str | bytes:
        """The next message. Raises `Ended`, and `Wrong` if the server breaks the protocol or vanishes."""
        while True:
            while self.events:
                event = self.events.popleft()
                if isinstance(event, str | bytes):
                    return event
                if isinstance(event, Failure):
                    raise Wrong(f"the server broke the protocol: {event.reason}")
                if isinstance(event, Close):
                    if event.code == 1006:
                        raise Wrong("the server vanished without a Close frame")
                    with contextlib.suppress(trio.BrokenResourceError):  # it need not wait for our half
                        await self.stream.send_all(self.wire.encode_close())
                    raise Ended(event.code, event.reason)
                assert isinstance(event, Ping | Pong)
            data = bytes(await self.stream.receive_some(_CHUNK))
            self.events.extend(self.wire.receive_data(data) if data else self.wire.receive_eof())
            if pongs := self.wire.data_to_send():
                await self.stream.send_all(pongs)

    async def ended(self) -> int:
        """Read on until the server closes; returns its code."""
        try:
            while True:
                await self.receive()
        except Ended as end:
            return end.code

    async def close(self) -> None:
        """The closing handshake, and TCP's end after it."""
        await self.stream.send_all(self.wire.encode_close(1000))
        if (code := await self.ended()) != 1000:
            raise Wrong(f"a Close with 1000 was answered with {code}")
        await self.stream.aclose()
