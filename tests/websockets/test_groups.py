"""Groups: who is in one, who gets what, and in which order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import (
    Limits,
    NexiosApp,
    WebSocket,
    WebSocketDisconnect,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.config import Overflow
from nexios_trio.testing import TestClient
from nexios_trio.websockets.groups import Group
from tests.lanes import Lane

Act = Callable[[Group, WebSocket, str], Awaitable[object]]


async def _send(group: Group, ws: WebSocket, text: str) -> None:
    await group.send(text)


def room(act: Act = _send, **options: Any) -> NexiosApp:
    """An app with one group: its members get "in", and whatever they say is acted upon."""
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room", **options) as group:
            await ws.send_text(f"in {ws.id}")
            async for text in ws.iter_text():
                await act(group, ws, text)

    return app


async def in_room(peer: Any) -> str:
    text = await peer.receive()
    assert text.startswith("in ")
    return str(text[3:])


async def test_a_message_reaches_all_members_and_the_sender(lane: Lane, lane_clock: MockClock) -> None:
    async with lane.serving(room()), lane.connect() as ada, lane.connect() as bob:
        await in_room(ada), await in_room(bob)
        await ada.send("hello")
        assert await ada.receive() == await bob.receive() == "hello"


async def test_the_sender_or_anybody_else_can_be_left_out(lane: Lane, lane_clock: MockClock) -> None:
    async def act(group: Group, ws: WebSocket, text: str) -> None:
        if text == "self":
            await group.send("not you", exclude_self=True)
        else:
            await group.send("not them", exclude=[text])
        await group.send("end")

    async with lane.serving(room(act)), lane.connect() as ada, lane.connect() as bob:
        await in_room(ada)
        bobs = await in_room(bob)
        await ada.send("self")
        assert [await ada.receive()] == ["end"]
        assert [await bob.receive(), await bob.receive()] == ["not you", "end"]
        await ada.send(bobs)
        assert [await ada.receive(), await ada.receive()] == ["not them", "end"]
        assert await bob.receive() == "end"


async def test_text_bytes_and_json_arrive_as_what_they_are(lane: Lane, lane_clock: MockClock) -> None:
    async def act(group: Group, ws: WebSocket, text: str) -> None:
        for payload in ("text", b"bytes", bytearray(b"array"), {"n": [1, None]}, 17):
            await group.send(payload)

    async with lane.serving(room(act)), lane.connect() as peer:
        await in_room(peer)
        await peer.send("go")
        got = [await peer.receive() for _ in range(5)]
        assert got == ["text", b"bytes", b"array", '{"n":[1,null]}', "17"]


async def test_the_envelope_says_group_and_position(lane: Lane, lane_clock: MockClock) -> None:
    async def act(group: Group, ws: WebSocket, text: str) -> None:
        message = await group.send({"a": 1})
        await group.send('say "hi"', save_history=False)
        await group.send(b"raw")
        await ws.send_text(str(message.position))

    async with lane.serving(room(act, envelope=True)), lane.connect() as peer:
        await in_room(peer)
        await peer.send("go")
        first, second, third, position = [await peer.receive() for _ in range(4)]
    assert first == f'{{"group":"room","position":"{position!s}","payload":{{"a":1}}}}'
    assert second == '{"group":"room","position":null,"payload":"say \\"hi\\""}'
    assert third == b"raw"


async def test_all_members_get_the_very_same_object(autojump_clock: MockClock) -> None:
    for options in ({}, {"envelope": True}, {"overflow": Overflow.CONFLATE("id")}):
        app = room(**options)
        async with TestClient(app) as client, AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(client.connect("/")) for _ in range(3)]
            for peer in peers:
                await peer.receive_text()
            await app.channels.send("room", {"id": "x" * 100})
            data = {id((await peer.receive())["text"]) for peer in peers}
        assert len(data) == 1


async def test_what_is_sent_without_history_is_not_kept(autojump_clock: MockClock) -> None:
    app = room()
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.receive_text()
        kept = await app.channels.send("room", "kept")
        passing = await app.channels.send("room", "passing", save_history=False)
        assert (kept.offset, passing.offset) == (1, None)
        assert [await ws.receive_text(), await ws.receive_text()] == ["kept", "passing"]
        assert [m.payload for m in await app.channels.show_history("room")] == ["kept"]


@pytest.mark.untraced
async def test_many_senders_and_more_members_than_one_turn_hands_out_give_one_order(
    autojump_clock: MockClock,
) -> None:
    app = room()
    async with TestClient(app) as client, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(client.connect("/")) for _ in range(300)]
        for peer in peers:
            await peer.receive_text()

        async def send(name: str) -> None:
            for number in range(8):
                await app.channels.send("room", f"{name}{number}")

        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(send, name)
        orders = {tuple([await peer.receive_text() for _ in range(32)]) for peer in peers}
        (order,) = orders
        assert [text for text in order if text[0] == "a"] == [f"a{number}" for number in range(8)]


async def test_a_loop_of_sends_lets_other_tasks_run(autojump_clock: MockClock) -> None:
    app, ran = NexiosApp(), False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(64):
            await app.channels.send("nobody is here", "x")
        assert ran


async def test_direct_and_group_sends_arrive_in_the_order_of_the_calls(
    lane: Lane, lane_clock: MockClock
) -> None:
    async def act(group: Group, ws: WebSocket, text: str) -> None:
        for number in range(0, 300, 3):
            await ws.send_text(str(number))
            await group.send(str(number + 1))
            await ws.send_bytes(str(number + 2).encode())

    async with lane.serving(room(act)), lane.connect() as peer:
        await in_room(peer)
        await peer.send("go")
        for number in range(300):
            text = await peer.receive()
            assert int(text) == number


async def test_direct_sends_that_began_before_the_first_join_stay_in_front(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for number in range(6):  # the client's window is 2: the rest wait for their turn
            ws.start_soon(ws.send_text, str(number))
            await wait_all_tasks_blocked()
        async with ws.join("room") as group:
            await group.send("6")
            await ws.send_text("7")
            await ws.receive_text()

    async with TestClient(app, window=2) as client, client.connect("/") as ws:
        await wait_all_tasks_blocked()
        assert [await ws.receive_text() for _ in range(8)] == list("01234567")


async def test_the_members_are_gone_before_the_handler_notices(lane: Lane, lane_clock: MockClock) -> None:
    app, gone = NexiosApp(), trio.Event()
    seen: list[object] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room") as group:
            assert group.members() == (ws.id,)
            assert len(group) == 1
            assert group
            await ws.send_text("in")
            try:
                await ws.receive_text()
            except WebSocketDisconnect:
                seen.extend([group.members(), len(group), group.statistics().members])
                await group.send("goodbye")  # sending is for everybody
                gone.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        await peer.drop()
        await gone.wait()
    assert seen == [(), 0, 0]
    assert app.channels.hub.groups == {}


async def test_leaving_is_immediate_even_under_cancellation(autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with trio.CancelScope() as scope:
            async with ws.join("room") as group:
                scope.cancel()
                await trio.sleep_forever()
        assert len(group) == 0
        await app.channels.send("room", "nobody hears this")
        await ws.send_text("end")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "end"


async def test_one_who_leaves_while_a_message_is_handed_out_gets_none_of_it(
    autojump_clock: MockClock,
) -> None:
    app, groups = NexiosApp(), list[Group]()

    def last_one_leaves(payload: Any) -> None:
        groups[-1].leave_nowait()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room", overflow=Overflow.CONFLATE(last_one_leaves)) as group:
            groups.append(group)
            await ws.send_text("in")
            await ws.receive_text()
            await ws.send_text("end")

    async with TestClient(app) as client, AsyncExitStack() as stack:
        peers = []
        for _ in range(3):
            peers.append(await stack.enter_async_context(client.connect("/")))
            await peers[-1].receive_text()
        await app.channels.send("room", "x")
        await peers[-1].send_text("go")
        assert [await peer.receive_text() for peer in peers] == ["x", "x", "end"]
        assert groups[0].statistics().delivered == 2


async def join_error(when: str, name: Any = "room", **options: Any) -> Exception:
    app, errors = NexiosApp(), list[Exception]()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        if when != "before accept":
            await ws.accept()
        if when == "after close":
            await ws.close()
        try:
            async with ws.join(name, **options):
                if when == "twice":
                    async with ws.join(name):
                        pass
        except (WebSocketDisconnect, WrongStateError, WrongTypeError, WrongValueError) as error:
            errors.append(error)
        if when == "before accept":
            await ws.accept()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.wait_closed()
    assert not app.channels.hub.groups
    (error,) = errors
    return error


async def test_joining_before_accept_says_what_to_do(autojump_clock: MockClock) -> None:
    error = await join_error("before accept")
    assert isinstance(error, WrongStateError)
    assert "call `await ws.accept()` first" in str(error)
    assert "join 'room'" in str(error)


async def test_joining_after_the_end_is_a_disconnect(autojump_clock: MockClock) -> None:
    error = await join_error("after close")
    assert isinstance(error, WebSocketDisconnect)
    assert (error.code, error.by) == (1000, "local")


async def test_a_connection_is_in_a_group_once(autojump_clock: MockClock) -> None:
    error = await join_error("twice")
    assert isinstance(error, WrongStateError)
    assert "would get every message twice" in str(error)


async def test_a_group_that_was_left_can_be_joined_again_and_a_second_join_harms_nothing(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(2):
            membership = ws.join("room")
            async with membership as group:
                with pytest.raises(WrongStateError, match="already and would"):
                    await ws.join("room").join()
                assert len(group) == 1
                await group.send("once")
            with pytest.raises(WrongStateError, match=r"call ws\.join\(\) again"):
                await membership.join()
        await ws.send_text("end")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert [await ws.receive_text() for _ in range(3)] == ["once", "once", "end"]


@pytest.mark.parametrize("name", ["", "line\nbreak", "nul\0", "\x7f"])
async def test_a_name_that_cannot_be_one_says_so(name: str, autojump_clock: MockClock) -> None:
    error = await join_error("named", name)
    assert isinstance(error, WrongValueError)
    assert "1 to 200 printable characters" in str(error)
    with pytest.raises(WrongValueError, match="1 to 200 printable"):
        await NexiosApp().channels.send(name, "x")


@pytest.mark.parametrize("name", ["x", "x" * 200, "room.1 · café 🙂"])
async def test_any_printable_name_is_one(name: str, autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join(name) as group:
            await group.send("x")
            await ws.receive_text()

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "x"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (7, {}, "a group name is a str"),
        ("room", {"overflow": "drop"}, "overflow is an Overflow such as"),
        ("room", {"overflow": Overflow.BLOCK}, "one member hold up all others"),
    ],
)
async def test_a_join_that_makes_no_sense_says_what_does(
    name: Any, options: dict[str, Any], words: str, autojump_clock: MockClock
) -> None:
    assert words in str(await join_error("wrong", name, **options))


async def test_a_payload_that_cannot_be_sent_hurts_the_sender_alone(autojump_clock: MockClock) -> None:
    app = room()
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.receive_text()
        for payload in (object(), {1j: 2}, {"a": object()}):
            with pytest.raises(WrongTypeError, match="cannot send"):
                await app.channels.send("room", payload)
        with pytest.raises(WrongValueError, match="cannot be sent"):
            await app.channels.send("room", "\ud800")
        await app.channels.send("room", "fine")
        assert await ws.receive_text() == "fine"


async def test_a_str_for_exclude_is_a_mistake(autojump_clock: MockClock) -> None:
    errors = list[Exception]()

    async def act(group: Group, ws: WebSocket, text: str) -> None:
        try:
            await group.send("x", exclude=text)
        except WrongTypeError as error:
            errors.append(error)
        await ws.send_text("end")

    async with TestClient(room(act)) as client, client.connect("/") as ws:
        await ws.receive_text()
        await ws.send_text("abc")
        await ws.receive_text()
    assert "write exclude=['abc']" in str(errors[0])


async def test_a_subscriber_hears_all_groups_of_its_pattern(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    async with app.channels.subscribe("chat.*", size=3) as messages:
        for number in range(5):
            await app.channels.send("chat.1", number)
            await app.channels.send("other", "no")
        assert messages.dropped == 2
        heard = [(await anext(messages)).payload for _ in range(3)]
        assert heard == [2, 3, 4]
    assert not app.channels.hub.subscriptions
    assert not app.channels.hub._wanted
    with pytest.raises(StopAsyncIteration):
        await anext(messages)


async def test_several_tasks_may_read_one_subscription_and_its_end_ends_them(
    autojump_clock: MockClock,
) -> None:
    app, heard = NexiosApp(), list[int]()

    async def read(messages: Any) -> None:
        async for message in messages:
            heard.append(message.payload)

    async with trio.open_nursery() as nursery:
        async with app.channels.subscribe("exact") as messages:
            for _ in range(3):
                nursery.start_soon(read, messages)
            for number in range(10):
                await wait_all_tasks_blocked()
                await app.channels.send("exact", number)
            await wait_all_tasks_blocked()
    assert heard == list(range(10))


async def test_a_user_is_reached_and_sent_away_on_every_connection(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(3):
            ws.identify("somebody else")
            ws.identify(ws.path_params["user"])
        await ws.send_text("in")
        async for text in ws.iter_text():
            await ws.send_text(text)

    async with lane.serving(app), lane.connect("/ada") as one, lane.connect("/ada") as two:
        async with lane.connect("/bob") as bob:
            for peer in (one, two, bob):
                await peer.receive()
            assert await app.channels.send_to_user("ada", {"for": "ada"}) == 2
            assert await app.channels.disconnect_user("ada", 4003, "banned") == 2
            for peer in (one, two):
                assert await peer.receive() == '{"for":"ada"}'  # what was sent before comes before
                assert await peer.wait_closed() == (4003, "banned")
            assert await app.channels.send_to_user("nobody", "x") == 0
            await bob.send("still there")
            assert await bob.receive() == "still there"
            assert await app.channels.close_all_connections(4000, "over") >= 1
            assert await bob.wait_closed() == (4000, "over")
    assert not app.channels.hub.users
    assert not app.channels.hub.owners


async def test_two_apps_with_one_group_name_never_meet_not_even_one_inside_the_other(
    autojump_clock: MockClock,
) -> None:
    outer, inner, stranger = room(), room(), room()
    outer.mount("/inner", inner)
    async with TestClient(outer) as client, TestClient(stranger) as elsewhere:
        async with client.connect("/") as a, client.connect("/inner/") as b, elsewhere.connect("/") as c:
            for ws in (a, b, c):
                await ws.receive_text()
            for ws, text in ((a, "outer"), (b, "inner"), (c, "stranger")):
                await ws.send_text(text)
            for ws, text in ((a, "outer"), (b, "inner"), (c, "stranger")):
                assert await ws.receive_text() == text
            await wait_all_tasks_blocked()
            assert [app.channels.hub.groups["room"].statistics.sent for app in (outer, inner, stranger)] == [
                1
            ] * 3
    assert not outer.channels.hub.groups
    assert not inner.channels.hub.groups


async def test_groups_without_members_leave_nothing_behind(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    done = trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(10_000):
            async with ws.join(f"room.{number}"):
                pass
        hub = app.channels.hub
        assert not hub.groups
        assert not hub._wanted
        assert not ws._connection._at_end
        assert trio.lowlevel.current_statistics().tasks_living <= before + 1  # the writer
        done.set()

    async with TestClient(app, timeout=1000) as client, client.connect("/"):
        await done.wait()


async def test_a_connection_in_thousands_of_groups_leaves_them_all(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(groups=None))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for number in range(2000):
            await ws.join(f"room.{number}").join()
        await ws.send_text("in")
        await ws.receive_text()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.receive_text()
        assert len(app.channels.hub.groups) == 2000
        await ws.drop()
    assert not app.channels.hub.groups
    assert not app.channels.hub._wanted
