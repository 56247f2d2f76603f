"""Rate limits: what is counted together, and what becomes of a message beyond the rate."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
import trio
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette.websockets import WebSocketDisconnect as StarletteDisconnect
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import (
    Limits,
    NexiosApp,
    Rate,
    RateLimit,
    WebSocket,
    WebSocketConsumer,
    WebSocketDisconnect,
    WrongTypeError,
    WrongValueError,
    WSRouter,
    nobody,
    rate_limit,
)
from nexios_trio.testing import TestClient, cancel_at_each_step
from nexios_trio.types import Message, Receive, Scope, Send
from tests.lanes import Lane

ONE: Any = Rate(1, per=1000)
"""One message, and no second one while a test lasts."""


class Notes(list[tuple[float, Any]]):
    """What a handler got, and when."""

    def add(self, value: Any) -> None:
        self.append((trio.current_time(), value))

    @property
    def values(self) -> list[Any]:
        return [value for _, value in self]

    @property
    def times(self) -> list[float]:
        """Seconds since the first."""
        return [moment - self[0][0] for moment, _ in self]


def reading(notes: Notes) -> Callable[[WebSocket], Awaitable[None]]:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                notes.add(await ws.receive_text())
        except WebSocketDisconnect as over:
            if over.by == "local":
                notes.add((over.code, over.reason))

    return handler


async def soon(event: trio.Event) -> None:
    """Wait, but not for ever where a handler has failed."""
    with trio.fail_after(500):
        await event.wait()


async def all_gone(app: NexiosApp) -> None:
    with trio.fail_after(500):
        while len(app.connections):
            await trio.sleep(0.1)


# What there is to receive by


class Passing:
    """ASGI middleware that wraps both ways and changes nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hear() -> Message:
            return await receive()

        async def say(message: Message) -> None:
            await send(message)

        await self.app(scope, hear, say)


def _handler(loop: Callable[[WebSocket, Notes], Awaitable[None]]) -> Any:
    def make(notes: Notes, limit: Any, **options: Any) -> NexiosApp:
        app = NexiosApp(**options)

        @app.ws_route("/", rate_limit=limit)
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            try:
                await loop(ws, notes)
            except WebSocketDisconnect:
                pass

        return app

    return make


async def _receive(ws: WebSocket, notes: Notes) -> None:
    while (message := await ws.receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.receive":
            notes.add(message["text"])


async def _receive_text(ws: WebSocket, notes: Notes) -> None:
    while True:
        notes.add(await ws.receive_text())


async def _receive_bytes(ws: WebSocket, notes: Notes) -> None:
    while True:
        notes.add((await ws.receive_bytes()).decode())


async def _receive_json(ws: WebSocket, notes: Notes) -> None:
    while True:
        notes.add(str(await ws.receive_json()))


async def _iter_text(ws: WebSocket, notes: Notes) -> None:
    async for text in ws.iter_text():
        notes.add(text)


async def _iter_bytes(ws: WebSocket, notes: Notes) -> None:
    async for data in ws.iter_bytes():
        notes.add(data.decode())


async def _iter_json(ws: WebSocket, notes: Notes) -> None:
    async for value in ws.iter_json(int):
        notes.add(str(value))


def _consumer(encoding_: Any, concurrency_: int = 1) -> Any:
    def make(notes: Notes, limit: Any, **options: Any) -> NexiosApp:
        class Noting(WebSocketConsumer):
            encoding = encoding_
            concurrency = concurrency_

            async def on_receive(self, websocket: WebSocket, data: Any) -> None:
                notes.add(data.decode() if isinstance(data, bytes) else str(data))

        app = NexiosApp(**options)
        app.add_ws_route(Noting.as_route("/", rate_limit=limit))
        return app

    return make


def _starlette(notes: Notes, limit: Any, **options: Any) -> NexiosApp:
    async def handler(ws: StarletteWebSocket) -> None:
        await ws.accept()
        try:
            while True:
                notes.add(await ws.receive_text())
        except StarletteDisconnect:
            pass

    app = NexiosApp(rate_limit=limit, **options)
    app.mount("/", Starlette(routes=[WebSocketRoute("/", handler)]))
    return app


def _below(make: Any) -> Any:
    return lambda notes, limit, **options: make(notes, limit, middleware=[Passing], **options)


WAYS: dict[str, Any] = {
    "receive": _handler(_receive),
    "receive_text": _handler(_receive_text),
    "receive_bytes": _handler(_receive_bytes),
    "receive_json": _handler(_receive_json),
    "iter_text": _handler(_iter_text),
    "iter_bytes": _handler(_iter_bytes),
    "iter_json": _handler(_iter_json),
    "consumer of json": _consumer("json"),
    "consumer of text": _consumer("text"),
    "consumer of bytes": _consumer("bytes"),
    "consumer of either": _consumer(None),
    "consumer of several": _consumer("json", 3),
    "starlette": _starlette,
    "receive_text below middleware": _below(_handler(_receive_text)),
    "receive below middleware": _below(_handler(_receive)),
    "iter_json below middleware": _below(_handler(_iter_json)),
    "starlette below middleware": _below(_starlette),
}


def numbers(way: str, count: int) -> list[str | bytes]:
    return [str(n).encode() if "bytes" in way else str(n) for n in range(count)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_beyond_the_rate_messages_come_later_and_all_come(way: str, autojump_clock: MockClock) -> None:
    notes = Notes()
    app = WAYS[way](notes, RateLimit(Rate(1, burst=2)))
    async with TestClient(app, timeout=60) as client, client.connect("/") as ws:
        for message in numbers(way, 6):
            await ws._put({"type": "websocket.receive", "text": None, "bytes": None, **_form(message)})
        await trio.sleep(30)
    assert notes.values == list("012345")
    assert notes.times == [0, 0, 1, 2, 3, 4]
    assert app.guard.counts == {"rate_limit.delay": 4}


def _form(message: str | bytes) -> dict[str, Any]:
    return {"text": message} if isinstance(message, str) else {"bytes": message}


async def test_messages_beyond_the_rate_are_dropped_if_asked_for(
    way: str, lane: Lane, lane_clock: MockClock
) -> None:
    notes = Notes()
    app = WAYS[way](notes, RateLimit(Rate(2, per=1000), action="drop"))
    async with lane.serving(app):
        async with lane.connect() as peer:
            for message in numbers(way, 6):
                await peer.send(message)
            await peer.close()
        await all_gone(app)
    assert notes.values == ["0", "1"]
    assert app.guard.counts == {"rate_limit.drop": 4}


async def test_messages_beyond_the_rate_close_if_asked_for(
    way: str, lane: Lane, lane_clock: MockClock
) -> None:
    notes = Notes()
    app = WAYS[way](notes, RateLimit(Rate(2, per=1000), action="close"))
    async with lane.serving(app), lane.connect() as peer:
        try:
            for message in numbers(way, 6):
                await peer.send(message)
        except WebSocketDisconnect:
            pass  # it was closed meanwhile
        assert await peer.wait_closed() == (1008, "rate limit exceeded")
    assert notes.values == ["0", "1"]
    assert app.guard.counts == {"rate_limit.close": 1}


# Delay


async def test_a_delayed_client_loses_nothing_over_any_lane(lane: Lane, lane_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp(limits=Limits(inbox_messages=4))
    app.add_ws_route("/", reading(notes), rate_limit=Rate(20, burst=5))
    sent = [str(number) for number in range(60)]
    async with lane.serving(app), lane.connect() as peer:
        for text in sent:
            await peer.send(text)
        with trio.fail_after(500):
            while len(notes) < len(sent):
                await trio.sleep(0.1)
    assert notes.values == sent


async def test_a_pause_gives_a_burst_and_no_more(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=Rate(1, burst=3))
    async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:
        await ws.send_text("first")
        await trio.sleep(100)
        for _ in range(5):
            await ws.send_text("x")
        await trio.sleep(100)
    assert notes.times == [0, 100, 100, 100, 101, 102]


async def test_a_client_within_its_rate_is_never_delayed(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit="4/s")
    async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:
        for _ in range(100):
            await ws.send_text("x")
            await trio.sleep(0.25)
    assert notes.times == [number / 4 for number in range(100)]
    assert not app.guard.counts


async def test_delay_is_backpressure(autojump_clock: MockClock) -> None:
    """The inbox fills, the server's queue behind it, and then the client itself has to wait."""
    notes, sent = Notes(), 0
    app = NexiosApp(limits=Limits(inbox_messages=3))
    app.add_ws_route("/", reading(notes), rate_limit="1/s")
    async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:

        async def flood() -> None:
            nonlocal sent
            while True:
                await ws.send_text(str(sent))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await wait_all_tasks_blocked()
            at_first = sent
            await trio.sleep(10)
            await wait_all_tasks_blocked()
            assert sent == at_first + 10
            assert notes.values == [str(number) for number in range(11)]
            nursery.cancel_scope.cancel()
    assert at_first < 20


@pytest.mark.parametrize("way", ["text", "json", "typed"])
async def test_at_whatever_step_a_receive_is_cancelled_nothing_is_lost_or_doubled(
    way: str, lane: Lane, lane_clock: MockClock
) -> None:
    sent = [{"type": "a", "n": number} for number in range(8)]
    types = {"a"} if way == "typed" else ()
    limit = RateLimit(Rate(20, burst=2), types=types)
    rounds = 0
    app = NexiosApp()
    ended = trio.Event()
    interrupters = cancel_at_each_step()
    got: list[Any] = []

    async def take(ws: WebSocket, count: int) -> None:
        for _ in range(count):
            got.append(json.loads(await ws.receive_text()) if way == "text" else await ws.receive_json())

    @app.ws_route("/", rate_limit=limit)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await interrupter.run(take, ws, 6)
        await take(ws, len(sent) - len(got))
        ended.set()

    async with lane.serving(app):
        async for interrupter in interrupters:
            got.clear()
            ended = trio.Event()
            async with lane.connect() as peer:
                for message in sent:
                    await peer.send(json.dumps(message))
                await soon(ended)
            assert got == sent
            rounds += interrupter.struck
    assert rounds >= 4  # it did wait, and was struck there


async def test_a_cancelled_receive_does_not_start_the_wait_anew(autojump_clock: MockClock) -> None:
    notes, cancelled = Notes(), 0
    app = NexiosApp()

    @app.ws_route("/", rate_limit="1/s")
    async def handler(ws: WebSocket) -> None:
        nonlocal cancelled
        await ws.accept()
        while len(notes) < 4:
            with trio.move_on_after(0.375) as scope:
                notes.add(await ws.receive_text())
            cancelled += scope.cancelled_caught

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(4):
            await ws.send_text(str(number))
        await ws.wait_closed()
    assert notes.values == list("0123")
    assert notes.times == [0, 1, 2, 3]
    assert cancelled == 6


async def test_what_a_cancelled_receive_held_back_any_other_receive_gives_out(
    autojump_clock: MockClock,
) -> None:
    got = []
    app = NexiosApp()

    @app.ws_route("/", rate_limit="1/s")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for receive in (ws.receive_text, ws.receive_json, ws.receive):
            with trio.move_on_after(0.5):
                got.append(await receive())
            got.append(await receive())

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(10):
            await ws.send_text(str(number))
        await ws.wait_closed()
    texts = [each["text"] if isinstance(each, dict) else str(each) for each in got]
    assert texts == [str(number) for number in range(len(got))]


@pytest.mark.parametrize("typed", [False, True])
async def test_a_disconnect_ends_the_wait_at_once(typed: bool, lane: Lane, lane_clock: MockClock) -> None:
    notes, ended = Notes(), trio.Event()
    app = NexiosApp(disconnect_grace=math.inf)

    @app.ws_route("/", rate_limit=RateLimit(Rate(1, per=10_000), types={"a"} if typed else ()))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                notes.add((await ws.receive_json())["n"])
                await ws.send_text("got it")
        except WebSocketDisconnect:
            notes.add("over")
            ended.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.send('{"type":"a","n":1}')
        await peer.receive()
        await peer.send('{"type":"a","n":2}')
        await trio.sleep(2)
        await peer.drop()
        await soon(ended)
        assert notes.times[-1] < 9_000
    assert [value for value in notes.values if value != "over"] in ([1, 2], [1])


async def test_what_is_beyond_the_rate_when_the_client_leaves_is_dropped(
    autojump_clock: MockClock,
) -> None:
    """Or who sends, leaves and comes back would be held to no rate."""
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=Rate(1, per=10))
    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(5):
            await ws.send_text(str(number))
        await trio.sleep(1)
        await ws.drop()
    assert notes.values == ["0"]
    assert app.guard.counts["rate_limit.drop"] == 4


async def test_who_leaves_and_comes_back_is_held_to_the_rate(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit("1/min", per="address"))
    async with TestClient(app) as client:
        for _ in range(5):
            async with client.connect("/") as ws:
                for _ in range(20):
                    await ws.send_text("x")
        async with client.connect("/") as ws:
            before = trio.current_time()
            await ws.send_text("polite")
            await trio.sleep(200)
            assert "polite" in notes.values
            assert notes.times[notes.values.index("polite")] - before <= 61
    assert len(notes.values) == 2


@pytest.mark.parametrize("how", ["close", "kick", "drain"])
async def test_an_end_on_our_side_ends_the_wait_too(how: str, autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp(disconnect_grace=math.inf)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify("ada")
        ws.rate_limit(RateLimit(Rate(1, per=1000)))
        if how == "close":
            ws.start_soon(end, ws)
        async for text in ws.iter_text():
            notes.add(text)
        notes.add("over")

    async def end(ws: WebSocket) -> None:
        await trio.sleep(5)
        await ws.close(4000)

    async with TestClient(app, timeout=5000) as client, client.connect("/") as ws:
        for number in range(2):
            await ws.send_text(str(number))
        if how != "close":
            await trio.sleep(5)
            await (app.channels.disconnect_user("ada", 4000) if how == "kick" else app.drain())
        assert (await ws.wait_closed())[0] == (1012 if how == "drain" else 4000)
    assert notes.values == ["0", "over"]
    assert notes.times == [0, 5]


async def test_a_client_that_is_delayed_for_long_is_not_taken_for_one_that_nobody_reads(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With a full inbox behind it, a delay longer than unread_timeout looks like a handler that hangs."""
    notes = Notes()
    app = NexiosApp(limits=Limits(inbox_messages=2), unread_timeout=60)
    app.add_ws_route("/", reading(notes), rate_limit=Rate(1, per=100))
    async with TestClient(app, timeout=5000) as client, client.connect("/") as ws:
        for number in range(8):
            await ws.send_text(str(number))
        await trio.sleep(1000)
        assert notes.times == [0, 100, 200, 300, 400, 500, 600, 700]
        assert notes.values == list("01234567")
    assert caplog.records == []


async def test_a_handler_that_hangs_while_a_message_is_held_back_is_found_all_the_same(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=2), unread_timeout=60)

    @app.ws_route("/", rate_limit=ONE)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        with trio.move_on_after(100):
            await ws.receive_text()
            pytest.fail("it was to wait")
        await trio.sleep_forever()

    async with TestClient(app, timeout=5000) as client, client.connect("/") as ws:
        before = trio.current_time()
        for _ in range(8):
            await ws.send_text("x")
        assert await ws.wait_closed() == (1008, "messages are not read")
        assert 100 < trio.current_time() - before <= 100 + 2 * 60


# Drop


async def test_dropped_messages_pay_nothing(autojump_clock: MockClock) -> None:
    """Who keeps sending gets in as often as who waits."""
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit("1/s", action="drop"))
    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(41):
            await ws.send_text("x")
            await trio.sleep(0.125)
    assert notes.times == [0, 1, 2, 3, 4, 5]
    assert app.guard.counts == {"rate_limit.drop": 35}


async def test_a_cancelled_receive_that_dropped_messages_has_lost_no_other(
    autojump_clock: MockClock,
) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(Rate(1, per=10), action="drop"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            with trio.move_on_after(1):
                notes.add(await ws.receive_text())

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(25):
            await ws.send_text(str(number))
            await trio.sleep(1)
    assert notes.values == ["0", "10", "20"]


# Close


async def test_after_the_close_nothing_that_was_received_is_given_out(
    lane: Lane, lane_clock: MockClock
) -> None:
    errors: list[WebSocketDisconnect] = []
    ended = trio.Event()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(Rate(2, per=1000), action="close"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("ready")
        await trio.sleep(2)  # until all are here
        assert [await ws.receive_text(), await ws.receive_text()] == ["0", "1"]
        for _ in range(3):
            with pytest.raises(WebSocketDisconnect) as over:
                await ws.receive_text()
            errors.append(over.value)
        assert [text async for text in ws.iter_text()] == []
        message = await ws.receive()
        assert (message["type"], message["code"]) == ("websocket.disconnect", 1008)
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("too late")
        await trio.sleep(3)  # its grace is 5
        ended.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        for number in range(8):
            await peer.send(str(number))
        assert await peer.wait_closed() == (1008, "rate limit exceeded")
        await soon(ended)
    assert {(error.code, error.reason, error.by) for error in errors} == {
        (1008, "rate limit exceeded", "local")
    }


async def test_a_flood_of_somebody_who_has_left_closes_nothing_twice(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(Rate(1, per=1000), action="close"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep(2)
        await ws.receive_text()
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive_text()
        seen.append((over.value.code, over.value.by))

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(5):
            await ws.send_text("x")
        await ws.drop()
    assert seen == [(1006, "network")]
    assert caplog.records == []


# Bytes


@pytest.mark.parametrize(
    ("message", "size"), [("x" * 10, 10), ("é" * 5, 10), ("\U0001f600" * 2 + "ab", 10), (b"\xff" * 10, 10)]
)
async def test_bytes_are_those_of_the_message_text_as_utf8(
    message: str | bytes, size: int, autojump_clock: MockClock
) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(bytes=Rate(size, burst=2 * size)))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while (await ws.receive())["type"] != "websocket.disconnect":
            notes.add("x")

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(5):
            await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))
        await trio.sleep(10)
    # the first is websocket.receive's, as accept() has taken websocket.connect
    assert [moment for moment in notes.times if moment > 0] == [1, 2, 3]


async def test_a_lone_surrogate_is_counted_and_harms_nobody(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit(bytes="1000B/s"))
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("\ud800")
        await trio.sleep(1)
    assert notes.values == ["\ud800"]


async def test_messages_and_bytes_of_one_limit_both_hold(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit("2/s", bytes="10B/s"))
    async with TestClient(app) as client, client.connect("/") as ws:
        for text in ("a", "b", "c", "d", "x" * 10, "e"):
            await ws.send_text(text)
        await trio.sleep(10)
    assert notes.values == ["a", "b", "c", "d", "x" * 10, "e"]
    assert notes.times[:4] == [0, 0, 0.5, 1]  # by messages
    assert 1 < notes.times[4] <= 2  # by bytes
    assert notes.times[5] >= notes.times[4]


@pytest.mark.parametrize("action", ["delay", "drop", "close"])
@pytest.mark.parametrize("size", [10, 11])
async def test_a_message_larger_than_the_burst_can_never_pass(
    action: Any, size: int, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(bytes=Rate(1000, burst=10), action=action))
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    async with lane.serving(app), lane.connect() as peer:
        await peer.send("x" * size)
        if size == 10:
            assert await peer.receive() == "x" * 10
            assert not app.guard.counts
        elif action == "drop":
            await peer.send("small")
            assert await peer.receive() == "small"
            assert app.guard.counts == {"rate_limit.drop": 1}
        else:
            assert await peer.wait_closed() == (1008, "rate limit exceeded")
            assert app.guard.counts == {"rate_limit.close": 1}


# Several limits


async def test_a_message_that_one_limit_drops_counts_in_no_other(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    limits = [
        RateLimit(Rate(3, per=10_000), action="drop"),
        RateLimit(Rate(1, per=10), action="drop"),
        RateLimit(Rate(4, per=10_000), action="close"),
    ]
    app.add_ws_route("/", reading(notes), rate_limit=limits)
    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(40):
            await ws.send_text("x")
            await trio.sleep(1)
    assert notes.times == [0, 10, 20]
    assert app.guard.counts == {"rate_limit.drop": 37}


async def test_of_several_delays_the_longest_counts(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=["2/s", Rate(3, per=6, burst=3)])
    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(6):
            await ws.send_text(str(number))
        await trio.sleep(20)
    assert notes.values == list("012345")
    assert notes.times == [0, 0, 0.5, 2, 4, 6]


async def test_limits_of_app_router_route_and_handler_all_hold(autojump_clock: MockClock) -> None:
    for tight in ("app", "router", "route", "above", "below", "call"):

        def limit(place: str, tight: str = tight) -> Any:
            return RateLimit(Rate(2 if place == tight else 1000, per=1000), action="drop")

        notes = Notes()
        router = WSRouter(prefix="/r", rate_limit=limit("router"))

        @rate_limit(limit("above"))
        @router.ws_route("/", rate_limit=limit("route"))
        @rate_limit(limit("below"))
        async def handler(ws: WebSocket, notes: Notes = notes, limit: Callable[[str], Any] = limit) -> None:
            ws.rate_limit(limit("call"))
            await reading(notes)(ws)

        app = NexiosApp(rate_limit=limit("app"))
        app.mount_ws_router(router)
        async with TestClient(app) as client, client.connect("/r/") as ws:
            for number in range(5):
                await ws.send_text(str(number))
            await trio.sleep(1)
        assert notes.values == ["0", "1"], tight


# In mid-connection


@pytest.mark.parametrize("limit", ["1/s", Rate(1), RateLimit("1/s")], ids=["str", "Rate", "RateLimit"])
async def test_a_limit_can_begin_in_the_middle_of_a_connection(limit: Any, autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            notes.add(text)
            if text == "3":
                ws.rate_limit(limit)

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(8):
            await ws.send_text(str(number))
        await trio.sleep(10)
    assert notes.values == list("01234567")
    assert notes.times == [0, 0, 0, 0, 0, 1, 2, 3]


async def test_a_limit_begins_while_another_task_waits_for_a_message(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(begin, ws)
        async for text in ws.iter_text():
            notes.add(text)

    async def begin(ws: WebSocket) -> None:
        await trio.sleep(1)
        ws.rate_limit(RateLimit(ONE, action="drop"))

    async with TestClient(app) as client, client.connect("/") as ws:
        await trio.sleep(2)
        for number in range(5):
            await ws.send_text(str(number))
        await trio.sleep(1)
    assert notes.values[0] == "0"
    assert len(notes) <= 2  # the one that was waited for already, and the limit's


@pytest.mark.parametrize(
    "limit", [5, None, object(), RateLimit, ["1/s"]], ids=lambda limit: repr(limit).split(" at ")[0]
)
async def test_what_is_no_limit_says_what_to_write(limit: Any, autojump_clock: MockClock) -> None:
    app, done = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WrongTypeError, match=re.escape('a RateLimit or a str such as "10/s"')):
            ws.rate_limit(limit)
        with pytest.raises(WrongValueError, match='such as "10/s"'):
            ws.rate_limit("ten a second")
        done.set()

    async with TestClient(app) as client, client.connect("/"):
        await soon(done)


# Whose messages are counted together


class Hall:
    """An app with rooms, whose users say in a header who they are; counts who got a message through."""

    def __init__(self, *, on_app: Any = None, on_route: Any = None, on_other: Any = None) -> None:
        self.app = NexiosApp(authenticate=self.authenticate, rate_limit=on_app)
        self.app.add_ws_route("/a/{room}", self.handle, rate_limit=on_route)
        self.app.add_ws_route("/b/{room}", self.handle, rate_limit=on_other)
        self.got: list[str] = []

    async def authenticate(self, ws: WebSocket) -> Any:
        return ws.headers.get("x-user") or await nobody(ws)

    async def handle(self, ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            self.got.append(text)

    async def say(
        self, client: TestClient, text: str, *, path: str = "/a/1", user: str = "", address: str = "192.0.2.1"
    ) -> bool:
        """On a connection of its own: whether it got through."""
        client.client = (address, 5000)
        before = len(self.got)
        async with client.connect(path, headers={"x-user": user} if user else {}) as ws:
            await ws.send_text(text)
            await wait_all_tasks_blocked()
        return len(self.got) > before


def once(**options: Any) -> RateLimit:
    return RateLimit(ONE, action="drop", **options)


ADA, BOB = {"user": "ada"}, {"user": "bob"}
HERE, THERE = {"address": "192.0.2.1"}, {"address": "192.0.2.2"}


@pytest.mark.parametrize(
    ("per", "steps"),
    [
        ("connection", [(ADA, True), (ADA, True), (BOB, True)]),
        ("user", [(ADA, True), (ADA | THERE, False), (BOB, True), (BOB, False)]),
        # who has no user counts by his address, and apart from users
        ("user", [(HERE, True), (HERE, False), (THERE, True), (ADA | HERE, True)]),
        ("address", [(ADA, True), (BOB, False), (THERE | ADA, True), ({"address": "2001:db8::1"}, True)]),
        (
            "address",
            [
                ({"address": "2001:db8::1"}, True),
                ({"address": "2001:db8::2"}, False),
                ({"address": "2001:db8:0:1::1"}, True),
                ({"address": "::ffff:192.0.2.1"}, True),
                ({"address": "192.0.2.1"}, False),
            ],
        ),
        ("route", [(ADA, True), (BOB | THERE, False), ({"path": "/a/2"}, False)]),
        (("user", "route"), [(ADA, True), (ADA, False), (BOB, True), (BOB | {"path": "/a/2"}, False)]),
        (("user", "address"), [(ADA, True), (ADA | THERE, True), (BOB, True), (ADA, False)]),
        (("address", "address"), [(ADA, True), (BOB, False)]),
        (
            lambda ws: ws.path_params["room"],
            [({"path": "/a/1"}, True), ({"path": "/a/1"} | BOB, False), ({"path": "/a/2"}, True)],
        ),
        (
            lambda ws: None if ws.user == "ada" else ws.user,
            [(ADA, True), (ADA, True), (ADA, True), (BOB, True), (BOB, False)],
        ),
    ],
    ids=[
        "connection",
        "user",
        "user or address",
        "address",
        "networks",
        "route",
        "user and route",
        "user and address",
        "twice",
        "function",
        "none",
    ],
)
async def test_whose_messages_count_together(
    per: Any, steps: Sequence[tuple[dict[str, str], bool]], autojump_clock: MockClock
) -> None:
    hall = Hall(on_route=once(per=per))
    async with TestClient(hall.app) as client:
        for number, (options, passes) in enumerate(steps):
            assert await hall.say(client, "x", **options) is passes, number
    refused = sum(not passes for _, passes in steps)
    assert hall.app.guard.counts["rate_limit.drop"] == refused


async def test_a_limit_of_the_app_counts_for_all_its_routes_together(autojump_clock: MockClock) -> None:
    hall = Hall(on_app=once(per="user"))
    async with TestClient(hall.app) as client:
        assert await hall.say(client, "1", user="ada")
        assert not await hall.say(client, "2", user="ada", path="/b/1")
        assert await hall.say(client, "3", user="bob", path="/b/1")


async def test_a_limit_that_app_and_route_both_have_counts_once(autojump_clock: MockClock) -> None:
    limit = RateLimit(Rate(1, per=1000, burst=2), action="drop", per="user", name="all")
    hall = Hall(on_app=limit, on_route=limit)
    async with TestClient(hall.app) as client:
        said = [await hall.say(client, str(number), user="ada") for number in range(3)]
    assert said == [True, True, False]


async def test_one_limit_on_two_routes_counts_for_each(autojump_clock: MockClock) -> None:
    limit = once(per="user")
    hall = Hall(on_route=limit, on_other=limit)
    async with TestClient(hall.app) as client:
        assert await hall.say(client, "x", user="ada", path="/a/1")
        assert await hall.say(client, "x", user="ada", path="/b/1")
        assert not await hall.say(client, "x", user="ada", path="/a/2")
        assert not await hall.say(client, "x", user="ada", path="/b/2")


async def test_a_limit_with_a_name_counts_for_all_its_routes(autojump_clock: MockClock) -> None:
    hall = Hall(on_route=once(per="user", name="talk"), on_other=once(per="user", name="talk"))
    async with TestClient(hall.app) as client:
        assert await hall.say(client, "x", user="ada", path="/a/1")
        assert not await hall.say(client, "x", user="ada", path="/b/1")
        assert await hall.say(client, "x", user="bob", path="/b/1")


async def test_limits_of_the_same_name_and_other_values_are_apart(autojump_clock: MockClock) -> None:
    hall = Hall(
        on_route=once(per="user", name="talk"),
        on_other=RateLimit(Rate(2, per=1000), action="drop", per="user", name="talk"),
    )
    async with TestClient(hall.app) as client:
        assert await hall.say(client, "x", user="ada", path="/a/1")
        assert await hall.say(client, "x", user="ada", path="/b/1")


async def test_one_limit_in_two_apps_is_two(autojump_clock: MockClock) -> None:
    limit = once(per="user", name="talk")
    first, second = Hall(on_route=limit), Hall(on_route=limit)
    outer = NexiosApp()
    outer.mount("/inner", first.app)
    outer.add_ws_route("/a/{room}", second.handle, authenticate=second.authenticate, rate_limit=limit)
    async with TestClient(second.app) as client:
        assert await second.say(client, "x", user="ada")
        assert not await second.say(client, "x", user="ada")
    async with TestClient(outer) as client:
        assert await first.say(client, "x", user="ada", path="/inner/a/1")
        assert not await first.say(client, "x", user="ada", path="/inner/a/1")
        assert await second.say(client, "x", user="ada", path="/a/1")


async def test_a_user_who_becomes_known_is_counted_as_himself_from_then_on(
    autojump_clock: MockClock,
) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=once(per="user"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            notes.add(text)
            ws.identify("ada")

    async with TestClient(app) as client:
        async with client.connect("/") as one, client.connect("/") as two:
            for ws, text in ((one, "address"), (two, "dropped"), (one, "ada"), (one, "dropped")):
                await ws.send_text(text)
                await wait_all_tasks_blocked()
    assert notes.values == ["address", "ada"]


async def test_connections_that_share_a_limit_take_turns(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit("1/s", per="route"))
    async with TestClient(app) as client, client.connect("/") as one, client.connect("/") as two:
        for number in range(3):
            await one.send_text(f"one {number}")
            await two.send_text(f"two {number}")
            await wait_all_tasks_blocked()
        await trio.sleep(20)
    assert notes.times == [0, 1, 2, 3, 4, 5]
    for name in ("one", "two"):
        assert [text for text in notes.values if text.startswith(name)] == [f"{name} {n}" for n in range(3)]


async def test_a_new_connection_does_not_begin_afresh_where_users_are_counted(
    autojump_clock: MockClock,
) -> None:
    hall = Hall(on_route=RateLimit(Rate(1, per=10), per="user", action="drop"))
    async with TestClient(hall.app) as client:
        assert await hall.say(client, "x", user="ada")
        for _ in range(9):
            await trio.sleep(1)
            assert not await hall.say(client, "x", user="ada")
        await trio.sleep(1)
        assert await hall.say(client, "x", user="ada")


@pytest.mark.parametrize("key", [["unhashable"], LookupError("a bug")], ids=["unhashable", "bug"])
async def test_a_key_function_that_fails_is_a_failure_of_the_handler(
    key: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def find(ws: WebSocket) -> Any:
        if isinstance(key, Exception):
            raise key
        return key

    app = NexiosApp()
    app.add_ws_route("/", reading(Notes()), rate_limit=RateLimit("1/s", per=find))
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("x")
        assert await ws.wait_closed() == (1011, "internal error")
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


# Types of messages


class Move(msgspec.Struct, tag="move"):
    n: int


class Chat(msgspec.Struct, tag="chat"):
    n: int


def typed(notes: Notes, form: str, limit: Any) -> NexiosApp:
    app = NexiosApp()

    def note(value: Any) -> None:
        if isinstance(value, dict):
            notes.add((value.get("type"), value["n"]))
        else:
            notes.add((type(value).__name__.lower(), value.n))

    if form.startswith("consumer"):

        class Noting(WebSocketConsumer):
            encoding = "json"
            message_type: ClassVar[Any] = Move | Chat if form.endswith("struct") else Any

            async def on_receive(self, websocket: WebSocket, data: Any) -> None:
                note(data)

        app.add_ws_route(Noting.as_route("/", rate_limit=limit))
        return app

    @app.ws_route("/", rate_limit=limit)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for value in ws.iter_json(Move | Chat if form.endswith("struct") else Any):
            note(value)

    return app


FORMS = ["dict", "struct", "consumer of dict", "consumer of struct"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_limit_of_some_types_drops_these_and_no_others(
    form: str, lane: Lane, lane_clock: MockClock
) -> None:
    notes = Notes()
    app = typed(notes, form, RateLimit(Rate(2, per=1000), types={"move"}, action="drop"))
    async with lane.serving(app):
        async with lane.connect() as peer:
            for number in range(5):
                for kind in ("move", "chat"):
                    await peer.send(json.dumps({"type": kind, "n": number}))
            await peer.close()
        await all_gone(app)
    assert [n for kind, n in notes.values if kind == "move"] == [0, 1]
    assert [n for kind, n in notes.values if kind == "chat"] == [0, 1, 2, 3, 4]
    assert app.guard.counts == {"rate_limit.drop": 3}


@pytest.mark.parametrize("form", FORMS)
async def test_each_type_counts_by_itself_and_the_order_is_kept(form: str, autojump_clock: MockClock) -> None:
    notes = Notes()
    app = typed(notes, form, RateLimit("1/s", types={"move", "chat"}))
    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(3):
            for kind in ("move", "chat"):
                await ws.send_json({"type": kind, "n": number})
        await trio.sleep(10)
    assert notes.values == [(kind, number) for number in range(3) for kind in ("move", "chat")]
    assert notes.times == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("form", FORMS)
async def test_a_type_too_many_closes_if_asked_for(form: str, lane: Lane, lane_clock: MockClock) -> None:
    notes = Notes()
    app = typed(notes, form, RateLimit(ONE, types={"move"}, action="close"))
    async with lane.serving(app), lane.connect() as peer:
        for kind in ("move", "chat", "move", "chat"):
            await peer.send(json.dumps({"type": kind, "n": 0}))
        assert await peer.wait_closed() == (1008, "rate limit exceeded")
    assert notes.values == [("move", 0), ("chat", 0)]


async def test_types_of_users_are_counted_for_each_user(autojump_clock: MockClock) -> None:
    got = []
    app = NexiosApp(rate_limit=RateLimit(ONE, types={"move", "chat"}, per="user", action="drop"))

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket, user: str) -> None:
        await ws.accept()
        ws.identify(user)
        async for value in ws.iter_json():
            got.append((user, value["type"]))

    async with TestClient(app) as client:
        for user in ("ada", "ada", "bob"):
            async with client.connect(f"/{user}") as ws:
                for kind in ("move", "chat", "move", "other", "other"):
                    await ws.send_json({"type": kind})
                await wait_all_tasks_blocked()
    assert got == [
        *(("ada", kind) for kind in ("move", "chat", "other", "other", "other", "other")),
        *(("bob", kind) for kind in ("move", "chat", "other", "other")),
    ]


@pytest.mark.parametrize(
    "message", ["5", "null", "[]", "{}", '{"type":5}', '{"type":null}', '{"type":["a"]}']
)
async def test_a_message_without_a_type_is_none_of_those_limited(
    message: str, autojump_clock: MockClock
) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit(ONE, types={"a", "5", "None"}, action="drop"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for value in ws.iter_json():
            notes.add(value)

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(3):
            await ws.send_text(message)
        await trio.sleep(1)
    assert len(notes) == 3


async def test_types_are_not_known_where_json_is_not_read(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp()
    app.add_ws_route("/", reading(notes), rate_limit=RateLimit(ONE, types={"a"}, action="close"))
    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(3):
            await ws.send_text('{"type":"a"}')
        await trio.sleep(1)
    assert len(notes) == 3


async def test_limits_of_all_and_of_some_types_hold_together(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = typed(notes, "dict", ["2/s", RateLimit(Rate(1, per=10), types={"move"}, action="drop")])
    async with TestClient(app) as client, client.connect("/") as ws:
        for number, kind in enumerate(["move", "chat", "chat", "move", "chat", "chat"]):
            await ws.send_json({"type": kind, "n": number})
        await trio.sleep(20)
    assert notes.values == [("move", 0), ("chat", 1), ("chat", 2), ("chat", 4), ("chat", 5)]
    assert app.guard.counts["rate_limit.drop"] == 1


async def test_a_message_held_for_its_type_and_read_as_text_frees_no_other(
    autojump_clock: MockClock,
) -> None:
    notes = Notes()
    app = NexiosApp()

    @app.ws_route("/", rate_limit=RateLimit("1/s", types={"a"}))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        notes.add((await ws.receive_json())["n"])
        with trio.move_on_after(0.5):
            await ws.receive_json()
            pytest.fail("it was to wait")
        notes.add(json.loads(await ws.receive_text())["n"])
        for _ in range(2):
            notes.add((await ws.receive_json())["n"])

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(4):
            await ws.send_json({"type": "a", "n": number})
        await ws.wait_closed()
    assert notes.values == [0, 1, 2, 3]
    assert notes.times == [0, 1, 2, 3]


async def test_middleware_sees_a_message_once_that_is_delayed_for_its_type(
    autojump_clock: MockClock,
) -> None:
    class Unwrapping:
        """Each message comes with a sign before it, which is taken away."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def hear() -> Message:
                message = await receive()
                if message["type"] == "websocket.receive":
                    message = {**message, "text": message["text"].removeprefix("!")}
                    seen.append(message["text"])
                return message

            await self.app(scope, hear, send)

    notes = Notes()
    seen: list[str] = []
    app = NexiosApp(middleware=[Unwrapping])

    @app.ws_route("/", rate_limit=RateLimit("1/s", types={"a"}))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for value in ws.iter_json():
            notes.add(value["n"])

    async with TestClient(app) as client, client.connect("/") as ws:
        for number in range(3):
            await ws.send_text(f'!{{"type":"a","n":{number}}}')
        await trio.sleep(10)
    assert notes.values == [0, 1, 2]
    assert notes.times == [0, 1, 2]
    assert len(seen) == 3


async def test_a_bad_message_is_no_message_of_any_type(autojump_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp(on_invalid="reply")

    @app.ws_route("/", rate_limit=RateLimit(ONE, types={"move"}, action="close"))
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for value in ws.iter_json(Move):
            notes.add(value.n)

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(3):
            await ws.send_text('{"type":"move"}')
            assert (await ws.receive_json())["error"] == "validation"
        await ws.send_text('{"type":"move","n":1}')
        await trio.sleep(1)
    assert notes.values == [1]
    assert app.guard.counts == {"invalid": 3}


# Apps inside apps


async def test_the_limits_of_an_app_and_of_one_inside_it_both_hold(lane: Lane, lane_clock: MockClock) -> None:
    for outside, inside, expected in ((2, 4, 2), (4, 2, 2)):
        notes = Notes()
        inner = NexiosApp(rate_limit=RateLimit(Rate(inside, per=1000), action="drop"))
        inner.add_ws_route("/", reading(notes))
        outer = NexiosApp(rate_limit=RateLimit(Rate(outside, per=1000), action="drop"))
        outer.mount("/in", inner)
        async with Lane(lane.name).serving(outer) as serving:
            async with serving.connect("/in/") as peer:
                for number in range(6):
                    await peer.send(str(number))
                await peer.close()
            await all_gone(outer)
        assert notes.values == [str(number) for number in range(expected)]


async def test_a_starlette_app_is_told_the_code_of_the_close(autojump_clock: MockClock) -> None:
    codes = []

    async def handler(ws: StarletteWebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.receive_text()
        except StarletteDisconnect as over:
            codes.append(over.code)

    app = NexiosApp(rate_limit=RateLimit(ONE, action="close"))
    app.mount("/", Starlette(routes=[WebSocketRoute("/", handler)]))
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("1")
        await ws.send_text("2")
        assert await ws.wait_closed() == (1008, "rate limit exceeded")
    assert codes == [1008]


# State


@pytest.mark.untraced
async def test_ten_thousand_addresses_leave_nothing_behind(mock_clock: MockClock) -> None:
    notes = Notes()
    app = NexiosApp(
        rate_limit=[RateLimit("10/s", per="address"), RateLimit(bytes="10B/s", per="address")],
        limits=Limits(handshakes_per_address=Rate(10)),
    )
    app.add_ws_route("/", reading(notes))
    guard = app.guard
    most = 0

    def tables() -> list[Any]:
        shared = [table for pair in guard._tables.values() for table in pair if table is not None]
        assert guard._handshakes is not None
        return [*shared, guard._handshakes]

    async def come(address: str) -> None:
        """A whole connection; `TestClient` would take twice as long."""
        events: list[Message] = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "x"},
            {"type": "websocket.disconnect", "code": 1000},
        ]

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            return events.pop(0)

        async def send(message: Message) -> None:
            await trio.lowlevel.checkpoint()

        scope = {
            "type": "websocket",
            "path": "/",
            "scheme": "ws",
            "client": (address, 5000),
            "query_string": b"",
            "headers": [(b"host", b"testserver")],
        }
        await app(scope, receive, send)

    for number in range(10_000):
        await come(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        most = max(most, *map(len, tables()))
        mock_clock.jump(0.01)
    assert len(notes) == 10_000
    assert len(tables()) == 3
    assert most <= 3 * 12  # at most eleven owe something at a time
    mock_clock.jump(10)
    for _ in range(50):
        await come("192.0.2.1")
        mock_clock.jump(1)
    assert max(map(len, tables())) <= 2
    assert sum(table.evicted for table in tables()) == 0
    assert not guard._by_address
    assert not guard.counts


async def test_limits_made_up_by_handlers_leave_a_bounded_number_of_tables(
    autojump_clock: MockClock,
) -> None:
    app, done = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for number in range(1, 1_200):
            ws.rate_limit(RateLimit(Rate(number), per="user"))
        done.set()

    async with TestClient(app) as client, client.connect("/"):
        await soon(done)
    assert len(app.guard._tables) == 1_000


async def test_a_limit_of_one_connection_is_no_state_of_the_app(autojump_clock: MockClock) -> None:
    app = NexiosApp(rate_limit=[RateLimit("10/s"), RateLimit("10/s", types={"a"})])
    app.add_ws_route("/", reading(Notes()))
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("x")
    assert not app.guard._tables


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, 'write RateLimit("10/s") or bytes="64KiB/s"'),
        ({"messages": "10"}, "a rate is a Rate, or a str"),
        ({"messages": 10}, "a rate is a Rate, or a str"),
        ({"messages": "0/s"}, "a rate is a Rate, or a str"),
        ({"bytes": "64 KiB"}, "a rate is a Rate, or a str"),
        ({"messages": "1/s", "per": "session"}, 'per is "connection", "user", "address" or "route"'),
        ({"messages": "1/s", "per": ("user", "session")}, 'per is "connection"'),
        ({"messages": "1/s", "per": ()}, 'per is "connection"'),
        ({"messages": "1/s", "per": ["user"]}, 'per is "connection"'),
        ({"messages": "1/s", "per": None}, 'per is "connection"'),
        ({"messages": "1/s", "action": "wait"}, 'action is "delay", "drop" or "close"'),
        ({"messages": "1/s", "types": "move"}, "types are names of message types"),
        ({"messages": "1/s", "types": [5]}, "types are names of message types"),
        ({"messages": "1/s", "types": 5}, "types are names of message types"),
        ({"messages": Rate(1, burst=0.5)}, "burst"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, dict) else "",
)
def test_a_limit_that_cannot_work_is_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((WrongTypeError, WrongValueError), match=re.escape(error)):
        RateLimit(**arguments)


def test_a_limit_reads_rates_in_either_form() -> None:
    limit = RateLimit("100/min", bytes="64KiB/s")
    assert limit == RateLimit(Rate(100, per=60), bytes=Rate(64 * 1024))
    assert limit.per == ("connection",)
    assert RateLimit("1/s", per=("user", "route", "user")).per == ("user", "route")
    assert RateLimit.of("5/s") == RateLimit.of(Rate(5)) == RateLimit("5/s")
    assert RateLimit.of(limit) is limit
