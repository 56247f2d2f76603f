"""Frames (RFC 6455 §5.2): reading a header strictly, building frames."""

from __future__ import annotations

from typing import Final, TypeAlias

from nexios_trio.exceptions import WrongValueError
from nexios_trio.status import CloseCode, cut_reason, is_sendable
from nexios_trio.wire.errors import ProtocolViolation
from nexios_trio.wire.events import Close
from nexios_trio.wire.masking import SHORT, apply_mask
from nexios_trio.wire.utf8 import invalid_utf8

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "FIN",
    "HEADER_BYTES",
    "PING",
    "PONG",
    "RSV1",
    "TEXT",
    "close_payload",
    "encode_binary",
    "encode_frame",
    "encode_text",
    "parse_close",
    "read_header",
    "text_payload",
]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
RSV1: Final = 0x40
_MASK: Final = 0x80

HEADER_BYTES: Final = 14
"""The longest header: two bytes, eight of length, four of mask."""

_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_PLAIN: Final = frozenset(
    {
        CONTINUATION,
        TEXT,
        BINARY,
        *(FIN | opcode for opcode in _OPCODES),
    }  # control frames are never fragments, §5.4
)
_WITH_DEFLATE: Final = _PLAIN | {RSV1 | fin | opcode for fin in (0, FIN) for opcode in (TEXT, BINARY)}

Header: TypeAlias = tuple[int, int, bytes, int]
"""First byte, length of the payload in bytes, masking key (``b""``: none), where the payload begins."""


def read_header(data: bytes, pos: int, *, masked: bool, compression: bool) -> Header | None:
    """Read the header that begins at ``pos``; None if there is too little of it to be sure of anything.

    ``masked``: whether the peer has to mask its frames, as clients have (RFC 6455 §5.1). ``compression``:
    whether the first frame of a message may have RSV1 set (RFC 7692 §6). Raises `ProtocolViolation` (1002).
    """
    end = len(data)
    if end - pos < 2:
        return None
    first = data[pos]
    if first not in (_WITH_DEFLATE if compression else _PLAIN):
        raise _bad_first_byte(first)
    length = data[pos + 1]
    if length >= _MASK:
        if not masked:
            raise _broken("a server must not mask its frames")
        length -= _MASK
    elif masked:
        raise _broken("a client must mask its frames")
    pos += 2
    if length > SHORT:
        if first & 0x08:
            raise _broken("a control frame has at most 125 bytes")
        size = 2 if length == 126 else 8
        if end - pos < size:
            return None
        length = int.from_bytes(data[pos : pos + size], "big")
        pos += size
        # §5.2: "the minimal number of bytes MUST be used to encode the length", "the most significant bit
        # MUST be 0"
        if length <= SHORT or (size == 8 and length <= 0xFFFF):
            raise _broken("a payload length takes more bytes than it needs")
        if length >> 63:
            raise _broken("a payload length has its most significant bit set")
    if not masked:
        return first, length, b"", pos
    if end - pos < 4:
        return None
    return first, length, data[pos : pos + 4], pos + 4


def _broken(reason: str) -> ProtocolViolation:
    return ProtocolViolation(CloseCode.PROTOCOL_ERROR, reason)


def _bad_first_byte(first: int) -> ProtocolViolation:
    opcode = first & 0x0F
    if opcode not in _OPCODES:
        return _broken(f"unknown opcode {opcode}")
    if first & 0x70:
        return _broken("a reserved bit is set that no extension allows here")
    return _broken("a control frame must not be fragmented")


def parse_close(payload: bytes) -> Close:
    """The code and the reason in a Close frame's payload; raises `ProtocolViolation` (1002, 1007)."""
    if not payload:
        return Close(CloseCode.NO_STATUS_RECEIVED, "")
    if len(payload) == 1:
        raise _broken("a Close frame's payload has one byte, less than a code")
    code = int.from_bytes(payload[:2], "big")
    if not is_sendable(code):
        raise _broken(f"close code {code} must not be sent")  # §7.4
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise invalid_utf8("close reason") from None


def close_payload(code: int, reason: str) -> bytes:
    """The payload of a Close frame; the reason is cut to fit. 1005 has none (RFC 6455 §7.1.5)."""
    if code == CloseCode.NO_STATUS_RECEIVED:
        return b""
    return code.to_bytes(2, "big") + cut_reason(reason).encode()


_SHORT_HEADERS: Final = {
    first: tuple(bytes((first, size)) for size in range(SHORT + 1)) for first in (FIN | TEXT, FIN | BINARY)
}
TEXT_HEADERS: Final = _SHORT_HEADERS[FIN | TEXT]
BINARY_HEADERS: Final = _SHORT_HEADERS[FIN | BINARY]


def _header(first: int, size: int, mask: int) -> bytes:
    if size <= SHORT:
        return bytes((first, mask | size))
    if size <= 0xFFFF:
        return bytes((first, mask | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask | 127)) + size.to_bytes(8, "big")


def encode_frame(
    opcode: int, payload: bytes | bytearray, *, fin: bool = True, rsv1: bool = False, key: bytes | None = None
) -> bytes:
    """One frame; with ``key``, four bytes, its payload is masked as a client's has to be (RFC 6455 §5.3)."""
    first = opcode | (FIN if fin else 0) | (RSV1 if rsv1 else 0)
    if key is None:
        return _header(first, len(payload), 0) + payload
    return _header(first, len(payload), _MASK) + key + apply_mask(payload, key)


def text_payload(text: str) -> bytes:
    """``text`` in UTF-8; raises `WrongValueError` for surrogates, which UTF-8 does not have."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise WrongValueError(
            f"text with a surrogate at position {error.start} cannot be sent; "
            "write text.encode('utf-8', 'replace').decode(), or send bytes"
        ) from error


def encode_text(text: str) -> bytes:
    """A whole text message in one unmasked frame: the same bytes for every client of a server."""
    payload = text_payload(text)
    size = len(payload)
    return (TEXT_HEADERS[size] if size <= SHORT else _header(FIN | TEXT, size, 0)) + payload


def encode_binary(data: bytes | bytearray) -> bytes:
    """A whole binary message in one unmasked frame: the same bytes for every client of a server."""
    size = len(data)
    return (BINARY_HEADERS[size] if size <= SHORT else _header(FIN | BINARY, size, 0)) + data
