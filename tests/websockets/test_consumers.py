"""`WebSocketConsumer`: encodings, the end, concurrency, registration."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import msgspec
import pytest
import trio
from starlette.exceptions import HTTPException
from trio.testing import wait_all_tasks_blocked

from nexios_trio import (
    Limits,
    NexiosApp,
    WebSocket,
    WebSocketConsumer,
    WebSocketDisconnect,
    WebSocketException,
    WrongTypeError,
    WrongValueError,
    WSRouter,
)
from nexios_trio.testing import TestClient, WebSocketRejected
from tests.lanes import Lane

Clients = Callable[..., TestClient]


class Recorder(WebSocketConsumer):
    """Notes what it is told; what it is to do comes as a message, or in the constructor."""

    encoding = "text"

    def __init__(self, log: list[Any], at_first: str = "accept") -> None:
        self.log = log
        self.at_first = at_first

    async def act(self, what: str) -> None:
        ws = self.websocket
        match what:
            case "accept":
                await ws.accept()
            case "accept and close":
                await ws.accept()
                await ws.close(4002)
            case "close":
                await ws.close(4001)
            case "reject":
                await ws.reject(401)
            case "raise":
                raise RuntimeError("a bug")
            case "http":
                raise HTTPException(402)
            case "exception":
                raise WebSocketException(4003)
            case "disconnect":
                raise WebSocketDisconnect(4004)
            case "sleep":
                await trio.sleep_forever()
            case "child":
                ws.start_soon(self.act, "raise")
                await trio.sleep_forever()

    async def on_connect(self, websocket: WebSocket) -> None:
        assert websocket is self.websocket is self.channel.websocket
        await self.act(self.at_first)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await self.act(data)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await trio.sleep(1)
        self.log.append(close_code)


class Concurrent(Recorder):
    concurrency = 3


@pytest.fixture(params=[Recorder, Concurrent], ids=["one at a time", "concurrently"])
def recorder(request: pytest.FixtureRequest) -> type[Recorder]:
    kind: type[Recorder] = request.param
    return kind


# The end


@pytest.mark.parametrize(
    ("message", "closed_with", "told"),
    [
        ("close", 4001, 4001),
        ("raise", 1011, 1011),
        ("exception", 4003, 4003),
        ("disconnect", 1000, 1000),
        ("child", 1011, 1011),
    ],
)
async def test_on_disconnect_is_told_what_the_client_is_told(
    nexios_client: Clients,
    autojump_clock: Any,
    recorder: type[Recorder],
    message: str,
    closed_with: int,
    told: int,
) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(recorder.as_route("/", log=log))
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text(message)
        assert (await ws.wait_closed())[0] == closed_with
    assert log == [told]


@pytest.mark.parametrize(("how", "code"), [("close", 4000), ("drop", 1006)])
async def test_on_disconnect_gets_the_client_s_code(
    nexios_client: Clients, autojump_clock: Any, recorder: type[Recorder], how: str, code: int
) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(recorder.as_route("/", log=log))
    async with nexios_client(app).connect("/") as ws:
        await (ws.close(4000) if how == "close" else ws.drop())
        await trio.sleep(2)
    assert log == [code]


async def test_a_client_that_leaves_while_on_receive_fails_left_with_its_own_code(
    nexios_client: Clients, autojump_clock: Any, recorder: type[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    app, log = NexiosApp(), list[Any]()

    class Late(recorder):  # type: ignore[misc, valid-type]
        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            await trio.sleep(1)
            raise RuntimeError("a late bug")

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            self.log.append(close_code)
            await websocket.send_text("are you there?")

    app.add_ws_route(Late.as_route("/", log=log))
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("")
        await wait_all_tasks_blocked()
        await ws.close(4000)
        await trio.sleep(2)
    assert log == [4000]
    assert "a late bug" in caplog.text  # not hidden by the failed send


@pytest.mark.parametrize(
    ("at_first", "status", "code"),
    [
        ("reject", 401, 1006),
        ("close", 403, 4001),
        ("nothing", 403, 1006),
        ("raise", 500, 1006),
        ("http", 402, 1006),
        ("exception", 403, 1006),
        ("sleep", 503, 1006),
    ],
)
async def test_a_rejected_client_is_disconnected_too(
    nexios_client: Clients, autojump_clock: Any, at_first: str, status: int, code: int
) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(Recorder.as_route("/", log=log, at_first=at_first))
    client = nexios_client(app, timeout=100)
    with pytest.raises(WebSocketRejected) as rejected:
        async with client.connect("/"):
            pass
    assert rejected.value.status == status
    assert log == [code]


async def test_on_connect_may_accept_and_close(nexios_client: Clients, autojump_clock: Any) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(Recorder.as_route("/", log=log, at_first="accept and close"))
    async with nexios_client(app).connect("/") as ws:
        assert await ws.wait_closed() == (4002, "")
        await trio.sleep(2)
    assert log == [4002]


@pytest.mark.parametrize("grace", [0, 0.5, math.inf])
async def test_on_disconnect_has_its_time_whatever_the_grace(
    nexios_client: Clients, autojump_clock: Any, recorder: type[Recorder], grace: float
) -> None:
    app, log = NexiosApp(disconnect_grace=grace), list[Any]()
    app.add_ws_route(recorder.as_route("/", log=log))
    async with nexios_client(app).connect("/") as ws:
        if grace != math.inf:
            await ws.send_text("sleep")
            await wait_all_tasks_blocked()
        await ws.close(4000)
        await trio.sleep(5)
    assert log == [4000]


async def test_on_disconnect_survives_the_cancellation_of_the_server(
    autojump_clock: Any, recorder: type[Recorder]
) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(recorder.as_route("/", log=log))

    async with trio.open_nursery() as nursery:
        received = [{"type": "websocket.connect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            if not received:
                await trio.sleep_forever()
            return received.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/", "headers": [], "http_version": "1.1", "query_string": b""}
        nursery.start_soon(app, scope, receive, send)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert log == [1012]
    assert sent[-1]["code"] == 1012


async def test_a_shutdown_is_told_as_1012(autojump_clock: Any, recorder: type[Recorder]) -> None:
    app, log = NexiosApp(), list[Any]()
    app.add_ws_route(recorder.as_route("/", log=log))
    async with TestClient(app) as client, client.connect("/") as ws:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.drain)
            assert (await ws.wait_closed())[0] == 1012
    assert log == [1012]


async def test_on_disconnect_that_takes_too_long_is_cut_and_logged(
    nexios_client: Clients, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()
    ended: list[float] = []

    class Slow(WebSocketConsumer):
        disconnect_timeout = 2

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            start = trio.current_time()
            try:
                await trio.sleep_forever()
            finally:
                ended.append(trio.current_time() - start)

    app.add_ws_route(Slow.as_route("/"))
    with caplog.at_level(logging.WARNING, "nexios_trio.consumer"):
        async with nexios_client(app).connect("/") as ws:
            await ws.close()
            await trio.sleep(5)
    assert ended == [pytest.approx(2)]
    assert "Slow.on_disconnect was cancelled after 2 s" in caplog.text


async def test_an_error_in_on_disconnect_is_logged_and_closes_with_1011(
    nexios_client: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    class Broken(WebSocketConsumer):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            raise ValueError("first bug")

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            raise RuntimeError("second bug")

    app.add_ws_route(Broken.as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("x")
        assert await ws.wait_closed() == (1011, "internal error")
    assert "first bug" in caplog.text
    assert "second bug" in caplog.text


# Messages


class Point(msgspec.Struct):
    x: int


def collecting(into: list[Any], kind: str | None, type_: Any = Any) -> type[WebSocketConsumer]:
    class Collecting(WebSocketConsumer):
        encoding = kind  # type: ignore[assignment]
        message_type: ClassVar[Any] = type_

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            into.append(data)

    return Collecting


@pytest.mark.parametrize(
    ("encoding", "sent", "received"),
    [
        ("json", '{"x":1}', {"x": 1}),
        ("json", b'{"x":1}', {"x": 1}),
        ("text", "a", "a"),
        ("bytes", b"a", b"a"),
        (None, "a", "a"),
        (None, "", ""),
        (None, b"a", b"a"),
    ],
)
async def test_on_receive_gets_what_the_encoding_says(
    lane: Lane, lane_clock: Any, encoding: str | None, sent: str | bytes, received: Any
) -> None:
    app, got = NexiosApp(), list[Any]()
    app.add_ws_route(collecting(got, encoding).as_route("/"))
    async with lane.serving(app), lane.connect("/") as peer:
        await peer.send(sent)
        await peer.close()
    assert got == [received]


@pytest.mark.parametrize(
    ("encoding", "sent", "code"),
    [
        ("text", b"a", 1003),
        ("bytes", "a", 1003),
        ("json", "{", 1007),
        ("json", b"\xff", 1007),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_message_that_does_not_fit_closes_the_connection(
    nexios_client: Clients, encoding: str, sent: str | bytes, code: int, concurrency: int
) -> None:
    app, got = NexiosApp(), list[Any]()
    consumer = collecting(got, encoding)
    consumer.concurrency = concurrency
    app.add_ws_route(consumer.as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        await (ws.send_text(sent) if isinstance(sent, str) else ws.send_bytes(sent))
        assert (await ws.wait_closed())[0] == code
    assert got == []


async def test_messages_are_checked_against_the_message_type(nexios_client: Clients) -> None:
    app, got = NexiosApp(), list[Any]()
    app.add_ws_route(collecting(got, "json", Point).as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        await ws.send_json({"x": 1})
        await ws.send_json({"x": "one"})
        code, reason = await ws.wait_closed()
        assert code == 1007
        assert "$.x" in reason
    assert got == [Point(1)]


async def test_every_connection_has_an_instance_of_its_own(nexios_client: Clients) -> None:
    app = NexiosApp()
    instances: set[WebSocketConsumer] = set()

    class One(WebSocketConsumer):
        async def on_connect(self, websocket: WebSocket) -> None:
            await websocket.accept()
            instances.add(self)

    app.add_ws_route(One.as_route("/"))
    client = nexios_client(app)
    async with client.connect("/"), client.connect("/"):
        await wait_all_tasks_blocked()
        assert len({instance.channel.uuid for instance in instances}) == 2


async def test_groups_and_channels_are_at_hand(nexios_client: Clients) -> None:
    app = NexiosApp()

    class Room(WebSocketConsumer):
        encoding = "json"

        async def on_connect(self, websocket: WebSocket) -> None:
            await websocket.accept()
            await self.join_group(f"room.{websocket.path_params['room']}")

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            match data:
                case "leave":
                    await self.leave_group("room.1")
                    await websocket.send_json("left")
                case {"to": to}:
                    await self.send_to(to, "private")
                case "who":
                    await websocket.send_json([channel.id for channel in await self.group("room.1")])
                case _:
                    await self.broadcast(data, "room.1", save_history=True)

    app.add_ws_route(Room.as_route("/{room}"))
    client = nexios_client(app)
    async with client.connect("/1") as ada, client.connect("/1") as bob:
        await ada.send_json("who")
        _, bob_id = await ada.receive_json()
        await ada.send_json("hi")
        assert await ada.receive_json() == await bob.receive_json() == "hi"
        await ada.send_json({"to": bob_id})
        assert await bob.receive_json() == "private"
        await ada.send_json("leave")
        assert await ada.receive_json() == "left"
        await bob.send_json("still here")
        assert await bob.receive_json() == "still here"
        assert [entry.payload for entry in await app.channels.show_history("room.1")] == ["hi", "still here"]
    await wait_all_tasks_blocked()
    assert app.channels.hub.groups == {}
    assert app.channels.hub.channels == {}


# Concurrency


class Job(WebSocketConsumer):
    """Each message is ``[key, seconds]``."""

    encoding = "json"
    concurrency = 2

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.running = 0

    def ordering_key(self, data: Any) -> Hashable:
        key: Hashable = data[0]
        return key

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        self.running += 1
        assert self.running <= self.concurrency
        await trio.sleep(data[1])
        self.running -= 1
        self.log.append((data[0], data[1], round(trio.current_time() - websocket.app.state.began)))


class AnyOrder(Job):
    def ordering_key(self, data: Any) -> Hashable:
        return None


class OneByOne(Job):
    concurrency = 1


async def run_jobs(consumer: type[Job], *jobs: Any) -> list[Any]:
    app, log = NexiosApp(disconnect_grace=math.inf), list[Any]()
    app.add_ws_route(consumer.as_route("/", log=log))
    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        app.state.began = trio.current_time()
        for job in jobs:
            await ws.send_json(job)
        await ws.close()
        await trio.sleep(100)
    return log


async def test_messages_without_a_key_pass_each_other(autojump_clock: Any) -> None:
    log = await run_jobs(AnyOrder, ["a", 9], ["a", 1], ["a", 2], ["a", 3])
    assert log == [("a", 1, 1), ("a", 2, 3), ("a", 3, 6), ("a", 9, 9)]


async def test_messages_of_one_key_stay_in_order(autojump_clock: Any) -> None:
    log = await run_jobs(Job, ["a", 3], ["a", 1], ["b", 2], ["b", 1])
    assert log == [("a", 3, 3), ("a", 1, 4), ("b", 2, 5), ("b", 1, 6)]


async def test_without_concurrency_all_stay_in_order(autojump_clock: Any) -> None:
    log = await run_jobs(OneByOne, ["a", 3], ["b", 1])
    assert log == [("a", 3, 3), ("b", 1, 4)]


async def test_no_more_messages_are_taken_than_may_be_handled(
    nexios_client: Clients, autojump_clock: Any
) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=1))
    taken: list[str] = []
    release = trio.Event()

    class Stuck(WebSocketConsumer):
        concurrency = 3

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            taken.append(data)
            await release.wait()

    app.add_ws_route(Stuck.as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        with trio.move_on_after(1):
            for number in range(100):
                await ws.send_text(str(number))
        assert sorted(taken) == ["0", "1", "2"]
        release.set()


async def test_after_an_error_no_waiting_message_of_its_key_is_handled(
    nexios_client: Clients, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app, begun = NexiosApp(), list[Any]()

    class Failing(WebSocketConsumer):
        concurrency = 5

        def ordering_key(self, data: Any) -> Hashable:
            return "one key"

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            begun.append(data)
            await trio.sleep(1)
            raise RuntimeError("a bug")

    app.add_ws_route(Failing.as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        for number in range(3):
            await ws.send_text(str(number))
        assert await ws.wait_closed() == (1011, "internal error")
    assert begun == ["0"]
    assert caplog.text.count("Traceback") == 1


async def test_a_send_that_fails_because_the_client_left_ends_no_other_message(
    nexios_client: Clients, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app, done = NexiosApp(), list[Any]()

    class Sender(WebSocketConsumer):
        concurrency = 2

        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            await trio.sleep(float(data))
            done.append(data)
            await websocket.send_text("done")

    app.add_ws_route(Sender.as_route("/"))
    async with nexios_client(app).connect("/") as ws:
        await ws.send_text("1")
        await ws.send_text("2")
        await wait_all_tasks_blocked()
        await ws.drop()
        await trio.sleep(5)
    assert done == ["1", "2"]
    assert caplog.records == []


# Registration


async def test_a_route_goes_into_an_app_and_into_a_router(nexios_client: Clients) -> None:
    class Echo(WebSocketConsumer):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.send_text(data)

    router = WSRouter([Echo.as_route("/one", name="first")], prefix="/r")
    router.add_ws_route(Echo.as_route("/two"))
    app = NexiosApp([Echo.as_route("/three", name="third")])
    app.mount_ws_router(router)
    assert str(app.url_path_for("first")) == "/r/one"
    assert str(app.url_path_for("Echo")) == "/r/two"
    client = nexios_client(app)
    for path in ("/r/one", "/r/two", "/three"):
        async with client.connect(path) as ws:
            await ws.send_text(path)
            assert await ws.receive_text() == path


async def test_middleware_of_the_class_is_outside_of_that_of_the_route(nexios_client: Clients) -> None:
    order: list[str] = []

    async def outer(ws: WebSocket, call_next: Callable[[], Any]) -> None:
        order.append("class")
        await call_next()

    async def inner(ws: WebSocket, call_next: Callable[[], Any]) -> None:
        order.append("route")
        await call_next()

    class Guarded(WebSocketConsumer):
        middleware = (outer,)

    app = NexiosApp([Guarded.as_route("/", middleware=[inner])])
    async with nexios_client(app).connect("/"):
        pass
    assert order == ["class", "route"]


class Fine(WebSocketConsumer):
    pass


def broken(**members: Any) -> type[WebSocketConsumer]:
    return type("Chat", (WebSocketConsumer,), members)


def sync(self: Any, websocket: Any) -> None: ...
async def few(self: Any) -> None: ...
async def key(self: Any, data: Any) -> None: ...


@pytest.mark.parametrize(
    ("members", "error", "says"),
    [
        ({"encoding": "xml"}, WrongValueError, 'Chat.encoding is "json", "text", "bytes" or None'),
        ({"message_type": int}, WrongValueError, 'write `encoding = "json"`'),
        ({"concurrency": 0}, WrongValueError, "Chat.concurrency is a whole number of messages, 1 or more"),
        ({"concurrency": True}, WrongValueError, "not True"),
        ({"disconnect_timeout": 0}, WrongValueError, "more than 0 seconds"),
        ({"on_connect": sync}, WrongTypeError, "write `async def on_connect(self, websocket)`"),
        ({"on_receive": few}, WrongTypeError, "write `async def on_receive(self, websocket, data)`"),
        ({"ordering_key": key}, WrongTypeError, "write `def ordering_key(self, data)`"),
    ],
)
def test_a_mistake_is_told_at_registration(
    members: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as raised:
        broken(**members).as_route("/")
    assert says in str(raised.value)


def test_arguments_that_the_constructor_does_not_take_are_told_at_registration() -> None:
    with pytest.raises(WrongTypeError, match=r"hands its keyword arguments to Fine\(\.\.\.\)"):
        Fine.as_route("/", colour="red")
