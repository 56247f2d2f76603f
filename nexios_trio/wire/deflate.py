"""permessage-deflate (RFC 7692): what was agreed on, and the two directions of a stream of messages.

What was agreed on in the opening handshake is an `Agreement` (`nexios_trio.wire.negotiation`).
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from attrs import frozen

from nexios_trio.config import Deflate
from nexios_trio.status import CloseCode
from nexios_trio.wire.errors import ProtocolViolation
from nexios_trio.wire.frames import BINARY, TEXT, encode_frame, text_payload

__all__ = ["Agreement", "Deflate", "Deflater", "Inflater", "encode_shared"]

EXTENSION: Final = "permessage-deflate"
WINDOW_BITS: Final = range(8, 16)

_TAIL: Final = b"\x00\x00\xff\xff"  # the length of an empty block: what a sender leaves out, RFC 7692 §7.2.1
_END: Final = b"\x01\x00\x00\xff\xff"  # an empty last block
_MARK: Final = bytes.fromhex("d41d8cd98f00b204")  # any bytes that no stream gives by chance
_MARK_LENGTH: Final = b"\x08\x00\xf7\xff"  # as in the head of a block that is stored
_MARKED_END: Final = _MARK_LENGTH + _MARK + _END


@frozen
class Agreement:
    """The parameters that hold for one connection (RFC 7692 §7.1), both sides having agreed."""

    settings: Deflate
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15

    @property
    def shared_window_bits(self) -> int | None:
        """What `encode_shared` needs to make frames for this connection; None: it cannot take such frames."""
        return self.server_max_window_bits if self.server_no_context_takeover else None


def _compressor(window_bits: int, settings: Deflate) -> Any:
    # zlib's raw deflate refuses 8. With 9 it looks back at most 512 - 262 = 250 bytes, which is within a
    # window of 256: deflate.h keeps MIN_LOOKAHEAD bytes free.
    return zlib.compressobj(settings.level, zlib.DEFLATED, -max(window_bits, 9), settings.memory_level)


def _compress(compressor: Any, payload: bytes | bytearray) -> bytes:
    compressed: bytes = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return compressed[: -len(_TAIL)]


class Deflater:
    """Compresses the messages that one side sends."""

    __slots__ = ("_bits", "_kept", "_settings", "threshold")

    def __init__(self, agreement: Agreement, *, server: bool) -> None:
        self._settings = agreement.settings
        if server:
            self._bits, alone = agreement.server_max_window_bits, agreement.server_no_context_takeover
        else:
            self._bits, alone = agreement.client_max_window_bits, agreement.client_no_context_takeover
        self._kept = None if alone else _compressor(self._bits, self._settings)
        self.threshold = self._settings.threshold

    def compress(self, payload: bytes | bytearray) -> bytes | None:
        """The compressed payload of a message that has to be sent next; None: send it as it is.

        None is given for fewer bytes than ``threshold``, and, where messages are compressed by themselves,
        for what gets no smaller. ``payload`` is not empty if it is compressed: a compressor that is flushed
        twice with nothing in between gives nothing.
        """
        if len(payload) < self.threshold:
            return None
        if self._kept is not None:
            return _compress(self._kept, payload)
        compressed = _compress(_compressor(self._bits, self._settings), payload)
        return compressed if len(compressed) < len(payload) else None


def encode_shared(message: str | bytes | bytearray, settings: Deflate, window_bits: int) -> bytes:
    """A whole message in one compressed, unmasked frame, for every client of a server that can take it.

    That is each connection whose `Connection.shared_window_bits` is a number and not less than
    ``window_bits``: its messages are compressed by themselves (server_no_context_takeover), and its client
    looks back far enough. For a message under the threshold, or one that gets no smaller, the frame is not
    compressed.
    """
    opcode = TEXT if isinstance(message, str) else BINARY
    payload = text_payload(message) if isinstance(message, str) else message
    if len(payload) >= settings.threshold:
        compressed = _compress(_compressor(window_bits, settings), payload)
        if len(compressed) < len(payload):
            return encode_frame(opcode, compressed, rsv1=True)
    return encode_frame(opcode, payload)


class Inflater:
    """Decompresses the messages that one side receives.

    Between messages it keeps the bytes that the next one may refer to, and no zlib object: for windows of 4
    KiB that is as fast, and it takes 4 KiB instead of some 11. And a stream that lasts for one message can be
    ended as we like: with a block of our own in place of the empty one whose length the sender left out. Only
    if that block comes out again was the message whole; what is cut short goes unnoticed otherwise, now and
    then.
    """

    __slots__ = ("_bits", "_keep", "_window")

    def __init__(self, agreement: Agreement, *, server: bool) -> None:
        if server:
            bits, alone = agreement.client_max_window_bits, agreement.client_no_context_takeover
        else:
            bits, alone = agreement.server_max_window_bits, agreement.server_no_context_takeover
        # A larger window than the peer's does no harm, and zlib has had no 8 at times.
        self._bits = max(bits, 9)
        self._keep = 0 if alone else 1 << self._bits
        self._window = b""

    def inflate(self, payload: bytes | bytearray, max_bytes: int) -> bytes:
        """The message whose compressed payload this is (RFC 7692 §7.2.2).

        Raises `ProtocolViolation`: 1009 if it has more than ``max_bytes`` bytes, of which hardly more are
        decompressed; 1007 if ``payload`` is no deflate stream, is cut short, or goes on after its last block.
        """
        found, stream = self._decompress(payload + _MARKED_END, max_bytes + len(_MARK) + 1)
        if len(found) > max_bytes + len(_MARK):
            raise _too_big(max_bytes)
        if not stream.eof:
            raise _invalid()
        if not stream.unused_data:
            message = found[: -len(_MARK)]
            if not found.endswith(_MARK) or (message.endswith(_MARK_LENGTH) and not self._is_whole(payload)):
                raise _invalid()
        elif stream.unused_data in (_MARKED_END, b"\x00" + _MARKED_END):
            # A peer may end its stream itself, §7.2.3.4: the zero byte is the empty block behind it.
            message = found
            if len(message) > max_bytes:
                raise _too_big(max_bytes)
        else:
            raise _invalid()
        if self._keep:
            window = message if len(message) >= self._keep else self._window + message
            self._window = window[-self._keep :]
        return message

    def _is_whole(self, payload: bytes | bytearray) -> bool:
        """The length of our block came out too: as content of a stored block cut short, or by chance."""
        _, stream = self._decompress(payload + _TAIL + _END, 0)
        return bool(stream.eof)

    def _decompress(self, data: bytes | bytearray, max_bytes: int) -> tuple[bytes, Any]:
        stream = (
            zlib.decompressobj(-self._bits, zdict=self._window)
            if self._window
            else zlib.decompressobj(-self._bits)
        )
        try:
            return stream.decompress(data, max_bytes), stream
        except zlib.error:
            raise _invalid() from None


def _too_big(max_bytes: int) -> ProtocolViolation:
    return ProtocolViolation(
        CloseCode.MESSAGE_TOO_BIG, f"a message has more than {max_bytes} bytes when decompressed"
    )


def _invalid() -> ProtocolViolation:
    return ProtocolViolation(CloseCode.INVALID_PAYLOAD, "a compressed message is not a valid deflate stream")
