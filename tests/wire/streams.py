"""What the tests of the wire share: frames built slowly and plainly, streams of them, ways to feed a
connection."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from nexios_trio.wire import Agreement, Connection, Event

KEY = b"\x37\xfa\x21\x3d"  # that of RFC 6455 §5.7

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def xor(data: bytes, key: bytes) -> bytes:
    """RFC 6455 §5.3 to the letter."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """One frame. ``length`` lies about the payload's, ``form`` (0, 2, 8) is how many bytes more say it."""
    size = len(payload) if length is None else length
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    mask = 0 if key is None else 0x80
    short = {0: size, 2: 126, 8: 127}[form]
    head = bytes([fin << 7 | rsv << 4 | opcode, mask | short])
    if form:
        head += size.to_bytes(form, "big")
    return head + (payload if key is None else key + xor(payload, key))


def close_frame(code: int | None = None, reason: str = "", *, key: bytes | None = KEY) -> bytes:
    body = b"" if code is None else code.to_bytes(2, "big") + reason.encode()
    return frame(CLOSE, body, key=key)


def server(
    max_message_bytes: int = 1 << 20, *, deflate: Agreement | None = None, max_fragments: int = 1 << 17
) -> Connection:
    return Connection.server(
        max_message_bytes=max_message_bytes, deflate=deflate, max_fragments=max_fragments
    )


def client(max_message_bytes: int = 1 << 20, *, deflate: Agreement | None = None) -> Connection:
    return Connection.client(lambda: KEY, max_message_bytes=max_message_bytes, deflate=deflate)


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream in pieces; places outside of it do nothing."""
    borders = [0, *sorted({p for p in places if 0 < p < len(stream)}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(borders)]


def chopped(stream: bytes, size: int) -> list[bytes]:
    return cut(stream, range(0, len(stream), size))


def feed(connection: Connection, pieces: Sequence[bytes]) -> list[Event]:
    return [event for piece in pieces for event in connection.receive_data(piece)]


def received(stream: bytes, connection: Connection | None = None) -> list[Event]:
    return (connection or server()).receive_data(stream)


# Strategies

keys = st.binary(min_size=4, max_size=4)

texts = st.text(max_size=200)

payloads = st.one_of(
    st.binary(max_size=20),
    texts.map(str.encode),
    st.sampled_from([124, 125, 126, 127, 400]).map(
        lambda size: b"\xc3\xa9x" * (size // 3) + b"y" * (size % 3)
    ),
)

codes = st.one_of(st.sampled_from([1000, 1001, 1011, 3000, 4999]), st.integers(0, 65535))

close_payloads = st.one_of(
    st.just(b""),
    st.binary(max_size=3),
    st.tuples(codes, st.text(max_size=30)).map(lambda c: c[0].to_bytes(2, "big") + c[1].encode()),
    st.tuples(codes, st.binary(max_size=5)).map(lambda c: c[0].to_bytes(2, "big") + c[1]),
)


@st.composite
def fragmented(draw: st.DrawFn, *, masked: bool = True) -> bytes:
    """One message in fragments, control frames between them."""
    payload = draw(payloads)
    pieces = cut(payload, draw(st.lists(st.integers(0, len(payload)), max_size=5))) if payload else [b""]
    if draw(st.booleans()):
        pieces.insert(draw(st.integers(0, len(pieces))), b"")
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    out = []
    for i, piece in enumerate(pieces):
        key = draw(keys) if masked else None
        out.append(frame(opcode if i == 0 else CONTINUATION, piece, fin=i == len(pieces) - 1, key=key))
        if draw(st.booleans()):
            out.append(frame(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=10)), key=key))
    return b"".join(out)


@st.composite
def any_frame(draw: st.DrawFn, *, masked: bool = True) -> bytes:
    """A frame, mostly valid by itself; each of its parts may be wrong."""
    wrong = draw(st.integers(0, 11))
    opcode = draw(st.sampled_from([TEXT, BINARY, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE]))
    if opcode == CLOSE:
        payload = draw(close_payloads)
    elif opcode in (PING, PONG):
        payload = draw(st.binary(max_size=130 if wrong == 0 else 125))
    else:
        payload = draw(payloads)
    if wrong == 1:
        opcode = draw(st.integers(0, 15))
    return frame(
        opcode,
        payload,
        fin=not (wrong == 2 or (opcode < 8 and draw(st.integers(0, 3)) == 0)),
        rsv=draw(st.integers(0, 7)) if wrong == 3 else 0,
        key=draw(keys) if masked != (wrong == 4) else None,
        form=draw(st.sampled_from([2, 8])) if wrong == 5 and len(payload) < 65536 else None,
    )


def streams(*, masked: bool = True) -> st.SearchStrategy[bytes]:
    """Streams of whole frames, valid and not."""
    whole = payloads.map(lambda p: frame(TEXT, p, key=KEY if masked else None))
    return st.lists(
        st.one_of(whole, fragmented(masked=masked), any_frame(masked=masked)), min_size=1, max_size=6
    ).map(b"".join)


cuts = st.lists(st.integers(0, 400), max_size=12)
