"""Masking of payloads (RFC 6455 §5.3).

XOR with a key of four bytes undoes itself, so one function masks and unmasks. Where `websockets` is installed
(the extra ``speed``), its routine in C does it; else which of the ways that CPython offers is the fastest
depends on the size (decision 9 has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["KEY_MULTIPLIERS", "KEY_SHIFTS", "SHORT", "apply_mask", "apply_mask_slowly", "rotate"]

SHORT: Final = 125
"""The most payload bytes of a frame with the shortest header (RFC 6455 §5.2)."""

KEY_MULTIPLIERS: Final = tuple(int.from_bytes(b"\0\0\0\1" * ((size + 7) // 4)) for size in range(SHORT + 1))
"""For a key and a payload of ``size`` bytes behind it: key * this is the key repeated over both, a little
longer."""

KEY_SHIFTS: Final = tuple(-size % 4 * 8 for size in range(SHORT + 1))
"""By how many bits it is longer."""

_BIG_INT_BYTES: Final = 384
_XOR_TABLES: Final = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))

_from_bytes = int.from_bytes


def apply_mask_slowly(data: bytes | bytearray, key: bytes) -> bytes | bytearray:
    """`apply_mask` in pure Python."""
    size = len(data)
    if size < _BIG_INT_BYTES:
        stream = (key * (size // 4 + 1))[:size]
        return (_from_bytes(data) ^ _from_bytes(stream)).to_bytes(size)
    # bytearray.translate runs at a quarter of a big int's cost per byte: it does not track whether anything
    # changed, as bytes.translate does.
    masked = bytearray(data)
    first, second, third, fourth = key
    masked[::4] = masked[::4].translate(_XOR_TABLES[first])
    masked[1::4] = masked[1::4].translate(_XOR_TABLES[second])
    masked[2::4] = masked[2::4].translate(_XOR_TABLES[third])
    masked[3::4] = masked[3::4].translate(_XOR_TABLES[fourth])
    return masked


apply_mask: Callable[[bytes | bytearray, bytes], bytes | bytearray]
try:
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = apply_mask_slowly
"""``data`` XOR the four bytes of ``key``, repeated: a new object of the same length, in linear time."""


def rotate(key: bytes, count: int) -> bytes:
    """The key for what follows ``count`` bytes of a payload."""
    count %= 4
    return key[count:] + key[:count]
