"""An ASGI server and its client in memory: no sockets, so that the virtual clock can run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

import trio

from nexios_trio.exceptions import WebSocketDisconnect, WrongStateError, WrongValueError
from nexios_trio.testing.lifespan import Lifespan
from nexios_trio.testing.websocket import TestWebSocket, WebSocketRejected
from nexios_trio.types import ASGIApp, Scope
from nexios_trio.websockets.headers import encode_headers

__all__ = ["TestClient", "TestWebSocket", "WebSocketRejected"]

_SAFE: Final = "/%:@!$&'()*+,;=~"


class TestClient:
    """Talks to an ASGI app in memory, with its lifespan around it.

    Use the ``nexios_client`` fixture, or ``async with TestClient(app) as client``. ``timeout`` bounds
    every wait, in seconds of Trio's clock; it is longer than an app's own timeouts. ``window`` is how
    many messages the app may send before the client has to read. What the app raises ends the block
    with that error.
    """

    __test__ = False

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifespan: bool = True,
        timeout: float = 15.0,
        window: int = 100,
        root_path: str = "",
        base_url: str = "ws://testserver",
        client: tuple[str, int] = ("testclient", 50000),
    ) -> None:
        self.app = app
        self.timeout = timeout
        self.window = window
        self.root_path = root_path
        self.base_url = base_url
        self.client = client
        self.state: dict[str, Any] = {}
        self._lifespan = lifespan
        self._nursery: trio.Nursery | None = None
        self._opener: Callable[[], Awaitable[object]] | None = None
        self._opening = trio.Lock()

    def open_with(self, opener: Callable[[], Awaitable[object]]) -> None:
        """Call ``opener`` to enter this client when the first connection is asked for."""
        self._opener = opener

    async def __aenter__(self) -> TestClient:
        self._manager = self._open()
        await self._manager.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        return await self._manager.__aexit__(*exc_info)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        errors: list[BaseException] = []
        body = trio.CancelScope()

        def crashed(error: Exception) -> None:
            errors.append(error)
            body.cancel()

        self._crashed = crashed
        lifespan = Lifespan(self.app, self.state, self.timeout, crashed) if self._lifespan else None
        async with trio.open_nursery() as nursery:
            # Errors are raised below, outside the nursery's exception group.
            try:
                with body:
                    if lifespan is not None:
                        nursery.start_soon(lifespan.run)
                        await lifespan.start_up()
                    self._nursery = nursery
                    yield
            except BaseException as error:
                errors.insert(0, error)
            self._nursery = None
            if lifespan is not None:
                with trio.CancelScope(shield=True):
                    try:
                        await lifespan.shut_down()
                    except Exception as error:
                        errors.append(error)
            nursery.cancel_scope.cancel()
        if len(errors) > 1:
            raise BaseExceptionGroup("the test and its app failed", errors)
        if errors:
            raise errors[0]

    @asynccontextmanager
    async def connect(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None = None,
        subprotocols: Sequence[str] = (),
        params: Mapping[str, str] | None = None,
        http_response: bool = True,
    ) -> AsyncIterator[TestWebSocket]:
        """Open a connection to ``path``, which may hold a query; close it at the end of the block.

        Raises `WebSocketRejected` if the app rejects it. ``http_response=False`` plays a server without
        ASGI's ``websocket.http.response`` extension.
        """
        nursery = await self._opened()
        scope = self._scope(path, headers, subprotocols, params, http_response)
        ws = TestWebSocket(self.timeout, self.window)
        nursery.start_soon(self._run, scope, ws)
        await self._handshake(ws)
        try:
            yield ws
        except BaseException:
            with trio.CancelScope(shield=True):
                try:
                    await self._hang_up(ws)
                except trio.TooSlowError:
                    pass  # the test has failed already, by something that comes before this
            raise
        with trio.CancelScope(shield=True):
            await self._hang_up(ws)

    async def _opened(self) -> trio.Nursery:
        if self._nursery is None and self._opener is not None:
            async with self._opening:
                if self._nursery is None and self._opener is not None:
                    await self._opener()
                    self._opener = None
        if self._nursery is None:
            raise WrongStateError("this client is not open; write `async with TestClient(app) as client:`")
        return self._nursery

    async def _hang_up(self, ws: TestWebSocket) -> None:
        ws._reading.set()
        ws._leave(1000)
        await ws._wait_ended()

    async def _run(self, scope: Scope, ws: TestWebSocket) -> None:
        try:
            await self.app(scope, ws._asgi_receive, ws._asgi_send)
        except Exception as error:
            self._crashed(error)
        finally:
            ws._app_ended()

    async def _handshake(self, ws: TestWebSocket) -> None:
        await ws._to_app.send({"type": "websocket.connect"})
        try:
            message = await ws.receive()
            if message["type"] == "websocket.http.response.start":
                body = b""
                more = True
                while more:
                    part = await ws.receive()
                    body += part.get("body", b"")
                    more = part.get("more_body", False)
                ws._leave(1000)
                await ws._wait_ended()
                raise WebSocketRejected(message["status"], _decode(message.get("headers") or ()), body)
            if message["type"] == "websocket.close":
                await ws._wait_ended()
                raise WebSocketRejected(403, [], b"")
        except WebSocketDisconnect:
            raise WebSocketRejected(500, [], b"") from None  # the app returned without a whole answer
        except BaseException:
            ws._leave(1006)
            raise
        ws.subprotocol = message.get("subprotocol")
        ws.headers = _decode(message.get("headers") or ())

    def _scope(
        self,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None,
        subprotocols: Sequence[str],
        params: Mapping[str, str] | None,
        http_response: bool,
    ) -> Scope:
        if not path.startswith("/"):
            raise WrongValueError(f'a path starts with a slash; write "/{urlsplit(path).path.lstrip("/")}"')
        url = urlsplit(self.base_url)
        raw_path, _, query = path.partition("?")
        raw_path = quote(raw_path, safe=_SAFE)
        query = quote(query, safe=_SAFE + "?")
        if params:
            query = f"{query}&{urlencode(params)}" if query else urlencode(params)
        given = encode_headers(headers)
        names = {name for name, _ in given}
        base = [
            (b"host", url.netloc.encode()),
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),  # RFC 6455 §1.3
        ]
        if subprotocols:
            given.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode()))
        return {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": url.scheme,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": self.root_path,
            "headers": [pair for pair in base if pair[0] not in names] + given,
            "client": self.client,
            "server": (url.hostname or "testserver", url.port or (443 if url.scheme == "wss" else 80)),
            "subprotocols": list(subprotocols),
            "state": dict(self.state),
            "extensions": {"websocket.http.response": {}} if http_response else {},
        }


def _decode(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
