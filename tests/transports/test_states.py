"""The table of states, every pair of it, on a real connection."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest
import trio

from nexios_trio import NexiosApp, NexiosTrioError, WebSocket, WebSocketDisconnect
from nexios_trio.exceptions import WrongStateError
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected
from nexios_trio.transports.states import TRANSITIONS, Event, State

MakeClient = Callable[..., TestClient]


async def _bring_to(state: State, ws: WebSocket, hang_up: trio.Event) -> None:
    match state:
        case State.CONNECTING:
            pass
        case State.OPEN:
            await ws.accept()
        case State.CLOSING:
            await ws.accept()
            await ws.close(4000, "ours")
        case State.CLOSED:
            await ws.accept()
            hang_up.set()
            with pytest.raises(WebSocketDisconnect):
                await ws.receive_text()
        case State.REJECTED:
            await ws.reject(418)


def _do(event: Event, ws: WebSocket) -> Awaitable[object]:
    match event:
        case Event.ACCEPT:
            return ws.accept()
        case Event.REJECT:
            return ws.reject(404)
        case Event.SEND:
            return ws.send_text("x")
        case Event.RECEIVE:
            return ws.receive_text()
        case Event.CLOSE:
            return ws.close()
        case Event.END:
            raise AssertionError("the peer does that")


@pytest.mark.parametrize(
    ("state", "event"),
    [pair for pair in itertools.product(State, Event) if pair[1] is not Event.END],
    ids=lambda value: value.value,
)
async def test_each_pair_of_state_and_event_does_what_the_table_says(
    state: State, event: Event, nexios_client: MakeClient, autojump_clock: object
) -> None:
    app = NexiosApp(close_timeout=1)
    result: list[object] = []
    hang_up = trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await _bring_to(state, ws, hang_up)
        assert ws._transport.state is state
        try:
            with trio.move_on_after(0.5):  # a legal receive blocks while no message comes
                await _do(event, ws)
        except NexiosTrioError as error:
            result.append(error)
        result.append(ws._transport.state)

    async def client(ws: TestWebSocket) -> None:
        if state is State.CLOSED:
            await hang_up.wait()
            await ws.close(1001)
        elif state is State.CLOSING:
            await ws.stall()
            await trio.sleep(5)
        else:
            await trio.sleep(5)

    try:
        async with nexios_client(app, window=1).connect("/") as ws:
            await client(ws)
    except WebSocketRejected:
        pass

    after = result.pop()
    if (state, event) in TRANSITIONS:
        assert after is TRANSITIONS[state, event]
        over = state in (State.CLOSING, State.CLOSED)
        if event is Event.RECEIVE and over:
            assert isinstance(result[0], WebSocketDisconnect)
        else:
            assert result == []
    else:
        assert after is state
        (error,) = result
        over = state in (State.CLOSING, State.CLOSED)
        assert isinstance(error, WebSocketDisconnect if over else WrongStateError)


def test_every_state_knows_what_the_end_and_close_do() -> None:
    for state in State:
        assert (state, Event.END) in TRANSITIONS
        assert (state, Event.CLOSE) in TRANSITIONS


def test_the_end_is_final() -> None:
    for event in Event:
        assert TRANSITIONS.get((State.CLOSED, event), State.CLOSED) is State.CLOSED
        assert TRANSITIONS.get((State.REJECTED, event), State.REJECTED) is State.REJECTED
