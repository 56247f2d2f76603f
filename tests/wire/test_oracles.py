"""The same streams, read by us, by wsproto and by websockets' sans-I/O layer.

Where they differ on purpose, the adapter of the other one says so, with the reason; everything else has to be
equal: messages, Pings, Pongs, the end, its code and its reason.
"""

from __future__ import annotations

import codecs
import logging
import random
import zlib
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close as TheirClose
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.protocol import State as TheirState
from wsproto import events as wsproto
from wsproto.connection import Connection as WsprotoConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.extensions import PerMessageDeflate

from nexios_trio.wire import Agreement, Close, Connection, Deflate, Event, Failure, Ping, Pong
from tests.wire.streams import (
    BINARY,
    CONTINUATION,
    KEY,
    TEXT,
    client,
    close_frame,
    cut,
    cuts,
    feed,
    frame,
    keys,
    server,
    streams,
)

pytestmark = pytest.mark.untraced


Outcome: TypeAlias = list[str | bytes | tuple[object, ...]]

QUIET = logging.getLogger("tests.wire.oracles")
QUIET.disabled = True


def ours(pieces: list[bytes], connection: Connection) -> Outcome:
    outcome: Outcome = []
    for event in feed(connection, pieces):
        match event:
            case str() | bytes():
                outcome.append(event)
            case Ping(payload) | Pong(payload):
                outcome.append((type(event).__name__, payload))
            case Close(code, reason):
                outcome.append(("Close", code, reason))
            case Failure(code, _):
                outcome.append(("Failure", code))
    return outcome


def of_wsproto(
    pieces: list[bytes], role: ConnectionType, extension: PerMessageDeflate | None = None
) -> Outcome:
    """Differs on purpose: it does not know 1014 (registered with IANA), which it fails with 1002."""
    connection = WsprotoConnection(role, [] if extension is None else [extension])
    outcome: Outcome = []
    message: list[str | bytes] = []
    for piece in pieces:
        connection.receive_data(piece)
        for event in connection.events():
            match event:
                case wsproto.TextMessage() | wsproto.BytesMessage():
                    message.append(event.data if isinstance(event.data, str) else bytes(event.data))
                    if event.message_finished:
                        empty: str | bytes = "" if isinstance(event.data, str) else b""
                        outcome.append(empty.join(message))  # type: ignore[arg-type]
                        message.clear()
                case wsproto.Ping() | wsproto.Pong():
                    outcome.append((type(event).__name__, bytes(event.payload)))
                case wsproto.CloseConnection():
                    if connection.state is ConnectionState.REMOTE_CLOSING:
                        outcome.append(("Close", int(event.code), event.reason or ""))
                    else:
                        outcome.append(("Failure", int(event.code)))
                    return outcome
    return outcome


def of_websockets(pieces: list[bytes], side: Side) -> Outcome:
    """Differs on purpose: lengths in more bytes than they need are taken (RFC 6455 §5.2 forbids them), a
    Close frame between fragments is a protocol error (§5.5.1 and §5.4 allow it), and of a bad code with a bad
    reason it tells the reason. It gives frames: messages are put together, and texts decoded, here."""
    connection = Protocol(side, state=TheirState.OPEN, max_size=None, logger=QUIET)
    outcome: Outcome = []
    message: list[str | bytes] = []
    decode = codecs.getincrementaldecoder("utf-8")()
    text = False
    for piece in pieces:
        if connection.state is TheirState.OPEN:
            connection.receive_data(piece)
    for event in connection.events_received():
        assert isinstance(event, Frame)
        data = bytes(event.data)
        match event.opcode:
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                if event.opcode is not Opcode.CONT:
                    text = event.opcode is Opcode.TEXT
                    decode.reset()
                try:
                    message.append(decode.decode(data, event.fin) if text else data)
                except UnicodeDecodeError:
                    return [*outcome, ("Failure", 1007)]
                if event.fin:
                    empty: str | bytes = "" if text else b""
                    outcome.append(empty.join(message))  # type: ignore[arg-type]
                    message.clear()
            case Opcode.PING | Opcode.PONG:
                outcome.append((event.opcode.name.title(), data))
            case Opcode.CLOSE:
                close = TheirClose.parse(data)
                outcome.append(("Close", int(close.code), close.reason))
    if connection.parser_exc is not None:
        assert connection.close_sent is not None
        outcome.append(("Failure", int(connection.close_sent.code)))
    return outcome


def has_a_close_in_a_message(stream: bytes, connection: Connection) -> bool:
    """Whether a Close frame comes while a message is under way."""
    under_way = False
    for byte in stream:
        if any(isinstance(event, Close) for event in connection.receive_data(bytes([byte]))):
            return under_way
        under_way = bool(connection._reader._opcode)
    return False


# Any stream of whole frames. With a part of one at the end, what is certain already would be told sooner or
# later.


@settings(deadline=None, max_examples=200)
@given(streams(), cuts)
def test_a_server_reads_what_wsproto_reads(stream: bytes, places: list[int]) -> None:
    pieces = cut(stream, places)
    found, theirs = ours(pieces, server()), of_wsproto(pieces, ConnectionType.SERVER)
    if found and isinstance(found[-1], tuple) and found[-1][:2] == ("Close", 1014):
        theirs[-1] = found[-1]
    assert found == theirs


@settings(deadline=None, max_examples=100)
@given(streams(masked=False), cuts)
def test_a_client_reads_what_wsproto_reads(stream: bytes, places: list[int]) -> None:
    pieces = cut(stream, places)
    found, theirs = ours(pieces, client()), of_wsproto(pieces, ConnectionType.CLIENT)
    if found and isinstance(found[-1], tuple) and found[-1][:2] == ("Close", 1014):
        theirs[-1] = found[-1]
    assert found == theirs


@settings(deadline=None, max_examples=200)
@given(streams(), cuts)
def test_a_server_reads_what_websockets_reads(stream: bytes, places: list[int]) -> None:
    pieces = cut(stream, places)
    compare_with_websockets(stream, pieces, server(), server(), Side.SERVER)


@settings(deadline=None, max_examples=100)
@given(streams(masked=False), cuts)
def test_a_client_reads_what_websockets_reads(stream: bytes, places: list[int]) -> None:
    pieces = cut(stream, places)
    compare_with_websockets(stream, pieces, client(), client(), Side.CLIENT)


LONG_LENGTHS = {"a payload length takes more bytes than it needs", "a control frame has at most 125 bytes"}


def compare_with_websockets(
    stream: bytes, pieces: list[bytes], reader: Connection, probe: Connection, side: Side
) -> None:
    events = feed(reader, pieces)
    found, theirs = ours(pieces, server() if side is Side.SERVER else client()), of_websockets(pieces, side)
    last = events[-1] if events else None
    if isinstance(last, Failure) and last.reason in LONG_LENGTHS:
        assert found[:-1] == theirs[: len(found) - 1]
    elif isinstance(last, Failure) and last.reason.startswith("close code"):
        assert theirs in ([*found[:-1], ("Failure", code)] for code in (1002, 1007))
    elif has_a_close_in_a_message(stream, probe):
        assert theirs == [*found[:-1], ("Failure", 1002)]
    else:
        assert found == theirs


# The differences themselves, so that it is noticed when they go away


def test_wsproto_does_not_know_1014() -> None:
    assert ours([close_frame(1014)], server()) == [("Close", 1014, "")]
    assert of_wsproto([close_frame(1014)], ConnectionType.SERVER) == [("Failure", 1002)]


def test_websockets_takes_long_forms_of_short_lengths() -> None:
    stream = frame(BINARY, b"x", form=8)
    assert ours([stream], server()) == [("Failure", 1002)]
    assert of_websockets([stream], Side.SERVER) == [b"x"]


def test_websockets_takes_no_close_frame_between_fragments() -> None:
    stream = frame(TEXT, fin=False) + close_frame(1000)
    assert ours([stream], server()) == [("Close", 1000, "")]
    assert of_websockets([stream], Side.SERVER) == [("Failure", 1002)]


# With compression, against wsproto


def extension(bits: int, alone: bool) -> PerMessageDeflate:
    theirs = PerMessageDeflate()
    theirs.finalize(
        f"permessage-deflate; client_max_window_bits={bits}"
        + ("; client_no_context_takeover" if alone else "")
    )
    return theirs


def deflated(data: bytes, compressor: zlib._Compress) -> bytes:
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


compressed_messages = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(st.text(min_size=1, max_size=80), st.binary(min_size=1, max_size=80), st.just("abc" * 400)),
        st.lists(st.integers(1, 60), max_size=3),
        keys,
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=100)
@given(compressed_messages, st.integers(9, 15), st.booleans(), cuts)
def test_a_server_decompresses_what_wsproto_decompresses(
    sent: list[tuple[bool, str | bytes, list[int], bytes]], bits: int, alone: bool, places: list[int]
) -> None:
    compressor = zlib.compressobj(wbits=-bits)
    stream = b""
    for compress, message, borders, key in sent:
        if alone:
            compressor = zlib.compressobj(wbits=-bits)
        opcode = TEXT if isinstance(message, str) else BINARY
        payload = message.encode() if isinstance(message, str) else message
        pieces = cut(deflated(payload, compressor) if compress else payload, borders)
        for i, piece in enumerate(pieces):
            rsv = 4 if compress and i == 0 else 0
            stream += frame(CONTINUATION if i else opcode, piece, fin=i == len(pieces) - 1, rsv=rsv, key=key)
    stream += close_frame(1000)
    agreement = Agreement(Deflate(), client_no_context_takeover=alone, client_max_window_bits=bits)
    pieces = cut(stream, places)
    found = ours(pieces, server(deflate=agreement))
    assert found == of_wsproto(pieces, ConnectionType.SERVER, extension(bits, alone))
    assert found == [*(message for _, message, _, _ in sent), ("Close", 1000, "")]


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=30), st.booleans())
def test_what_wsproto_refuses_to_decompress_so_do_we(payload: bytes, text: bool) -> None:
    """We refuse more: a stream that is cut short, or goes on after its last block, is taken by wsproto for
    what came out of it until then."""
    stream = frame(TEXT if text else BINARY, payload, rsv=4)
    found = ours([stream], server(deflate=Agreement(Deflate())))
    theirs = of_wsproto([stream], ConnectionType.SERVER, extension(15, alone=False))
    if theirs and theirs[-1] == ("Failure", 1007):
        assert found == theirs
    else:
        assert found in (theirs, [("Failure", 1007)])


# What we send, read by the others


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=200)), max_size=6), st.booleans())
def test_the_others_read_what_we_send(sent: list[str | bytes], as_server: bool) -> None:
    sender = server() if as_server else client()
    frames = [sender.encode_text(m) if isinstance(m, str) else sender.encode_binary(m) for m in sent]
    frames += [sender.encode_ping(b"p"), sender.encode_pong(b"q"), sender.encode_close(4321, "reason")]
    expected = [*sent, ("Ping", b"p"), ("Pong", b"q"), ("Close", 4321, "reason")]
    stream = [b"".join(frames)]
    assert of_wsproto(stream, ConnectionType.CLIENT if as_server else ConnectionType.SERVER) == expected
    assert of_websockets(stream, Side.CLIENT if as_server else Side.SERVER) == expected


@pytest.mark.parametrize("alone", [True, False])
def test_wsproto_decompresses_what_we_compress(alone: bool) -> None:
    randomness = random.Random(7)
    agreement = Agreement(Deflate(threshold=1), client_no_context_takeover=alone, client_max_window_bits=10)
    sender = Connection.client(lambda: KEY, deflate=agreement)
    sent: list[Event] = [" ".join(randomness.choices(["ann", "bob", "eve"], k=200)) for _ in range(30)]
    stream = [sender.encode_text(text) for text in sent if isinstance(text, str)]
    assert of_wsproto(stream, ConnectionType.SERVER, extension(10, alone)) == sent
