"""The syntax of heads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire import HandshakeError
from nexios_trio.wire.headers import HeadReader, encode_headers, members, parse_extensions, split_head
from tests.wire.streams import cut


def refusal(head: bytes, max_fields: int = 10) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        split_head(head, max_fields)
    return caught.value


def test_a_head_is_its_first_line_and_its_fields() -> None:
    head = b"first line\r\nHost: example.com\r\nX-A:1\r\nx-a: \t 2 \t\r\nEmpty:\r\nObs: \xe9"
    assert split_head(head, 10) == (
        b"first line",
        [(b"host", b"example.com"), (b"x-a", b"1"), (b"x-a", b"2"), (b"empty", b""), (b"obs", b"\xe9")],
    )
    assert split_head(b"first line", 10) == (b"first line", [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"Host : a", "white space between a field's name and its colon"),
        (b"Host\t: a", "white space between a field's name and its colon"),
        (b" folded", "continued on the next line"),
        (b"\tfolded: x", "continued on the next line"),
        (b"no colon", "no field"),
        (b": no name", "no field"),
        (b"Na me: x", "no field"),
        (b"N\xe9: x", "no field"),
        (b"", "no field"),
        (b"A: b\rc", "control character"),
        (b"A: b\r", "control character"),
        (b"A: b\x00c", "control character"),
        (b"A: b\x7fc", "control character"),
        (b"A\x01: bc", "control character"),
    ],
)
def test_a_line_that_is_no_field_is_refused(line: bytes, why: str) -> None:
    error = refusal(b"first\r\nA: b\r\n" + line)
    assert error.status == 400
    assert why in error.reason


def test_too_many_fields_are_refused() -> None:
    assert refusal(b"first" + b"\r\na: b" * 11).status == 431
    assert len(split_head(b"first" + b"\r\na: b" * 10, 10)[1]) == 10


# Reading


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@given(st.lists(st.integers(0, 60), max_size=10), st.binary(max_size=20))
def test_a_head_ends_with_its_empty_line_however_it_comes(places: list[int], behind: bytes) -> None:
    reader = HeadReader(100)
    *pieces, last = cut(HEAD, [p for p in places if p < len(HEAD)])
    for piece in pieces:
        assert reader.receive_data(piece) is None
    assert reader.receive_data(last + behind) == HEAD[:-4]
    assert reader.trailing == behind


def test_a_head_of_the_limit_is_taken_and_a_longer_one_refused_as_soon_as_it_is() -> None:
    assert HeadReader(len(HEAD)).receive_data(HEAD + b"x" * 1000) is not None
    for stream in (HEAD, HEAD[:-1] + b"x"):
        with pytest.raises(HandshakeError) as caught:
            HeadReader(len(HEAD) - 1).receive_data(stream)
        assert caught.value.status == 431


@pytest.mark.parametrize(
    "stream", [b"GET / HTTP/1.1\nHost: a\n\n", b"\n", HEAD[:-2] + b"a: b\n\r\n\r\n", b"a\r\n\n"]
)
def test_a_lone_line_break_is_refused_at_once(stream: bytes) -> None:
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        reader = HeadReader(1000)
        with pytest.raises(HandshakeError, match="stands alone") as caught:
            for piece in pieces:
                reader.receive_data(piece)
        assert caught.value.status == 400


# Lists


def test_the_members_of_a_list_may_be_spread_over_fields() -> None:
    assert members([b"a, b ,", b"", b" ,c"]) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"", []),
        (b" , ,", []),
        (b"foo", [("foo", [])]),
        (b"foo, bar; baz=2", [("foo", []), ("bar", [("baz", "2")])]),
        (b"foo;a;b", [("foo", [("a", None), ("b", None)])]),
        (b' foo ; a = "1" ;b,,\tbar', [("foo", [("a", "1"), ("b", None)]), ("bar", [])]),
        (b'foo; a="\\1\\2"', [("foo", [("a", "12")])]),
    ],
)
def test_extensions_are_a_list_of_names_with_parameters(value: bytes, found: object) -> None:
    assert parse_extensions([value]) == found


def test_extensions_may_be_spread_over_fields() -> None:
    assert parse_extensions([b"a;b", b"c"]) == [("a", [("b", None)]), ("c", [])]


@pytest.mark.parametrize(
    "value",
    [
        b";",
        b"foo;",
        b"foo;;a",
        b";a",
        b"foo;a,;",
        b"foo=1",
        b"foo; a=",
        b"foo; =1",
        b'foo; a="',
        b'foo; a=""',
        b'foo; a="1',
        b'foo; a="x y"',
        b'foo; a="1"x',
        b"foo bar",
        b"foo; a b",
        b"f\xe9",
        b"foo; a='1",
    ],
)
def test_what_is_no_list_of_extensions_is_refused(value: bytes) -> None:
    if value == b"foo; a='1":
        assert parse_extensions([value]) == [("foo", [("a", "'1")])]  # a quote of this kind is a token's
        return
    with pytest.raises(HandshakeError) as caught:
        parse_extensions([value])
    assert caught.value.status == 400


@settings(deadline=None, max_examples=300)
@given(st.text('a;,= \t"\\x1', max_size=30).map(str.encode))
def test_no_list_of_extensions_raises_anything_but_a_refusal(value: bytes) -> None:
    try:
        found = parse_extensions([value])
    except HandshakeError:
        return
    again = ", ".join(
        "; ".join([name, *(p if v is None else f"{p}={v}" for p, v in parameters)])
        for name, parameters in found
    )
    assert parse_extensions([again.encode()]) == found


@pytest.mark.parametrize(
    "unit", [b" ", b"a", b"a;", b"a,", b"a=", b'"', b'a;b="\\', b",", b"; ", b'a;b="c",']
)
def test_long_garbage_in_extensions_does_not_take_long(unit: bytes) -> None:
    # With backtracking this would not end today.
    for end in (b"", b"\xff", b'"', b"="):
        try:
            parse_extensions([b"a;b" + unit * 20_000 + end])
        except HandshakeError:
            pass


# Writing


def test_headers_are_written() -> None:
    assert encode_headers([(b"A", b"1"), (b"b", b"x y\t\xe9")]) == b"A: 1\r\nb: x y\t\xe9\r\n"


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\n", b"\ra", b"\0", b"\x7f"])
def test_a_value_that_would_break_its_line_is_refused(value: bytes) -> None:
    with pytest.raises(WrongValueError, match="header A has a line break"):
        encode_headers([(b"A", value)])


@pytest.mark.parametrize("name", [b"", b"A B", b"A:", b"A\r\nB", b"\xe9"])
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    with pytest.raises(WrongValueError, match="header's name"):
        encode_headers([(name, b"x")])
