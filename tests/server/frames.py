"""Frames that no library would send."""

from __future__ import annotations

import struct
import zlib

__all__ = ["BINARY", "CLOSE", "MORE", "PING", "PONG", "TEXT", "deflate", "frame", "header"]

MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def header(opcode: int, length: int, *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's header (RFC 6455 section 5.2); with the mask 0, which leaves the payload as it is."""
    first = 0x80 * fin | 0x40 * rsv1 | opcode
    if length < 126:
        return bytes([first, 0x80 | length, 0, 0, 0, 0])
    if length < 1 << 16:
        return struct.pack("!BBH4x", first, 0x80 | 126, length)
    return struct.pack("!BBQ4x", first, 0x80 | 127, length)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame."""
    return header(opcode, len(payload), fin=fin, rsv1=rsv1) + payload


def deflate(data: bytes, *, last: bool = False) -> bytes:
    """The payload of a compressed message (RFC 7692 section 7.2.1); ``last``: it ends with BFINAL."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data)
    return packed + packer.flush() if last else packed + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]
