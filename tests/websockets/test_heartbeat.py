"""Pings of the application, idle peers, dead peers."""

from __future__ import annotations

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from nexios_trio import Heartbeat, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.config import ConnectionSettings, Limits
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.testing import TestClient
from nexios_trio.websockets.heartbeat import Beat, Pulse
from tests.lanes import Lane

# The decision


def pulse(interval: float = 10, timeout: float = 5, idle: float = math.inf) -> Pulse:
    found = Pulse.of(
        ConnectionSettings(heartbeat=Heartbeat(interval, timeout, "ping"), idle_timeout=idle), now=0
    )
    assert found is not None
    return found


def test_without_a_message_and_an_idle_timeout_no_timer_is_needed() -> None:
    assert Pulse.of(ConnectionSettings(), 0) is None
    assert Pulse.of(ConnectionSettings(heartbeat=None), 0) is None


def test_silence_leads_to_a_ping_and_then_to_death() -> None:
    it = pulse()
    assert it.due == 10
    assert it.check(9, heard=0) is Beat.NOTHING
    assert it.check(10, heard=0) is Beat.PING
    assert it.due == 15
    assert it.check(14, heard=0) is Beat.NOTHING
    assert it.check(15, heard=0) is Beat.DEAD


def test_any_message_counts_as_an_answer_and_puts_the_next_ping_off() -> None:
    it = pulse()
    assert it.check(10, heard=0) is Beat.PING
    assert it.check(15, heard=12) is Beat.NOTHING
    assert it.due == 22
    assert it.check(22, heard=12) is Beat.PING


def test_idleness_is_silence_even_of_a_living_peer() -> None:
    it = pulse(idle=12)
    assert it.check(10, heard=0) is Beat.PING
    assert it.due == 12
    assert it.check(12, heard=0) is Beat.IDLE


@given(st.lists(st.floats(0.01, 30), max_size=40), st.floats(1, 20), st.floats(1, 20))
def test_a_peer_that_speaks_in_time_never_dies_and_one_that_does_not_always_does(
    gaps: list[float], interval: float, timeout: float
) -> None:
    it = pulse(interval, timeout)
    now = heard = 0.0
    for gap in gaps:
        until = now + min(gap, interval + timeout - 0.001)
        while it.due < until:
            now = it.due
            assert it.check(now, heard) is not Beat.DEAD
        now = heard = until
        assert it.check(now, heard) is not Beat.DEAD
    beats = [it.check(it.due, heard) for _ in range(3)]
    assert Beat.DEAD in beats
    assert it.due <= heard + interval + timeout + 1e-6


# On a connection


async def test_a_dead_peer_ends_as_1006_heartbeat_timeout(lane: Lane, lane_clock: MockClock) -> None:
    app, told = NexiosApp(heartbeat=Heartbeat(3, 2, "ping?")), trio.Event()
    seen: list[WebSocketDisconnect] = []
    times: list[float] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        times.append(trio.current_time())
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as over:
            seen.append(over)
        times.append(trio.current_time())
        told.set()

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.receive() == "ping?"
        await told.wait()
        assert await peer.wait_closed() == (1011, "heartbeat timeout")
    assert (seen[0].code, seen[0].reason, seen[0].by) == (1006, "heartbeat timeout", "network")
    assert times[1] - times[0] >= 5


async def test_a_peer_that_answers_lives_on_and_the_handler_sees_the_answers(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(heartbeat=Heartbeat(3, 2, b"\x09"))
    answers: list[bytes] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for answer in ws.iter_bytes():
            answers.append(answer)

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(10):
            assert await ws.receive_bytes() == b"\x09"
            await trio.sleep(1)
            await ws.send_bytes(b"\x0a")
        await ws.close(4000)
    assert answers == [b"\x0a"] * 10


async def test_traffic_makes_pings_needless(autojump_clock: MockClock) -> None:
    app = NexiosApp(heartbeat=Heartbeat(3, 2, "ping?"))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(20):
            await ws.send_text(str(number))
            assert await ws.receive_text() == str(number)
            await trio.sleep(2)


async def test_a_stalled_reader_is_found_dead_although_the_ping_cannot_go_out(
    autojump_clock: MockClock,
) -> None:
    app, told = NexiosApp(heartbeat=Heartbeat(3, 2, "ping?"), close_timeout=1), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect, match="heartbeat timeout"):
            await ws.receive_text()
        told.set()

    async with TestClient(app, window=0) as client, client.connect("/") as ws:
        await ws.stall()
        await told.wait()
        await ws.drop()


async def test_an_idle_client_is_closed_with_1001(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(idle_timeout=10, heartbeat=None)
    seen: list[WebSocketDisconnect] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect as over:
            seen.append(over)

    async with lane.serving(app), lane.connect() as peer:
        start = trio.current_time()
        await trio.sleep(6)
        await peer.send("alive")
        assert await peer.receive() == "alive"
        assert await peer.wait_closed() == (1001, "idle timeout")
        assert trio.current_time() - start >= 16
    assert (seen[0].code, seen[0].reason, seen[0].by) == (1001, "idle timeout", "local")


async def test_the_timers_rest_while_nothing_is_accepted(autojump_clock: MockClock) -> None:
    app = NexiosApp(idle_timeout=2, limits=Limits(accept_timeout=20))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep(9)
        await ws.accept()
        await ws.send_text("accepted")
        await trio.sleep_forever()

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "accepted"
        assert await ws.wait_closed() == (1001, "idle timeout")


# Settings


@pytest.mark.parametrize("bad", [-1, math.nan, 0])
def test_times_are_positive(bad: float) -> None:
    with pytest.raises(WrongValueError, match="interval is more than 0 seconds"):
        Heartbeat(interval=bad)
    with pytest.raises(WrongValueError, match="close_timeout is more than 0 seconds"):
        NexiosApp(close_timeout=bad)


@pytest.mark.parametrize("bad", ["20", None, True])
def test_times_are_numbers(bad: object) -> None:
    with pytest.raises(WrongTypeError, match="timeout is a number of seconds, not"):
        Heartbeat(timeout=bad)  # type: ignore[arg-type]


def test_no_grace_is_a_grace() -> None:
    assert NexiosApp(disconnect_grace=0).settings.disconnect_grace == 0
    with pytest.raises(WrongValueError, match="disconnect_grace is 0 or more seconds"):
        NexiosApp(disconnect_grace=-1)


def test_a_ping_is_a_payload() -> None:
    with pytest.raises(WrongTypeError, match="message is a str, bytes or None, not dict"):
        Heartbeat(message={})  # type: ignore[arg-type]


def test_limits_are_whole_and_positive() -> None:
    with pytest.raises(WrongValueError, match="inbox_messages is at least 1, not 0"):
        Limits(inbox_messages=0)
    with pytest.raises(WrongTypeError, match=r"inbox_bytes is a whole number, not 1\.5"):
        Limits(inbox_bytes=1.5)  # type: ignore[arg-type]
