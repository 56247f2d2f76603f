"""UTF-8 in pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio.wire import ProtocolViolation
from nexios_trio.wire.utf8 import Utf8Checker
from tests.wire.streams import cut

# The ends that any beginning of a character has, if it is one at all.
ENDS = [bytes(end) for n in range(4) for end in itertools.product(b"\x80\x90\xa0\xbf", repeat=n)]


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def can_become_text(data: bytes) -> bool:
    """Whether there is a valid text that begins like this."""
    return any(is_text(data + end) for end in ENDS)


def first_refusal(data: bytes, pieces: list[bytes]) -> int | None:
    """How many bytes were needed to see that ``data`` is none; None: it may be some."""
    checker = Utf8Checker()
    seen = 0
    for piece in pieces:
        seen += len(piece)
        try:
            checker.feed(piece)
        except ProtocolViolation as violation:
            assert violation.code == 1007
            return seen
    return None


# Beginnings of one to three bytes that are a sample of every class of bytes in RFC 3629's table.
CLASSES = (
    b"\x00\x41\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"
)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_text_is_refused_at_the_first_byte_that_makes_it_invalid(length: int) -> None:
    for start in itertools.product(CLASSES, repeat=length):
        data = bytes(start)
        certain = next((n for n in range(1, length + 1) if not can_become_text(data[:n])), None)
        assert first_refusal(data, [bytes([byte]) for byte in data]) == certain, data


def test_the_fourth_byte_is_looked_at_too() -> None:
    assert first_refusal(b"", [b"\xf0\x9f", b"\x98", b"\x41"]) == 4
    assert first_refusal(b"", [b"\xf4\x8f\xbf", b"\xbf"]) is None


@given(st.one_of(st.text(max_size=40).map(str.encode), st.binary(max_size=40)), st.lists(st.integers(0, 40)))
def test_pieces_are_judged_as_the_whole_is(data: bytes, places: list[int]) -> None:
    checker = Utf8Checker()
    try:
        for piece in cut(data, places):
            checker.feed(piece)
    except ProtocolViolation:
        assert not can_become_text(data)
    else:
        assert can_become_text(data)
        assert is_text(data) == (checker._pending == b"")


@given(st.binary(max_size=20))
def test_nothing_is_kept_but_the_beginning_of_a_character(data: bytes) -> None:
    checker = Utf8Checker()
    try:
        checker.feed(data)
    except ProtocolViolation:
        return
    assert len(checker._pending) <= 3
