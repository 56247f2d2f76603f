"""Every bound of `Limits`: its default, what passes at it, and what happens one beyond it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, RejectData, Request

from nexios_trio import (
    FirstMessage,
    Heartbeat,
    InvalidJSON,
    LimitError,
    Limits,
    NexiosApp,
    Rate,
    WebSocket,
    WebSocketConsumer,
    WebSocketDisconnect,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.testing import TestClient, WebSocketRejected
from tests.lanes import Lane, Peer, Serve, SocketPeer

DEFAULTS: dict[str, Any] = {
    "connections": 10_000,
    "connections_per_address": 1_000,
    "connections_per_user": 100,
    "connections_per_user_shared": False,
    "handshakes_per_address": Rate(100, burst=1_000),
    "header_bytes": 16 * 1024,
    "query_bytes": 4 * 1024,
    "accept_timeout": 10,
    "message_bytes": 1024 * 1024,
    "json_depth": 64,
    "json_items": 10_000,
    "inbox_messages": 64,
    "inbox_bytes": 1024 * 1024,
    "first_message_timeout": math.inf,
    "lifetime": math.inf,
    "outbox_messages": 256,
    "outbox_bytes": 4 * 1024 * 1024,
    "groups": 256,
    "group_name_length": 200,
}

FLAGS = ["connections_per_user_shared"]
TIMES = ["accept_timeout", "first_message_timeout", "lifetime"]
QUEUES = ["inbox_messages", "inbox_bytes", "outbox_messages", "outbox_bytes", "group_name_length"]


def limits_with(name: str, value: Any) -> Limits:
    options: dict[str, Any] = {name: value}
    return Limits(**options)


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


def app_of(handler: Any = echo, **options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    app.add_ws_route("/", handler)
    return app


def with_headers(lane: Lane, headers: dict[str, str]) -> dict[str, Any]:
    """Options of `Lane.connect`."""
    if lane.name == "memory":
        return {"headers": headers}
    return {"extra_headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


async def refused(lane: Lane, path: str = "/", **options: Any) -> tuple[int, str, int | None]:
    """Open a connection that is refused: the status, what the body says, and when to come back."""
    if lane._client is not None:
        with pytest.raises(WebSocketRejected) as rejected:
            async with lane.connect(path, **options):
                pass
        status, headers, body = (
            rejected.value.status,
            dict(rejected.value.headers),
            rejected.value.body,
        )
    else:
        assert lane.server is not None
        async with await trio.open_tcp_stream(lane.server.host, lane.server.port) as stream:
            peer = SocketPeer(stream)
            request = Request(host=lane.server.host, target=path, **options)
            await stream.send_all(peer.wire.send(request))
            event = await peer._event()
            assert isinstance(event, RejectConnection), event
            status, body, more = event.status_code, b"", True
            headers = {name.decode().lower(): value.decode() for name, value in event.headers}
            while more:
                part = await peer._event()
                assert isinstance(part, RejectData), part
                body, more = body + part.data, not part.body_finished
    is_json = headers.get("content-type") == "application/json"
    error = msgspec.json.decode(body)["error"] if is_json else ""
    return status, error, int(headers["retry-after"]) if "retry-after" in headers else None


async def works(peer: Peer) -> None:
    await peer.send("still here?")
    assert await peer.receive() == "still here?"


async def all_gone(app: NexiosApp, but: int = 0) -> None:
    with trio.fail_after(500):
        while len(app.connections) > but:
            await trio.sleep(0.1)


# The object


def test_the_defaults_are_those_that_are_documented() -> None:
    limits = Limits()
    assert {name: getattr(limits, name) for name in DEFAULTS} == DEFAULTS
    assert {field.name for field in attrs.fields(Limits)} == set(DEFAULTS)


def test_an_app_has_the_defaults_unless_told_otherwise() -> None:
    assert NexiosApp().settings.limits == Limits()
    assert NexiosApp(limits=Limits(groups=3)).settings.limits.groups == 3


def test_limits_are_frozen_and_given_by_name() -> None:
    with pytest.raises(AttributeError):
        Limits().groups = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="messages_bytes"):
        Limits(messages_bytes=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", sorted({*DEFAULTS} - {*TIMES, *FLAGS, "handshakes_per_address"}))
def test_a_bound_is_a_whole_number_of_at_least_one(name: str) -> None:
    value: Any
    for value in (0, -1):
        with pytest.raises(WrongValueError, match=f"{name} is at least 1, not {value}"):
            limits_with(name, value)
    for value in (1.5, "10", True, [5]):
        with pytest.raises(WrongTypeError, match=f"{name} is a whole number, not {re.escape(repr(value))}"):
            limits_with(name, value)
    assert getattr(limits_with(name, 1), name) == 1


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_has_a_bound_always(name: str) -> None:
    with pytest.raises(WrongTypeError, match=f"{name} is a whole number, not None"):
        limits_with(name, None)


@pytest.mark.parametrize("name", TIMES)
def test_a_time_is_more_than_zero_seconds(name: str) -> None:
    value: Any
    for value in (0, -1, math.nan):
        with pytest.raises(WrongValueError, match=f"{name} is more than 0 seconds"):
            limits_with(name, value)
    for value in ("10", True, None):
        with pytest.raises(WrongTypeError, match=f"{name} is a number of seconds"):
            limits_with(name, value)
    assert getattr(limits_with(name, math.inf), name) == math.inf


@pytest.mark.parametrize("value", ["fast", 5, "5", "0/s", ["5/s"], True], ids=repr)
def test_a_rate_of_handshakes_is_a_rate(value: Any) -> None:
    with pytest.raises(WrongValueError, match='a rate is a Rate, or a str such as "10/s"'):
        Limits(handshakes_per_address=value)
    assert Limits(handshakes_per_address="30/min").handshakes_per_address == Rate(30, per=60)


def test_a_rate_that_lets_no_handshake_pass_is_refused() -> None:
    with pytest.raises(WrongValueError, match="burst"):
        Limits(handshakes_per_address=Rate(1, burst=0.5))


@pytest.mark.parametrize("wrong", [{"groups": 5}, 5, Rate(5), Limits], ids=repr)
def test_an_app_s_limits_are_limits(wrong: Any) -> None:
    with pytest.raises(WrongTypeError, match=r"limits is .*Limits\("):
        NexiosApp(limits=wrong)


# The opening handshake


async def test_so_many_connections_and_no_more(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(limits=Limits(connections=2))
    async with lane.serving(app), lane.connect() as one:
        async with lane.connect() as two:
            assert await refused(lane) == (503, "the server is full", 5)
            assert await refused(lane) == (503, "the server is full", 5)
            await works(one)
            await works(two)
        await all_gone(app, but=1)
        async with lane.connect() as three:
            await works(three)
    assert app.guard.counts == {"connections": 2}


async def test_a_connection_that_is_refused_takes_no_place(lane: Lane, lane_clock: MockClock) -> None:
    async def reject(ws: WebSocket) -> None:
        await ws.reject(404)

    app = app_of(limits=Limits(connections=1, connections_per_address=1))
    app.add_ws_route("/rejecting", reject)
    async with lane.serving(app):
        for path in ("/rejecting", "/rejecting", "/nowhere"):
            assert (await refused(lane, path))[0] == 404
            await all_gone(app)
        async with lane.connect() as peer:
            await works(peer)


async def test_so_many_connections_of_an_address_and_no_more(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(limits=Limits(connections_per_address=2))
    async with lane.serving(app), lane.connect() as one:
        async with lane.connect() as two:
            assert await refused(lane) == (429, "too many connections", 5)
            await works(one)
            await works(two)
            if lane._client is not None:
                lane._client.client = ("192.0.2.1", 5000)
                async with lane.connect() as elsewhere:
                    await works(elsewhere)
                lane._client.client = ("testclient", 5000)
        await all_gone(app, but=1)
        async with lane.connect() as three:
            await works(three)
    assert app.guard.counts == {"connections_per_address": 1}


async def test_so_many_connections_of_a_user_and_no_more(lane: Lane, lane_clock: MockClock) -> None:
    async def named(ws: WebSocket) -> None:
        ws.identify("ada")
        await echo(ws)

    app = app_of(named, limits=Limits(connections_per_user=2))
    async with lane.serving(app), lane.connect() as one:
        async with lane.connect():
            assert await refused(lane) == (429, "too many connections of this user", 5)
        await all_gone(app, but=1)
        async with lane.connect() as three:
            await works(three)
            await works(one)


async def test_a_hundred_connections_of_a_user_by_default(autojump_clock: MockClock) -> None:
    inside = 0

    async def named(ws: WebSocket) -> None:
        nonlocal inside
        await ws.accept()
        ws.identify("ada")
        inside += 1
        await ws.receive_text()

    async def come(client: TestClient) -> None:
        async with client.connect("/") as ws:
            codes.append((await ws.wait_closed())[0])

    codes: list[int] = []
    app = app_of(named)
    async with TestClient(app, timeout=1000) as client, trio.open_nursery() as nursery:
        for _ in range(101):
            nursery.start_soon(come, client)
        await wait_all_tasks_blocked()
        assert inside == 100
        assert codes == [1008]
        await app.channels.disconnect_user("ada")


async def test_so_many_handshakes_of_an_address_in_a_time(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(limits=Limits(handshakes_per_address=Rate(1, per=1000, burst=3)))
    async with lane.serving(app):
        for _ in range(3):
            async with lane.connect() as peer:
                await works(peer)
        status, error, retry_after = await refused(lane)
        assert (status, error) == (429, "too many handshakes")
        assert retry_after is not None
        assert 500 < retry_after <= 1000
        if lane._client is not None:
            assert retry_after == 1000
            await trio.sleep(999)
            assert await refused(lane) == (429, "too many handshakes", 1)
            await trio.sleep(1)
            async with lane.connect() as peer:
                await works(peer)
    assert app.guard.counts["handshakes_per_address"] == (2 if lane.name == "memory" else 1)


@pytest.mark.untraced
async def test_a_thousand_handshakes_at_once_by_default(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    statuses: list[int] = []
    async with TestClient(app) as client:
        for _ in range(1001):
            with pytest.raises(WebSocketRejected) as rejected:
                async with client.connect("/nowhere"):
                    pass
            statuses.append(rejected.value.status)
    assert statuses == [404] * 1000 + [429]


@pytest.mark.parametrize("beyond", [0, 1])
async def test_the_headers_are_measured_all_together(beyond: int, lane: Lane, lane_clock: MockClock) -> None:
    headers = {"x-a": "b" * 100, "X-C": "d" * 200}

    async def measure(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(sum(len(name) + len(value) for name, value in ws.scope["headers"]))

    async with lane.serving(app_of(measure)), lane.connect("/", **with_headers(lane, headers)) as peer:
        size = int(await peer.receive())
    limited, app = Lane(lane.name), app_of(limits=Limits(header_bytes=size - beyond))
    async with limited.serving(app):
        if beyond:
            answer = await refused(limited, **with_headers(lane, headers))
            assert answer == (431, f"the headers have at most {size - 1} bytes", None)
        else:
            async with limited.connect("/", **with_headers(lane, headers)) as peer:
                await works(peer)
    assert app.guard.counts == ({"header_bytes": 1} if beyond else {})


@pytest.mark.parametrize(
    ("limits", "bound"), [(Limits(), 4096), (Limits(query_bytes=10), 10)], ids=["default", "ten"]
)
async def test_the_query_is_measured_as_it_is_encoded(
    limits: Limits, bound: int, lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(limits=limits)
    full = "%20" * (bound // 3) + "x" * (bound % 3)
    async with lane.serving(app):
        for query in (full, ""):
            async with lane.connect(f"/?{query}") as peer:
                await works(peer)
        assert await refused(lane, f"/?{full}x") == (414, f"a query has at most {bound} bytes", None)
    assert app.guard.counts == {"query_bytes": 1}


async def test_the_headers_and_the_query_have_16_and_4_kib_by_default(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of()
    async with lane.serving(app):
        options = with_headers(lane, {f"x-{number}": "v" * 1000 for number in range(15)})
        async with lane.connect("/?" + "q" * 4096, **options) as peer:
            await works(peer)
        options = with_headers(lane, {f"x-{number}": "v" * 1000 for number in range(17)})
        assert await refused(lane, **options) == (431, "the headers have at most 16384 bytes", None)


@pytest.mark.parametrize("seconds", [None, 3])
async def test_a_handler_has_so_long_to_accept(
    seconds: float | None, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    times = []

    async def slow(ws: WebSocket) -> None:
        before = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            times.append(trio.current_time() - before)

    limits = Limits() if seconds is None else Limits(accept_timeout=seconds)
    app = app_of(slow, limits=limits)
    async with lane.serving(app):
        status, _, _ = await refused(lane)
    assert status == 503
    if lane.name == "memory":
        assert times == [seconds or 10]
    assert f"within {seconds or 10} s; answered 503" in caplog.text
    assert app.guard.counts == {"accept_timeout": 1}


async def test_a_handler_that_accepts_in_time_has_all_the_time_it_likes(autojump_clock: MockClock) -> None:
    async def late(ws: WebSocket) -> None:
        await trio.sleep(9.875)
        await ws.accept()
        await trio.sleep(1000)
        await ws.send_text("done")

    app = app_of(late)
    async with TestClient(app, timeout=2000) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "done"
    assert not app.guard.counts


# Messages


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("x" * 12, 12),
        ("é" * 6, 12),
        ("€" * 4, 12),
        ("\U0001f600" * 3, 12),
        ("xé€\U0001f600" + "xx", 12),
        (b"\xff" * 12, 12),
        ("", 0),
        (b"", 0),
    ],
    ids=["ascii", "two bytes", "three bytes", "four bytes", "mixed", "binary", "no text", "no bytes"],
)
async def test_a_message_at_its_bound_passes(
    message: str | bytes, size: int, lane: Lane, lane_clock: MockClock
) -> None:
    async def both(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(3):
            received = await ws.receive()
            text = received.get("text")
            await (ws.send_text(text) if text is not None else ws.send_bytes(received["bytes"]))

    async def connect_first(ws: WebSocket) -> None:
        await ws.receive()  # websocket.connect
        await both(ws)

    app = app_of(connect_first, limits=Limits(message_bytes=max(1, size)))
    async with lane.serving(app), lane.connect() as peer:
        for _ in range(3):
            await peer.send(message)
            assert await peer.receive() == message
    assert not app.guard.counts


@pytest.mark.parametrize(
    "message",
    ["x" * 13, "é" * 7, "é" * 6 + "x", "€" * 4 + "x", "\U0001f600" * 3 + "x", "\U0001f600" * 4, b"\0" * 13],
    ids=["ascii", "two bytes", "one over", "three bytes", "four bytes", "far over", "binary"],
)
async def test_a_message_beyond_its_bound_closes_with_1009(
    message: str | bytes, lane: Lane, lane_clock: MockClock
) -> None:
    seen: list[Any] = []
    ended = trio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                seen.append(await ws.receive_text())
        except WebSocketDisconnect as over:
            seen.append((over.code, over.reason, over.by))
            await trio.sleep(2)
            ended.set()

    app = app_of(handler, limits=Limits(message_bytes=12))
    async with lane.serving(app), lane.connect() as peer:
        await peer.send("before")
        await peer.send(message)
        await peer.send("behind")
        assert await peer.wait_closed() == (1009, "a message has at most 12 bytes")
        with trio.fail_after(500):
            await ended.wait()
    assert seen == ["before", (1009, "a message has at most 12 bytes", "local")]
    assert app.guard.counts == {"message_bytes": 1}


@pytest.mark.parametrize("binary", [False, True])
async def test_a_message_has_a_mebibyte_by_default(binary: bool, lane: Lane, lane_clock: MockClock) -> None:
    async def measure(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.send_json(len(await (ws.receive_bytes() if binary else ws.receive_text())))

    def message(size: int) -> str | bytes:
        return b"x" * size if binary else "x" * size

    app = app_of(measure)
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(message(1 << 20))
        assert await peer.receive() == "1048576"
        await peer.send(message((1 << 20) + 1))
        assert await peer.wait_closed() == (1009, "a message has at most 1048576 bytes")


# JSON


def nested(depth: int, kind: str) -> str:
    match kind:
        case "arrays":
            return "[" * depth + "]" * depth
        case "objects":
            return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)
        case _:
            pairs = depth // 2
            inner = "[]" if depth % 2 else "1"
            return '[{"[{":' * pairs + inner + "}]" * pairs


def items(count: int, kind: str) -> str:
    """A document of so many values, the outermost array or object included."""
    match kind:
        case "arrays":
            return "[" + ",".join("1" for _ in range(count - 1)) + "]"
        case "objects":
            return "{" + ",".join(f'"k{number}":"a,b"' for number in range(count - 1)) + "}"
        case _:
            return "[" + ",".join("[]" for _ in range(count - 1)) + "]"


class Anything(WebSocketConsumer):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_text("read")


async def receiving(ws: WebSocket) -> None:
    await ws.accept()
    while True:
        await ws.receive_json()
        await ws.send_text("read")


async def looping(ws: WebSocket) -> None:
    await ws.accept()
    async for _ in ws.iter_json():
        await ws.send_text("read")


async def raw(ws: WebSocket) -> None:
    await ws.accept()
    async for _ in ws.iter_json(msgspec.Raw):
        await ws.send_text("read")


def json_app(way: str, **options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    if way == "consumer":
        app.add_ws_route(Anything.as_route("/"))
    else:
        ways: dict[str, Callable[[WebSocket], Awaitable[None]]] = {
            "receive": receiving,
            "loop": looping,
            "raw": raw,
        }
        app.add_ws_route("/", ways[way])
    return app


@pytest.mark.parametrize("way", ["receive", "loop", "consumer", "raw"])
@pytest.mark.parametrize("kind", ["arrays", "objects", "mixed"])
@pytest.mark.parametrize("what", ["depth", "items"])
@pytest.mark.parametrize("default", [True, False])
async def test_json_at_its_bounds_is_read_and_beyond_closes_with_1007(
    default: bool, what: str, kind: str, way: str, autojump_clock: MockClock
) -> None:
    bounds = {"depth": 64, "items": 10_000} if default else {"depth": 5, "items": 20}
    limits = Limits() if default else Limits(json_depth=5, json_items=20)
    make = nested if what == "depth" else items
    app = json_app(way, limits=limits)
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text(make(bounds[what], kind))
        assert await ws.receive_text() == "read"
        await ws.send_text(make(bounds[what] + 1, kind))
        code, reason = await ws.wait_closed()
        assert code == 1007
        assert reason.startswith("invalid JSON: ")
        assert str(bounds[what]) in reason
    assert app.guard.counts == {"closed.InvalidJSON": 1}


@pytest.mark.parametrize("what", ["depth", "items"])
async def test_json_is_bounded_over_a_socket_too(what: str, lane: Lane, lane_clock: MockClock) -> None:
    app = json_app("receive", on_invalid="reply")
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(nested(64, "arrays") if what == "depth" else items(10_000, "arrays"))
        assert await peer.receive() == "read"
        await peer.send(nested(65, "arrays") if what == "depth" else items(10_001, "arrays"))
        assert msgspec.json.decode(await peer.receive())["error"] == "json"
        await peer.send("[]")
        assert await peer.receive() == "read"


async def test_a_handler_can_catch_json_beyond_its_bounds(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(2):
            with pytest.raises(InvalidJSON):
                await ws.receive_json()
        assert await ws.receive_json() == [1]
        await ws.send_text("fine")

    app = app_of(handler, limits=Limits(json_depth=1, json_items=2))
    async with TestClient(app) as client, client.connect("/") as ws:
        for text in ("[[]]", "[1,2]", "[1]"):
            await ws.send_text(text)
        assert await ws.receive_text() == "fine"


# Queues


async def test_so_many_messages_wait_for_the_handler(autojump_clock: MockClock) -> None:
    for bound in (None, 5):
        go, sent = trio.Event(), 0

        async def slow(ws: WebSocket, go: trio.Event = go) -> None:
            await ws.accept()
            await go.wait()
            async for text in ws.iter_text():
                await ws.send_text(text)

        app = app_of(slow, limits=Limits() if bound is None else Limits(inbox_messages=bound))
        async with TestClient(app, timeout=1000, window=1000) as client, client.connect("/") as ws:
            async with trio.open_nursery() as nursery:

                async def flood(ws: Any = ws) -> None:
                    nonlocal sent
                    while sent < 200:
                        await ws.send_text(str(sent))
                        sent += 1

                nursery.start_soon(flood)
                await wait_all_tasks_blocked()
                assert sent == (bound or 64) + 10  # and the server's queue
                (connection,) = app.connections
                assert len(connection.transport.inbox) == (bound or 64)
                go.set()
            assert [await ws.receive_text() for _ in range(200)] == [str(number) for number in range(200)]


async def test_so_many_bytes_wait_for_the_handler(autojump_clock: MockClock) -> None:
    """A message is taken while there is room, however large it is."""
    sent = 0

    async def silent(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep_forever()

    app = app_of(silent, limits=Limits(inbox_bytes=100))
    async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                nonlocal sent
                while True:
                    await ws.send_text("x" * 33)
                    sent += 1

            nursery.start_soon(flood)
            await wait_all_tasks_blocked()
            assert sent == 4 + 10
            nursery.cancel_scope.cancel()
        await ws.drop()


@pytest.mark.parametrize("bound", [None, 5])
async def test_so_many_messages_wait_for_a_member_of_a_group(
    bound: int | None, autojump_clock: MockClock
) -> None:
    waiting: list[int] = []
    ended: list[tuple[int, str]] = []

    async def member(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room") as group:
            await ws.send_text("joined")
            await wait_all_tasks_blocked()
            while ws.is_connected():
                waiting.append(ws.statistics().waiting_messages)
                await group.send("x")
                await wait_all_tasks_blocked()
            with pytest.raises(WebSocketDisconnect) as over:
                await ws.receive_text()
            ended.append((over.value.code, over.value.reason))

    app = app_of(member, limits=Limits() if bound is None else Limits(outbox_messages=bound))
    async with TestClient(app, window=1, timeout=1000) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "joined"
        await ws.stall()
        with trio.fail_after(500):
            while len(app.connections):
                await trio.sleep(1)
    assert max(waiting) == (bound or 256)
    assert ended == [(1013, "too slow")]


async def test_so_many_bytes_wait_for_a_member_of_a_group(autojump_clock: MockClock) -> None:
    waiting: list[int] = []

    async def member(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room") as group:
            await ws.send_text("joined")
            await wait_all_tasks_blocked()
            while ws.is_connected():
                waiting.append(ws.statistics().waiting_bytes)
                await group.send("x" * 40)
                await wait_all_tasks_blocked()

    app = app_of(member, limits=Limits(outbox_bytes=100))
    async with TestClient(app, window=1, timeout=1000) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "joined"
        await ws.stall()
        with trio.fail_after(500):
            while len(app.connections):
                await trio.sleep(1)
    assert max(waiting) == 120  # the one that crosses the bound is still taken


# Times after accept


async def quiet(ws: WebSocket) -> None:
    await ws.accept()
    async for _ in ws.iter_text():
        pass


@pytest.mark.parametrize("handler", [quiet, None], ids=["reading", "sending"])
async def test_a_client_has_so_long_to_say_something(handler: Any, lane: Lane, lane_clock: MockClock) -> None:
    seen: list[Any] = []

    async def sending(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text("tick")
                await trio.sleep(1)
        except WebSocketDisconnect as over:
            seen.append((over.code, over.reason, over.by))

    app = app_of(handler or sending, limits=Limits(first_message_timeout=5))
    async with lane.serving(app), lane.connect() as peer:
        before = trio.current_time()
        assert await peer.wait_closed() == (1008, "no message in time")
        if lane.name == "memory":
            assert trio.current_time() - before == 5
    assert seen == ([] if handler else [(1008, "no message in time", "local")])
    assert app.guard.counts == {"first_message_timeout": 1}


async def test_who_has_said_something_may_be_silent_afterwards(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(limits=Limits(first_message_timeout=5))
    async with lane.serving(app), lane.connect() as peer:
        await works(peer)
        await trio.sleep(20)
        await works(peer)
    assert not app.guard.counts


async def test_a_first_message_that_the_handler_has_not_read_yet_is_one(autojump_clock: MockClock) -> None:
    async def busy(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep(50)
        await ws.send_text(await ws.receive_text())

    app = app_of(busy, limits=Limits(first_message_timeout=5))
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        await trio.sleep(4.875)
        await ws.send_text("early enough")
        assert await ws.receive_text() == "early enough"


async def test_the_time_for_the_first_message_begins_with_accept(autojump_clock: MockClock) -> None:
    async def late(ws: WebSocket) -> None:
        await trio.sleep(9)
        await quiet(ws)

    app = app_of(late, limits=Limits(first_message_timeout=5))
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        before = trio.current_time()
        assert (await ws.wait_closed())[0] == 1008
        assert trio.current_time() - before == 5


async def test_a_token_in_the_first_message_is_a_message(autojump_clock: MockClock) -> None:
    app = app_of(authenticate=FirstMessage(lambda token: token), limits=Limits(first_message_timeout=5))
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        await ws.send_text('{"token":"ada"}')
        await trio.sleep(50)
        await ws.send_text("x")
        assert await ws.receive_text() == "x"


async def test_a_connection_lives_so_long(lane: Lane, lane_clock: MockClock) -> None:
    seen = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect as over:
            seen.append((over.code, over.reason, over.by))

    app = app_of(handler, limits=Limits(lifetime=6))
    async with lane.serving(app), lane.connect() as peer:
        before = trio.current_time()
        for _ in range(4):  # talking does not prolong it
            await works(peer)
            await trio.sleep(1)
        assert await peer.wait_closed() == (1001, "lifetime over")
        if lane.name == "memory":
            assert trio.current_time() - before == 6
    assert seen == [(1001, "lifetime over", "local")]
    assert app.guard.counts == {"lifetime": 1}


async def test_a_life_begins_with_accept(autojump_clock: MockClock) -> None:
    async def late(ws: WebSocket) -> None:
        await trio.sleep(9)
        await quiet(ws)

    app = app_of(late, limits=Limits(lifetime=5))
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        before = trio.current_time()
        assert (await ws.wait_closed())[0] == 1001
        assert trio.current_time() - before == 5


async def test_by_default_a_silent_connection_lives_on(autojump_clock: MockClock) -> None:
    app = app_of()
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        await trio.sleep(1_000_000)
        await ws.send_text("x")
        assert await ws.receive_text() == "x"


@pytest.mark.parametrize(
    "timers",
    [
        {},
        {"heartbeat": Heartbeat(interval=2, timeout=3, message="ping")},
        {"idle_timeout": 7},
        {"heartbeat": Heartbeat(interval=4, timeout=1, message=b"ping"), "idle_timeout": 9},
        {"limits": Limits(inbox_messages=2, first_message_timeout=5, lifetime=10_000)},
    ],
    ids=["none", "heartbeat", "idle", "both", "first message and lifetime"],
)
async def test_whatever_timers_run_a_full_inbox_that_nobody_reads_ends_the_connection(
    timers: dict[str, Any], lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each look at another clock used to begin this time anew."""
    seen: list[Any] = []
    ended = trio.Event()

    async def deaf(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("ready")
        try:
            while True:
                await ws.send_text("tick")
                await trio.sleep(1)
        except WebSocketDisconnect as over:
            seen.append((over.code, over.reason, trio.current_time()))
            ended.set()

    app = app_of(deaf, **{"limits": Limits(inbox_messages=2), "unread_timeout": 30, **timers})
    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        before = trio.current_time()
        for _ in range(5):
            await peer.send("unread")
        assert await peer.wait_closed() == (1008, "messages are not read")
        with trio.fail_after(500):
            await ended.wait()
    code, reason, moment = seen[0]
    assert (code, reason) == (1008, "messages are not read")
    if lane.name == "memory":
        assert 30 <= moment - before <= 31
    assert app.guard.counts == {"unread_timeout": 1}
    assert sum("read nothing for 30 s" in record.getMessage() for record in caplog.records) == 1


# Groups


async def enter(ws: WebSocket, count: int) -> None:
    """Join so many groups, and stay in them."""
    for number in range(count):
        await ws.join(f"group.{number}").join()


@pytest.mark.parametrize("bound", [None, 3])
async def test_a_connection_is_in_so_many_groups_and_no_more(
    bound: int | None, lane: Lane, lane_clock: MockClock
) -> None:
    async def greedy(ws: WebSocket) -> None:
        await ws.accept()
        await enter(ws, bound or 256)
        await ws.send_text("in all of them")
        await ws.join("one more").join()

    app = app_of(greedy, limits=Limits() if bound is None else Limits(groups=bound))
    async with lane.serving(app), lane.connect() as peer:
        assert await peer.receive() == "in all of them"
        assert await peer.wait_closed() == (1008, "too many groups")
    assert app.guard.counts == {"closed.LimitError": 1}
    assert not app.channels.hub.groups


async def test_who_leaves_a_group_may_join_another(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("a"):
            async with ws.join("b"):
                with pytest.raises(LimitError) as error:
                    await ws.join("c").join()
                assert (error.value.limit, error.value.bound) == ("groups", 2)
                assert "c" not in app.channels.hub.groups
            async with ws.join("c"):
                assert sorted(app.channels.hub.groups) == ["a", "c"]
        await ws.send_text("fine")

    app = app_of(handler, limits=Limits(groups=2))
    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "fine"


async def test_groups_of_channels_and_consumers_count_too(autojump_clock: MockClock) -> None:
    class Member(WebSocketConsumer):
        encoding = "text"

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.join_group(data)
            await websocket.send_text(f"in {data}")

    app = NexiosApp(limits=Limits(groups=2))
    app.add_ws_route(Member.as_route("/"))
    async with TestClient(app) as client, client.connect("/") as ws, client.connect("/") as other:
        for name in ("a", "b", "a"):  # again is no other group
            await ws.send_text(name)
            assert await ws.receive_text() == f"in {name}"
        await ws.send_text("c")
        assert await ws.wait_closed() == (1008, "too many groups")
        await other.send_text("c")  # each connection counts for itself
        assert await other.receive_text() == "in c"


@pytest.mark.parametrize("bound", [None, 5])
@pytest.mark.parametrize("character", ["x", "é"])
async def test_the_name_of_a_group_has_so_many_characters(
    character: str, bound: int | None, autojump_clock: MockClock
) -> None:
    longest = bound or 200

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join(character * longest) as group:
            await group.send("at the bound")
            assert await app.channels.send(character * longest, "from outside") is not None
            for use in (
                lambda: ws.join(character * (longest + 1)),
                lambda: app.channels.send(character * (longest + 1), "x"),
            ):
                with pytest.raises(LimitError) as error:
                    result = use()
                    await result  # type: ignore[misc]
                assert (error.value.limit, error.value.bound) == ("group_name_length", longest)
            await ws.join(character * (longest + 1)).join()

    app = app_of(handler, limits=Limits() if bound is None else Limits(group_name_length=bound))
    async with TestClient(app) as client, client.connect("/") as ws:
        assert [await ws.receive_text() for _ in range(2)] == ["at the bound", "from outside"]
        assert await ws.wait_closed() == (1008, "the group name is too long")
    assert app.guard.counts == {"closed.LimitError": 1}


# No limits


def test_without_limits_nothing_is_bounded_but_queues_and_accepting() -> None:
    limits = Limits.none()
    for name in DEFAULTS:
        expected = DEFAULTS[name] if name in (*QUEUES, *TIMES, *FLAGS) else None
        assert getattr(limits, name) == expected, name


async def test_without_limits_everything_passes_that_was_beyond_them(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def everything(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify("ada")
        await enter(ws, 300)
        for _ in range(2):
            await ws.receive_json()
        await ws.send_json(len(await ws.receive_text()))

    app = app_of(everything, limits=Limits.none())
    async with lane.serving(app):
        options = with_headers(lane, {f"x-{number}": "v" * 1000 for number in range(5)})
        async with lane.connect("/?" + "q" * 5000, **options) as peer:
            await peer.send(nested(500, "arrays"))
            await peer.send(items(20_000, "arrays"))
            await peer.send("x" * ((1 << 20) + 1))
            assert await peer.receive() == "1048577"
    assert not app.guard.counts
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("limits", "headers", "query"),
    [
        (Limits(), 15, 4000),
        (Limits(header_bytes=None), 24, 10),
        (Limits(query_bytes=None), 15, 4000),
        (Limits.none(), 24, 10),
    ],
    ids=["default", "no bound on headers", "no bound on queries", "none"],
)
async def test_to_take_a_bound_away_does_not_tighten_that_of_the_server(
    serve: Serve, limits: Limits, headers: int, query: int
) -> None:
    """hypercorn has a bound of its own on a request that comes in pieces."""
    opened = trio.Event()

    async def handler(ws: WebSocket) -> None:
        opened.set()
        await ws.accept()

    async with serve(app_of(handler, limits=limits)) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            request = WSConnection(ConnectionType.CLIENT).send(Request(host="x", target="/?" + "q" * query))
            await stream.send_all(request.removesuffix(b"\r\n"))
            for number in range(headers):
                await wait_all_tasks_blocked(0.01)  # so that the server has read what was sent
                await stream.send_all(b"x-%d: %s\r\n" % (number, b"v" * 1000))
            await stream.send_all(b"\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            assert opened.is_set()


async def test_json_without_bounds_is_bounded_by_what_can_be_read(autojump_clock: MockClock) -> None:
    app = json_app("receive", limits=Limits.none())
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text(nested(100_000, "arrays"))
        code, reason = await ws.wait_closed()
        assert (code, reason) == (1007, "invalid JSON: it is nested too deep")
