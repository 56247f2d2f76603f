"""From the bytes of a stream to whole messages: frames, fragments, limits (RFC 6455 §5.4 to §5.6)."""

from __future__ import annotations

from typing import Final

from nexios_trio.status import CloseCode
from nexios_trio.wire.deflate import Inflater
from nexios_trio.wire.errors import ProtocolViolation
from nexios_trio.wire.events import Event, Ping, Pong
from nexios_trio.wire.frames import BINARY, CLOSE, FIN, PING, RSV1, TEXT, parse_close, read_header
from nexios_trio.wire.masking import KEY_MULTIPLIERS, KEY_SHIFTS, SHORT, apply_mask, rotate
from nexios_trio.wire.utf8 import Utf8Checker, invalid_utf8

__all__ = ["EMPTY_FRAGMENTS", "MAX_PINGS", "MessageReader"]

EMPTY_FRAGMENTS: Final = 64
"""Fragments without a byte that one message may have; they cost a peer nothing, and bring nobody anything.
Not so in a compressed one: zlib gives nothing for a small fragment, and all of it with a later one."""

MAX_PINGS: Final = 32
"""Pings whose answer has not been taken yet; of more, the newest are answered (RFC 6455 §5.5.3)."""

WHOLE_TEXT: Final = FIN | TEXT
WHOLE_BINARY: Final = FIN | BINARY
"""The first byte of a message in one frame, not compressed."""

_from_bytes = int.from_bytes


class MessageReader:
    """Turns bytes into events, in linear time, keeping no more than one message and a header.

    What it keeps is at most ``max_message_bytes`` bytes of the message under way (an eighth more while it
    grows), and of a frame that is no data, or whose header is not complete, less than 140.
    """

    __slots__ = (
        "_compressed",
        "_empty",
        "_final",
        "_inflater",
        "_key",
        "_masked",
        "_max_bytes",
        "_max_fragments",
        "_message",
        "_message_limit",
        "_opcode",
        "_short",
        "_tail",
        "_utf8",
        "fragments",
        "missing",
        "pings",
        "whole",
    )

    def __init__(
        self, *, masked: bool, max_message_bytes: int, max_fragments: int, inflater: Inflater | None = None
    ) -> None:
        self._masked = masked
        self._max_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._inflater = inflater
        self._tail = b""  # of the last bytes, what is not a whole header or control frame
        self._opcode = 0  # of the message under way; 0: there is none
        self._message = bytearray()
        self._message_limit = 0
        self._compressed = False
        self.fragments = 0
        self._empty = 0
        self._utf8: Utf8Checker | None = None
        self.missing = 0  # bytes to come of a data frame under way
        self._final = False
        self._key = b""
        self._short = min(SHORT, max_message_bytes) if masked else -1
        self.pings: list[bytes] | None = None
        """Payloads of the Pings that are to be answered."""
        self.whole = self._short + 7
        """Fewer bytes than this, of which the second is their number + 122, are one short masked frame,
        whole, and nothing is under way. 0: something is."""

    def stop(self) -> None:
        """Drop everything: nothing more will be read."""
        self.whole = 0
        self._tail = b""
        self._message = bytearray()
        self._utf8 = None

    def read(self, data: bytes, events: list[Event]) -> None:
        """Append what ``data`` completes; raises `ProtocolViolation`, after what came before it.

        After that, and after a `Close`, it must not be called again.
        """
        if self._tail:
            data = self._tail + data
            self._tail = b""
        end = len(data)
        pos = self._payload(data, 0, events) if self.missing else 0
        short = self._short
        while pos < end:
            if not self._opcode:
                # Short messages that are masked, whole, uncompressed: hardly anything else comes to a server.
                try:
                    while end - pos >= 6:
                        size = data[pos + 1] - 128
                        stop = pos + 6 + size
                        if stop > end or size > short or size < 0:
                            break
                        # Key and payload as one number: the key's own bytes become zero, and fall away.
                        number = _from_bytes(data[pos + 2 : stop])
                        stream = (number >> (size << 3)) * KEY_MULTIPLIERS[size] >> KEY_SHIFTS[size]
                        payload = (number ^ stream).to_bytes(size)
                        first = data[pos]
                        if first == WHOLE_TEXT:
                            events.append(payload.decode())
                        elif first == WHOLE_BINARY:
                            events.append(payload)
                        else:
                            break
                        pos = stop
                except UnicodeDecodeError:
                    raise invalid_utf8() from None
                if pos == end:
                    break
            pos = self._frame(data, pos, events)
        self.whole = 0 if self._tail or self._opcode else short + 7

    def _frame(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Take the frame that begins at ``pos``, or what there is of it; returns where it ends."""
        header = read_header(data, pos, masked=self._masked, compression=self._inflater is not None)
        if header is None:
            self._tail = data[pos:]
            return len(data)
        first, length, key, start = header
        if first & 0x08:
            stop = start + length
            if stop > len(data):
                self._tail = data[pos:]
                return len(data)
            payload = data[start:stop]
            over = self._control(first & 0x0F, bytes(apply_mask(payload, key)) if key else payload, events)
            return len(data) if over else stop
        self._begin(first, length)
        self._final = first >= FIN
        self.missing = length
        self._key = key
        return self._payload(data, start, events)

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> bool:
        """True: it was a Close frame."""
        if opcode == CLOSE:
            events.append(parse_close(payload))
            return True
        if opcode == PING:
            events.append(Ping(payload))
            if self.pings is None:
                self.pings = []
            elif len(self.pings) == MAX_PINGS:
                del self.pings[0]
            self.pings.append(payload)
        else:
            events.append(Pong(payload))
        return False

    def _begin(self, first: int, length: int) -> None:
        """Check that a data frame may come now, and its length, before anything of it is kept."""
        if opcode := first & 0x0F:
            if self._opcode:
                raise _broken("a message begins before the last one has ended")  # RFC 6455 §5.4
            self._opcode = opcode
            self.fragments = self._empty = 0
            self._compressed = bool(first & RSV1)
            self._utf8 = Utf8Checker() if opcode == TEXT and not self._compressed else None
            # Deflate makes nothing larger by more than this, whatever its settings (deflateBound in zlib).
            slack = (self._max_bytes >> 3) + (self._max_bytes >> 7) + 64 if self._compressed else 0
            self._message_limit = self._max_bytes + slack
        elif not self._opcode:
            raise _broken("a continuation frame without a message")  # RFC 6455 §5.4
        self.fragments += 1
        if length == 0 and first < FIN and not self._compressed:
            self._empty += 1
        if self.fragments > self._max_fragments or self._empty > EMPTY_FRAGMENTS:
            raise ProtocolViolation(CloseCode.POLICY_VIOLATION, "a message has too many fragments")
        if len(self._message) + length > self._message_limit:
            raise ProtocolViolation(
                CloseCode.MESSAGE_TOO_BIG, f"a message has more than {self._max_bytes} bytes"
            )

    def _payload(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Take what there is of the payload of the frame under way; returns where it ends."""
        remaining = self.missing
        piece: bytes | bytearray = data[pos : pos + remaining]
        stop = pos + len(piece)
        self.missing = remaining = remaining - len(piece)
        if self._key:
            piece = apply_mask(piece, self._key)
        if self._final and not remaining and not self._message and not self._compressed:
            self._deliver(piece, events)
            return stop
        if self._utf8 is not None:
            self._utf8.feed(piece)
        self._message += piece
        if remaining:
            self._key = rotate(self._key, len(piece))
        elif self._final:
            self._finish(events)
        return stop

    def _finish(self, events: list[Event]) -> None:
        message, self._message = self._message, bytearray()
        if self._compressed:
            assert self._inflater is not None  # or read_header had refused the bit
            self._deliver(self._inflater.inflate(message, self._max_bytes), events)
        else:
            self._deliver(message, events)

    def _deliver(self, payload: bytes | bytearray, events: list[Event]) -> None:
        if self._opcode == TEXT:
            try:
                events.append(payload.decode())
            except UnicodeDecodeError:
                raise invalid_utf8() from None
        else:
            events.append(bytes(payload))
        self._opcode = 0


def _broken(reason: str) -> ProtocolViolation:
    return ProtocolViolation(CloseCode.PROTOCOL_ERROR, reason)
