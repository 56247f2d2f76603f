"""How deep and how large a JSON document is: told from its characters, before anything is built from it.

The answer is exact for every document that a JSON parser accepts; of others it says no more than that they may
go to the parser, which refuses them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Final

from nexios_trio.exceptions import InvalidJSON

__all__ = ["check_bounds", "outside_strings"]

_WHITESPACE: Final = b" \t\n\r"  # RFC 8259 §2
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level down, one up
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def check_bounds(message: str | bytes, depth: int | None, items: int | None) -> None:
    """Raise `InvalidJSON` if arrays and objects are inside each other more than ``depth`` levels deep, or if
    there are more than ``items`` values, arrays and objects included, keys not.

    Linear in the length of ``message``, whatever is in it.
    """
    if _within_at_a_glance(message, depth, items):
        return
    outside = outside_strings(message)
    opened = outside.count(b"[") + outside.count(b"{")
    if items is not None and outside.count(b",") + opened + 1 > items:
        # An array or object of n > 0 values has n - 1 commas, so each but the empty ones adds one to the
        # count of commas; and one value is in none of them.
        dense = outside.translate(None, _WHITESPACE)
        empty = dense.count(b"[]") + dense.count(b"{}")
        if outside.count(b",") + opened - empty + 1 > items:
            raise InvalidJSON(f"it holds more than {items} values", message)
    if depth is not None and opened > depth:
        # Removing "[]" again and again instead would be quicker for flat documents, but takes one pass per
        # level: 150 ms for 1 MiB in groups of 64 levels, where this takes 25.
        steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
        if max(accumulate(steps), default=0) > depth:
            raise InvalidJSON(f"it is nested deeper than {depth}", message)


def _within_at_a_glance(message: Any, depth: int | None, items: int | None) -> bool:
    """Whether upper bounds, from counts that do not look for strings, are within the bounds."""
    size = len(message)
    # Numbers for bytes: `b"[" in message` takes ten times as long.
    array, obj, comma = ("[", "{", ",") if isinstance(message, str) else (91, 123, 44)
    arrays = _count(message, array)
    # Each array takes two characters, "[]", each object five, '{"":}', but the innermost, which takes two.
    objects = (size - 2 * arrays + 3) // 5
    if depth is not None and arrays + objects > depth:
        objects = _count(message, obj)
        if arrays + objects > depth:
            return False
    # 2 n - 1 characters are the least for n values: "[0,0,0]"
    return items is None or size < 2 * items or message.count(comma) + arrays + message.count(obj) < items


def _count(message: Any, character: Any) -> int:
    """``message.count(character)``, quicker where there is none or one: `in` and `find` are memchr()."""
    if character not in message:
        return 0
    if message.find(character, message.find(character) + 1) < 0:
        return 1
    return message.count(character)  # type: ignore[no-any-return]


def outside_strings(message: str | bytes) -> bytes:
    """``message`` with a single quotation mark in place of each string, unterminated ones too."""
    text = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if b"\\" in text:  # first the backslashes that escape one, then what is left escapes quotes or others
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Every other piece is a string. A regular expression takes two to six times as long.
    return b'"'.join(text.split(b'"')[::2])
