"""The opening handshake on the server's side."""

from __future__ import annotations

import sys
import tracemalloc
from types import FrameType

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire import (
    Agreement,
    Deflate,
    HandshakeError,
    Request,
    RequestReader,
    accept_response,
    error_response,
    reject_response,
)
from nexios_trio.wire.handshake import accept_key
from tests.wire.streams import chopped, cut

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="

FIELDS = {
    b"Host": b"server.example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Origin": b"http://example.com",
    b"Sec-WebSocket-Version": b"13",
}


def request(
    line: bytes = b"GET /chat HTTP/1.1",
    *more: tuple[bytes, bytes],
    without: tuple[bytes, ...] = (),
    **other: bytes,
) -> bytes:
    """A good request, but for what is asked for; ``other`` has _ for -."""
    changed = {name.replace("_", "-").encode(): value for name, value in other.items()}
    fields = [
        *((name, value) for name, value in ({**FIELDS, **changed}).items() if name not in without),
        *more,
    ]
    return line + b"\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"


def read(data: bytes) -> Request:
    found = RequestReader().receive_data(data)
    assert found is not None
    return found


def refusal(data: bytes, reader: RequestReader | None = None) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        (reader or RequestReader()).receive_data(data)
    return caught.value


# Requests that are accepted


def test_a_request_says_what_a_scope_has_to_know() -> None:
    found = read(
        request(
            b"GET /caf%C3%A9/a%20b?x=%20&y HTTP/1.1",
            (b"Sec-WebSocket-Protocol", b"chat, superchat"),
            (b"Sec-WebSocket-Protocol", b"chat,v2"),
            (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits, x"),
            (b"Cookie", b" a=b; c=d "),
        )
    )
    assert found.raw_path == b"/caf%C3%A9/a%20b"
    assert found.path == "/café/a b"
    assert found.query_string == b"x=%20&y"
    assert found.headers[0] == (b"host", b"server.example.com")
    assert found.headers[-1] == (b"cookie", b"a=b; c=d")
    assert all(name == name.lower() for name, _ in found.headers)
    assert found.subprotocols == ["chat", "superchat", "v2"]
    assert found.extensions == [("permessage-deflate", [("client_max_window_bits", None)]), ("x", [])]
    assert found.key == KEY


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/?", "/", b""),
        (b"//a//b", "//a//b", b""),
        (b"/a?b?c", "/a", b"b?c"),
        (b"/%2F%zz%", "//%zz%", b""),
        (b"/%ff", "/\ufffd", b""),
        (b'/a|b"<>^`{}', '/a|b"<>^`{}', b""),
        (b"http://other.example/x?y", "/x", b"y"),
        (b"WSS://other.example:8000", "/", b""),
        (b"ws://other.example?q=1", "/", b"q=1"),
    ],
)
def test_the_target_is_split_into_path_and_query(target: bytes, path: str, query: bytes) -> None:
    found = read(request(b"GET %b HTTP/1.1" % target))
    assert (found.path, found.query_string) == (path, query)


def test_the_host_of_an_absolute_target_counts() -> None:
    # RFC 9112 §3.2.2
    found = read(request(b"GET http://other.example:81/x HTTP/1.1"))
    assert [value for name, value in found.headers if name == b"host"] == [b"other.example:81"]


@pytest.mark.parametrize(
    "data",
    [
        request(Upgrade=b"WebSocket"),
        request(Upgrade=b"h2c, WEBSOCKET"),
        request(Connection=b"keep-alive, upgrade"),
        request(Connection=b"UPGRADE"),
        request(b"GET / HTTP/1.1", (b"Connection", b"keep-alive")),
        request(b"GET / HTTP/1.2"),
        request(b"GET / HTTP/1.1", (b"Content-Length", b"0")),
        request(Host=b"[::1]:8000"),
        request(Host=b"localhost:"),
        request(Host=b"a_b-c.example"),
        request().replace(b"Sec-WebSocket-Key", b"sec-websocket-KEY"),
        request().replace(b": ", b":"),
        request().replace(b": ", b":\t "),
    ],
)
def test_requests_of_every_right_form_are_accepted(data: bytes) -> None:
    assert read(data).key == KEY


@given(st.lists(st.integers(0, 300), max_size=8), st.binary(max_size=30))
def test_a_request_may_come_in_pieces_with_frames_behind_it(places: list[int], frames: bytes) -> None:
    data = request()
    reader = RequestReader()
    *pieces, last = cut(data, [p for p in places if p < len(data)])
    for piece in pieces:
        assert reader.receive_data(piece) is None
    found = reader.receive_data(last + frames)
    assert found is not None
    assert found.headers == read(data).headers
    assert reader.trailing == frames


# Requests that are refused


@pytest.mark.parametrize(
    "data",
    [
        # The request line
        request(b"GET  / HTTP/1.1"),
        request(b"GET / HTTP/1.1 "),
        request(b" GET / HTTP/1.1"),
        request(b"GET /\t HTTP/1.1"),
        request(b"GET / http/1.1"),
        request(b"GET / HTTP/1.10"),
        request(b"GET /"),
        request(b"GET /caf\xc3\xa9 HTTP/1.1"),
        request(b"G(T / HTTP/1.1"),
        request(b"GET / HTTP/1.0"),
        request(b"GET * HTTP/1.1"),
        request(b"GET chat HTTP/1.1"),
        request(b"GET /a#b HTTP/1.1"),
        request(b"GET ftp://a/b HTTP/1.1"),
        request(b"GET http:///b HTTP/1.1"),
        b"\r\n" + request(),
        # The syntax of fields
        request().replace(b"Host:", b"Host :"),
        request().replace(b"Origin", b" Origin"),
        request().replace(b"http://example.com", b"a\r\n folded"),
        request().replace(b"\r\n", b"\n"),
        request().replace(b"\r\n", b"\r"),
        request(Origin=b"a\x00b"),
        request(Origin=b"a\rb"),
        request(b"GET / HTTP/1.1", (b"", b"x")),
        # Fields that have to be there once
        request(without=(b"Host",)),
        request(b"GET / HTTP/1.1", (b"Host", b"server.example.com")),
        request(Host=b""),
        request(Host=b"a b"),
        request(Host=b"user@a"),
        request(Host=b"a:b"),
        request(without=(b"Sec-WebSocket-Key",)),
        request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Key", KEY)),
        request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Version", b"13")),
        # The key is 16 bytes in base64
        request(Sec_WebSocket_Key=b""),
        request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ"),
        request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ=="[1:]),
        request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZTEyMw=="),
        request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25j-Q=="),
        request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ==, " + KEY),
        # No upgrade, no body, no lists that are none
        request(without=(b"Connection",)),
        request(Connection=b"close"),
        request(Connection=b"upgraded"),
        request(b"GET / HTTP/1.1", (b"Content-Length", b"5")),
        request(b"GET / HTTP/1.1", (b"Content-Length", b"0, 0")),
        request(b"GET / HTTP/1.1", (b"Content-Length", b"")),
        request(b"GET / HTTP/1.1", (b"Content-Length", b"0"), (b"Content-Length", b"1")),
        request(b"GET / HTTP/1.1", (b"Transfer-Encoding", b"chunked")),
        request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Protocol", b"a b")),
        request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Protocol", b"caf\xe9")),
        request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Extensions", b"a;;")),
    ],
)
def test_a_bad_request_is_answered_with_400(data: bytes) -> None:
    assert refusal(data).status == 400


def test_another_method_is_answered_with_405_and_the_right_one() -> None:
    error = refusal(request(b"POST / HTTP/1.1"))
    assert (error.status, error.headers) == (405, [(b"Allow", b"GET")])
    assert refusal(request(b"get / HTTP/1.1")).status == 405


@pytest.mark.parametrize(
    "data",
    [
        request(without=(b"Upgrade",)),
        request(Upgrade=b"h2c"),
        request(Upgrade=b"websocket2"),
        request(without=(b"Sec-WebSocket-Version",)),
        request(Sec_WebSocket_Version=b"8"),
        request(Sec_WebSocket_Version=b"013"),
        request(Sec_WebSocket_Version=b"13, 8"),
        request(Sec_WebSocket_Version=b""),
    ],
)
def test_no_upgrade_or_another_version_is_answered_with_426_and_the_version(data: bytes) -> None:
    error = refusal(data)
    assert error.status == 426
    assert (b"Sec-WebSocket-Version", b"13") in error.headers
    answer = error_response(error)
    # RFC 9110 §7.8 and §15.5.22
    assert b"\r\nUpgrade: websocket\r\n" in answer
    assert b"\r\nConnection: Upgrade, close\r\n" in answer


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0"])
def test_another_http_is_answered_with_505(version: bytes) -> None:
    assert refusal(request(b"GET / " + version)).status == 505


def test_limits_have_their_statuses() -> None:
    assert read(request(b"GET /%b HTTP/1.1" % (b"x" * 8191))).path == "/" + "x" * 8191
    assert refusal(request(b"GET /%b HTTP/1.1" % (b"x" * 8192))).status == 414
    assert refusal(b"GET /" + b"x" * 9000).status == 414
    assert refusal(request(Origin=b"x" * (32 << 10))).status == 431
    assert refusal(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 6000).status == 431
    many = [(b"A", b"b")] * 130
    assert refusal(request(b"GET / HTTP/1.1", *many)).status == 431
    small = RequestReader(max_head_bytes=100, max_target_bytes=10, max_fields=2)
    assert refusal(b"GET /0123456789 HTTP/1.1\r\nHost: a\r\n\r\n", small).status == 414


def test_what_can_be_no_request_is_refused_before_it_is_complete() -> None:
    reader = RequestReader(max_head_bytes=1000, max_target_bytes=100)
    assert reader.receive_data(b"GET /" + b"x" * 100) is None
    assert refusal(b"x" * 20, reader).status == 414
    assert refusal(b"GET / HTTP/1.1\n").status == 400


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, 230), st.integers(0, 20), st.binary(max_size=5)).map(
            lambda edit: request()[: edit[0]] + edit[2] + request()[edit[0] + edit[1] :]
        ),
    )
)
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    try:
        found = RequestReader().receive_data(data + b"\r\n\r\n")
    except HandshakeError as error:
        assert error.status in (400, 405, 414, 426, 431, 505)
        assert error_response(error).startswith(b"HTTP/1.1 %d " % error.status)
    else:
        assert found is not None
        assert found.path.startswith("/")


def test_a_refusal_holds_nothing_of_the_request() -> None:
    secret = b"hunter2"
    for data in (
        request(b"GET /%b#x HTTP/1.1" % secret),
        request(Host=secret + b" "),
        request(Sec_WebSocket_Key=secret),
        request(b"GET / HTTP/1.1", (secret + b" ", secret)),
    ):
        try:
            read(data)
        except HandshakeError as error:
            assert secret not in error_response(error)


# Answers


def parsed(answer: bytes) -> tuple[int, dict[bytes, bytes]]:
    """What h11 makes of the answer, which is a whole one."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "websocket")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    event = client.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    if event.status_code != 101:
        while not isinstance(client.next_event(), h11.EndOfMessage):
            pass
    return event.status_code, dict(event.headers)


def test_the_key_of_the_rfc() -> None:
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3


def test_an_acceptance_opens_the_connection() -> None:
    data = request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Protocol", b"a, b"))
    answer = accept_response(
        read(data),
        subprotocol="b",
        agreement=Agreement(Deflate(), server_no_context_takeover=True),
        headers=[(b"Set-Cookie", b"x=y"), (b"date", b"today")],
    )
    assert answer.endswith(b"\r\n\r\n")
    status, headers = parsed(answer)
    assert status == 101
    assert headers == {
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-accept": b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"sec-websocket-protocol": b"b",
        b"sec-websocket-extensions": b"permessage-deflate; server_no_context_takeover",
        b"set-cookie": b"x=y",
        b"date": b"today",
    }
    assert set(parsed(accept_response(read(data)))[1]) == {b"upgrade", b"connection", b"sec-websocket-accept"}


def test_an_acceptance_does_not_promise_what_was_not_offered() -> None:
    with pytest.raises(WrongValueError, match=r"did not offer the subprotocol 'c'; choose one of \['a'\]"):
        accept_response(read(request(b"GET / HTTP/1.1", (b"Sec-WebSocket-Protocol", b"a"))), subprotocol="c")


@pytest.mark.parametrize(
    "name", [b"Upgrade", b"connection", b"Sec-WebSocket-Accept", b"sec-websocket-protocol", b"Content-Length"]
)
def test_the_headers_of_the_handshake_are_its_own(name: bytes) -> None:
    with pytest.raises(WrongValueError, match="the handshake's own; leave it out"):
        accept_response(read(request()), headers=[(name, b"x")])


def test_line_breaks_do_not_get_into_answers() -> None:
    for value in (b"a\r\nX: y", b"a\nb", b"a\rb"):
        with pytest.raises(WrongValueError, match="line break"):
            accept_response(read(request()), headers=[(b"X", value)])
        with pytest.raises(WrongValueError, match="line break"):
            reject_response(403, [(b"X", value)])


def test_a_rejection_is_a_whole_http_answer() -> None:
    answer = reject_response(
        403, [(b"X", b"y"), (b"Content-Length", b"99"), (b"connection", b"keep-alive")], b"no!"
    )
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert parsed(answer) == (403, {b"x": b"y", b"connection": b"close", b"content-length": b"3"})
    assert answer.endswith(b"\r\n\r\nno!")
    assert reject_response(499).startswith(b"HTTP/1.1 499 \r\n")
    assert parsed(reject_response(204, body=b"gone")) == (204, {b"connection": b"close"})


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600])
def test_a_rejection_has_the_status_of_one(status: int) -> None:
    with pytest.raises(WrongValueError, match=f"not {status}"):
        reject_response(status)


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", request(b"POST / HTTP/1.1"), request(Sec_WebSocket_Version=b"8")]
)
def test_the_answer_to_a_refused_request_is_whole_and_says_why(data: bytes) -> None:
    error = refusal(data)
    answer = error_response(error)
    status, headers = parsed(answer)
    assert status == error.status
    assert answer.endswith(error.reason.encode())
    assert headers[b"content-length"] == str(len(error.reason.encode())).encode()


# What it costs


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("field", [b"X: %b\r\n", b"Cookie: %b\r\n", b"Sec-WebSocket-Extensions: x; y=%b\r\n"])
def test_twice_the_head_costs_twice_as_much(field: bytes, size: int) -> None:
    costs = []
    for length in (500, 1000):
        filling = (field % (b"x" * 20)) * (length // 25)
        data = request().removesuffix(b"\r\n") + filling + b"\r\n"
        calls = 0

        def count(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        reader = RequestReader()
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            found = [reader.receive_data(piece) for piece in chopped(data, size)]
        finally:
            sys.setprofile(before)
        assert found[-1] is not None
        costs.append(calls)
    assert costs[1] <= 2.1 * costs[0] + 200


@pytest.mark.untraced
@pytest.mark.parametrize("size", [1, 1000])
def test_a_head_under_way_takes_little_more_than_its_bytes(size: int) -> None:
    pieces = chopped(b"GET / HTTP/1.1\r\nX: " + b"x" * 30_000, size)
    reader = RequestReader()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for piece in pieces:
            assert reader.receive_data(piece) is None
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 30_000 + 10_000
