"""How deep and how large a JSON document is: told from its characters, before anything is built from it.

The answer is exact for every document that a JSON parser accepts. Any other may pass here: the parser refuses
it, having built no more than twice what the bounds allow.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Final

from nexios_trio.exceptions import InvalidJSON

__all__ = ["check_bounds", "outside_strings"]

_ALL: Final = bytes(range(256))
_WHITESPACE: Final = b" \t\n\r"  # RFC 8259 §2
_NO_BRACKETS: Final = _ALL.translate(None, b'[{}]"')
_NO_STRUCTURE: Final = _ALL.translate(None, b'[{}]",')
_LARGE: Final = 4096
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level down, one up


def check_bounds(message: Any, depth: int | None, items: int | None) -> None:
    """Raise `InvalidJSON` if arrays and objects are inside each other more than ``depth`` levels deep, or if
    there are more than ``items`` values, arrays and objects included, keys not.

    Linear in the length of ``message`` (str or bytes), whatever is in it.
    """
    # First upper bounds, from counts that do not look for strings. Numbers for bytes: `b"[" in message` takes
    # ten times as long. `in` and `find` are memchr(), a tenth of `count`.
    size = len(message)
    array, obj, comma = ("[", "{", ",") if isinstance(message, str) else (91, 123, 44)
    if items is not None and size < 2 * items:  # 2 n - 1 characters are the least for n values: "[0,0,0]"
        items = None
    if depth is not None and not (size > _LARGE and _has_more(message, array, obj, depth)):
        arrays = message.count(array) if array in message else 0
        # Each array takes two characters, "[]", each object five, '{"":}', but the innermost one two.
        if (
            arrays + (size - 2 * arrays + 3) // 5 <= depth
            or arrays + (1 if message.find(obj, 1) < 0 else message.count(obj)) <= depth
        ):
            depth = None
    if (
        items is not None
        and depth is None  # else they are counted exactly with the rest
        and message.count(comma) + message.count(array) + message.count(obj) < items
    ):
        items = None
    if items is not None or depth is not None:
        _check_exactly(message, depth, items)


def _has_more(message: Any, array: Any, obj: Any, depth: int) -> bool:
    """Whether more than ``depth`` arrays and objects are to be expected, by the beginning: so as not to count
    in vain."""
    if message.find(obj, 1) < 0:
        return False
    opened: int = message.count(array, 0, 1024) + message.count(obj, 0, 1024)
    return opened * len(message) > depth * 1024


def _check_exactly(message: str | bytes, depth: int | None, items: int | None) -> None:
    kept = _without_escapes(message).translate(None, _NO_BRACKETS if items is None else _NO_STRUCTURE)
    # Most strings have nothing of it inside, and taking pairs away leaves the others as they are.
    kept = _outside(kept.replace(b'""', b""))
    if items is not None:
        # An array or object of n > 0 values has n - 1 commas, so each but the empty ones adds one to the
        # number of commas; and one value is in none of them.
        most = kept.count(b",") + kept.count(b"[") + kept.count(b"{") + 1
        empty = kept.count(b"[]") + kept.count(b"{}")  # or with a single value
        if most > items >= most - empty:
            dense = outside_strings(message).translate(None, _WHITESPACE)
            empty = dense.count(b"[]") + dense.count(b"{}")
        if most - empty > items:
            raise InvalidJSON(f"it holds more than {items} values", message)
    if depth is not None:
        # To go on with removing innermost pairs would be one pass per level: 150 ms for 1 MiB in groups of 64
        # levels, where the sums take 25. But the first pass is quick, and leaves little of flat documents.
        steps = kept.translate(_STEPS, b",").replace(b"\x01\xff", b"")
        if max(accumulate(memoryview(steps).cast("b")), default=0) >= depth:
            raise InvalidJSON(f"it is nested deeper than {depth}", message)


def outside_strings(message: str | bytes) -> bytes:
    """``message`` with a quotation mark in place of each string; an unterminated one ends it."""
    return _outside(_without_escapes(message), b'"')


def _without_escapes(message: str | bytes) -> bytes:
    text = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if b"\\" in text:  # first those that escape a backslash, so that what is left may escape a quotation mark
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text


def _outside(text: bytes, mark: bytes = b"") -> bytes:
    # Every other piece is a string. A regular expression would take two to six times as long.
    return mark.join(text.split(b'"')[::2]) if b'"' in text else text
