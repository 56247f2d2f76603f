"""Those who watch an app: what they are told, in which order, and that nobody pays who is not watched."""

from __future__ import annotations

import pytest

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.exceptions import WrongStateError
from nexios_trio.instrument import NULL_INSTRUMENT, Direction, Histogram, Observed, Tally
from nexios_trio.testing import TestClient
from tests.lanes import Lane, lane, lane_clock, lane_name

__all__ = ["lane", "lane_clock", "lane_name"]


class Notes:
    """An instrument that writes down what it is told."""

    def __init__(self, *, counts: bool = True, name: str = "") -> None:
        self.counts = counts
        self.name = name
        self.told: list[str] = []
        self.tallies: list[Tally | None] = []
        self.codes: list[int | None] = []
        self.frames: list[tuple[Direction, str | bytes]] = []
        self.groups: list[tuple[str, float]] = []

    def begun(self, connection: Observed) -> None:
        self.told.append(f"{self.name}begun")
        assert connection.tally is None

    def opened(self, connection: Observed) -> None:
        self.told.append(f"{self.name}opened {connection.route}")
        if connection.tally is not None:
            connection.tally.watch(self.watch)
            connection.tally.latency = Histogram()

    def watch(self, direction: Direction, message: str | bytes) -> None:
        self.frames.append((direction, message))

    def ended(self, connection: Observed) -> None:
        self.told.append(f"{self.name}ended {connection.code}")
        self.tallies.append(connection.tally)
        self.codes.append(connection.code)
        assert connection.seconds >= 0

    def delivered(self, group: str, seconds: float) -> None:
        self.groups.append((group, seconds))


def echo_app(*instruments: Notes) -> NexiosApp:
    app = NexiosApp()

    @app.ws_route("/echo/{room}")
    async def echo(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async with ws.join(room) as group:
            while True:
                message = await ws.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message["text"] == "all":
                    await group.send("told")
                elif message["text"] is not None:
                    await ws.send_text(message["text"] * 2)
                else:
                    await ws.send_bytes(message["bytes"])

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(401)

    for instrument in instruments:
        app.add_instrument(instrument)
    return app


async def test_each_message_is_counted_once_on_its_way_in_and_out(lane: Lane) -> None:
    notes = Notes()
    async with lane.serving(echo_app(notes)):
        async with lane.connect("/echo/a") as peer:
            await peer.send("four")
            assert await peer.receive() == "fourfour"
            await peer.send(b"\0\1\2")
            assert await peer.receive() == b"\0\1\2"
            await peer.send("all")
            assert await peer.receive() == "told"
            await peer.close(4000, "bye")
    (tally,) = notes.tallies
    assert tally is not None
    assert (tally.messages_in, tally.bytes_in) == (3, 4 + 3 + 3)
    assert (tally.messages_out, tally.bytes_out) == (3, 8 + 3 + 4)
    assert tally.latency is not None
    assert sum(tally.latency.counts) == 1  # the first of sixteen
    assert notes.frames == [
        *[("in", "four"), ("out", "fourfour"), ("in", b"\0\1\2"), ("out", b"\0\1\2")],
        *[("in", "all"), ("out", "told")],
    ]
    code = 1006 if lane.name == "hypercorn" else 4000  # hypercorn does not tell
    assert notes.told == ["begun", "opened /echo/{room}", f"ended {code}"]
    ((group, seconds),) = notes.groups
    assert group == "a"
    assert 0 <= seconds < 60


async def test_a_rejected_client_has_begun_and_ended_without_a_code() -> None:
    notes = Notes()
    async with TestClient(echo_app(notes)) as client:
        with pytest.raises(Exception, match="401"):
            async with client.connect("/no"):
                pass
    assert notes.told == ["begun", "ended None"]
    assert notes.tallies == [None]


async def test_several_instruments_are_told_like_nested_blocks() -> None:
    first, second = Notes(name="1 ", counts=False), Notes(name="2 ")
    second.told = first.told
    async with TestClient(echo_app(first, second)) as client:
        async with client.connect("/echo/a") as ws:
            await ws.send_text("x")
            await ws.receive_text()
    assert first.told == [
        *["1 begun", "2 begun", "1 opened /echo/{room}", "2 opened /echo/{room}"],
        *["2 ended 1000", "1 ended 1000"],
    ]
    assert first.tallies[0] is second.tallies[0]  # one account for all
    assert first.tallies[0] is not None


async def test_a_connection_that_nobody_counts_keeps_no_account(lane: Lane) -> None:
    app = echo_app(Notes(counts=False)) if lane.name == "memory" else echo_app()
    async with lane.serving(app):
        async with lane.connect("/echo/a") as peer:
            await peer.send("x")
            await peer.receive()
            (connection,) = app.connections
            assert connection.tally is None
            assert not connection.transport.track_time  # what the reader looks at for each message
    assert NULL_INSTRUMENT.counts is False


async def test_an_instrument_comes_before_the_first_connection() -> None:
    app = echo_app()
    async with TestClient(app) as client:
        async with client.connect("/echo/a"):
            with pytest.raises(WrongStateError, match="add instruments before it starts"):
                app.add_instrument(Notes())


def test_a_watcher_can_be_taken_back() -> None:
    seen: list[str | bytes] = []
    tally = Tally(lambda: 1.0)

    def watch(direction: Direction, message: str | bytes) -> None:
        seen.append(message)

    tally.watch(watch)
    tally.came("a", 1.0)
    tally.unwatch(watch)
    tally.unwatch(watch)
    tally.went("b")
    assert seen == ["a"]


def test_one_message_in_sixteen_is_timed_until_the_next_one_goes() -> None:
    now = 1.0
    tally = Tally(lambda: now)
    tally.latency = Histogram((0.1, 1.0))
    for _ in range(32):
        tally.came("x", now)
        now += 0.5
        tally.went("y")
        tally.went("y")  # the answer was the first one
    assert tally.latency.counts == [0, 2, 0]
    assert tally.latency.total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("counts", "part", "value"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 0.5),
        ([4, 4, 0], 0.5, 1.0),
        ([4, 4, 0], 0.75, 1.5),
        ([0, 0, 3], 0.5, 2.0),
        ([1, 1, 2], 1.0, 2.0),
    ],
)
def test_a_quantile_lies_in_the_class_that_it_falls_into(
    counts: list[int], part: float, value: float | None
) -> None:
    assert Histogram.quantile(part, (1.0, 2.0), counts) == value
