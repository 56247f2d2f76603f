"""Where TCP connections come in: those that begin with a request for WebSocket go to the engine at once.

What hypercorn and Trio make for a connection (a stream, two objects, a task with four scopes) costs as much
as the rest of a handshake. So a socket is accepted here, and its first bytes are looked at; only if that does
not settle it, or it is not ours, is it made into a stream for hypercorn's task, which goes on from there.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import trio

from nexios_trio.server.engine import Engine
from nexios_trio.server.tcp import Lobby
from nexios_trio.wire import HandshakeError
from nexios_trio.wire.classify import PEEK_BYTES, Kind, classify

__all__ = ["serve_listeners"]

logger = logging.getLogger("nexios_trio.server")

ACCEPTS: Final = 16
"""Connections that are accepted before other tasks run, and other workers have their chance."""

PAUSE: Final = 0.1
"""Seconds until the next try when the process has no descriptor left for one more connection."""

SILENCE: Final = 1.0
"""Seconds that a connection without a byte costs no task."""

_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_NOT_OPEN: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


async def serve_listeners(
    engine: Engine,
    lobby: Lobby,
    server: Callable[[trio.SocketStream], Awaitable[object]],
    listeners: Iterable[trio.abc.Listener[Any]],
    *,
    handler_nursery: trio.Nursery,
) -> None:
    """In the place of `trio.serve_listeners`, for hypercorn: ``server`` makes its task for a connection, of
    the arguments that `nexios_trio.server.handoff.Handoff` takes."""
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            if isinstance(listener, trio.SocketListener) and isinstance(server, partial):
                door = _Door(engine, lobby, server, handler_nursery)
                nursery.start_soon(door.serve, listener)
            else:  # TLS
                nursery.start_soon(
                    partial(trio.serve_listeners, server, [listener], handler_nursery=handler_nursery)
                )


class _Door:
    def __init__(self, engine: Engine, lobby: Lobby, server: partial[Any], nursery: trio.Nursery) -> None:
        _app, self._config, self._context, self._state = server.args[-4:]
        self._server = server
        self._nursery = nursery
        self.engine = engine
        self.lobby = lobby
        self.silent: set[_Silent] = set()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept for ever; owns the listener."""
        async with listener:
            await self._serve_listener(listener)

    async def _serve_listener(self, listener: trio.SocketListener) -> None:
        sock = socket.socket(fileno=os.dup(listener.socket.fileno()))
        sock.setblocking(False)
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                if not self._accept(sock):
                    await trio.sleep(PAUSE)
        finally:
            sock.close()
            for silent in tuple(self.silent):
                silent.cancel()

    def _accept(self, listener: socket.socket) -> bool:
        """Accept what is there, or some of it; False: there is no room."""
        for _ in range(ACCEPTS):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _NO_ROOM:
                    logger.error(
                        "cannot accept a connection: %s; trying again in %s seconds", error.strerror, PAUSE
                    )
                    return False
                if error.errno in _NOT_OPEN:
                    raise
                continue  # that client has left
            sock.setblocking(False)
            self.look(sock)
        return True

    def look(self, sock: socket.socket, *, waited: bool = False) -> None:
        """Decide who serves this connection."""
        if self._config.server_names:
            self._hand_over(sock)
            return
        try:
            beginning = sock.recv(PEEK_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            if waited:
                self._hand_over(sock)
            else:
                _Silent(self, sock)
            return
        except OSError:
            sock.close()
            return
        whole = len(beginning) < PEEK_BYTES and b"\r\n\r\n" in beginning
        if whole and classify(beginning) is Kind.WEBSOCKET:
            self._serve(sock)
        else:
            self._hand_over(sock)

    def _serve(self, sock: socket.socket) -> None:
        reader = self.engine.new_reader()
        beginning = b""
        try:
            beginning = sock.recv(PEEK_BYTES)
            request = reader.receive_data(beginning)
        except HandshakeError as error:
            self._nursery.start_soon(self.engine.refuse, sock, error, beginning)
            return
        except OSError:
            sock.close()
            return
        assert request is not None  # it is whole
        if self._context.max_requests is not None:
            self._nursery.start_soon(self._context.mark_request)
        self._nursery.start_soon(self.engine.serve, sock, request, reader.trailing, self._state)

    def _hand_over(self, sock: socket.socket) -> None:
        try:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        except OSError:  # it was reset meanwhile
            sock.close()
            return
        self._nursery.start_soon(_run, self._server, stream)


async def _run(server: Callable[[trio.SocketStream], Awaitable[object]], stream: trio.SocketStream) -> None:
    try:
        await server(stream)
    finally:
        await trio.aclose_forcefully(stream)


class _Silent:
    """A connection that has sent nothing yet: the reactor's, and in the lobby, where it is what has patience
    (`nexios_trio.server.tcp.Lobby`)."""

    __slots__ = (
        "_deadline",
        "_door",
        "_until",
        "reading",
        "scheduled",
        "sock",
        "watched",
        "writing",
    )

    def __init__(self, door: _Door, sock: socket.socket) -> None:
        self._door = door
        self.sock = sock
        self.reading, self.writing = True, False
        self.watched = 0
        self.scheduled = math.inf
        self._deadline = math.inf
        self._until = trio.current_time() + SILENCE
        door.silent.add(self)
        door.engine.reactor.watch(self)
        door.engine.reactor.wake_at(self, self._until)
        door.lobby.enter(self)

    # For the lobby

    @property
    def patience(self) -> _Silent:
        return self

    @property
    def deadline(self) -> float:
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._until:
            self._door.engine.reactor.wake_at(self, deadline)

    def cancel(self) -> None:
        """End the connection."""
        self._forget()
        self.sock.close()

    # For the reactor

    def readable(self) -> None:
        self._forget()
        self._door.look(self.sock, waited=True)

    def writable(self) -> None:
        pass  # never watched for

    def hung_up(self) -> None:
        self.cancel()

    def tick(self, now: float) -> float:
        if self not in self._door.silent:
            return math.inf
        if now >= self._deadline:
            self.cancel()
        elif now >= self._until:
            self.readable()
        else:
            return min(self._until, self._deadline)
        return math.inf

    def _forget(self) -> None:
        self._door.silent.discard(self)
        self._door.engine.reactor.forget(self)
        self._door.lobby.leave(self)
