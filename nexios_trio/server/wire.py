"""What one WebSocket's bytes may cost: the size of messages, of what they unpack to, and turns at the CPU.

hypercorn 0.18 checks a message's size in characters, says 1009, and goes on collecting what it has refused;
a compressed message is unpacked as a whole before anybody looks at its size. Here wsproto's connection, which
hypercorn makes for a WebSocket, is replaced by one that counts bytes and ends the connection at the bound,
and its permessage-deflate by one that stops there. Where the client is at fault, it is told so by a Close
frame: hypercorn drops TCP without one.
"""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Awaitable, Callable, Generator
from functools import cache, partial
from typing import Any, Final

import trio
from wsproto.connection import Connection, ConnectionState
from wsproto.events import CloseConnection, Event, Message
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from nexios_trio.config import Deflate
from nexios_trio.server.internals import Data, Handshake, WSStream

__all__ = ["BoundedDeflate", "Wire", "fault", "let_go", "take_hold", "with_globals"]

NO_UTF8: Final = "a text message is not valid UTF-8"
NO_DEFLATE: Final = "a compressed message is not a valid deflate stream"
"""The words of `nexios_trio.wire`."""

TURN: Final = 256
"""Events of one connection that are handled before others get a turn: one read may hold ten thousand."""

_LEFTOVER: Final = 16
"""Bytes behind the last block of a compressed message (RFC 7692 section 7.2.3.4 has five)."""


def with_globals(function: Any, **replaced: object) -> Any:
    """``function`` as it would be if its module had these names; the module itself stays as it is."""
    copied = types.FunctionType(
        function.__code__, {**function.__globals__, **replaced}, function.__name__, function.__defaults__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class BoundedDeflate(PerMessageDeflate):
    """permessage-deflate that unpacks at most ``most`` bytes at once, one more to tell.

    wsproto's unpacks whatever it is given: 64 KiB from the network to 64 MiB. And behind a last block
    (BFINAL) zlib keeps all that follows, which no bound on messages sees: here it is an error, and the next
    message begins anew.
    """

    def __init__(self, most: int, settings: Deflate) -> None:
        super().__init__(
            client_no_context_takeover=settings.client_no_context_takeover,
            server_no_context_takeover=settings.server_no_context_takeover,
        )
        self._step = min(most, sys.maxsize - 1) + 1
        self._inflater: Any = None
        self._packed = False
        self._control = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """See wsproto. May be called again for the same frame."""
        if rsv.rsv1 and (opcode.iscontrol() or opcode is Opcode.CONTINUATION):
            return CloseReason.PROTOCOL_ERROR
        self._control = opcode.iscontrol()
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._packed = rsv.rsv1
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """See wsproto."""
        return data if self._control or not self._packed else self._inflate(data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """See wsproto."""
        if not fin or self._control or not self._packed:
            return None
        data = self._inflate(b"\x00\x00\xff\xff")
        if self.client_no_context_takeover or self._inflater.eof:
            self._inflater = None
        return data

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-int(self.client_max_window_bits))
        try:
            unpacked: bytes = self._inflater.decompress(data, self._step)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        if self._inflater.unconsumed_tail:
            return CloseReason.MESSAGE_TOO_BIG
        if len(self._inflater.unused_data) > _LEFTOVER:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return unpacked


class Wire(Connection):
    """wsproto's connection with a bound of ``most`` bytes on each message.

    At a client's fault its `events` end with a `CloseConnection` to be answered with itself: hypercorn does
    that if `state` says that the Close has come from the peer, and ends the connection.
    """

    def __init__(self, most: int, *args: Any, **kwargs: Any) -> None:
        self.fault: CloseConnection | None = None
        """What the client did, as the Close frame that it is told with."""
        self.more = False
        """Whether `events` has stopped only because it is somebody else's turn."""
        self.when_closed: Callable[[], None] | None = None
        """Called when the client's Close frame has come."""
        self._most = most
        self._size = 0
        super().__init__(*args, **kwargs)

    @property
    def state(self) -> ConnectionState:
        """See wsproto."""
        state = super().state
        if self.fault is not None and state is ConnectionState.OPEN:
            return ConnectionState.REMOTE_CLOSING
        return state

    def events(self) -> Generator[Event, None, None]:
        """See wsproto; at most `TURN` of them."""
        self.more = False
        turn = TURN
        for event in super().events():
            if isinstance(event, Message) and self._is_too_big(event):
                event = CloseConnection(CloseReason.MESSAGE_TOO_BIG)
            if isinstance(event, CloseConnection):
                yield self._last(event)
                return
            turn -= 1
            self.more = not turn
            yield event
            if self.more:
                return

    def _is_too_big(self, event: Message[Any]) -> bool:
        data: Any = event.data
        self._size += len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)
        too_big = self._size > self._most
        if event.message_finished:
            self._size = 0
        return too_big

    def _last(self, event: CloseConnection) -> CloseConnection:
        if self.state is ConnectionState.OPEN:
            if event.code == CloseReason.MESSAGE_TOO_BIG:
                event = CloseConnection(event.code, f"a message has at most {self._most} bytes")
            elif event.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA:
                # wsproto's text shows the byte
                packed = event.reason == "error in extension"
                event = CloseConnection(event.code, NO_DEFLATE if packed else NO_UTF8)
            self.fault = event
        elif self.state is not ConnectionState.LOCAL_CLOSING and self.when_closed is not None:
            self.when_closed()
        return event


@cache
def _accept(most: int, deflate: Deflate) -> Any:
    return with_globals(
        Handshake.accept,
        Connection=partial(Wire, most),
        PerMessageDeflate=partial(BoundedDeflate, most, deflate),
    )


def take_hold(stream: WSStream, when_closed: Callable[[], None] | None) -> None:
    """Have this stream use `Wire`, with `BoundedDeflate`, from its accept on."""
    handshake = stream.handshake
    config: Any = stream.config
    make = _accept(config.websocket_max_message_size, getattr(config, "deflate", None) or Deflate())

    def accept(*args: Any) -> tuple[int, list[tuple[bytes, bytes]], Wire]:
        status, headers, wire = make(handshake, *args)
        wire.when_closed = when_closed
        return status, headers, wire

    vars(handshake)["accept"] = accept
    vars(stream)["handle"] = partial(_handle, stream, stream.handle)


def let_go(stream: WSStream) -> None:
    """Undo `take_hold`, as far as it makes cycles of references."""
    vars(stream.handshake).pop("accept", None)
    vars(stream).pop("handle", None)


def fault(stream: object) -> CloseConnection | None:
    """What the client did wrong on this stream, if that is what has ended it."""
    wire = getattr(stream, "connection", None)
    return wire.fault if isinstance(wire, Wire) else None


async def _handle(stream: WSStream, handle: Callable[[Any], Awaitable[None]], event: Any) -> None:
    await handle(event)
    wire = getattr(stream, "connection", None)
    while isinstance(wire, Wire) and wire.more and not stream.closed:
        await trio.lowlevel.checkpoint()
        await handle(Data(stream_id=stream.stream_id, data=b""))
