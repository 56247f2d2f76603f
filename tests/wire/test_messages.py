"""From bytes to messages: fragments, limits, and what they cost."""

from __future__ import annotations

import sys
import tracemalloc
import zlib
from collections.abc import Callable
from types import FrameType
from typing import Any, SupportsIndex

import pytest
from hypothesis import given, settings

from nexios_trio.wire import Agreement, Close, Connection, Deflate, Event, Failure, Ping, Pong
from nexios_trio.wire.messages import EMPTY_FRAGMENTS, MAX_PINGS
from tests.wire.streams import (
    BINARY,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    chopped,
    client,
    close_frame,
    cut,
    cuts,
    feed,
    frame,
    received,
    server,
    streams,
    xor,
)

KAPPA = "κόσμε".encode()


def failure(events: list[Event]) -> int:
    """The code of the failure at the end."""
    assert isinstance(events[-1], Failure)
    return events[-1].code


# Whole messages


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 383, 384, 65535, 65536, 300000])
def test_a_whole_message_of_any_length_is_given_as_str_or_bytes(size: int) -> None:
    text, data = "x" * size, bytes(range(256)) * (size // 256 + 1)
    stream = frame(TEXT, text.encode()) + frame(BINARY, data[:size])
    events = received(stream)
    assert events == [text, data[:size]]
    assert [type(event) for event in events] == [str, bytes]
    unmasked = frame(TEXT, text.encode(), key=None) + frame(BINARY, data[:size], key=None)
    assert received(unmasked, client()) == events


def test_many_messages_in_one_buffer_and_a_part_of_the_next() -> None:
    connection = server()
    stream = b"".join(frame(TEXT, b"%d" % i) for i in range(100))
    assert connection.receive_data(stream + frame(TEXT, b"last")[:7]) == [str(i) for i in range(100)]
    assert connection.receive_data(frame(TEXT, b"last")[7:] + frame(BINARY, b"!")) == ["last", b"!"]


def test_nothing_gives_nothing() -> None:
    connection = server()
    assert connection.receive_data(b"") == []
    assert connection.receive_data(frame(TEXT, b"abc")[:4]) == []
    assert connection.receive_data(b"") == []
    assert connection.receive_data(frame(TEXT, b"abc")[4:]) == ["abc"]


def test_a_byte_at_a_time_is_as_good_as_any_way() -> None:
    stream = frame(TEXT, KAPPA) + frame(PING, b"p") + frame(BINARY, bytes(200)) + close_frame(1001, "bye")
    assert feed(server(), chopped(stream, 1)) == ["κόσμε", Ping(b"p"), bytes(200), Close(1001, "bye")]


def test_what_looks_like_a_whole_message_is_none_where_something_is_under_way() -> None:
    trap = frame(TEXT, b"trap")
    for pieces, expected in (
        ([frame(BINARY, trap * 3, key=bytes(4))[: -len(trap)], trap], trap * 3),  # the end of a payload
        ([b"\x82\x84", trap[:4] + xor(b"data", trap[:4])], b"data"),  # a key, and a payload
    ):
        assert feed(server(), pieces) == [expected]
    looks_like_one = [b"\x82\x88", b"\x81\x86\0\0" + xor(b"12345678", b"\x81\x86\0\0")]
    assert looks_like_one[1][1] == len(looks_like_one[1]) + 122
    assert feed(server(), looks_like_one) == [b"12345678"]
    assert failure(feed(server(), [frame(TEXT, b"a", fin=False), trap])) == 1002


def test_an_unmasked_frame_is_not_taken_for_a_masked_one_with_bytes_behind_it() -> None:
    assert failure(received(frame(TEXT, b"abcd", key=None) + b"1234")) == 1002


# Fragments


def test_fragments_make_one_message_and_control_frames_may_come_between() -> None:
    stream = (
        frame(TEXT, KAPPA[:3], fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, KAPPA[3:4], fin=False)
        + frame(CONTINUATION, b"", fin=False)
        + frame(PONG, b"2")
        + frame(CONTINUATION, KAPPA[4:])
        + frame(BINARY, b"\xff", fin=False)
        + frame(CONTINUATION)
    )
    assert received(stream) == [Ping(b"1"), Pong(b"2"), "κόσμε", b"\xff"]


def test_empty_fragments_make_an_empty_message() -> None:
    assert received(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION)) == [""]


def test_a_close_frame_ends_a_message_that_is_under_way() -> None:
    assert received(frame(TEXT, b"a", fin=False) + close_frame(1000)) == [Close(1000, "")]


@pytest.mark.parametrize(
    "stream",
    [
        frame(CONTINUATION, b"x"),
        frame(CONTINUATION, b"x", fin=False),
        frame(TEXT, b"a") + frame(CONTINUATION, b"x"),
        frame(TEXT, b"a", fin=False) + frame(TEXT, b"x"),
        frame(TEXT, b"a", fin=False) + frame(BINARY, b"x", fin=False),
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"x") + frame(CONTINUATION, b"y"),
    ],
)
def test_fragments_out_of_order_are_refused(stream: bytes) -> None:
    assert failure(received(stream)) == 1002
    assert failure(feed(server(), chopped(stream, 1))) == 1002


# UTF-8


@pytest.mark.parametrize(
    "stream",
    [
        frame(TEXT, b"\xff"),
        frame(TEXT, b"a" * 200 + b"\xff"),
        frame(TEXT, KAPPA[:3]),
        frame(TEXT, KAPPA[:3], fin=False) + frame(CONTINUATION),
        frame(TEXT, b"\xed\xa0\x80"),
        frame(TEXT, b"\xf4\x90\x80\x80"),
        frame(TEXT, b"\xc0\xaf"),
    ],
)
def test_a_text_that_is_no_utf_8_is_refused(stream: bytes) -> None:
    assert failure(received(stream)) == 1007
    assert failure(feed(server(), chopped(stream, 1))) == 1007


def test_a_bad_byte_is_refused_before_its_message_is_complete() -> None:
    # As sections 6.3 and 6.4 of the Autobahn suite have it
    start = KAPPA + b"\xf4"
    in_fragments = server()
    assert in_fragments.receive_data(frame(TEXT, start, fin=False)) == []
    assert failure(in_fragments.receive_data(frame(CONTINUATION, b"\x90", fin=False))) == 1007
    in_one_frame = server()
    whole = frame(TEXT, start + b"\x90\x80\x80edited")
    place = len(whole) - len(b"\x80\x80edited")
    assert in_one_frame.receive_data(whole[: place - 1]) == []
    assert failure(in_one_frame.receive_data(whole[place - 1 : place])) == 1007


def test_binary_messages_hold_anything() -> None:
    assert received(frame(BINARY, b"\xff", fin=False) + frame(CONTINUATION, b"\xfe")) == [b"\xff\xfe"]


# Limits


@pytest.mark.parametrize("limit", [1, 10, 125, 126, 1000, 70000])
def test_a_message_of_as_many_bytes_as_allowed_is_taken_and_one_of_more_is_not(limit: int) -> None:
    for opcode in (TEXT, BINARY):
        (message,) = received(frame(opcode, b"x" * limit), server(limit))
        assert len(message) == limit  # type: ignore[arg-type]
        assert failure(received(frame(opcode, b"x" * (limit + 1)), server(limit))) == 1009
        split = frame(opcode, b"x", fin=False) + frame(CONTINUATION, b"x" * (limit - 1))
        assert len(received(split, server(limit))) == 1
        split = frame(opcode, b"x", fin=False) + frame(CONTINUATION, b"x" * limit)
        assert failure(received(split, server(limit))) == 1009


def test_a_message_too_large_is_refused_by_its_header() -> None:
    for size in (1001, 65536, (1 << 63) - 1):
        whole = frame(BINARY, length=size)
        assert failure(received(whole, server(1000))) == 1009


def test_the_limit_counts_bytes_not_characters() -> None:
    assert received(frame(TEXT, "é".encode() * 5), server(10)) == ["é" * 5]
    assert failure(received(frame(TEXT, "é".encode() * 6), server(10))) == 1009


def test_many_fragments_are_taken_and_too_many_refused() -> None:
    stream = frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * 8
    assert received(stream + frame(CONTINUATION, b"x"), server(max_fragments=10)) == [b"x" * 10]
    more = stream + frame(CONTINUATION, b"x", fin=False) * 2
    assert failure(received(more, server(max_fragments=10))) == 1008


def test_empty_fragments_are_not_taken_for_ever() -> None:
    few = frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * (EMPTY_FRAGMENTS - 1)
    assert received(few + frame(CONTINUATION)) == [b""]
    assert failure(received(few + frame(CONTINUATION, fin=False))) == 1008
    in_two_messages = (few + frame(CONTINUATION)) * 2
    assert received(in_two_messages) == [b"", b""]


def test_of_many_pings_the_newest_are_answered() -> None:
    connection = server()
    pings = [b"%d" % i for i in range(100)]
    assert connection.receive_data(b"".join(frame(PING, p) for p in pings)) == [Ping(p) for p in pings]
    answers = received(connection.data_to_send(), client())
    assert answers == [Pong(p) for p in pings[-MAX_PINGS:]]


# Splits


@settings(max_examples=200, deadline=None)
@given(streams(), cuts)
def test_any_split_of_a_stream_to_a_server_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    assert feed(server(), cut(stream, places)) == received(stream)


@settings(max_examples=100, deadline=None)
@given(streams(masked=False), cuts)
def test_any_split_of_a_stream_to_a_client_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    assert feed(client(), cut(stream, places)) == received(stream, client())


@settings(max_examples=100, deadline=None)
@given(streams(), cuts)
def test_any_split_gives_the_same_events_under_narrow_limits(stream: bytes, places: list[int]) -> None:
    in_pieces, at_once = (server(40, max_fragments=3) for _ in range(2))
    assert feed(in_pieces, cut(stream, places)) == received(stream, at_once)


@settings(max_examples=100, deadline=None)
@given(streams())
def test_a_byte_at_a_time_gives_the_same_events(stream: bytes) -> None:
    stream = stream[:3000]
    assert feed(server(), chopped(stream, 1)) == received(stream)


# What it costs: counted, not timed


class Counted(bytes):
    """Bytes that count how many of them are copied by slicing and joining."""

    copied = 0

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        found = super().__getitem__(place)
        if isinstance(found, int):
            return found
        Counted.copied += len(found)
        return Counted(found)

    def __add__(self, other: Any) -> Counted:
        Counted.copied += len(self) + len(other)
        return Counted(super().__add__(other))


def cost(pieces: list[bytes], connection: Connection) -> tuple[int, int]:
    """Bytes copied, and calls made of functions in Python and in C, to read these pieces."""
    counted = [Counted(piece) for piece in pieces]
    calls = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    Counted.copied = 0
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for piece in counted:
            connection.receive_data(piece)
    finally:
        sys.setprofile(before)
    assert connection.receive_data(b"") == []
    return Counted.copied, calls


AGREED = Agreement(Deflate())
NOISE = bytes(i * i * 31 % 251 for i in range(70000))


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


STREAMS: dict[str, Callable[[int], bytes]] = {
    "short messages": lambda n: frame(TEXT, b"x" * 32) * n,
    "pings": lambda n: frame(PING, b"x" * 32) * n,
    "one large message": lambda n: frame(BINARY, b"x" * 40 * n),
    "one large text": lambda n: frame(TEXT, "é".encode() * 20 * n),
    "large frames in fragments": lambda n: (
        frame(BINARY, bytes(4000), fin=False) + frame(CONTINUATION, bytes(4000), fin=False) * (n // 100)
    ),
    "tiny fragments": lambda n: frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * n,
    "fragments with pings between": lambda n: (
        frame(TEXT, b"x", fin=False) + (frame(CONTINUATION, b"x", fin=False) + frame(PING, bytes(125))) * n
    ),
    "compressed messages": lambda n: frame(TEXT, deflated(b"abc" * 20), rsv=4) * n,
    "one compressed message": lambda n: frame(BINARY, deflated(NOISE[: 30 * n]), rsv=4),
    "what follows an error": lambda n: frame(CONTINUATION) + frame(TEXT, b"x" * 32) * n,
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 30])
def test_twice_the_bytes_cost_twice_as_much(name: str, size: int) -> None:
    """Whatever the stream, and in whatever pieces it comes."""
    n = {1: 40, 7: 100}.get(size, 400)
    costs = []
    for times in (n, 2 * n):
        stream = STREAMS[name](times)
        copied, calls = cost(chopped(stream, size), server(deflate=AGREED))
        costs.append((copied, calls))
        if name != "what follows an error":
            # A partial control frame is kept as bytes, up to 131 of them, and joined with each piece.
            assert copied <= len(stream) * (150 if size < 100 else 4)
    (copied, calls), (copied_twice, calls_twice) = costs
    assert copied_twice <= 2.1 * copied + 2000
    assert calls_twice <= 2.1 * calls + 200


def peak(pieces: list[bytes], connection: Connection) -> int:
    """The most memory taken while these pieces are read, in bytes beyond what there was."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for piece in pieces:
            connection.receive_data(piece)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


LIMIT = 1 << 16


@pytest.mark.untraced
@pytest.mark.parametrize("size", [2, 13, 4096])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_under_way_takes_little_more_than_its_bytes(opcode: int, size: int) -> None:
    stream = frame(opcode, b"x" * LIMIT)
    assert peak(chopped(stream, size)[:-1], server(LIMIT)) < 1.5 * LIMIT + 20000


@pytest.mark.untraced
def test_fragments_take_little_more_than_their_bytes() -> None:
    stream = frame(TEXT, b"xx", fin=False) + frame(CONTINUATION, b"xx", fin=False) * (LIMIT // 8)
    assert peak(chopped(stream, 4096), server(LIMIT)) < LIMIT // 2 + 20000


@pytest.mark.untraced
@pytest.mark.parametrize(
    "stream",
    [
        frame(BINARY, length=LIMIT) + b"x",
        frame(BINARY, length=LIMIT + 1),
        frame(BINARY, length=(1 << 63) - 1),
        frame(BINARY, b"x", fin=False) + frame(CONTINUATION, length=LIMIT),
        frame(TEXT, length=(1 << 63) - 1, rsv=4),
    ],
)
def test_a_header_alone_takes_no_memory(stream: bytes) -> None:
    assert peak([stream], server(LIMIT, deflate=AGREED)) < 5000


@pytest.mark.untraced
def test_the_end_frees_what_was_under_way() -> None:
    for end in (close_frame(1000), frame(BINARY)):
        connection = server()
        tracemalloc.start()
        try:
            connection.receive_data(frame(TEXT, b"x" * 100000, fin=False) + end)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 5000


def test_what_follows_the_end_takes_no_memory() -> None:
    for end in (close_frame(1000), frame(CONTINUATION)):
        connection = server()
        connection.receive_data(frame(TEXT, b"x" * 100000, fin=False) + end)
        pieces = [frame(TEXT, b"y" * 1000, key=KEY)] * 100
        assert peak(pieces, connection) < 5000
