"""A connection of either role: what goes out, the closing handshake, both sides together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.wire import Close, Connection, Event, Failure, Ping, Pong, State, encode_binary, encode_text
from tests.wire.streams import (
    BINARY,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    client,
    close_frame,
    cut,
    feed,
    frame,
    server,
)

SIZES = [0, 1, 125, 126, 65535, 65536]


# What goes


@pytest.mark.parametrize("size", SIZES)
def test_a_server_sends_unmasked_frames_and_a_client_masked_ones(size: int) -> None:
    text, data = "x" * size, b"\xff" * size
    assert server().encode_text(text) == frame(TEXT, text.encode(), key=None) == encode_text(text)
    assert server().encode_binary(data) == frame(BINARY, data, key=None) == encode_binary(data)
    assert client().encode_text(text) == frame(TEXT, text.encode(), key=KEY)
    assert client().encode_binary(bytearray(data)) == frame(BINARY, data, key=KEY)


def test_a_client_asks_for_a_new_key_for_each_frame() -> None:
    keys = iter([b"abcd", b"efgh", b"ijkl", b"mnop"])
    sender = Connection.client(lambda: next(keys))
    assert sender.encode_text("1") == frame(TEXT, b"1", key=b"abcd")
    assert sender.encode_ping(b"2") == frame(PING, b"2", key=b"efgh")
    sender.receive_data(frame(PING, b"3", key=None))
    assert sender.data_to_send() == frame(PONG, b"3", key=b"ijkl")
    assert sender.encode_close(1001) == close_frame(1001, key=b"mnop")


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(WrongValueError, match=r"4 bytes, not 5; write lambda: os.urandom\(4\)"):
        Connection.client(lambda: b"12345").encode_text("x")


def test_control_frames_go_out() -> None:
    assert server().encode_ping() == frame(PING, key=None)
    assert server().encode_ping(b"p" * 125) == frame(PING, b"p" * 125, key=None)
    assert server().encode_pong(b"q") == frame(PONG, b"q", key=None)
    for encode in (server().encode_ping, server().encode_pong):
        with pytest.raises(WrongValueError, match="at most 125 bytes, not 126"):
            encode(bytes(126))


def test_a_surrogate_is_refused_by_both_roles() -> None:
    for connection in (server(), client()):
        with pytest.raises(WrongValueError, match="surrogate at position 1"):
            connection.encode_text("a\udfff")
        assert connection.encode_text("ok")


def test_limits_are_whole_numbers() -> None:
    with pytest.raises(WrongTypeError, match="max_message_bytes is a whole number"):
        Connection.server(max_message_bytes=1e6)  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="max_fragments is at least 1"):
        Connection.server(max_fragments=0)


# Pings


def test_pings_are_answered_in_order_and_once() -> None:
    connection = server()
    events = connection.receive_data(frame(PING, b"1") + frame(TEXT, b"x") + frame(PING) + frame(PONG, b"y"))
    assert events == [Ping(b"1"), "x", Ping(b""), Pong(b"y")]
    assert connection.data_to_send() == frame(PONG, b"1", key=None) + frame(PONG, key=None)
    assert connection.data_to_send() == b""


def test_nothing_is_answered_after_our_close_frame() -> None:
    connection = server()
    connection.receive_data(frame(PING, b"before"))
    connection.encode_close(1000)
    assert connection.receive_data(frame(PING, b"after")) == [Ping(b"after")]
    assert connection.data_to_send() == b""


def test_pings_before_the_peer_s_close_frame_are_answered_before_ours() -> None:
    connection = server()
    assert connection.receive_data(frame(PING, b"1") + close_frame(1000)) == [Ping(b"1"), Close(1000, "")]
    assert connection.data_to_send() == frame(PONG, b"1", key=None)
    assert connection.encode_close() == close_frame(1000, key=None)


# The end


@pytest.mark.parametrize(
    ("theirs", "event", "ours"),
    [
        (close_frame(1000, "bye"), Close(1000, "bye"), close_frame(1000, "bye", key=None)),
        (close_frame(4999), Close(4999, ""), close_frame(4999, key=None)),
        (close_frame(1014, "€"), Close(1014, "€"), close_frame(1014, "€", key=None)),
        (close_frame(), Close(1005, ""), close_frame(key=None)),
    ],
)
def test_the_peer_s_code_and_reason_are_echoed(theirs: bytes, event: Event, ours: bytes) -> None:
    connection = server()
    assert connection.receive_data(theirs) == [event]
    assert connection.state is State.PEER_CLOSED
    assert connection.encode_close() == ours
    assert connection.state is State.CLOSED  # type: ignore[comparison-overlap]
    assert connection.encode_close() == b""


def test_a_message_can_still_be_answered_when_a_close_frame_came_with_it() -> None:
    connection = server()
    assert connection.receive_data(frame(TEXT, b"last") + close_frame(1000)) == ["last", Close(1000, "")]
    assert connection.encode_text("answer") == encode_text("answer")
    assert connection.encode_close() == close_frame(1000, key=None)


def test_a_message_can_still_be_answered_when_a_violation_came_with_it() -> None:
    connection = server()
    (message, failure) = connection.receive_data(frame(TEXT, b"last") + frame(CONTINUATION))
    assert message == "last"
    assert failure == Failure(1002, "a continuation frame without a message")
    assert connection.encode_text("answer") == encode_text("answer")
    assert connection.encode_close() == close_frame(1002, failure.reason, key=None)


def test_another_code_than_the_one_due_may_be_chosen() -> None:
    connection = server()
    connection.receive_data(close_frame(1000))
    assert connection.encode_close(4001, "mine") == close_frame(4001, "mine", key=None)


def test_an_end_of_ours_is_1000_unless_another_is_asked_for() -> None:
    assert server().encode_close() == close_frame(1000, key=None)
    assert server().encode_close(1012, "restart") == close_frame(1012, "restart", key=None)
    assert server().encode_close(4000, "é" * 100) == close_frame(4000, "é" * 61, key=None)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000])
def test_a_code_that_must_not_be_sent_is_refused_and_the_connection_goes_on(code: int) -> None:
    connection = server()
    with pytest.raises(WrongValueError, match=f"close code {code} cannot be sent"):
        connection.encode_close(code)
    assert connection.state is State.OPEN


def test_what_comes_before_the_answer_to_our_close_frame_is_read() -> None:
    connection = server()
    connection.encode_close(1001)
    assert connection.receive_data(frame(TEXT, b"under way") + close_frame(1001, "ok")) == [
        "under way",
        Close(1001, "ok"),
    ]
    assert connection.state is State.CLOSED


def test_nothing_is_read_after_the_end() -> None:
    for end in (close_frame(1000), frame(CONTINUATION)):
        connection = server()
        first = connection.receive_data(frame(TEXT, b"1") + end + frame(TEXT, b"2"))
        assert len(first) == 2
        assert connection.receive_data(frame(TEXT, b"3") + end + bytes(100)) == []
        assert connection.receive_data(frame(PING, b"4")) == []
        assert connection.receive_eof() == []
        assert connection.data_to_send() == b""


def test_a_stream_that_ends_without_a_close_frame_is_1006() -> None:
    for begun in (b"", frame(TEXT, b"x")[:3], frame(TEXT, b"x", fin=False)):
        connection = server()
        connection.receive_data(begun)
        assert connection.receive_eof() == [Close(1006, "")]
        assert connection.receive_eof() == []
        assert connection.receive_data(frame(TEXT, b"x")) == []
        assert connection.state is State.CLOSED
        assert connection.encode_close() == b""


def test_a_violation_after_our_close_frame_is_told_and_needs_no_other() -> None:
    connection = server()
    connection.encode_close(1001)
    (failure,) = connection.receive_data(frame(CONTINUATION))
    assert isinstance(failure, Failure)
    assert connection.state is State.CLOSED
    assert connection.encode_close() == b""


def test_a_violation_is_told_once() -> None:
    connection = server()
    assert len(connection.receive_data(frame(CONTINUATION))) == 1
    assert connection.receive_data(frame(CONTINUATION)) == []
    assert connection.receive_eof() == []


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (frame(TEXT, b"x", key=None), 1002),
        (frame(3), 1002),
        (frame(TEXT, rsv=1), 1002),
        (frame(PING, bytes(126)), 1002),
        (close_frame(1005), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, b"\x03\xe8\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, bytes((1 << 20) + 1)), 1009),
    ],
)
def test_a_violation_has_its_code(stream: bytes, code: int) -> None:
    connection = server()
    (failure,) = connection.receive_data(stream)
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert connection.encode_close() == close_frame(code, failure.reason, key=None)


def test_reasons_hold_nothing_of_a_payload() -> None:
    secret = b"hunter2\xff"
    for stream in (frame(TEXT, secret), frame(8, b"\x03\xe8" + secret), frame(TEXT, secret * 1000)):
        connection = server(1000)
        connection.receive_data(stream)
        assert b"hunter2" not in connection.encode_close()


# Both sides


class Side:
    """A connection, with a wire to the other side on which bytes wait."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.wire = b""
        self.sent: list[Event] = []
        self.events: list[Event] = []


ACTIONS = st.one_of(
    st.tuples(st.just("text"), st.text(max_size=150)),
    st.tuples(st.just("binary"), st.binary(max_size=150)),
    st.tuples(st.just("ping"), st.binary(max_size=125)),
    st.tuples(st.just("deliver"), st.integers(1, 300)),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), ACTIONS), max_size=30), st.booleans(), st.lists(st.integers(0, 100)))
def test_two_sides_understand_each_other_whatever_they_say(
    actions: list[tuple[bool, tuple[str, str | bytes | int]]], server_closes: bool, places: list[int]
) -> None:
    pair = (Side(server()), Side(client()))

    def deliver(to: Side, count: int) -> None:
        sender = pair[to is pair[0]]
        data, sender.wire = sender.wire[:count], sender.wire[count:]
        to.events += feed(to.connection, cut(data, places))
        to.wire += to.connection.data_to_send()

    for at_server, (action, value) in actions:
        side = pair[0] if at_server else pair[1]
        match action, value:
            case "text", str(text):
                side.wire += side.connection.encode_text(text)
                side.sent.append(text)
            case "binary", bytes(data):
                side.wire += side.connection.encode_binary(data)
                side.sent.append(data)
            case "ping", bytes(data):
                side.wire += side.connection.encode_ping(data)
                side.sent.append(Ping(data))
            case _, int(count):
                deliver(side, count)
    closer = pair[0] if server_closes else pair[1]
    closer.wire += closer.connection.encode_close(4000, "done")
    for _ in range(2):
        for side in pair:
            deliver(side, 1 << 20)
    other = pair[1] if server_closes else pair[0]
    other.wire += other.connection.encode_close()
    deliver(closer, 1 << 20)
    assert closer.connection.state is other.connection.state is State.CLOSED
    for receiver, sender in (pair, pair[::-1]):
        told = [event for event in receiver.events if not isinstance(event, Pong | Close)]
        assert told == sender.sent
    assert other.events[-1] == Close(4000, "done")
    assert closer.events[-1] == Close(4000, "done")
