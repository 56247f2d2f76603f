"""The client's end of a connection in memory, with the server in between played as hypercorn plays it."""

from __future__ import annotations

import json
from typing import Any, Final

import trio
from wsproto.connection import Connection as WireConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from nexios_trio.exceptions import NexiosTrioError, WebSocketDisconnect, WrongStateError
from nexios_trio.types import Message
from nexios_trio.websockets import codec

__all__ = ["TestWebSocket", "WebSocketRejected"]

QUEUE: Final = 10
"""Messages in flight towards the app: hypercorn's ``max_app_queue_size``."""

_LEGAL: Final[dict[str, tuple[str, ...]]] = {
    "connecting": ("websocket.accept", "websocket.close", "websocket.http.response.start"),
    "answering": ("websocket.http.response.body",),
    "open": ("websocket.send", "websocket.close"),
    "over": ("websocket.close",),  # hypercorn ignores a second one
}
"""What an app may send, by what it has sent before."""

_NEXT: Final = {
    "websocket.accept": "open",
    "websocket.close": "over",
    "websocket.http.response.start": "answering",
}


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
        self._phase = "connecting"
        self._wire = WireConnection(ConnectionType.SERVER)
        self._parts: list[str | bytes] = []
        self._reading = trio.Event()
        self._reading.set()
        self._left: WebSocketDisconnect | None = None
        self._app_told = False
        self._ended = trio.Event()

    # The server's side

    async def _asgi_receive(self) -> Message:
        try:
            return await self._app_receives.receive()
        except trio.EndOfChannel:
            if self._app_told:  # as hypercorn, which has nothing more to say
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            self._app_told = True
            assert self._left is not None
            return {"type": "websocket.disconnect", "code": self._left.code, "reason": self._left.reason}

    async def _asgi_send(self, message: Message) -> None:
        kind = message["type"]
        if self._left is not None:  # as hypercorn: a send after the client has left raises nothing
            await trio.lowlevel.checkpoint()
            return
        legal = _LEGAL[self._phase]
        if kind not in legal:
            raise WrongStateError(
                f"the app sent {kind!r} on a connection that is {self._phase}; servers take only "
                + " or ".join(map(repr, legal))
            )
        try:
            await self._app_sends.send(message)
        except trio.BrokenResourceError:
            pass
        self._phase = _NEXT.get(kind, self._phase)

    def _app_ended(self) -> None:
        self._app_sends.close()
        self._app_receives.close()
        self._ended.set()

    def _leave(self, code: int, reason: str = "") -> None:
        """Be gone: the app is told once it has read what was sent before."""
        if self._left is None:
            self._left = WebSocketDisconnect(code, reason, by="network" if code == 1006 else "local")
            self._from_app.close()
            self._to_app.close()

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

    def _check_here(self) -> None:
        if self.close_code is not None:
            raise WebSocketDisconnect(self.close_code, self.close_reason)
        if self._left is not None:
            raise WrongStateError("this client has left already; connect again")

    async def _put(self, message: Message) -> None:
        self._check_here()
        with trio.move_on_after(self.timeout):
            try:
                await self._to_app.send(message)
            except trio.BrokenResourceError:
                raise WebSocketDisconnect(1006, by="network") from None
            except trio.ClosedResourceError:
                assert self._left is not None
                raise WebSocketDisconnect(self._left.code, self._left.reason, by=self._left.by) from None
            return
        raise trio.TooSlowError(
            f"the app took no message for {self.timeout:g} s, and {QUEUE} others wait before this one"
        )

    async def receive(self) -> Message:
        """The next ASGI message of the app: ``websocket.send`` or ``websocket.close``."""
        with trio.move_on_after(self.timeout):
            await self._reading.wait()
            if self._left is None:
                try:
                    message = await self._from_app.receive()
                except trio.EndOfChannel:
                    self._leave(1006)
                except trio.ClosedResourceError:
                    pass  # another task has left meanwhile
                else:
                    if message["type"] == "websocket.close":
                        self.close_code = message.get("code", 1000)
                        self.close_reason = message.get("reason") or ""
                        self._leave(message.get("code", 1000), self.close_reason)
                    return message
            if self.close_code is not None:
                raise WebSocketDisconnect(self.close_code, self.close_reason)
            assert self._left is not None
            raise WebSocketDisconnect(self._left.code, self._left.reason, by=self._left.by)
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
        self._leave(code, reason)
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
        self._leave(1006)
        await trio.lowlevel.checkpoint()

    async def stall(self) -> None:
        """Stop reading, as a client whose process hangs: once the window is full, the app's sends block.
        Ended by `resume`.
        """
        if self._reading.is_set():
            self._reading = trio.Event()
        await trio.lowlevel.checkpoint()

    async def resume(self) -> None:
        """Read again after `stall`."""
        self._reading.set()
        await trio.lowlevel.checkpoint()

    async def garbage(self, data: bytes) -> None:
        """Put raw bytes on the wire. Valid frames of a client reach the app as messages, once they are
        complete; anything else ends the connection as hypercorn ends it: the app is told 1006.
        """
        self._check_here()
        self._wire.receive_data(data)
        for event in self._wire.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
                if event.message_finished:
                    parts, self._parts = self._parts, []
                    if isinstance(event, TextMessage):
                        await self.send_text("".join(map(str, parts)))
                    else:
                        await self.send_bytes(b"".join(map(bytes, parts)))  # type: ignore[arg-type]
            elif isinstance(event, CloseConnection):
                if self._wire.state is ConnectionState.REMOTE_CLOSING:
                    self._leave(int(event.code), event.reason or "")
                else:  # how wsproto reports a violation of the protocol
                    self._leave(1006)
        await trio.lowlevel.checkpoint()
