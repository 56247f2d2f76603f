"""`Channel` and `ChannelBox`: expiry, statuses, which box is meant, sends that wait for nobody."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.testclient import TestClient as StarletteClient
from trio.testing import wait_all_tasks_blocked

from nexios_trio import (
    CloseCode,
    LimitError,
    Limits,
    NexiosApp,
    WebSocket,
    WebSocketDisconnect,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.testing import TestClient
from nexios_trio.websockets import channels as module
from nexios_trio.websockets.channels import (
    Channel,
    ChannelAddStatusEnum,
    ChannelBox,
    ChannelRemoveStatusEnum,
    GroupSendStatusEnum,
    PayloadTypeEnum,
)

Clients = Callable[..., TestClient]


class Desk:
    """An app whose handler makes a channel, joins groups, and stays until told to go."""

    def __init__(self, *groups: str, **options: Any) -> None:
        self.app = NexiosApp(**options.pop("app", {}))
        self.channels: list[Channel] = []
        self.ends: list[tuple[int, str]] = []

        @self.app.ws_route("/")
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            channel = Channel(ws, **options)
            for name in groups:
                await self.app.channels.add_channel_to_group(channel, name)
            self.channels.append(channel)
            try:
                while True:
                    await channel.receive()
            except WebSocketDisconnect as over:
                self.ends.append((over.code, over.reason))

    @asynccontextmanager
    async def visitors(self, clients: Clients, number: int = 1) -> AsyncIterator[list[Any]]:
        client = clients(self.app, timeout=100, window=10)
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            visitors: list[Any] = []

            async def visit() -> None:
                async with client.connect("/") as ws:
                    visitors.append(ws)
                    await done.wait()

            for _ in range(number):
                nursery.start_soon(visit)
                await wait_all_tasks_blocked()
            try:
                yield visitors
            finally:
                done.set()


# A channel


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"payload_type": "xml"}, WrongValueError, '"json", "text" or "bytes"'),
        ({"payload_type": None}, WrongValueError, "not None"),
        ({"expires": "60"}, WrongTypeError, "a number of seconds or None"),
        ({"expires": True}, WrongTypeError, "a number of seconds or None"),
        ({"expires": 0}, WrongValueError, "more than 0 seconds, or None for never"),
        ({"expires": float("nan")}, WrongValueError, "more than 0 seconds"),
    ],
)
async def test_a_wrong_argument_is_told_at_once(
    nexios_client: Clients, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    app = NexiosApp()
    raised: list[Exception] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            Channel(ws, **arguments)
        except Exception as caught:
            raised.append(caught)

    async with nexios_client(app).connect("/") as ws:
        await ws.wait_closed()
    assert type(raised[0]) is error
    assert says in str(raised[0])
    assert app.channels.hub.channels == {}


async def test_only_a_websocket_makes_a_channel() -> None:
    with pytest.raises(WrongTypeError, match="made of a WebSocket, not dict"):
        Channel({})  # type: ignore[arg-type]


async def test_a_channel_has_what_nexios_gives_it(nexios_client: Clients) -> None:
    desk = Desk(payload_type=PayloadTypeEnum.TEXT, metadata={"name": "ada"})
    async with desk.visitors(nexios_client):
        (channel,) = desk.channels
        assert channel.payload_type is PayloadTypeEnum.TEXT
        assert channel.expires is None
        assert channel.metadata == {"name": "ada"}
        assert isinstance(channel.uuid, uuid.UUID)
        assert channel.id == str(channel.uuid)
        assert abs(channel.created - datetime.now(UTC).timestamp()) < 60
        assert channel.is_active
        assert channel.id in repr(channel)
    assert not channel.is_active


async def test_two_channels_share_no_metadata(nexios_client: Clients) -> None:
    given = {"name": "ada"}
    desk = Desk(metadata=given)
    async with desk.visitors(nexios_client, 2):
        desk.channels[0].metadata["name"] = "bob"
        assert desk.channels[1].metadata == given == {"name": "ada"}


async def test_a_channel_without_expiry_stays(nexios_client: Clients, autojump_clock: Any) -> None:
    desk = Desk(expires=None, app={"heartbeat": None})
    async with desk.visitors(nexios_client):
        await trio.sleep(1e6)
        assert desk.channels[0].is_active


async def test_an_expired_channel_closes_with_1001(nexios_client: Clients, autojump_clock: Any) -> None:
    desk = Desk(expires=60)
    start = trio.current_time()
    async with nexios_client(desk.app, timeout=100).connect("/") as ws:
        assert await ws.wait_closed() == (CloseCode.GOING_AWAY, "expired")
        assert trio.current_time() - start == pytest.approx(60)
    assert desk.ends == [(1001, "expired")]
    assert desk.app.channels.hub.channels == {}


async def test_a_touch_extends_and_so_do_sending_and_receiving(
    nexios_client: Clients, autojump_clock: Any
) -> None:
    desk = Desk(expires=60)
    start = trio.current_time()
    async with desk.visitors(nexios_client) as (ws,):
        (channel,) = desk.channels
        await trio.sleep(50)
        channel.touch()
        await trio.sleep(50)
        await channel.send({})
        await trio.sleep(50)
        await ws.send_json({})
        assert await ws.receive_json() == {}
        assert await ws.wait_closed() == (1001, "expired")
        assert trio.current_time() - start == pytest.approx(210)
        channel.touch()  # too late, and harmless


@pytest.mark.parametrize(
    ("payload_type", "payload", "message"),
    [
        ("json", {"a": 1}, '{"a":1}'),
        ("json", "hi", '"hi"'),
        ("text", "hi", "hi"),
        ("bytes", b"\xff", b"\xff"),
    ],
)
async def test_a_channel_sends_and_receives_by_its_payload_type(
    nexios_client: Clients, payload_type: str, payload: Any, message: str | bytes
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        channel = Channel(ws, payload_type)
        assert await channel.receive() == payload
        await channel.send(payload)
        await channel.close(4000, "enough")

    async with nexios_client(app).connect("/") as ws:
        await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))
        answer = await ws.receive()
        assert answer.get("text" if isinstance(message, str) else "bytes") == message
        assert await ws.wait_closed() == (4000, "enough")


async def test_a_channel_made_after_the_end_is_not_kept() -> None:
    app = NexiosApp()
    seen: list[WebSocket] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        seen.append(ws)

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        seen.append(ws)
        await ws.reject(401)

    async with TestClient(app) as client:
        async with client.connect("/") as ws:
            await ws.wait_closed()
        with pytest.raises(Exception, match="401"):
            async with client.connect("/no"):
                pass
        await wait_all_tasks_blocked()
        for over in seen:
            channel = Channel(over)
            over.identify("ada")
            assert not channel.is_active
            with pytest.raises(WebSocketDisconnect):
                Channel(over, expires=1)
        hub = app.channels.hub
        assert (hub.channels, hub.users, hub.owners) == ({}, {}, {})


# Groups by Nexios' names


async def test_statuses_say_what_was_done(nexios_client: Clients) -> None:
    desk = Desk()
    box = desk.app.channels
    async with desk.visitors(nexios_client, 2):
        first, second = desk.channels
        assert await box.add_channel_to_group(first, "g") is ChannelAddStatusEnum.CHANNEL_ADDED
        assert await box.add_channel_to_group(first, "g") is ChannelAddStatusEnum.CHANNEL_EXIST
        assert await box.add_channel_to_group(first) is ChannelAddStatusEnum.CHANNEL_ADDED
        assert await box.show_groups() == {"g": {first: None}, "default": {first: None}}
        remove = box.remove_channel_from_group
        assert await remove(second, "g") is ChannelRemoveStatusEnum.CHANNEL_DOES_NOT_EXIST
        assert await remove(second, "none") is ChannelRemoveStatusEnum.GROUP_DOES_NOT_EXIST
        await box.add_channel_to_group(second, "g")
        assert await remove(first, "g") is ChannelRemoveStatusEnum.CHANNEL_REMOVED
        assert await remove(second, "g") is ChannelRemoveStatusEnum.GROUP_REMOVED
        assert await box.group_send("g", {}) is GroupSendStatusEnum.NO_SUCH_GROUP
        assert await box.group_send(payload={}) is GroupSendStatusEnum.GROUP_SEND
        assert await box.send_to(uuid.uuid4(), {}) is GroupSendStatusEnum.NO_SUCH_GROUP
        assert await box.send_to(first.id, {}) is GroupSendStatusEnum.GROUP_SEND


async def test_a_channel_that_is_gone_can_be_removed_but_not_added(nexios_client: Clients) -> None:
    desk = Desk("g")
    box = desk.app.channels
    async with desk.visitors(nexios_client) as (ws,):
        await ws.drop()
        await wait_all_tasks_blocked()
        (channel,) = desk.channels
        assert await box.show_groups() == {}
        assert await box.send_to(channel.uuid, {}) is GroupSendStatusEnum.NO_SUCH_GROUP
        with pytest.raises(WebSocketDisconnect):
            await box.add_channel_to_group(channel, "g")
        assert channel.groups == {}
        assert (
            await box.remove_channel_from_group(channel, "g") is ChannelRemoveStatusEnum.GROUP_DOES_NOT_EXIST
        )


async def test_a_channel_removed_after_its_end_was_removed(nexios_client: Clients) -> None:
    desk = Desk("g")
    async with desk.visitors(nexios_client) as (ws,):
        await ws.drop()
        await wait_all_tasks_blocked()
        status = await desk.app.channels.remove_channel_from_group(desk.channels[0], "g")
        assert status is ChannelRemoveStatusEnum.GROUP_REMOVED


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", WrongValueError, "1 to 200 printable characters"),
        ("a\nb", WrongValueError, "1 to 200 printable characters"),
        ("x" * 201, LimitError, r"the group name is too long \(Limits.group_name_length is 200\)"),
    ],
)
async def test_a_wrong_group_name_is_an_error_everywhere(
    nexios_client: Clients, name: str, error: type[Exception], text: str
) -> None:
    desk = Desk()
    box = desk.app.channels
    async with desk.visitors(nexios_client):
        (channel,) = desk.channels
        for call in (
            lambda: box.add_channel_to_group(channel, name),
            lambda: box.remove_channel_from_group(channel, name),
            lambda: box.group_send(name, {}),
            lambda: box.show_history(name),
            lambda: box.flush_history(name),
            lambda: box.send(name, {}),
        ):
            with pytest.raises(error, match=text):
                await call()
        with pytest.raises(WrongTypeError, match="a str such as"):
            await box.group_send(None, {})  # type: ignore[arg-type]
        with pytest.raises(WrongTypeError, match=r"write Channel\(ws\)"):
            await box.add_channel_to_group(channel.websocket, "g")  # type: ignore[arg-type]
        assert channel.groups == {}


async def test_a_channel_added_twice_gets_each_message_once(nexios_client: Clients) -> None:
    desk = Desk("g", "g", "h")
    async with desk.visitors(nexios_client) as (ws,):
        await desk.app.channels.group_send("g", 1)
        await desk.app.channels.group_send("h", 2)
        assert await ws.receive_json() == 1
        assert await ws.receive_json() == 2


async def test_a_cancelled_add_leaves_no_member(nexios_client: Clients) -> None:
    desk = Desk()
    async with desk.visitors(nexios_client):
        (channel,) = desk.channels
        with trio.CancelScope() as scope:
            scope.cancel()
            await desk.app.channels.add_channel_to_group(channel, "g")
        assert scope.cancelled_caught
        assert channel.groups == {}
        assert await desk.app.channels.show_groups() == {}


async def test_a_channel_removed_while_it_is_being_added_is_no_member(nexios_client: Clients) -> None:
    desk = Desk()
    box = desk.app.channels
    async with desk.visitors(nexios_client):
        (channel,) = desk.channels
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.add_channel_to_group, channel, "g")
            while "g" not in channel.groups:
                await trio.lowlevel.checkpoint()
            await box.remove_channel_from_group(channel, "g")
        assert channel.groups == {}
        assert await box.show_groups() == {}


@pytest.mark.parametrize(
    ("payload_type", "text", "value", "binary"),
    [
        ("json", '"hi"', '{"a":1}', b"\x00"),
        ("text", "hi", '{"a":1}', b"\x00"),
        ("bytes", b"hi", b'{"a":1}', b"\x00"),
    ],
)
@pytest.mark.parametrize("way", ["group", "channel"])
async def test_a_message_comes_in_the_payload_type_of_the_channel(
    nexios_client: Clients,
    way: str,
    payload_type: str,
    text: str | bytes,
    value: str | bytes,
    binary: bytes,
) -> None:
    desk = Desk("g", payload_type=payload_type)
    box = desk.app.channels
    async with desk.visitors(nexios_client) as (ws,):
        for payload, expected in (("hi", text), ({"a": 1}, value), (b"\x00", binary)):
            if way == "group":
                await box.group_send("g", payload)
            else:
                await box.send_to(desk.channels[0].uuid, payload)
            message = await ws.receive()
            assert message.get("text" if isinstance(expected, str) else "bytes") == expected


async def test_a_payload_is_encoded_once_for_all_channels(
    nexios_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []

    class Payload:
        def model_dump(self, mode: str) -> dict[str, int]:
            encoded.append(mode)
            return {"a": 1}

    desk = Desk("g")
    async with desk.visitors(nexios_client, 5) as visitors:
        await desk.app.channels.group_send("g", Payload())
        for ws in visitors:
            assert await ws.receive_json() == {"a": 1}
    assert encoded == ["json"]


async def test_groups_are_flushed_and_the_connections_stay(nexios_client: Clients) -> None:
    desk = Desk("g", "h")
    async with desk.visitors(nexios_client, 2):
        await desk.app.channels.flush_groups()
        assert await desk.app.channels.show_groups() == {}
        assert all(channel.is_active and channel.groups == {} for channel in desk.channels)


async def test_all_connections_are_closed(nexios_client: Clients) -> None:
    desk = Desk("g")
    async with desk.visitors(nexios_client, 3) as visitors:
        assert await desk.app.channels.close_all_connections(4001, "over") == 3
        for ws in visitors:
            assert await ws.wait_closed() == (4001, "over")
        with pytest.raises(WrongValueError):
            await desk.app.channels.close_all_connections(1006)


async def test_history_is_a_list_with_an_id_and_a_time_for_each_message() -> None:
    box = NexiosApp().channels
    assert await box.show_history() == []
    for number in range(3):
        await box.group_send("g", {"n": number}, save_history=True)
    await box.group_send("g", "not kept")
    history = await box.show_history("g")
    assert [entry.payload for entry in history] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert len({entry.uuid for entry in history}) == 3
    assert [entry.offset for entry in history] == [1, 2, 3]
    assert all(entry.created.tzinfo is UTC for entry in history)
    await box.group_send("h", 1, True)
    await box.flush_history("g")
    assert await box.show_history("g") == []
    assert len(await box.show_history("h")) == 1
    await box.flush_history()
    assert await box.show_history("h") == []


# Nobody waits


async def test_a_send_to_a_channel_waits_for_no_client_and_closes_the_one_that_does_not_read(
    nexios_client: Clients, autojump_clock: Any
) -> None:
    desk = Desk(app={"limits": Limits(outbox_messages=4)})
    box = desk.app.channels
    async with desk.visitors(nexios_client) as (ws,):
        await ws.stall()
        (channel,) = desk.channels
        start = trio.current_time()
        sent = [await box.send_to(channel.uuid, "x" * 100) for _ in range(50)]
        assert trio.current_time() == start
        assert sent[0] is GroupSendStatusEnum.GROUP_SEND
        assert sent[-1] is GroupSendStatusEnum.NO_SUCH_GROUP
        assert not channel.is_active


async def test_a_sender_never_gets_the_disconnect_of_the_channel_that_it_sends_to(
    nexios_client: Clients,
) -> None:
    desk = Desk()
    async with desk.visitors(nexios_client):
        (channel,) = desk.channels
        desk.app.channels.hub.channels.clear()
        await channel.close()
        desk.app.channels.hub.channels[channel.id] = channel  # as if it closed while we looked
        status = await desk.app.channels.send_to(channel.uuid, {})
        assert status is GroupSendStatusEnum.NO_SUCH_GROUP
        desk.app.channels.hub.channels.clear()


# Users


async def test_a_user_has_several_connections(nexios_client: Clients) -> None:
    app = NexiosApp()
    box = app.channels

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket, user: str) -> None:
        await ws.accept()
        ws.identify("nobody")
        ws.identify(user)
        assert ws.user_id == user
        async for _ in ws.iter_text():
            pass

    client = nexios_client(app)
    async with client.connect("/ada") as phone, client.connect("/ada") as laptop, client.connect("/bob"):
        await wait_all_tasks_blocked()
        assert set(box.hub.users) == {"ada", "bob"}
        assert await box.send_to_user("ada", {"n": 1}) == 2
        assert await phone.receive_json() == await laptop.receive_json() == {"n": 1}
        assert await box.send_to_user("nobody", 1) == 0
        assert await box.disconnect_user("ada", 4003, "banned") == 2
        assert await phone.wait_closed() == (4003, "banned")
        assert await box.disconnect_user("ada") == 0
    assert (box.hub.users, box.hub.owners) == ({}, {})


async def test_a_user_id_that_cannot_be_sent_is_refused(nexios_client: Clients) -> None:
    # What looks at all users, such as the dashboard, would fail with the first of them.
    app = NexiosApp()

    @app.ws_route("/")
    async def endpoint(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WrongValueError, match=r"text that UTF-8 can hold, not 'a\\ud800'"):
            ws.identify("a\ud800")
        ws.identify("ä")
        await ws.send_text(ws.user_id or "nobody")

    async with nexios_client(app).connect("/") as ws:
        assert await ws.receive_text() == "ä"


async def test_a_user_is_known_to_each_of_two_nested_apps_by_its_own_id(nexios_client: Clients) -> None:
    outer, inner = NexiosApp(), NexiosApp()
    outer.mount("/in", inner)

    @inner.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify("inner id")
        async for _ in ws.iter_text():
            pass

    async def name_it(ws: WebSocket, call_next: Callable[[], Any]) -> None:
        ws.identify("outer id")
        await call_next()

    outer.add_middleware(name_it)
    async with nexios_client(outer).connect("/in/") as ws:
        await wait_all_tasks_blocked()
        assert set(outer.channels.hub.users) == {"outer id"}
        assert set(inner.channels.hub.users) == {"inner id"}
        assert await outer.channels.send_to_user("outer id", 1) == 1
        assert await ws.receive_json() == 1
    for app in (outer, inner):
        assert not app.channels.hub.users
    assert not app.channels.hub.owners


# Subscriptions


async def test_a_subscription_hears_matching_groups(nexios_client: Clients) -> None:
    box = NexiosApp().channels
    async with box.subscribe("chat.*") as messages, box.subscribe("chat.1") as one:
        await box.send("chat.1", 1)
        await box.send("news", 2)
        await box.send("chat.2", 3)
        heard = [await anext(messages), await anext(messages)]
        assert [(message.group, message.payload) for message in heard] == [("chat.1", 1), ("chat.2", 3)]
        assert (await anext(one)).payload == 1
    assert box.hub.subscriptions == {}


async def test_a_full_subscription_loses_the_oldest_and_counts() -> None:
    box = NexiosApp().channels
    async with box.subscribe("g", size=2) as messages:
        for number in range(5):
            await box.send("g", number)
        assert messages.dropped == 3
        assert (await anext(messages)).payload == 3
    with pytest.raises(WrongValueError, match="1 or more"):
        async with box.subscribe("g", size=0):
            pass


async def test_a_cancelled_subscription_leaves_nothing() -> None:
    box = NexiosApp().channels
    with trio.CancelScope() as scope:
        scope.cancel()
        async with box.subscribe("g"):
            pass
    assert box.hub.subscriptions == {}


# Which box is meant


METHODS = [
    name
    for name, method in vars(ChannelBox).items()
    if not name.startswith("_") and name != "current" and callable(getattr(method, "__get__", None))
]


@pytest.mark.parametrize("name", METHODS)
async def test_outside_of_any_app_the_class_says_what_to_write(name: str) -> None:
    arguments = inspect.signature(getattr(ChannelBox, name)).parameters.values()
    needed: list[Any] = [argument.name for argument in arguments if argument.default is argument.empty]
    with pytest.raises(WrongStateError, match=rf"write app\.channels\.{name}\(\.\.\.\)"):
        made = getattr(ChannelBox, name)(*needed)
        await made


def test_the_methods_of_the_class_look_like_those_of_a_box() -> None:
    box = NexiosApp().channels
    for name in METHODS:
        on_class, on_box = getattr(ChannelBox, name), getattr(box, name)
        assert inspect.signature(on_class) == inspect.signature(on_box)
        assert inspect.iscoroutinefunction(on_class) == inspect.iscoroutinefunction(on_box)
        assert on_class.__doc__ == on_box.__doc__
        assert on_class.__doc__


async def test_the_class_means_the_running_app_everywhere(
    nexios_client: Clients, autojump_clock: Any
) -> None:
    where: dict[str, ChannelBox | None] = {}

    def note(name: str) -> None:
        where[name] = module.current_box.get(None)

    @asynccontextmanager
    async def lifespan(app: NexiosApp) -> AsyncIterator[None]:
        note("lifespan in")
        yield
        note("lifespan out")

    app = NexiosApp(lifespan=lifespan)

    @app.on_startup
    async def startup() -> None:
        note("startup")

    @app.on_shutdown
    def shutdown() -> None:
        note("shutdown")

    async def background(name: str) -> None:
        note(name)

    app.start_soon(background, "early task")

    @app.events.on("happened")
    async def heard() -> None:
        note("listener")

    app.events.on("happened", lambda: note("second listener"))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        note("handler")
        await ws.accept()
        ws.start_soon(background, "child")
        app.start_soon(background, "late task")
        await ws.receive_text()

    async with TestClient(app) as client:
        async with client.connect("/") as ws:
            await wait_all_tasks_blocked()
            await ws.send_text("")
        assert module.current_box.get(None) is None
        await app.events.emit("happened")  # from a task that runs in no app
        app.start_soon(background, "task of a stranger")
        await wait_all_tasks_blocked()
    assert len(where) == 11
    assert {name for name, box in where.items() if box is not app.channels} == set()
    assert module.current_box.get(None) is None


def test_in_http_endpoints_too_the_class_means_the_running_app() -> None:
    app = NexiosApp()
    seen: list[ChannelBox | None] = []

    @app.get("/page")
    async def page(request: Request) -> JSONResponse:
        seen.append(module.current_box.get(None))
        return JSONResponse([])

    @app.get("/thread")
    def thread(request: Request) -> JSONResponse:
        seen.append(module.current_box.get(None))
        return JSONResponse([])

    with StarletteClient(app, backend="trio") as http:
        http.get("/page")
        http.get("/thread")
    assert seen == [app.channels, app.channels]


async def test_a_method_of_the_class_can_be_handed_on_before_the_app_runs() -> None:
    app = NexiosApp()
    app.events.on("news", ChannelBox.group_send)
    app.start_soon(ChannelBox.group_send, "g", 1, True)
    async with TestClient(app):
        await wait_all_tasks_blocked()
        await app.events.emit("news", "g", payload=2, save_history=True)
        assert [entry.payload for entry in await app.channels.show_history("g")] == [1, 2]


async def test_inside_a_mounted_app_the_class_means_that_app(nexios_client: Clients) -> None:
    outer, inner = NexiosApp(), NexiosApp()
    outer.mount("/in", inner)
    seen: list[ChannelBox | None] = []

    async def around(ws: WebSocket, call_next: Callable[[], Any]) -> None:
        seen.append(module.current_box.get(None))
        await call_next()
        seen.append(module.current_box.get(None))

    outer.add_middleware(around)

    @inner.events.on("told")
    async def in_inner() -> None:
        seen.append(module.current_box.get(None))

    @outer.events.on("told")
    async def in_outer() -> None:
        seen.append(module.current_box.get(None))

    async def in_background() -> None:
        seen.append(module.current_box.get(None))

    @inner.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ChannelBox.add_channel_to_group(Channel(ws), "g")
        seen.append(module.current_box.get(None))
        await outer.events.emit("told")
        await inner.events.emit("told")
        outer.start_soon(in_background)
        await wait_all_tasks_blocked()
        assert list(await outer.channels.show_groups()) == []
        assert list(await inner.channels.show_groups()) == ["g"]

    async with nexios_client(outer).connect("/in/") as ws:
        await ws.wait_closed()
    i, o = inner.channels, outer.channels
    assert seen == [o, i, o, i, o, o]


async def test_inside_running_the_class_means_that_app() -> None:
    app = NexiosApp()
    async with app.running():
        await ChannelBox.group_send("g", 1, True)
    assert len(await app.channels.show_history("g")) == 1
    with pytest.raises(WrongStateError):
        await ChannelBox.show_history("g")


async def test_starlette_around_us_has_our_box_in_our_routes_only(nexios_client: Clients) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ChannelBox.group_send("g", 1, True)

    around = Starlette(routes=[Mount("/rt", app)], lifespan=lambda _: app.running())
    async with TestClient(around) as client:
        async with client.connect("/rt/") as ws:
            await ws.wait_closed()
    assert len(await app.channels.show_history("g")) == 1


async def test_two_apps_with_the_same_group_never_see_each_other(nexios_client: Clients) -> None:
    one, two = Desk("g"), Desk("g")
    async with one.visitors(nexios_client) as (first,), two.visitors(nexios_client) as (second,):
        await one.app.channels.group_send("g", 1, True)
        await two.app.channels.group_send("g", 2, True)
        assert await first.receive_json() == 1
        assert await second.receive_json() == 2
        assert [entry.payload for entry in await two.app.channels.show_history("g")] == [2]
        assert await one.app.channels.send_to(two.channels[0].uuid, 1) is GroupSendStatusEnum.NO_SUCH_GROUP
        with pytest.raises(WrongValueError, match="belongs to another app"):
            await one.app.channels.add_channel_to_group(two.channels[0], "g")
        status = await one.app.channels.remove_channel_from_group(two.channels[0], "g")
        assert status is ChannelRemoveStatusEnum.CHANNEL_DOES_NOT_EXIST
        assert await one.app.channels.close_all_connections() == 1
        assert two.channels[0].is_active
