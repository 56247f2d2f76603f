"""What each rule does for a member that does not read, and how it is counted."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket, WrongTypeError, WrongValueError
from nexios_trio.config import Overflow
from nexios_trio.testing import TestClient, TestWebSocket
from nexios_trio.websockets.base import OutboxStatistics
from nexios_trio.websockets.groups import Group

LIMIT, WINDOW = 4, 1


class Room:
    """A group whose member "slow" reads when it is told to, under the rule of the test."""

    def __init__(self, overflow: Overflow | None) -> None:
        self.app = NexiosApp(limits=Limits(outbox_messages=LIMIT))
        self.group: Group
        self.ws: WebSocket
        self.ends: list[tuple[int, str]] = []

        @self.app.ws_route("/{who}")
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            slow = ws.path_params["who"] == "slow"
            async with ws.join("room", overflow=overflow if slow else None) as group:
                if slow:
                    self.group, self.ws = group, ws
                await ws.send_text("in")
                async for text in ws.iter_text():
                    await ws.send_text(text)

    async def send(self, *payloads: Any) -> None:
        for payload in payloads:
            await self.app.channels.send("room", payload)
            await wait_all_tasks_blocked()

    def client(self) -> TestClient:
        return TestClient(self.app, window=WINDOW)


async def read_all(ws: TestWebSocket) -> list[Any]:
    await ws.send_text('"end"')
    got: list[Any] = []
    while (text := json.loads(await ws.receive_text())) != "end":
        got.append(text)
    return got


# Of ten messages the client's window holds the first, the writer the second, the outbox four.


@pytest.mark.parametrize(
    ("overflow", "got", "dropped"),
    [
        (Overflow.DROP_OLDEST, [0, 1, 6, 7, 8, 9], (4, 0)),
        (Overflow.DROP_NEWEST, [0, 1, 2, 3, 4, 5], (0, 4)),
        (Overflow.CONFLATE("id"), [0, 1, 6, 7, 8, 9], (4, 0)),
    ],
)
async def test_messages_go_by_the_rule_and_every_one_is_counted(
    overflow: Overflow, got: list[int], dropped: tuple[int, int], autojump_clock: MockClock
) -> None:
    room = Room(overflow)
    async with room.client() as client, client.connect("/slow") as slow, client.connect("/quick") as quick:
        await slow.receive_text(), await quick.receive_text()
        for number in range(10):
            await room.send(number)
            assert await quick.receive_json() == number
        statistics, own = room.group.statistics(), room.ws.statistics()
        assert (own.waiting_messages, own.waiting_bytes) == (LIMIT, LIMIT)
        assert (own.dropped_oldest, own.dropped_newest, own.conflated) == (*dropped, 0)
        assert (statistics.dropped_oldest, statistics.dropped_newest) == dropped
        assert (statistics.sent, statistics.members, statistics.disconnected) == (10, 2, 0)
        assert statistics.delivered == 2 * 10 - dropped[1]
        assert await read_all(slow) == got
        await room.send("again")
        assert await slow.receive_text() == "again"


async def test_only_the_last_value_per_key_waits_in_the_place_of_the_first(autojump_clock: MockClock) -> None:
    room = Room(Overflow.CONFLATE("id"))
    async with room.client() as client, client.connect("/slow") as slow:
        await slow.receive_text()
        await room.send("fills the window", "is with the writer")
        await room.send(*({"id": n % 3, "v": n} for n in range(30)), {"no": "id"})
        statistics = room.group.statistics()
        assert (statistics.conflated, statistics.delivered, room.ws.statistics().conflated) == (27, 33, 27)
        await slow.receive_text(), await slow.receive_text()
        assert await read_all(slow) == [*({"id": n % 3, "v": n} for n in (27, 28, 29)), {"no": "id"}]


async def test_a_member_that_does_not_read_is_closed_with_1013_by_default(autojump_clock: MockClock) -> None:
    room = Room(None)
    async with room.client() as client, client.connect("/slow") as slow, client.connect("/quick") as quick:
        await slow.receive_text(), await quick.receive_text()
        for number in range(10):
            await room.send(number)
            assert await quick.receive_json() == number
        statistics = room.group.statistics()
        assert (statistics.disconnected, statistics.members) == (1, 1)
        assert statistics.delivered == 10 + 6
        assert room.group.members() != ()
        assert room.ws.id not in room.group.members()
        assert [await slow.receive_text() for _ in range(2)] == ["0", "1"]
        assert await slow.wait_closed() == (1013, "too slow")


async def test_group_messages_never_push_out_direct_ones(autojump_clock: MockClock) -> None:
    room = Room(Overflow.DROP_OLDEST)
    async with room.client() as client, client.connect("/slow") as slow:
        await slow.receive_text()
        for number in range(LIMIT + 2):
            await room.ws.send_text(f"direct {number}")
            await wait_all_tasks_blocked()
        await room.send("a", "b")
        assert room.group.statistics().dropped_newest == 2
        assert [await slow.receive_text() for _ in range(6)] == [f"direct {n}" for n in range(LIMIT + 2)]


async def test_a_direct_send_waits_for_room_and_is_not_overtaken_for_ever(autojump_clock: MockClock) -> None:
    room, sent = Room(Overflow.DROP_OLDEST), trio.Event()

    async def send() -> None:
        await room.ws.send_text("direct")
        sent.set()

    async with room.client() as client, client.connect("/slow") as slow, trio.open_nursery() as nursery:
        await slow.receive_text()
        await room.send(*range(10))
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert not sent.is_set()
        await slow.receive_text()
        await room.send(*range(10))
        assert sent.is_set()


async def test_a_direct_send_that_waits_for_room_learns_of_the_end(autojump_clock: MockClock) -> None:
    from nexios_trio import WebSocketDisconnect

    room = Room(Overflow.DROP_OLDEST)
    codes = list[int]()

    async def send() -> None:
        try:
            await room.ws.send_text("direct")
        except WebSocketDisconnect as over:
            codes.append(over.code)

    async with room.client() as client, client.connect("/slow") as slow, trio.open_nursery() as nursery:
        await slow.receive_text()
        await room.send(*range(10))
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.start_soon(room.ws.close, 4000)
        await wait_all_tasks_blocked()
        assert codes == [4000]
        assert [await slow.receive_text() for _ in range(6)] == ["0", "1", "6", "7", "8", "9"]
        assert (await slow.wait_closed())[0] == 4000


def _broken(payload: Any) -> Any:
    raise KeyError("no such field")


@pytest.mark.parametrize("key", [_broken, lambda payload: [payload]])
async def test_a_key_function_that_fails_is_counted_and_breaks_nothing(
    key: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(Overflow.CONFLATE(key))
    with caplog.at_level(logging.ERROR):
        async with room.client() as client, client.connect("/slow") as a, client.connect("/quick") as b:
            await a.receive_text(), await b.receive_text()
            for number in range(3):
                await room.send(number)
                assert await a.receive_json() == await b.receive_json() == number
            assert room.group.statistics().key_errors == 3
    (record,) = caplog.records
    assert "said once" in record.getMessage()
    assert record.exc_info is not None


async def test_a_key_function_is_called_once_per_message_however_many_members_use_it(
    autojump_clock: MockClock,
) -> None:
    calls = 0

    def key(payload: Any) -> int:
        nonlocal calls
        calls += 1
        return 1

    room = Room(Overflow.CONFLATE(key))
    async with room.client() as client, client.connect("/slow") as a, client.connect("/slow") as b:
        await a.receive_text(), await b.receive_text()
        await room.send("x")
        assert await a.receive_text() == await b.receive_text() == "x"
    assert calls == 1
    assert Overflow.CONFLATE("id") == Overflow.CONFLATE("id") != Overflow.CONFLATE("other")


async def test_statistics_are_a_copy_and_zero_at_first(autojump_clock: MockClock) -> None:
    room = Room(None)
    async with room.client() as client, client.connect("/slow") as ws:
        await ws.receive_text()
        room.group.statistics().sent = 17
        assert room.group.statistics().sent == 0
        assert room.ws.statistics() == OutboxStatistics()


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(WrongTypeError, match="a field's name or a function"):
        Overflow.CONFLATE(7)  # type: ignore[arg-type]
    for rule, key in (("drop", None), ("conflate", None), ("drop_oldest", str)):
        with pytest.raises(WrongValueError, match=r"Overflow\.DROP_OLDEST"):
            Overflow(rule, key)  # type: ignore[arg-type]
