"""The opening handshake on the client's side."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire import (
    ClientHandshake,
    Deflate,
    HandshakeError,
    RequestReader,
    Response,
    accept_response,
    agree,
    reject_response,
)
from tests.wire.streams import cut

NONCE = b"the sample nonce"
ACCEPTANCE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def handshake(**options: object) -> ClientHandshake:
    return ClientHandshake("example.com", "/chat", **{"nonce": NONCE, **options})  # type: ignore[arg-type]


def refusal(answer: bytes, **options: object) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        handshake(**options).receive_data(answer)
    return caught.value


def test_the_request_is_that_of_the_rfc() -> None:
    ours = handshake(
        subprotocols=["chat", "superchat"], headers=[(b"Origin", b"http://example.com")], deflate=Deflate()
    )
    assert ours.request == (
        b"GET /chat HTTP/1.1\r\n"
        b"Host: example.com\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        b"server_max_window_bits=12; client_max_window_bits=12\r\n"
        b"Origin: http://example.com\r\n\r\n"
    )


@given(st.lists(st.integers(0, 150), max_size=6), st.binary(max_size=20))
def test_an_acceptance_may_come_in_pieces_with_frames_behind_it(places: list[int], frames: bytes) -> None:
    ours = handshake()
    *pieces, last = cut(ACCEPTANCE, [p for p in places if p < len(ACCEPTANCE)])
    for piece in pieces:
        assert ours.receive_data(piece) is None
    response = ours.receive_data(last + frames)
    assert response is not None
    assert (response.subprotocol, response.agreement) == (None, None)
    assert ours.trailing == frames


def test_interim_answers_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    assert handshake().receive_data(early + ACCEPTANCE + b"frames") is not None
    ours = handshake()
    for piece in cut(early, range(len(early))):
        assert ours.receive_data(piece) is None
    assert ours.receive_data(ACCEPTANCE) is not None


def test_interim_answers_without_end_are_refused() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert handshake().receive_data(early * 10 + ACCEPTANCE) is not None
    assert "interim" in refusal(early * 10000).reason


def test_another_status_is_told_with_its_headers_and_the_body_that_came() -> None:
    ours = handshake()
    with pytest.raises(HandshakeError) as caught:
        ours.receive_data(reject_response(404, [(b"X", b"y")], b"not here"))
    assert caught.value.status == 404
    assert (b"x", b"y") in caught.value.headers
    assert ours.trailing == b"not here"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade: websocket\r\n", b""),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        (b"Connection: Upgrade\r\n", b""),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"s3pPL", b"s3pPM"),
        (b"Sec-WebSocket-Accept", b"X-Accept"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: ;\r\n\r\n"),
    ],
)
def test_an_acceptance_of_something_else_is_none(old: bytes, new: bytes) -> None:
    assert refusal(ACCEPTANCE.replace(old, new, 1)).status == 101


def test_the_subprotocol_is_one_of_those_offered_and_only_one() -> None:
    def chosen(*names: bytes) -> bytes:
        return ACCEPTANCE[:-2] + b"".join(b"Sec-WebSocket-Protocol: %b\r\n" % n for n in names) + b"\r\n"

    response = handshake(subprotocols=["a", "b"]).receive_data(chosen(b"b"))
    assert response is not None
    assert response.subprotocol == "b"
    assert refusal(chosen(b"B"), subprotocols=["a", "b"]).status == 101
    assert refusal(chosen(b"a", b"b"), subprotocols=["a", "b"]).status == 101
    assert refusal(chosen(b"a, b"), subprotocols=["a", "b"]).status == 101


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 101\r\n\r\n",
        b"HTTP/1.1 0101 x\r\n\r\n",
        b"HTTP/1.1 101\n\n",
        ACCEPTANCE.replace(b"Upgrade:", b"Upgrade :"),
        b"HTTP/1.1 101 x\r\nA: " + b"b" * (33 << 10),
    ],
)
def test_what_is_not_http_is_told_as_such(answer: bytes) -> None:
    error = refusal(answer)
    assert error.status == 0
    assert "not HTTP" in error.reason


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(st.integers(0, len(ACCEPTANCE)), st.integers(0, 20), st.binary(max_size=5)).map(
        lambda edit: ACCEPTANCE[: edit[0]] + edit[2] + ACCEPTANCE[edit[0] + edit[1] :]
    )
)
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    try:
        response = handshake().receive_data(data)
    except HandshakeError as error:
        assert error.status == 0 or 100 <= error.status <= 999
    else:
        assert response is None or isinstance(response, Response)


@pytest.mark.parametrize(
    ("host", "target", "options", "why"),
    [
        ("a b", "/", {}, "a host is ASCII"),
        ("a\r\nX: y", "/", {}, "a host is ASCII"),
        ("münchen.example", "/", {}, "a host is ASCII"),
        ("a", "chat", {}, "a target is a path"),
        ("a", "/a b", {}, r"escape the rest with urllib.parse.quote"),
        ("a", "/a#b", {}, "a target is a path"),
        ("a", "/\r\n", {}, "a target is a path"),
        ("a", "/", {"nonce": b"short"}, r"write os.urandom\(16\)"),
        ("a", "/", {"subprotocols": ["a b"]}, "a subprotocol is made of"),
        ("a", "/", {"subprotocols": [""]}, "a subprotocol is made of"),
        ("a", "/", {"headers": [(b"Host", b"b")]}, "the handshake's own; leave it out"),
        ("a", "/", {"headers": [(b"X", b"a\r\nb")]}, "line break"),
    ],
)
def test_a_request_that_would_be_wrong_is_not_made(
    host: str, target: str, options: dict[str, object], why: str
) -> None:
    with pytest.raises(WrongValueError, match=why):
        ClientHandshake(host, target, **{"nonce": NONCE, **options})  # type: ignore[arg-type]


def test_both_sides_shake_hands() -> None:
    theirs = ClientHandshake(
        "example.com:8000",
        "/a%20b?c",
        nonce=os.urandom(16),
        subprotocols=["v1", "v2"],
        deflate=Deflate(client_max_window_bits=10),
    )
    request = RequestReader().receive_data(theirs.request)
    assert request is not None
    assert (request.path, request.query_string, request.subprotocols) == ("/a b", b"c", ["v1", "v2"])
    agreement = agree(Deflate(), request.extensions)
    response = theirs.receive_data(accept_response(request, subprotocol="v2", agreement=agreement))
    assert response is not None
    assert agreement is not None
    assert response.agreement is not None
    assert response.subprotocol == "v2"
    assert response.agreement.client_max_window_bits == agreement.client_max_window_bits == 10
