"""Which lane a TCP connection takes: plain WebSocket goes to the engine, all else to hypercorn.

The first bytes are looked at and left in the kernel (``MSG_PEEK``), so whoever serves reads them for himself.
"""

from __future__ import annotations

import socket
from typing import Any

import trio
from hypercorn.config import Config

from nexios_trio.server.engine import Engine
from nexios_trio.server.tcp import Lobby, TCPConnection
from nexios_trio.wire.classify import PEEK_BYTES, Kind, classify

__all__ = ["Handoff", "wants_upgrade"]

LOOKS = 16
"""Times that a beginning is looked at whenever there is more of it."""

PAUSE = 0.02
"""Seconds between further looks. Each is one at all that has come: a client that sends a byte at a time shall
not have us look for every one. Also where the kernel cannot be asked to wait for one byte more."""


async def wants_upgrade(sock: trio.socket.SocketType) -> bool:
    """Whether this TCP connection begins with an HTTP/1.1 request for WebSocket; waits until that is sure.

    A checkpoint. Nothing is taken from the socket; one whose client leaves before it has said is not ours.
    """
    seen = looks = 0
    try:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                beginning = await sock.recv(PEEK_BYTES, socket.MSG_PEEK)
            except OSError:
                return False
            kind = classify(beginning)
            if kind is not Kind.UNDECIDED or len(beginning) == seen:  # no more will come
                return kind is Kind.WEBSOCKET
            seen = len(beginning)
            looks += 1
            if looks >= LOOKS:
                await trio.sleep(PAUSE)
            try:  # be woken by the next byte, not by those that we leave there
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
            except OSError:
                seen = -1
                await trio.sleep(PAUSE)
    finally:
        if seen > 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


class Handoff(TCPConnection):
    """hypercorn's task for one TCP connection, which the engine serves where it can."""

    def __init__(self, engine: Engine, lobby: Lobby, *args: Any) -> None:
        super().__init__(lobby, *args)
        self._engine = engine

    async def serve(self) -> None:
        """See `TCPConnection.serve`."""
        config: Config = self.config
        if not isinstance(self.stream, trio.SocketStream) or config.server_names:
            await super().serve()
            return
        if not await wants_upgrade(self.stream.socket):
            await super().serve()
            return
        sock = socket.socket(fileno=self.stream.socket.detach())
        found = await self._engine.read_request(sock)
        if found is None:
            return
        try:
            await self.context.mark_request()
        except BaseException:
            sock.close()
            raise
        # In a task of its own, beside those of hypercorn: of this one, its objects and its frames between the
        # loop and the handler, a connection would need nothing for as long as it lives.
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.start_soon(self._engine.serve, sock, *found, self.state)
