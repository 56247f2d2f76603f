"""Which protocol a stream speaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio.wire import HandshakeError, Kind, RequestReader, classify
from nexios_trio.wire.classify import PEEK_BYTES

HOST = b"Host: example.com\r\n"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\n" + HOST + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    "stream",
    [
        UPGRADE,
        UPGRADE + b"\x81\x80\0\0\0\0",
        UPGRADE.replace(b"Upgrade: websocket", b"UPGRADE:WebSocket"),
        UPGRADE.replace(b"Upgrade: websocket", b"upgrade: \tfoo , websocket ,bar"),
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.2"),
        # Bad, and for the strict reader to refuse
        UPGRADE.replace(b"Sec-WebSocket-Key", b"X-Key"),
        UPGRADE.replace(b"/chat", b"chat"),
        UPGRADE.replace(b"Connection: keep-alive, Upgrade\r\n", b""),
    ],
)
def test_a_request_for_an_upgrade_is_one(stream: bytes) -> None:
    assert classify(stream) is Kind.WEBSOCKET


@pytest.mark.parametrize(
    "stream",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS ClientHello
        b"\x16",
        b"P",
        b"get",
        b"\r\n",
        b"\0",
        b"POST / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websockets\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X-Upgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\nUpgrade: websocket\r\n",
        b"GET / HTTP/1.0\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTP/1.1\n",
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        UPGRADE.replace(b"GET", b"PUT"),
        UPGRADE.replace(b"\r\n", b"\n"),
        UPGRADE.replace(b"Host", b"A: b\nHost"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * PEEK_BYTES,
        b"GET /" + b"x" * PEEK_BYTES,
    ],
)
def test_anything_else_is_something_else(stream: bytes) -> None:
    assert classify(stream) is Kind.OTHER


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"G",
        b"GET ",
        b"GET /chat HTTP/1.",
        b"GET /chat HTTP/1.1\r",
        b"GET /chat HTTP/1.1\r\n",
        b"GET /chat HTTP/1.1\r\n" + HOST,
        b"GET /chat HTTP/1.1\r\nUpgrade: websocket",
        b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r",
    ],
)
def test_too_little_is_undecided(stream: bytes) -> None:
    assert classify(stream) is Kind.UNDECIDED


def test_an_upgrade_is_seen_before_its_head_is_complete() -> None:
    assert classify(b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n") is Kind.WEBSOCKET


STREAMS = st.one_of(
    st.binary(max_size=100),
    st.tuples(st.integers(0, len(UPGRADE)), st.integers(0, 20), st.binary(max_size=4)).map(
        lambda edit: UPGRADE[: edit[0]] + edit[2] + UPGRADE[edit[0] + edit[1] :]
    ),
    st.lists(
        st.sampled_from(
            [b"GET / HTTP/1.1\r\n", HOST, b"Upgrade: websocket\r\n", b"\r\n", b"\n", b"\r", b"a: b"]
        ),
        max_size=8,
    ).map(b"".join),
)


@given(STREAMS)
def test_more_never_changes_an_answer(stream: bytes) -> None:
    answers = [classify(stream[:n]) for n in range(len(stream) + 1)]
    decided = [answer for answer in answers if answer is not Kind.UNDECIDED]
    assert len(set(decided)) <= 1
    assert answers == [Kind.UNDECIDED] * (len(answers) - len(decided)) + decided


@given(STREAMS)
def test_whatever_the_strict_reader_takes_is_an_upgrade(stream: bytes) -> None:
    try:
        request = RequestReader().receive_data(stream)
    except HandshakeError:
        return
    if request is not None:
        assert classify(stream) is Kind.WEBSOCKET
