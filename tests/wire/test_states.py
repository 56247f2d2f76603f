"""The table of states, every pair of it, on real connections of both roles."""

from __future__ import annotations

import itertools

import pytest

from nexios_trio.exceptions import WrongStateError
from nexios_trio.wire import Close, Connection, Failure, State
from nexios_trio.wire.states import CURES, TRANSITIONS, WireEvent
from tests.wire.streams import CONTINUATION, KEY, TEXT, client, close_frame, frame, server

PAIRS = list(itertools.product(State, WireEvent))


def make(role: str) -> Connection:
    return server() if role == "server" else client()


def key_of_the_peer_of(role: str) -> bytes | None:
    return KEY if role == "server" else None


def bring_to(state: State, role: str) -> Connection:
    connection = make(role)
    key = key_of_the_peer_of(role)
    match state:
        case State.OPEN:
            pass
        case State.CLOSING:
            connection.encode_close(1001)
        case State.PEER_CLOSED:
            connection.receive_data(close_frame(1001, key=key))
        case State.FAILED:
            connection.receive_data(frame(CONTINUATION, key=key))
        case State.CLOSED:
            connection.encode_close(1001)
            connection.receive_data(close_frame(1001, key=key))
    assert connection.state is state
    return connection


def do(event: WireEvent, connection: Connection, role: str) -> object:
    key = key_of_the_peer_of(role)
    match event:
        case WireEvent.SEND:
            return connection.encode_text("x")
        case WireEvent.SEND_CLOSE:
            return connection.encode_close(1000)
        case WireEvent.RECEIVE:
            return connection.receive_data(frame(TEXT, b"x", key=key))
        case WireEvent.RECEIVE_CLOSE:
            return connection.receive_data(close_frame(1000, key=key))
        case WireEvent.VIOLATION:
            return connection.receive_data(frame(CONTINUATION, key=key))
        case WireEvent.EOF:
            return connection.receive_eof()


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.value)
def test_each_pair_of_state_and_event_does_what_the_table_says(
    state: State, event: WireEvent, role: str
) -> None:
    connection = bring_to(state, role)
    if event is WireEvent.SEND and (state, event) not in TRANSITIONS:
        with pytest.raises(WrongStateError, match=r"Close frame|over"):
            do(event, connection, role)
        assert connection.state is state
        return
    result = do(event, connection, role)
    # Where bytes are no longer looked at, a Close frame and a violation are bytes like others.
    after = TRANSITIONS.get((state, event)) or TRANSITIONS[state, WireEvent.RECEIVE]
    assert connection.state is after
    reads = state in (State.OPEN, State.CLOSING)
    match event:
        case WireEvent.SEND:
            assert isinstance(result, bytes)
        case WireEvent.SEND_CLOSE:
            assert bool(result) == (state in (State.OPEN, State.PEER_CLOSED, State.FAILED))
        case WireEvent.RECEIVE:
            assert result == (["x"] if reads else [])
        case WireEvent.RECEIVE_CLOSE:
            assert result == ([Close(1000, "")] if reads else [])
        case WireEvent.VIOLATION:
            assert result == ([Failure(1002, "a continuation frame without a message")] if reads else [])
        case WireEvent.EOF:
            assert result == ([Close(1006, "")] if reads else [])


@pytest.mark.parametrize("state", State)
def test_every_way_to_send_follows_the_table(state: State) -> None:
    for role, send in itertools.product(
        ("server", "client"),
        (
            lambda c: c.encode_text("x"),
            lambda c: c.encode_binary(b"x"),
            lambda c: c.encode_ping(b"x"),
            lambda c: c.encode_pong(b"x"),
        ),
    ):
        connection = bring_to(state, role)
        if (state, WireEvent.SEND) in TRANSITIONS:
            assert send(connection)
        else:
            with pytest.raises(WrongStateError):
                send(connection)


def test_what_is_refused_is_explained() -> None:
    assert set(CURES) == {state for state in State if (state, WireEvent.SEND) not in TRANSITIONS}


def test_every_state_knows_what_bytes_and_the_end_and_a_close_of_ours_do() -> None:
    for state in State:
        for event in (WireEvent.RECEIVE, WireEvent.EOF, WireEvent.SEND_CLOSE):
            assert (state, event) in TRANSITIONS


def test_the_end_is_final_and_there_is_no_way_back() -> None:
    order = list(State)
    for (before, _), after in TRANSITIONS.items():
        if before is State.CLOSED:
            assert after is State.CLOSED
        assert before is after or after in (State.CLOSED, *order[order.index(before) + 1 :])


def test_every_state_is_reached_from_the_first() -> None:
    reached = {State.OPEN}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State)
