"""Who is in a group, and how its members are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import Member, MemoryBroker
from nexios_trio.config import Overflow
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.testing import TestClient, TestWebSocket
from nexios_trio.websockets.groups import Group
from nexios_trio.websockets.presence import METADATA_BYTES

GRACE = 2.0
GROUP = "room.1"


def presence_app(**options: Any) -> NexiosApp:
    app = NexiosApp(presence_grace=GRACE, disconnect_grace=0, **options)

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify(ws.path_params["user"])
        query = ws.query_params
        presence = None if "quiet" in query else {"device": query.get("device", "?")}
        async with ws.join(
            GROUP, presence=presence, since=query.get("since"), envelope="envelope" in query
        ) as group:
            await ws.send_json("in")
            async for command in ws.iter_text():
                match command:
                    case "list":
                        users = await group.presence.list()
                        await ws.send_json(
                            {
                                user.user: [device.metadata["device"] for device in user.devices]
                                for user in users
                            }
                        )
                    case "crash":
                        raise RuntimeError("a mistake of the handler")
                    case "child":
                        ws.start_soon(_crash)
                    case "close":
                        await ws.close(4000)
                    case "leave":
                        break
        async for _ in ws.iter_text():
            pass

    return app


async def _crash() -> None:
    await trio.lowlevel.checkpoint()
    raise RuntimeError("a mistake of a child")


@asynccontextmanager
async def entered(client: TestClient, path: str) -> AsyncIterator[TestWebSocket]:
    async with client.connect(path) as ws:
        while await ws.receive_json() != "in":
            pass
        yield ws


async def listed(ws: TestWebSocket) -> Any:
    await ws.send_text("list")
    return await ws.receive_json()


async def events(ws: TestWebSocket) -> list[tuple[str, str]]:
    """What has come until nothing more comes: (join or leave, user)."""
    told = []
    with pytest.raises(trio.TooSlowError):
        while True:
            event = await ws.receive_json()
            told.append((event["type"].removeprefix("presence."), event["user"]))
    return told


async def test_the_list_has_users_with_their_devices_in_the_order_of_coming(
    autojump_clock: MockClock,
) -> None:
    async with TestClient(presence_app()) as client:
        async with (
            entered(client, "/bob?device=a") as bob,
            entered(client, "/ann?device=b"),
            entered(client, "/eve?quiet"),
        ):
            async with entered(client, "/bob?device=c"):
                assert (await bob.receive_json())["user"] == "ann"
                assert await listed(bob) == {"bob": ["a", "c"], "ann": ["b"]}
            assert await listed(bob) == {"bob": ["a"], "ann": ["b"]}


async def test_a_user_in_the_list_knows_when_the_first_device_came_and_what_the_newest_says(
    autojump_clock: MockClock,
) -> None:
    app = presence_app()
    async with TestClient(app) as client:
        async with entered(client, "/bob?device=a"), entered(client, "/bob?device=b"):
            (local,) = app.channels.hub.groups.values()
            group = next(iter(local.members.values()))
            (user,) = await group.presence.list()
            assert [device.metadata for device in user.devices] == [{"device": "a"}, {"device": "b"}]
            assert user.metadata == {"device": "b"}
            assert user.joined_at == user.devices[0].joined_at <= user.devices[1].joined_at
            assert {device.connection for device in user.devices} == {c.id for c in app.connections}


async def test_presence_messages_have_one_form(autojump_clock: MockClock) -> None:
    async with TestClient(presence_app()) as client:
        async with entered(client, "/bob") as bob, entered(client, "/eve?envelope") as eve:
            join = await bob.receive_json()
            assert join == {
                "type": "presence.join",
                "group": GROUP,
                "user": "eve",
                "metadata": {"device": "?"},
                "joined_at": join["joined_at"],
            }
            assert isinstance(join["joined_at"], float)
            await bob.send_text("leave")
            await trio.sleep(GRACE)
            enveloped = await eve.receive_json()
            leave = enveloped["payload"]
            assert enveloped == {"group": GROUP, "position": None, "payload": leave}
            assert leave == {**join, "type": "presence.leave", "user": "bob", "joined_at": leave["joined_at"]}


async def test_only_members_with_a_presence_are_told(autojump_clock: MockClock) -> None:
    async with TestClient(presence_app()) as client:
        async with entered(client, "/eve?quiet") as eve, entered(client, "/bob") as bob:
            async with entered(client, "/ann"):
                pass
            assert await events(eve) == []
            assert await events(bob) == [("join", "ann"), ("leave", "ann")]


async def test_a_user_comes_and_goes_once_with_many_devices(autojump_clock: MockClock) -> None:
    async with TestClient(presence_app()) as client, entered(client, "/bob") as bob:
        async with trio.open_nursery() as nursery:

            async def device(number: int) -> None:
                async with entered(client, f"/ann?device={number}"):
                    await trio.sleep(number)

            for number in range(30):
                nursery.start_soon(device, number)
        assert await events(bob) == [("join", "ann"), ("leave", "ann")]
        assert await listed(bob) == {"bob": ["?"]}


@pytest.mark.parametrize("end", ["close", "leave", "crash", "child", "drop", "cancel", "kick", "stall"])
async def test_whatever_ends_a_membership_is_told_once_after_the_grace(
    end: str, autojump_clock: MockClock
) -> None:
    app = presence_app()
    async with TestClient(app, timeout=GRACE * 4) as client, entered(client, "/bob") as bob:
        async with entered(client, "/ann") as ann:
            assert (await bob.receive_json())["type"] == "presence.join"
            match end:
                case "drop":
                    await ann.drop()
                case "cancel":
                    (connection,) = (c for c in app.connections if c.user_id == "ann")
                    connection._handler_scope.cancel()
                case "kick":
                    assert await app.channels.disconnect_user("ann") == 1
                case "stall":
                    await ann.stall()
                    for _ in range(1000):
                        await app.channels.send(GROUP, "x", save_history=False)
                        assert await bob.receive_text() == "x"
                case _:
                    await ann.send_text(end)
            await wait_all_tasks_blocked()
            assert await listed(bob) == {"bob": ["?"]}
            before = trio.current_time()
            leave = await bob.receive_json()
            assert (leave["type"], leave["user"]) == ("presence.leave", "ann")
            assert trio.current_time() - before == pytest.approx(GRACE)
        assert await events(bob) == []


async def test_a_flapping_connection_makes_no_noise(autojump_clock: MockClock) -> None:
    async with TestClient(presence_app()) as client, entered(client, "/bob") as bob:
        for _ in range(5):
            async with entered(client, "/ann") as ann:
                await trio.sleep(GRACE)
                await ann.drop()
            await trio.sleep(GRACE * 0.9)
        assert await events(bob) == [("join", "ann"), ("leave", "ann")]
        async with entered(client, "/ann"):
            assert await events(bob) == [("join", "ann")]


async def test_who_joins_is_told_of_itself_after_the_replay(autojump_clock: MockClock) -> None:
    app = presence_app()
    async with TestClient(app) as client:
        start = (await app.channels.hub.broker.history(GROUP)).position
        for n in range(50):
            await app.channels.send(GROUP, n)
        async with client.connect("/ann", params={"since": str(start)}) as ann:
            got = [await ann.receive_json() for _ in range(52)]
            assert got[:50] == list(range(50))
            assert got[50]["type"] == "presence.join"
            assert got[51] == "in"


class SlowBroker(MemoryBroker):
    """As an engine behind a network."""

    async def enter(self, group: str, member: Member) -> None:
        await trio.sleep(1)
        await super().enter(group, member)
        await trio.sleep(1)


@pytest.mark.parametrize("after", [0.5, 1.5])
@pytest.mark.parametrize("end", ["drop", "kick", "leave"])
async def test_a_connection_that_ends_while_it_enters_leaves_no_ghost(
    end: str, after: float, autojump_clock: MockClock
) -> None:
    broker = SlowBroker(presence_grace=GRACE)
    app = NexiosApp(broker=broker, disconnect_grace=100)
    entered = 0

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        nonlocal entered
        await ws.accept()
        membership = ws.join(GROUP, presence={})
        if end == "leave":
            ws.start_soon(_leave, membership)
        async with membership:
            entered += 1
            await trio.sleep(1000)

    async def _leave(group: Group) -> None:
        await trio.sleep(after)
        group.leave_nowait()

    async with TestClient(app, timeout=200) as client:
        async with client.connect("/") as ws:
            await trio.sleep(after)
            if end == "drop":
                await ws.drop()
            elif end == "kick":
                await app.channels.close_all_connections()
            await trio.sleep(10)
            assert not app.channels.hub.groups
            assert await broker.members(GROUP) == ()
        assert entered == (end == "leave")
        assert await broker.members(GROUP) == ()
        await trio.sleep(GRACE * 2)
        assert not broker._leaving
        assert not broker._devices


async def with_websocket(check: Any) -> None:
    """Call ``check(ws)`` in a handler; what it raises is raised here."""
    app = NexiosApp()
    errors: list[BaseException] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await check(ws)
        except BaseException as error:
            errors.append(error)

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.wait_closed()
    for error in errors:
        raise error


async def test_metadata_is_a_small_dict_of_json(autojump_clock: MockClock) -> None:
    async def check(ws: WebSocket) -> None:
        with pytest.raises(WrongTypeError, match=r'presence is a dict such as \{"name": "Ada"\}, not list'):
            ws.join(GROUP, presence=[1])  # type: ignore[arg-type]
        with pytest.raises(WrongTypeError, match="cannot send"):
            ws.join(GROUP, presence={"a": object()})
        with pytest.raises(WrongValueError, match=f"presence is at most {METADATA_BYTES} bytes as JSON"):
            ws.join(GROUP, presence={"a": "x" * METADATA_BYTES})
        with pytest.raises(WrongValueError, match=r"ws\.join\(name, presence=\{\}, user_id=\.\.\.\)"):
            ws.join(GROUP, user_id="ann")
        for wrong in ("", 5):
            with pytest.raises(WrongTypeError, match="a user id is a str that is not empty"):
                ws.join(GROUP, presence={}, user_id=wrong)  # type: ignore[arg-type]

    await with_websocket(check)


async def test_metadata_is_a_copy_in_the_form_that_all_servers_see(autojump_clock: MockClock) -> None:
    async def check(ws: WebSocket) -> None:
        inner = [1]
        metadata: dict[str, Any] = {"inner": inner, "pair": (1, 2)}
        async with ws.join(GROUP, presence=metadata) as group:
            inner.append(2)
            metadata["new"] = 1
            (user,) = await group.presence.list()
            assert user.metadata == {"inner": [1], "pair": [1, 2]}

    await with_websocket(check)


async def test_the_user_is_who_is_named_else_who_was_identified_else_the_connection(
    autojump_clock: MockClock,
) -> None:
    async def check(ws: WebSocket) -> None:
        async def user(**options: Any) -> str:
            async with ws.join(GROUP, presence={}, **options) as group:
                (present,) = await group.presence.list()
                return present.user

        assert await user() == ws.id
        membership = ws.join(GROUP, presence={})
        ws.identify("ann")
        async with membership:
            (present,) = await membership.presence.list()
            assert present.user == "ann"
        assert await user() == "ann"
        assert await user(user_id="bob") == "bob"
        assert await membership.presence.list() == ()

    await with_websocket(check)


async def test_presence_messages_are_not_conflated(autojump_clock: MockClock) -> None:
    app = NexiosApp(presence_grace=0)
    keyed: list[Any] = []

    def key(payload: Any) -> str:
        keyed.append(payload)
        return str(payload["key"])

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join(GROUP, presence={}, overflow=Overflow.CONFLATE(key)):
            await ws.send_json("in")
            async for _ in ws.iter_text():
                pass

    async with TestClient(app) as client, entered(client, "/") as ws:
        await ws.stall()
        for _ in range(2):
            async with entered(client, "/"):
                pass
        await app.channels.send(GROUP, {"key": "k"})
        await ws.resume()
        kinds = [(await ws.receive_json()).get("type") for _ in range(5)]
        assert kinds == ["presence.join", "presence.leave"] * 2 + [None]
        assert keyed == [{"key": "k"}]


async def test_who_comes_within_the_grace_of_another_learns_of_its_return(autojump_clock: MockClock) -> None:
    app = NexiosApp(presence_grace=5)

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket, user: str) -> None:
        await ws.accept()
        async with ws.join("room", presence={"as": ws.query_params.get("as", "")}, user_id=user):
            async for _ in ws.iter_text():
                pass

    async with TestClient(app) as client:
        async with client.connect("/ada"):
            await trio.sleep(1)
        async with client.connect("/watcher") as watcher:
            assert (await watcher.receive_json())["user"] == "watcher"
            async with client.connect("/ada") as ada:
                assert (await watcher.receive_json())["user"] == "ada"
                assert (await ada.receive_json())["user"] == "ada"
            await trio.sleep(1)
            async with client.connect("/ada?as=new"):  # what one says of oneself has changed: told again
                assert (await watcher.receive_json())["metadata"] == {"as": "new"}


async def test_a_position_that_is_none_cannot_be_resumed_from(autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room", since=ws.query_params.get("since")) as group:
            await ws.send_json(group.recovered)

    async with TestClient(app) as client:
        for since in ("garbage", "", "a:1\n", "x" * 500):
            async with client.connect("/", params={"since": since}) as ws:
                assert await ws.receive_json() is False
