"""The fast lane's end of a TCP connection: its handshake, its ASGI scope, and the call of the app."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio

from nexios_trio.config import ConnectionSettings
from nexios_trio.server.reactor import make_reactor
from nexios_trio.transports.engine import TRANSPORT, EngineTransport
from nexios_trio.transports.states import State
from nexios_trio.types import ASGIApp, Scope
from nexios_trio.wire import HandshakeError, Request, RequestReader, error_response
from nexios_trio.wire.classify import PEEK_BYTES
from nexios_trio.wire.handshake import MAX_HEAD_BYTES

__all__ = ["Engine"]

logger = logging.getLogger("nexios_trio.server")

Access = Callable[[Scope, int, float], Awaitable[None]]
"""Told of each answer to a handshake: the scope, the status, and the seconds that it took."""


class Engine:
    """All connections of the fast lane in one process."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ConnectionSettings,
        *,
        root_path: str = "",
        access: Access | None = None,
        message_bytes: int | None = None,
        head_bytes: int = MAX_HEAD_BYTES,
    ) -> None:
        """``message_bytes``: the bound on a message, whatever the app's settings say of it. ``head_bytes``:
        that on the head of a request."""
        self.app = app
        self.settings = settings
        self.reactor = make_reactor()
        self._root_path = root_path
        self._access = access
        self._message_bytes = message_bytes
        self.new_reader = partial(RequestReader, max_head_bytes=head_bytes, max_target_bytes=head_bytes)
        # One object for all connections: these are kept for as long as they live.
        self._asgi = {"spec_version": "2.4", "version": "3.0"}
        self._servers: dict[tuple[str, int] | None, tuple[str, int] | None] = {}
        self._live: set[EngineTransport] = set()
        self.run = self.reactor.run

    async def read_request(self, sock: socket.socket) -> tuple[Request, bytes] | None:
        """The request for an upgrade that a TCP connection begins with, and what came behind it; None: there
        was none, or a bad one, which is answered. The socket is closed then, and if this is cancelled."""
        sock.setblocking(False)
        found = None
        try:
            found = await self._read_request(sock)
        finally:
            if found is None:
                sock.close()
        return found

    async def serve(
        self,
        sock: socket.socket,
        request: Request,
        early: bytes = b"",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Serve a connection from its request to its end; owns the socket. Raises only `trio.Cancelled`.

        ``state`` is what the app's lifespan has yielded.
        """
        begun = time.perf_counter()
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        scope = self._scope(request, sock, dict(state or {}))
        transport = EngineTransport(
            sock, request, self.reactor, self.settings, early=early, message_bytes=self._message_bytes
        )
        del request, early  # nobody needs them for as long as the connection lives
        self._live.add(transport)
        scope["extensions"] = {"websocket.http.response": {}, TRANSPORT: transport}
        try:
            try:
                await self.app(scope, transport.asgi_receive, transport.asgi_send)
            except BaseException as error:
                await _close_after(error, transport)
                if not isinstance(error, Exception):
                    raise
            else:
                await _close_after(None, transport)
        except Exception:
            logger.exception("a connection failed in the engine")
        finally:
            try:
                await transport.finish()
            finally:
                self._live.discard(transport)
            if self._access is not None and transport.answered:
                await self._access(scope, transport.answered, time.perf_counter() - begun)

    def drop(self) -> None:
        """Let none of the clients, whoever does not read among them, hold up the end any longer."""
        for transport in self._live:
            try:
                transport.sock.shutdown(socket.SHUT_RDWR)  # which the reactor hears of
            except OSError:
                pass  # it is gone

    async def _read_request(self, sock: socket.socket) -> tuple[Request, bytes] | None:
        reader = self.new_reader()
        beginning = b""
        while True:
            try:
                data = sock.recv(1 << 16)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_readable(sock)
                continue
            except OSError:
                return None
            if not data:
                return None
            beginning = (beginning + data)[:PEEK_BYTES]
            try:
                request = reader.receive_data(data)
            except HandshakeError as error:
                await self.refuse(sock, error, beginning)
                return None
            if request is not None:
                return request, reader.trailing

    async def refuse(self, sock: socket.socket, error: HandshakeError, beginning: bytes) -> None:
        """Answer a request that is none, of which this is the beginning; closes the socket."""
        begun = time.perf_counter()
        logger.info("refused a handshake with %d: %a", error.status, error.reason)
        scope = None if self._access is None else self._refused_scope(sock, beginning)
        try:
            sock.send(error_response(error))
            if scope is not None and self._access is not None:
                await self._access(scope, error.status, time.perf_counter() - begun)
            sock.shutdown(socket.SHUT_WR)
            with trio.move_on_after(1):
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    if not sock.recv(1 << 16):
                        return
        except OSError as failure:
            if failure.errno not in (errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
        finally:
            sock.close()

    def _refused_scope(self, sock: socket.socket, beginning: bytes) -> Scope | None:
        """What an access log wants of a request that is not well-formed, as far as it has it."""
        first, *lines = beginning.partition(b"\r\n\r\n")[0].split(b"\r\n")
        words = first.split(b" ")
        if len(words) != 3:
            return None
        path, _, query = words[1].partition(b"?")
        fields = [line.partition(b":") for line in lines]
        return {
            "type": "websocket",
            "http_version": "1.1",
            "scheme": "ws",
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "root_path": self._root_path,
            "headers": [(name.strip().lower(), value.strip()) for name, colon, value in fields if colon],
            "client": _address(sock.getpeername),
            "server": _address(sock.getsockname),
        }

    def _scope(self, request: Request, sock: socket.socket, state: dict[str, Any]) -> dict[str, Any]:
        server = _address(sock.getsockname)
        return {
            "type": "websocket",
            "asgi": self._asgi,
            "http_version": "1.1",
            "scheme": "ws",
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query_string,
            "root_path": self._root_path,
            "headers": request.headers,
            "client": _address(sock.getpeername),
            "server": self._servers.setdefault(server, server),
            "subprotocols": request.subprotocols,
            "state": state,
        }


async def _close_after(error: BaseException | None, transport: EngineTransport) -> None:
    """End what the app leaves open, as hypercorn does."""
    if error is not None and not isinstance(error, Exception):  # cancelled: the server goes down
        with trio.CancelScope(shield=True), trio.move_on_after(transport.close_timeout):
            await transport.close(1012, "service restart")
        return
    if error is not None:
        logger.error("Error in ASGI Framework", exc_info=error)
    if transport.state is State.CONNECTING:
        await transport.reject(500, [], b"")
    elif transport.state is State.OPEN:
        await (transport.close(1000, "") if error is None else transport.close(1011, "internal error"))
    if transport.state is State.CLOSING:
        with trio.move_on_after(transport.close_timeout):
            await transport.wait_gone()


def _address(ask: Callable[[], Any]) -> tuple[str, int] | None:
    try:
        name = ask()
    except OSError:
        return None
    return (name[0], name[1]) if isinstance(name, tuple) else None
