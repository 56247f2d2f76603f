"""The same opening handshakes, judged by us, by wsproto and by websockets' sans-I/O layer.

Both take more than RFC 6455 and RFC 9112 allow here and there, and more than is safe behind a proxy; so what
they take we may refuse. But what we take, they have to take too, with the same answer to the key, and what is
right all three take. They differ on purpose where ``Upgrade`` or ``Connection`` comes twice, which is a list
(RFC 9110 section 5.3): we look for our word in all of it, wsproto in the last one.
"""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.server import ServerProtocol
from wsproto import ConnectionType, WSConnection
from wsproto import events as wsproto
from wsproto.utilities import RemoteProtocolError

from nexios_trio.wire import HandshakeError, Kind, RequestReader, accept_response, classify
from tests.wire.streams import chopped

pytestmark = pytest.mark.untraced


QUIET = logging.getLogger("tests.wire.handshake_oracles")
QUIET.disabled = True

GOOD = {
    b"Host": [b"server.example", b"server.example:8080", b"127.0.0.1", b"[::1]:80"],
    b"Upgrade": [b"websocket", b"WebSocket", b"WEBSOCKET"],
    b"Connection": [b"Upgrade", b"upgrade", b"keep-alive, Upgrade", b"Upgrade,keep-alive"],
    b"Sec-WebSocket-Key": [
        b"dGhlIHNhbXBsZSBub25jZQ==",
        b"AAAAAAAAAAAAAAAAAAAAAA==",
        b"/+/+/+/+/+/+/+/+/+/+/w==",
    ],
    b"Sec-WebSocket-Version": [b"13"],
}
BAD = {
    b"Host": [b"a b", b"", b"a,b"],
    b"Upgrade": [b"h2c", b"", b"web socket", b"websocket/13", b"websockets"],
    b"Connection": [b"close", b"", b"keep-alive", b"Upgraded", b"Up grade"],
    b"Sec-WebSocket-Key": [
        b"",
        b"short",
        b"dGhlIHNhbXBsZSBub25jZQ",
        b"dGhlIHNhbXBsZSBub25jZQ=a",
        b"\xff" * 24,
        b"=" * 24,
    ],
    b"Sec-WebSocket-Version": [b"12", b"8", b"", b"013", b"13, 8", b"+13"],
}
LINES = [b"GET / HTTP/1.1", b"GET /chat?x=1&y=%20 HTTP/1.1", b"GET //a HTTP/1.1"]
BAD_LINES = [
    b"POST / HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/2.0",
    b"get / HTTP/1.1",
    b"GET  / HTTP/1.1",
    b"GET / HTTP/1.1 ",
    b"GET /",
    b"GET /a b HTTP/1.1",
    b"GET /\xff HTTP/1.1",
]
MORE = [
    (b"Origin", b"https://page.example"),
    (b"User-Agent", b"a browser; (x)"),
    (b"X-Empty", b""),
    (b"Sec-WebSocket-Protocol", b"v1, v2"),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits, x-other"),
    (b"Cookie", b"a=b; c=d"),
]


def head(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return line + b"\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"


@st.composite
def right(draw: st.DrawFn) -> bytes:
    fields = [(name, draw(st.sampled_from(values))) for name, values in GOOD.items()]
    fields += draw(st.lists(st.sampled_from(MORE), unique=True))
    return head(draw(st.sampled_from(LINES)), draw(st.permutations(fields)))


@st.composite
def wrong_or_right(draw: st.DrawFn) -> bytes:
    """With some things missing, twice, out of range, or no HTTP at all."""
    fields: list[tuple[bytes, bytes]] = []
    for name, values in GOOD.items():
        often = [1] * 5 + [0] + [2] * (name not in (b"Upgrade", b"Connection"))
        for _ in range(draw(st.sampled_from(often))):
            bad = draw(st.integers(0, 7)) == 0
            fields.append((name, draw(st.sampled_from(BAD[name] if bad else values))))
    fields += draw(st.lists(st.sampled_from(MORE), unique=True))  # two Origins are for the guard to judge
    line = draw(st.sampled_from([*LINES * 5, *BAD_LINES]))
    data = head(line, draw(st.permutations(fields)))
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from([b" ", b"\t", b"\r", b"\n", b"\0", b":", b"\xff", b"\r\n ", b"x"]))
        data = data[:place] + what + data[place:]
    return data


def answer_key(answer: bytes) -> bytes:
    """Of a 101."""
    assert answer.startswith(b"HTTP/1.1 101"), answer
    found = re.search(rb"\r\nsec-websocket-accept: *(\S+)\r\n", answer, re.IGNORECASE)
    assert found is not None, answer
    return found[1]


def ours(data: bytes, size: int = 1 << 20) -> bytes | None:
    """Our answer to the key; None: refused, or not complete."""
    reader = RequestReader()
    try:
        for piece in chopped(data, size):
            if (request := reader.receive_data(piece)) is not None:
                return answer_key(accept_response(request))
    except HandshakeError:
        pass
    return None


def of_wsproto(data: bytes) -> bytes | None:
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, wsproto.Request):
                return answer_key(connection.send(wsproto.AcceptConnection()))
    except RemoteProtocolError:
        pass
    return None


def of_websockets(data: bytes) -> bytes | None:
    connection = ServerProtocol(logger=QUIET)
    connection.receive_data(data)
    for request in connection.events_received():
        response = connection.accept(request)  # type: ignore[arg-type]
        if response.status_code == 101:
            return answer_key(response.serialize())
    return None


@settings(deadline=None, max_examples=150)
@given(right())
def test_what_is_right_all_three_accept_with_the_same_answer(data: bytes) -> None:
    found = ours(data)
    assert found is not None
    assert found == of_wsproto(data) == of_websockets(data)
    assert classify(data) is Kind.WEBSOCKET


@settings(deadline=None, max_examples=300)
@given(wrong_or_right())
def test_what_we_accept_the_others_accept_with_the_same_answer(data: bytes) -> None:
    found = ours(data)
    if found is not None:
        assert found == of_wsproto(data) == of_websockets(data)
        assert classify(data) is Kind.WEBSOCKET


@settings(deadline=None, max_examples=200)
@given(wrong_or_right(), st.integers(1, 40))
def test_a_handshake_is_judged_alike_in_any_pieces(data: bytes, size: int) -> None:
    assert ours(data, size) == ours(data)
