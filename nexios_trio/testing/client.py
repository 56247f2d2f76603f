"""An ASGI server and its client in memory: no sockets, so that the virtual clock can run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

import trio
from wsproto.connection import Connection as WireConnection
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.utilities import RemoteProtocolError

from nexios_trio.exceptions import NexiosTrioError, WebSocketDisconnect, WrongStateError
from nexios_trio.types import ASGIApp, Message, Scope
from nexios_trio.websockets import codec
from nexios_trio.websockets.headers import encode_headers

__all__ = ["TestClient", "TestWebSocket", "WebSocketRejected"]

QUEUE: Final = 10
"""Messages in flight towards the app: hypercorn's ``max_app_queue_size``."""


class WebSocketRejected(NexiosTrioError):
    """The app answered the opening handshake with HTTP: ``status``, ``headers`` (list of str pairs,
    names lower-cased) and ``body`` (bytes).
    """

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        super().__init__(f"the app answered HTTP {status}: {body[:200]!r}")


class TestWebSocket:
    """The client's end of a connection in memory. All receiving methods give up after ``timeout``
    seconds of Trio's clock, which is at once under ``autojump_clock``.
    """

    __test__ = False

    def __init__(self, timeout: float, window: int) -> None:
        self.timeout = timeout
        self.subprotocol: str | None = None
        """What the app chose."""
        self.headers: list[tuple[str, str]] = []
        """The headers that the app added to the 101 response."""
        self.close_code: int | None = None
        """The code of the app's Close frame, once one was received."""
        self.close_reason = ""
        self._to_app, self._app_receives = trio.open_memory_channel[Message](QUEUE)
        self._app_sends, self._from_app = trio.open_memory_channel[Message](window)
        self._reading = trio.Event()
        self._reading.set()
        self._gone = False
        self._ended = trio.Event()

    # The server's side

    async def _asgi_receive(self) -> Message:
        return await self._app_receives.receive()

    async def _asgi_send(self, message: Message) -> None:
        try:
            await self._app_sends.send(message)
        except trio.BrokenResourceError:
            pass  # as hypercorn: a send after the client has left raises nothing

    async def _leave(self, code: int, reason: str = "") -> None:
        if not self._gone:
            self._gone = True
            self._from_app.close()
            try:
                await self._to_app.send({"type": "websocket.disconnect", "code": code, "reason": reason})
            except trio.BrokenResourceError:
                pass  # the app has returned already

    # The client's side

    async def send_text(self, data: str) -> None:
        """Send a text message; blocks while the app's queue (10 messages) is full."""
        await self._put({"type": "websocket.receive", "text": data, "bytes": None})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message; blocks while the app's queue (10 messages) is full."""
        await self._put({"type": "websocket.receive", "text": None, "bytes": data})

    async def send_json(self, data: Any, mode: str = "text") -> None:
        """Send ``data`` as JSON in a text message or, with ``mode="binary"``, a binary one."""
        encoded = codec.encode(data)
        await (self.send_text(encoded.decode()) if mode == "text" else self.send_bytes(encoded))

    async def _put(self, message: Message) -> None:
        if self._gone:
            raise WrongStateError("this client has left already; connect again")
        try:
            await self._to_app.send(message)
        except trio.BrokenResourceError:
            raise WebSocketDisconnect(self.close_code or 1006, self.close_reason) from None

    async def receive(self) -> Message:
        """The next ASGI message of the app: ``websocket.send`` or ``websocket.close``."""
        with trio.move_on_after(self.timeout):
            await self._reading.wait()
            if self._gone:
                raise WebSocketDisconnect(
                    1005 if self.close_code is None else self.close_code, self.close_reason
                )
            try:
                message = await self._from_app.receive()
            except trio.EndOfChannel:
                await self._leave(1006)
                raise WebSocketDisconnect(1006, by="network") from None
            if message["type"] == "websocket.close":
                self.close_code = message.get("code", 1000)
                self.close_reason = message.get("reason") or ""
                await self._leave(message.get("code", 1000), self.close_reason)
            return message
        raise trio.TooSlowError(f"the app sent no message within {self.timeout:g} s")

    async def _data(self) -> str | bytes:
        message = await self.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message.get("code", 1000), message.get("reason"))
        text = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def receive_text(self) -> str:
        """The next message, which must be text. Raises `WebSocketDisconnect` once the app has closed."""
        data = await self._data()
        assert isinstance(data, str), f"expected a text message, the app sent bytes: {data!r}"
        return data

    async def receive_bytes(self) -> bytes:
        """The next message, which must be binary."""
        data = await self._data()
        assert isinstance(data, bytes), f"expected a binary message, the app sent text: {data!r}"
        return data

    async def receive_json(self, mode: str = "text") -> Any:
        """The next message, read as JSON."""
        return json.loads(await (self.receive_text() if mode == "text" else self.receive_bytes()))

    async def wait_closed(self) -> tuple[int, str]:
        """Read on, throwing messages away, until the app closes; its code and reason."""
        while True:
            try:
                await self._data()
            except WebSocketDisconnect as closed:
                return closed.code, closed.reason

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a Close frame and wait until the app is done with this connection."""
        await self._leave(code, reason)
        await self._wait_ended()

    async def _wait_ended(self) -> None:
        with trio.move_on_after(self.timeout):
            await self._ended.wait()
            return
        raise trio.TooSlowError(
            f"the app's handler went on for {self.timeout:g} s after the client had left; see "
            "disconnect_grace"
        )

    # Faults

    async def drop(self) -> None:
        """Vanish without a Close frame, as when TCP breaks: the app is told 1006."""
        await self._leave(1006)

    async def stall(self) -> None:
        """Stop reading, as a client whose process hangs: the app's sends block. Ended by `resume`."""
        self._reading = trio.Event()
        await trio.lowlevel.checkpoint()

    async def resume(self) -> None:
        """Read again after `stall`."""
        self._reading.set()
        await trio.lowlevel.checkpoint()

    async def garbage(self, data: bytes) -> None:
        """Put raw bytes on the wire. Valid frames of a client reach the app as messages; anything else
        ends the connection as hypercorn ends it: the app is told 1006.
        """
        wire = WireConnection(ConnectionType.SERVER)
        try:
            wire.receive_data(data)
            for event in wire.events():
                if isinstance(event, TextMessage):
                    await self.send_text(event.data)
                elif isinstance(event, BytesMessage):
                    await self.send_bytes(bytes(event.data))
                elif isinstance(event, CloseConnection):
                    await self._leave(event.code, event.reason or "")
        except RemoteProtocolError:
            await self.drop()


class TestClient:
    """Talks to an ASGI app in memory, with its lifespan around it.

    Use the ``nexios_client`` fixture, or ``async with TestClient(app) as client``. ``timeout`` bounds
    every wait, in seconds of Trio's clock. ``window`` is how many messages the app may send before the
    client has to read.
    """

    __test__ = False

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifespan: bool = True,
        timeout: float = 10.0,
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
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            shut_down = await self._start_up(nursery) if self._lifespan else None
            self._nursery = nursery
            try:
                yield
            except BaseException as error:  # raised below, outside the nursery's exception group
                failure = error
            self._nursery = None
            with trio.move_on_after(self.timeout, shield=True):
                if shut_down is not None:
                    await shut_down()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _start_up(self, nursery: trio.Nursery) -> Callable[[], Awaitable[None]]:
        to_app, app_receives = trio.open_memory_channel[Message](2)
        app_sends, from_app = trio.open_memory_channel[Message](2)
        failure: list[BaseException] = []

        async def run() -> None:
            scope = {
                "type": "lifespan",
                "asgi": {"version": "3.0", "spec_version": "2.0"},
                "state": self.state,
            }
            async with app_sends, app_receives:
                try:
                    await self.app(scope, app_receives.receive, app_sends.send)
                except Exception as error:
                    failure.append(error)

        async def step(kind: str) -> None:
            try:
                await to_app.send({"type": f"lifespan.{kind}"})
                answer = await from_app.receive()
                if answer["type"].endswith(".failed"):
                    await from_app.receive()
            except (trio.BrokenResourceError, trio.EndOfChannel):
                failed = failure and not isinstance(
                    failure[0], AssertionError | KeyError | NotImplementedError
                )
                if failed:
                    raise failure[0] from None
                # An app without a lifespan returns or raises at once; servers go on without, and so do we.

        nursery.start_soon(run)
        await step("startup")
        return lambda: step("shutdown")

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
        if self._nursery is None and self._opener is not None:
            opener, self._opener = self._opener, None
            await opener()
        if self._nursery is None:
            raise WrongStateError("this client is not open; write `async with TestClient(app) as client:`")
        scope = self._scope(path, headers, subprotocols, params, http_response)
        ws = TestWebSocket(self.timeout, self.window)
        self._nursery.start_soon(self._run, scope, ws)
        await self._handshake(ws)
        try:
            yield ws
        finally:
            with trio.CancelScope(shield=True):
                ws._reading.set()
                await ws._leave(1000 if ws.close_code is None else ws.close_code)
                await ws._wait_ended()

    async def _run(self, scope: Scope, ws: TestWebSocket) -> None:
        try:
            await self.app(scope, ws._asgi_receive, ws._asgi_send)
        finally:
            ws._app_sends.close()
            ws._app_receives.close()
            ws._ended.set()

    async def _handshake(self, ws: TestWebSocket) -> None:
        await ws._to_app.send({"type": "websocket.connect"})
        try:
            message = await ws.receive()
        except WebSocketDisconnect:
            raise WebSocketRejected(500, [], b"") from None  # the app returned without an answer
        except BaseException:
            with trio.CancelScope(shield=True):
                await ws.drop()
            raise
        if message["type"] == "websocket.accept":
            ws.subprotocol = message.get("subprotocol")
            ws.headers = _decode(message.get("headers") or ())
            return
        if message["type"] == "websocket.close":
            await ws._wait_ended()
            raise WebSocketRejected(403, [], b"")
        body = b""
        while True:
            part = await ws.receive()
            body += part.get("body", b"")
            if not part.get("more_body", False):
                break
        await ws._leave(1000)
        await ws._wait_ended()
        raise WebSocketRejected(message["status"], _decode(message["headers"]), body)

    def _scope(
        self,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None,
        subprotocols: Sequence[str],
        params: Mapping[str, str] | None,
        http_response: bool,
    ) -> Scope:
        url = urlsplit(self.base_url)
        raw_path, _, query = path.partition("?")
        raw_path = quote(raw_path, safe="/%:@!$&'()*+,;=~")
        if params:
            query = f"{query}&{urlencode(params)}" if query else urlencode(params)
        given = encode_headers(headers)
        names = {name for name, _ in given}
        base = [
            (b"host", url.netloc.encode()),
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
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
