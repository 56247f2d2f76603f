"""permessage-deflate: the two directions of a stream of messages."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.wire import (
    Agreement,
    Connection,
    Deflate,
    Failure,
    ProtocolViolation,
    encode_shared,
    encode_text,
)
from nexios_trio.wire.deflate import Deflater, Inflater
from tests.wire.streams import (
    BINARY,
    CONTINUATION,
    KEY,
    PING,
    TEXT,
    chopped,
    client,
    cut,
    feed,
    frame,
    server,
)

ALWAYS = Deflate(threshold=1)
TAIL = b"\x00\x00\xff\xff"

agreements = st.builds(
    Agreement,
    st.just(ALWAYS),
    st.booleans(),
    st.booleans(),
    server_max_window_bits=st.integers(8, 15),
    client_max_window_bits=st.integers(8, 15),
)
messages = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.sampled_from([b"abc" * 100, b"\0" * 5000, bytes(range(256)) * 20]),
    ),
    max_size=6,
)


def deflated(data: bytes, *, bits: int = 15, final: bool = False) -> bytes:
    compressor = zlib.compressobj(wbits=-bits)
    if final:
        return compressor.compress(data) + compressor.flush(zlib.Z_FINISH)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflater(*, alone: bool = False) -> Inflater:
    return Inflater(Agreement(ALWAYS, client_no_context_takeover=alone), server=True)


def refusal(payload: bytes, limit: int = 1 << 20, reader: Inflater | None = None) -> int:
    with pytest.raises(ProtocolViolation) as caught:
        (reader or inflater()).inflate(payload, limit)
    return caught.value.code


# There and back


@settings(deadline=None)
@given(agreements, messages)
def test_what_one_side_compresses_the_other_decompresses(agreement: Agreement, sent: list[bytes]) -> None:
    for server_sends in (True, False):
        deflater = Deflater(agreement, server=server_sends)
        reader = Inflater(agreement, server=not server_sends)
        for message in sent:
            compressed = deflater.compress(message)
            if compressed is not None:
                assert reader.inflate(compressed, len(message)) == message


@settings(deadline=None, max_examples=60)
@given(agreements, messages)
def test_zlib_itself_reads_and_writes_the_same_streams(agreement: Agreement, sent: list[bytes]) -> None:
    alone = agreement.client_no_context_takeover
    bits = max(agreement.client_max_window_bits, 9)
    writer, theirs = Deflater(agreement, server=False), zlib.decompressobj(-bits)
    reader, compressor = Inflater(agreement, server=True), zlib.compressobj(wbits=-bits)
    for message in sent:
        if alone:
            theirs, compressor = zlib.decompressobj(-bits), zlib.compressobj(wbits=-bits)
        compressed = writer.compress(message)
        if compressed is not None:
            assert theirs.decompress(compressed + TAIL) == message
        compressed = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
        if message:
            assert reader.inflate(compressed[:-4], len(message)) == message


def test_the_examples_of_the_rfc() -> None:
    # RFC 7692 §7.2.3
    reader = inflater()
    assert reader.inflate(bytes.fromhex("f248cdc9c90700"), 5) == b"Hello"  # 7.2.3.1
    assert reader.inflate(bytes.fromhex("f200110000"), 5) == b"Hello"  # 7.2.3.2, from the window
    assert inflater().inflate(bytes.fromhex("000500faff48656c6c6f00"), 5) == b"Hello"  # 7.2.3.3, stored
    assert inflater().inflate(bytes.fromhex("f348cdc9c9070000"), 5) == b"Hello"  # 7.2.3.4, BFINAL
    assert (
        inflater().inflate(bytes.fromhex("f24805000000ffffcac9c90700"), 5) == b"Hello"
    )  # 7.2.3.5, two blocks
    assert inflater().inflate(b"\x00", 5) == b""  # 7.2.3.6


def test_a_message_may_refer_to_what_came_before_as_far_as_the_window_goes() -> None:
    for bits in range(9, 16):
        agreement = Agreement(ALWAYS, client_max_window_bits=bits)
        deflater, reader = Deflater(agreement, server=False), Inflater(agreement, server=True)
        for i in range(40):
            message = bytes(i * j * 37 % 251 for j in range(1 << 10))
            compressed = deflater.compress(message)
            assert compressed is not None
            assert reader.inflate(compressed, 1 << 10) == message
            assert len(reader._window) <= 1 << bits


def test_without_takeover_nothing_is_kept() -> None:
    reader = inflater(alone=True)
    reader.inflate(deflated(b"abc"), 3)
    assert reader._window == b""
    assert refusal(bytes.fromhex("f200110000"), reader=reader) == 1007


def test_a_window_of_256_bytes_is_kept_to_though_zlib_cannot_make_one() -> None:
    # A strict reader: it is given one byte of room at a time, so that all it can refer to is its window.
    agreement = Agreement(ALWAYS, server_max_window_bits=8)
    deflater = Deflater(agreement, server=True)
    strict = zlib.decompressobj(-8)
    sample = b"".join(bytes([i % 7, i % 11]) * (i % 5) + b"nexios" for i in range(2000))
    for message in (sample, sample[::-1], sample[100:3000]):
        compressed = deflater.compress(message)
        assert compressed is not None
        out = b""
        rest = compressed + TAIL
        while rest:
            out += strict.decompress(rest, 1)
            rest = strict.unconsumed_tail
        while more := strict.decompress(b"", 1):
            out += more
        assert out == message


# What is not compressed


def test_messages_under_the_threshold_are_sent_as_they_are() -> None:
    deflater = Deflater(Agreement(Deflate(threshold=100)), server=True)
    assert deflater.compress(b"x" * 99) is None
    assert deflater.compress(b"x" * 100) is not None


def test_by_themselves_only_messages_that_get_smaller_are_compressed() -> None:
    noise = bytes(i * i * 31 % 251 for i in range(60))
    alone = Deflater(Agreement(ALWAYS, server_no_context_takeover=True), server=True)
    assert alone.compress(noise) is None
    # With takeover the compressor has seen it already, so it must go out.
    assert Deflater(Agreement(ALWAYS), server=True).compress(noise) is not None


def test_an_empty_message_is_never_compressed() -> None:
    deflater = Deflater(Agreement(ALWAYS), server=True)
    assert deflater.compress(b"") is None


# Bombs and garbage


@pytest.mark.parametrize("limit", [1, 1000, 1 << 16])
def test_a_message_of_the_limit_is_taken_and_a_byte_more_is_not(limit: int) -> None:
    assert inflater().inflate(deflated(b"x" * limit), limit) == b"x" * limit
    for more in range(1, 12):
        for final in (False, True):
            assert refusal(deflated(b"x" * (limit + more), final=final), limit) == 1009


@pytest.mark.untraced
def test_a_bomb_takes_no_more_memory_than_the_limit_allows() -> None:
    bomb = deflated(bytes(100 << 20))
    limit = 1 << 20
    reader = inflater()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert refusal(bomb, limit, reader) == 1009
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 2 * limit + 2 * len(bomb) + 100_000  # zlib's blocks, and the message joined from them


def test_a_bomb_on_a_connection_ends_it_with_1009() -> None:
    connection = server(1 << 16, deflate=Agreement(ALWAYS))
    (event,) = connection.receive_data(frame(BINARY, deflated(bytes(1 << 24)), rsv=4))
    assert event == Failure(1009, "a message has more than 65536 bytes when decompressed")


def test_compressed_bytes_are_limited_before_they_are_kept() -> None:
    limit = 1 << 16
    blocks = b"\x00\x00\x00\xff\xff" * limit  # empty ones, that decompress to nothing
    connection = server(limit, deflate=Agreement(ALWAYS))
    (event,) = feed(connection, chopped(frame(BINARY, blocks, rsv=4), 1000))
    assert isinstance(event, Failure)
    assert event.code == 1009


@pytest.mark.parametrize("memory_level", [1, 9])
@pytest.mark.parametrize("bits", [9, 15])
def test_noise_of_the_limit_passes_although_deflate_makes_it_longer(bits: int, memory_level: int) -> None:
    agreement = Agreement(
        Deflate(threshold=1, memory_level=memory_level, level=1), client_max_window_bits=bits
    )
    for size in (1, 100, 5000, 100_000):
        noise = b"".join(zlib.crc32(b"%d" % i).to_bytes(4, "big") for i in range(size // 4 + 1))[:size]
        sender, receiver = client(deflate=agreement), server(size, deflate=agreement)
        assert receiver.receive_data(sender.encode_binary(noise)) == [noise]


@pytest.mark.parametrize(
    "payload",
    [
        b"",  # not even the empty block of an empty message
        b"\xff",
        b"\x07",  # a block of the reserved type
        deflated(b"Hello") + b"!",
        deflated(b"Hello") + b"\x00",
        deflated(b"Hello", final=True) + b"!",
        deflated(b"Hello", final=True) + b"\x00!",
        deflated(b"Hello", final=True) * 2,
        deflated(b"Hello" * 100)[:-2],
        bytes.fromhex("f2001100"),  # refers back, to nothing
    ],
)
def test_what_is_no_deflate_stream_is_refused(payload: bytes) -> None:
    if payload == deflated(b"Hello") + b"\x00":
        # A zero byte begins an empty block, whose tail is left out: two of them, which is allowed.
        assert inflater().inflate(deflated(b"Hello") + TAIL + b"\x00", 5) == b"Hello"
    assert refusal(payload) == 1007


NOISE = b"".join(zlib.crc32(b"%d" % i).to_bytes(4, "big") for i in range(150))


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize(
    "message", [b"".join(b"%d bottles of beer " % i for i in range(300)), NOISE, b"a", b"x" * 3000]
)
def test_a_stream_cut_short_is_refused(message: bytes, level: int) -> None:
    compressor = zlib.compressobj(level, wbits=-15)
    whole = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    for end in range(len(whole)):
        if whole[:end] != b"\x00":  # which is the empty message
            assert refusal(whole[:end]) == 1007, end
    assert inflater().inflate(whole, len(message)) == message


def test_a_message_may_end_with_any_bytes() -> None:
    for end in (
        b"\x00\x00\xff\xff",
        b"\x08\x00\xf7\xff",
        b"\x08\x00\xf7\xff\xd4\x1d\x8c\xd9\x8f\x00\xb2\x04",
    ):
        for message in (end, end * 2, NOISE + end):
            assert inflater().inflate(deflated(message), len(message)) == message
            assert inflater().inflate(deflated(message, final=True), len(message)) == message


def test_a_peer_may_end_its_stream_with_a_message_and_begin_a_new_one() -> None:
    reader = inflater()
    for _ in range(3):
        assert reader.inflate(deflated(b"Hello", final=True) + b"\x00", 5) == b"Hello"
        assert reader.inflate(deflated(b"Hello", final=True), 5) == b"Hello"
        assert reader.inflate(deflated(b"Hello"), 5) == b"Hello"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_raise_anything_but_a_violation(payload: bytes, after_another: bool) -> None:
    reader = inflater()
    if after_another:
        reader.inflate(deflated(b"abcdefghijklmnop" * 20), 320)
    try:
        message = reader.inflate(payload, 1000)
    except ProtocolViolation as violation:
        assert violation.code in (1007, 1009)
    else:
        assert len(message) <= 1000


# On a connection

AGREED = Agreement(Deflate(threshold=1))


def test_a_compressed_message_may_come_in_fragments_and_in_pieces() -> None:
    payload = deflated(b"Hello, world " * 50)
    stream = (
        frame(TEXT, payload[:5], fin=False, rsv=4)
        + frame(PING, b"p")
        + frame(CONTINUATION, fin=False)
        + frame(CONTINUATION, payload[5:])
    )
    for size in (1, 3, 1000):
        events = feed(server(deflate=AGREED), chopped(stream, size))
        assert events[1:] == ["Hello, world " * 50]


def test_compressed_and_plain_messages_take_turns() -> None:
    stream = (
        frame(TEXT, deflated(b"Hello"), rsv=4)
        + frame(TEXT, b"plain")
        + frame(BINARY, deflated(b"\xff"), rsv=4)
    )
    assert server(deflate=AGREED).receive_data(stream) == ["Hello", "plain", b"\xff"]


def test_a_compressed_text_is_checked_too() -> None:
    (event,) = server(deflate=AGREED).receive_data(frame(TEXT, deflated(b"\xff"), rsv=4))
    assert event == Failure(1007, "a text message is not valid UTF-8")


@pytest.mark.parametrize(
    "stream",
    [
        frame(TEXT, b"a", fin=False, rsv=4) + frame(CONTINUATION, b"b", rsv=4),
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=4),
        frame(PING, b"a", rsv=4),
        frame(TEXT, b"a", rsv=2),
        frame(TEXT, b"a", rsv=6),
    ],
)
def test_rsv1_is_for_the_first_frame_of_a_message_only(stream: bytes) -> None:
    event = server(deflate=AGREED).receive_data(stream)[-1]
    assert isinstance(event, Failure)
    assert event.code == 1002


def test_without_an_agreement_nothing_is_compressed_nor_taken() -> None:
    assert server().encode_text("x" * 1000) == encode_text("x" * 1000)
    (event,) = server().receive_data(frame(TEXT, deflated(b"Hello"), rsv=4))
    assert event == Failure(1002, "a reserved bit is set that no extension allows here")


@settings(deadline=None, max_examples=60)
@given(agreements, st.lists(st.one_of(st.text(), st.binary()), max_size=8), st.lists(st.integers(0, 300)))
def test_connections_of_both_roles_understand_each_other(
    agreement: Agreement, sent: list[str | bytes], places: list[int]
) -> None:
    pair = (server(deflate=agreement), client(deflate=agreement))
    for sender, receiver in (pair, pair[::-1]):
        encode = [sender.encode_text(m) if isinstance(m, str) else sender.encode_binary(m) for m in sent]
        assert feed(receiver, cut(b"".join(encode), places)) == sent


# Broadcasts


def test_one_compressed_frame_goes_to_every_connection_that_can_take_it() -> None:
    text = "the same for all " * 100
    for wanted, bits in itertools.product((Deflate(), Deflate(server_max_window_bits=9)), (9, 12, 15)):
        shared = encode_shared(text, wanted, bits)
        assert shared[0] == 0xC1
        assert len(shared) < 100
        for agreed_bits in range(bits, 16):
            agreement = Agreement(wanted, server_no_context_takeover=True, server_max_window_bits=agreed_bits)
            ours, theirs = server(deflate=agreement), client(deflate=agreement)
            assert ours.shared_window_bits == agreed_bits
            between = ours.encode_text("something of its own " * 50)
            assert theirs.receive_data(between + shared + between + shared) == [
                *["something of its own " * 50, text] * 2
            ]


def test_the_shared_frame_is_plain_where_compression_gains_nothing() -> None:
    noise = bytes(i * i * 31 % 251 for i in range(60))
    assert encode_shared("short", Deflate(), 12) == encode_text("short")
    assert encode_shared(noise, ALWAYS, 12) == frame(BINARY, noise, key=None)


def test_connections_that_cannot_take_shared_frames_say_so() -> None:
    assert server().shared_window_bits is None
    assert server(deflate=Agreement(ALWAYS)).shared_window_bits is None
    alone = Agreement(ALWAYS, server_no_context_takeover=True)
    assert server(deflate=alone).shared_window_bits == 15
    assert Connection.client(lambda: KEY, deflate=alone).shared_window_bits is None


# Settings


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("server_max_window_bits", 7),
        ("client_max_window_bits", 16),
        ("threshold", 0),
        ("level", 0),
        ("level", 10),
        ("memory_level", 10),
    ],
)
def test_settings_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(WrongValueError, match=f"{option} is between"):
        Deflate(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(WrongTypeError, match=f"{option} is a whole number"):
        Deflate(**{option: "9"})  # type: ignore[arg-type]
