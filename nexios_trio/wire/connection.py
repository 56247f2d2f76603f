"""A WebSocket connection after its opening handshake, without I/O: bytes in, events and bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nexios_trio.exceptions import WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.status import CloseCode, check_close
from nexios_trio.wire.deflate import Agreement, Deflater, Inflater
from nexios_trio.wire.errors import ProtocolViolation
from nexios_trio.wire.events import Close, Event, Failure
from nexios_trio.wire.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    TEXT_HEADERS,
    close_payload,
    encode_binary,
    encode_frame,
    text_payload,
)
from nexios_trio.wire.masking import KEY_MULTIPLIERS, KEY_SHIFTS, SHORT
from nexios_trio.wire.messages import WHOLE_BINARY, WHOLE_TEXT, MessageReader
from nexios_trio.wire.states import CURES, TRANSITIONS, State, WireEvent

__all__ = ["MAX_FRAGMENTS", "MAX_MESSAGE_BYTES", "Connection"]

MAX_MESSAGE_BYTES: Final = 16 << 20
MAX_FRAGMENTS: Final = 1 << 17

_from_bytes = int.from_bytes


class Connection:
    """One side of a connection. No call waits, none raises for anything that the peer sent.

    Made by `server` or `client`. What comes goes into `receive_data`. After a `Ping`, `data_to_send` has the
    answer; after a `Close` or `Failure`, `encode_close` has. ``encode_*`` make the frames to send.
    """

    __slots__ = (
        "_deflater",
        "_due",
        "_may_send",
        "_new_key",
        "_plain",
        "_reader",
        "_shared_window_bits",
        "state",
    )

    def __init__(
        self,
        *,
        new_key: Callable[[], bytes] | None,
        max_message_bytes: int,
        max_fragments: int,
        deflate: Agreement | None,
    ) -> None:
        for name, value in (("max_message_bytes", max_message_bytes), ("max_fragments", max_fragments)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise WrongTypeError(f"{name} is a whole number, not {value!r}")
            if not 1 <= value < 1 << 62:
                raise WrongValueError(f"{name} is at least 1, not {value!r}")
        server = new_key is None
        self.state = State.OPEN
        """Where the connection is in its life (RFC 6455 §7); what may happen there is `TRANSITIONS`."""
        self._new_key = new_key
        self._deflater = None if deflate is None else Deflater(deflate, server=server)
        self._shared_window_bits = deflate.shared_window_bits if deflate is not None and server else None
        self._may_send = True
        # Messages may go out, unmasked and uncompressed.
        self._plain = server and deflate is None
        self._due: Failure | Close | None = None
        self._reader = MessageReader(
            masked=server,
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            inflater=None if deflate is None else Inflater(deflate, server=server),
        )

    @classmethod
    def server(
        cls,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_fragments: int = MAX_FRAGMENTS,
        deflate: Agreement | None = None,
    ) -> Connection:
        """The server's side.

        ``max_message_bytes``: a longer message, decompressed, ends the connection with 1009.
        ``max_fragments``: a message in more fragments ends it with 1008. ``deflate``: what was agreed on;
        None: no compression.
        """
        return cls(
            new_key=None, max_message_bytes=max_message_bytes, max_fragments=max_fragments, deflate=deflate
        )

    @classmethod
    def client(
        cls,
        new_key: Callable[[], bytes],
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_fragments: int = MAX_FRAGMENTS,
        deflate: Agreement | None = None,
    ) -> Connection:
        """The client's side; ``new_key`` gives four random bytes for each frame (RFC 6455 §5.3)."""
        return cls(
            new_key=new_key, max_message_bytes=max_message_bytes, max_fragments=max_fragments, deflate=deflate
        )

    # What comes

    def receive_data(self, data: bytes) -> list[Event]:
        """What these bytes of the peer complete, in the order of arrival.

        A text message is a ``str``, a binary one ``bytes``; the rest are `Ping`, `Pong`, and as the last
        event that ever comes `Close` or `Failure`. After that, and whatever else the peer sends, the list is
        empty. In linear time, however the stream is cut; keeps at most about ``max_message_bytes`` bytes.
        """
        reader = self._reader
        end = len(data)
        # Nothing is under way, and this is one short message: the usual case. As in `MessageReader.read`.
        if 5 < end < reader.whole and data[1] == end + 122:
            size = end - 6
            number = _from_bytes(data[2:])
            stream = (number >> (size << 3)) * KEY_MULTIPLIERS[size] >> KEY_SHIFTS[size]
            payload = (number ^ stream).to_bytes(size)
            first = data[0]
            if first == WHOLE_TEXT:
                try:
                    return [payload.decode()]
                except UnicodeDecodeError:
                    pass  # the reader says it
            elif first == WHOLE_BINARY:
                return [payload]
        events: list[Event] = []
        if self.state is State.OPEN or self.state is State.CLOSING:
            try:
                reader.read(data, events)
            except ProtocolViolation as violation:
                failure = Failure(violation.code, violation.reason)
                self._over(WireEvent.VIOLATION, failure)
                events.append(failure)
            else:
                if events and isinstance(events[-1], Close):
                    self._over(WireEvent.RECEIVE_CLOSE, events[-1])
        return events

    def receive_eof(self) -> list[Event]:
        """The peer's half of the stream has ended: ``[Close(1006, "")]``, or ``[]`` if its end was told."""
        if self.state is not State.OPEN and self.state is not State.CLOSING:
            return []
        event = Close(CloseCode.ABNORMAL_CLOSURE, "")  # RFC 6455 §7.1.5
        self._over(WireEvent.EOF, event)
        return [event]

    @property
    def fragments(self) -> int:
        """Frames that have come of the message under way, or of the last one."""
        return self._reader.fragments

    @property
    def missing(self) -> int:
        """Bytes that the frame under way still lacks."""
        return self._reader.missing

    def data_to_send(self) -> bytes:
        """The Pongs that are due (RFC 6455 §5.5.2); ``b""`` if there are none. Each is given once.

        To be called when the peer can take bytes: for a peer that sends Pings and does not read, no more than
        `MAX_PINGS` answers are kept.
        """
        pings = self._reader.pings
        if not pings:
            return b""
        frames = b"".join([self._frame(PONG, payload) for payload in pings]) if self._may_send else b""
        self._reader.pings = None
        return frames

    # What goes

    def encode_text(self, text: str) -> bytes:
        """The frame of a text message. With context takeover it has to be sent, and in this order.

        Raises `WrongStateError` once a Close frame has been sent or the connection is over, `WrongValueError`
        for surrogates.
        """
        if self._plain:
            payload = text_payload(text)
            size = len(payload)
            return TEXT_HEADERS[size] + payload if size <= SHORT else encode_frame(TEXT, payload)
        return self._message(TEXT, text_payload(text))

    def encode_binary(self, data: bytes | bytearray) -> bytes:
        """The same for a binary message."""
        if self._plain:
            return encode_binary(data)
        return self._message(BINARY, data)

    def encode_ping(self, payload: bytes = b"") -> bytes:
        """A Ping frame; raises as `encode_text` does, `WrongValueError` for more than 125 bytes."""
        return self._control(PING, payload)

    def encode_pong(self, payload: bytes = b"") -> bytes:
        """A Pong frame nobody asked for (RFC 6455 §5.5.3); raises as `encode_ping` does."""
        return self._control(PONG, payload)

    def encode_close(self, code: int | None = None, reason: str = "") -> bytes:
        """Our Close frame, the last one to send; ``b""`` if it was given before, or nobody is there.

        Without a code it is the one that is due: the peer's own code and reason after its Close frame
        (RFC 6455 §5.5.1), those of a `Failure` (§7.1.7), or else 1000. Raises `WrongValueError` for a code
        that must not be sent; a reason is cut to 123 bytes.
        """
        if code is not None:
            reason = check_close(code, reason)
        elif isinstance(self._due, Failure) or self._due is not None:
            code, reason = self._due.code, self._due.reason
        else:
            code = CloseCode.NORMAL_CLOSURE
        if self.state is State.CLOSING or self.state is State.CLOSED:
            return b""
        frame = self._frame(CLOSE, close_payload(code, reason))
        self._go(WireEvent.SEND_CLOSE)
        return frame

    @property
    def shared_window_bits(self) -> int | None:
        """The most ``window_bits`` with which `encode_shared` makes frames for this connection; None: none.

        Frames of `nexios_trio.wire.frames.encode_text` and ``encode_binary`` go to every client.
        """
        return self._shared_window_bits

    # Inside

    def _check_send(self) -> None:
        if not self._may_send:
            raise WrongStateError(CURES[self.state])

    def _frame(self, opcode: int, payload: bytes | bytearray, *, rsv1: bool = False) -> bytes:
        if self._new_key is None:
            return encode_frame(opcode, payload, rsv1=rsv1)
        key = self._new_key()
        if len(key) != 4:
            raise WrongValueError(f"a masking key has 4 bytes, not {len(key)}; write lambda: os.urandom(4)")
        return encode_frame(opcode, payload, rsv1=rsv1, key=key)

    def _message(self, opcode: int, payload: bytes | bytearray) -> bytes:
        self._check_send()
        if self._deflater is not None:
            compressed = self._deflater.compress(payload)
            if compressed is not None:
                return self._frame(opcode, compressed, rsv1=True)
        return self._frame(opcode, payload)

    def _control(self, opcode: int, payload: bytes) -> bytes:
        self._check_send()
        if len(payload) > SHORT:
            raise WrongValueError(f"a Ping or Pong has at most 125 bytes, not {len(payload)}")
        return self._frame(opcode, payload)

    def _over(self, event: WireEvent, due: Failure | Close) -> None:
        self._reader.stop()
        self._due = due
        self._go(event)

    def _go(self, event: WireEvent) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._may_send = (self.state, WireEvent.SEND) in TRANSITIONS
        self._plain = self._plain and self._may_send
