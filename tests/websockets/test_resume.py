"""Clients come and go while messages are sent: all of them, in order, once; or the client is told.

``NEXIOS_STORM_SIZE=200,5000`` is as much as a minute of a machine can do.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import History, MemoryBroker, Position
from nexios_trio.config import HistoryLimits
from nexios_trio.testing import TestClient, TestWebSocket, cancel_at_each_step
from nexios_trio.types import Message
from nexios_trio.websockets.groups import Group

BIG = HistoryLimits(messages=10_000, bytes=1 << 24, age=3600)
GROUP = "room"
STORM = tuple(map(int, os.environ.get("NEXIOS_STORM_SIZE", "80,1500").split(",")))
"""Clients and messages."""


class Envelope(msgspec.Struct):
    group: str
    position: str | None
    payload: Any

    @property
    def offset(self) -> int:
        assert self.position is not None
        return int(self.position.split(":")[1])


_envelope = msgspec.json.Decoder(Envelope)


class Room:
    """An app with one group, and what its handlers were told."""

    def __init__(self, history: HistoryLimits | None, **options: Any) -> None:
        self.app = NexiosApp(history=history, **options)
        self.groups: list[Group] = []
        """The memberships, in the order in which they were complete."""
        self.published: dict[int, Any] = {}

        @self.app.ws_route("/")
        async def handler(ws: WebSocket) -> None:
            await ws.accept()
            async with ws.join(GROUP, since=ws.query_params.get("since"), envelope=True) as group:
                self.groups.append(group)
                ws.scope["nexios_test.joined"](group)
                async for _ in ws.iter_text():
                    pass

    async def tail(self) -> str:
        return str((await self.app.channels.hub.broker.history(GROUP, limit=0)).position)

    async def publish(self, payload: Any, *, keep: bool = True) -> None:
        message = await self.app.channels.send(GROUP, payload, save_history=keep)
        if message.offset is not None:
            self.published[message.offset] = payload


class Reader:
    """A client that checks each message as it comes. Raw ASGI, since millions of messages go by."""

    def __init__(self, room: Room, position: str) -> None:
        self.room = room
        self.position = position
        self.offset = int(position.split(":")[1])
        self.told_of_loss = 0
        self.jumps = 0
        self.got = 0
        self.pause = 0.0
        self._may_jump_to: int | None = None

    async def connected(self, seconds: float) -> None:
        """Be connected for so long, or until the server closes; then vanish."""
        gone = trio.Event()
        told = False
        self._may_jump_to = None

        async def receive() -> Message:
            nonlocal told
            if not told:
                told = True
                return {"type": "websocket.connect"}
            await gone.wait()
            return {"type": "websocket.disconnect", "code": 1006}

        async def send(message: Message) -> None:
            if gone.is_set():
                return
            if message["type"] == "websocket.send":
                if self.pause:
                    await trio.sleep(self.pause)
                if not gone.is_set():
                    self._take(message["text"])
            elif message["type"] == "websocket.close":
                gone.set()

        scope = {
            "type": "websocket",
            "http_version": "1.1",
            "path": "/",
            "headers": [],
            "query_string": f"since={self.position}".encode(),
            "nexios_test.joined": self._joined,
        }

        async def leave() -> None:
            await trio.sleep(seconds)
            gone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await self.room.app(scope, receive, send)
            nursery.cancel_scope.cancel()

    def _joined(self, group: Group) -> None:
        assert group.recovered is not None
        if not group.recovered:
            self.told_of_loss += 1
            self._may_jump_to = group.position.offset

    def _take(self, text: str) -> None:
        envelope = _envelope.decode(text)
        assert envelope.group == GROUP
        if envelope.position is None:
            assert envelope.payload == "not kept"
            return
        offset = envelope.offset
        if offset != self.offset + 1:
            # the one jump that was announced, to right behind the position that the handler was told
            assert offset == (self._may_jump_to or 0) + 1 > self.offset, (offset, self.offset)
            self.jumps += 1
            self._may_jump_to = None
        self.offset, self.position = offset, envelope.position
        self.got += 1
        expected = self.room.published.get(offset, envelope.payload)
        assert envelope.payload == expected


async def storm(room: Room, seed: int, clients: int, messages: int) -> list[Reader]:
    """Clients come, go, read slowly and stall, while four tasks send; then all come back to read the rest."""
    rng = random.Random(seed)
    start = await room.tail()
    readers = [Reader(room, start) for _ in range(clients)]
    done = trio.Event()

    async def wander(reader: Reader, own: random.Random) -> None:
        await trio.sleep(own.uniform(0, 0.2))
        while not done.is_set():
            reader.pause = own.choice([0, 0, 0, 0, 0.002, 0.02, 5])
            await reader.connected(own.expovariate(2))
            await trio.sleep(own.choice([0, 0, own.expovariate(4)]))
        reader.pause = 0
        await reader.connected(60)

    left = messages

    async def send(own: random.Random) -> None:
        nonlocal left
        while left:
            for _ in range(min(left, own.randint(1, 20))):
                left -= 1
                await room.publish(left)
                if own.random() < 0.05:
                    await room.publish("not kept", keep=False)
            await trio.sleep(own.choice([0, own.expovariate(20)]))

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(wander, reader, random.Random(rng.random()))
        async with trio.open_nursery() as senders:
            for _ in range(4):
                senders.start_soon(send, random.Random(rng.random()))
        done.set()
    assert len(room.published) == messages
    assert not room.app.connections
    assert not room.app.channels.hub.groups
    return readers


@pytest.mark.untraced
@pytest.mark.parametrize(("seed", "clients", "messages"), [(1, *STORM), (2, 40, 1000), (3, 40, 1000)])
async def test_with_history_enough_every_client_gets_all_in_order(
    seed: int, clients: int, messages: int, autojump_clock: MockClock
) -> None:
    room = Room(BIG)
    for reader in await storm(room, seed, clients, messages):
        assert (reader.got, reader.offset, reader.jumps) == (messages, messages, 0)
        assert reader.told_of_loss == 0


@pytest.mark.untraced
@pytest.mark.parametrize(("seed", "clients", "messages"), [(4, *STORM), (5, 40, 1000), (6, 40, 1000)])
async def test_with_history_too_small_every_gap_is_reported(
    seed: int, clients: int, messages: int, autojump_clock: MockClock
) -> None:
    room = Room(HistoryLimits(messages=60))
    readers = await storm(room, seed, clients, messages)
    for reader in readers:
        assert reader.jumps <= reader.told_of_loss
        # what it lacks at the end it was told of: its last join was not recovered, or it has everything
        assert reader.offset == messages or reader._may_jump_to == messages
        assert (reader.got == messages) == (reader.told_of_loss == 0)
    assert sum(reader.told_of_loss for reader in readers) > clients / 4
    assert any(reader.jumps for reader in readers)


# One at a time, with the client of the tests


@asynccontextmanager
async def joined(
    client: TestClient, since: str | None = None, path: str = "/"
) -> AsyncIterator[TestWebSocket]:
    async with client.connect(path, params=None if since is None else {"since": since}) as ws:
        yield ws


async def offsets(ws: TestWebSocket, count: int) -> list[int]:
    return [_envelope.decode(await ws.receive_text()).offset for _ in range(count)]


async def silence(ws: TestWebSocket) -> None:
    with pytest.raises(trio.TooSlowError):
        print(await ws.receive())


@pytest.fixture
def room() -> Room:
    made = Room(BIG)
    made.app.add_middleware(_unnoticed)
    return made


async def _unnoticed(ws: WebSocket, call_next: Any) -> None:
    ws.scope["nexios_test.joined"] = lambda group: None
    await call_next(ws)


async def test_others_send_while_a_slow_client_reads_its_replay(
    room: Room, autojump_clock: MockClock
) -> None:
    start = await room.tail()
    for n in range(1000):
        await room.publish(n)
    async with TestClient(room.app, window=1) as client, joined(client, start) as ws:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for n in range(300):
                    await room.publish(n)
                    await trio.sleep(0.01)

            nursery.start_soon(send)
            seen: list[int] = []
            while len(seen) < 1300:
                seen += await offsets(ws, 1)
                await trio.sleep(0.003)
            assert seen == list(range(1, 1301))
        assert room.groups[-1].recovered is True
        await silence(ws)


async def test_a_client_that_stalls_in_its_replay_holds_up_nobody_and_is_told(
    autojump_clock: MockClock,
) -> None:
    room = Room(HistoryLimits(messages=600))
    room.app.add_middleware(_unnoticed)
    start = await room.tail()
    for n in range(600):
        await room.publish(n)
    async with TestClient(room.app, window=1) as client, joined(client) as other:
        async with joined(client, start) as ws:
            await ws.stall()
            await trio.sleep(1)
            assert len(room.groups) == 1  # it is not through
            (stalled,) = set(room.app.channels.hub.groups[GROUP].members.values()) - set(room.groups)
            for n in range(1000):
                await room.publish(n)
                assert await offsets(other, 1) == [601 + n]
            assert not stalled._held  # nothing piles up for it but its outbox
            await ws.resume()
            seen: list[int] = []
            while len(room.groups) < 2:
                seen += await offsets(ws, 1)
            assert room.groups[1].recovered is False
            assert room.groups[1].position.offset == 1600
            await room.publish("on")
            while seen[-1] != 1601:
                seen += await offsets(ws, 1)
            assert seen[:-1] == list(range(1, len(seen)))  # one jump, nothing twice
            assert len(seen) <= 601
            await silence(ws)


async def test_a_client_gone_in_its_replay_is_no_member(autojump_clock: MockClock) -> None:
    room = Room(BIG, disconnect_grace=0)
    start = await room.tail()
    for n in range(1000):
        await room.publish(n)
    async with TestClient(room.app, window=1) as client:
        async with joined(client, start) as ws:
            await ws.stall()
            await trio.sleep(1)
            await ws.drop()
        assert not room.app.channels.hub.groups
        assert not room.groups


@pytest.mark.untraced
@pytest.mark.parametrize("since", ["start", "tail", None])
async def test_who_joins_while_a_message_is_handed_out_gets_it_once(
    since: str | None, autojump_clock: MockClock
) -> None:
    """With more than 256 members a send lets other tasks run half way."""
    room = Room(BIG)
    room.app.add_middleware(_unnoticed)
    start = await room.tail()
    async with TestClient(room.app) as client, trio.open_nursery() as nursery:
        crowd: list[TestWebSocket] = []

        async def member() -> None:
            async with joined(client) as ws:
                crowd.append(ws)
                await trio.sleep_forever()

        for _ in range(600):
            nursery.start_soon(member)
        await wait_all_tasks_blocked()
        assert len(crowd) == 600
        position = {"start": start, "tail": start, None: None}[since]
        if since == "tail":
            await room.publish(0)
            position = await room.tail()
        first = 1 + len(room.published)
        for waits in range(12):
            async with client.connect("/", params=None if position is None else {"since": position}) as ws:
                async with trio.open_nursery() as senders:
                    for n in range(3):
                        senders.start_soon(room.publish, n)
                    for _ in range(waits):
                        await trio.lowlevel.checkpoint()
                await wait_all_tasks_blocked()
                seen: list[int] = []
                while len(ws._from_app._state.data):
                    seen += await offsets(ws, 1)
                last = len(room.published)
                assert seen == list(range(last - len(seen) + 1, last + 1))
                if position is not None:
                    assert seen == list(range(first if since == "tail" else 1, last + 1))
        nursery.cancel_scope.cancel()


async def test_who_has_left_gets_nothing_of_a_message_that_is_being_handed_out(
    room: Room, autojump_clock: MockClock
) -> None:
    async with TestClient(room.app) as client, trio.open_nursery() as nursery:

        async def member() -> None:
            async with joined(client):
                await trio.sleep_forever()

        for _ in range(600):
            nursery.start_soon(member)
        await wait_all_tasks_blocked()
        async with joined(client) as last:
            await wait_all_tasks_blocked()
            *others, membership = room.app.channels.hub.groups[GROUP].members.values()
            assert membership is room.groups[-1]
            nursery.start_soon(room.publish, 1)
            while others[0].position.offset == 0:
                await trio.lowlevel.checkpoint()
            assert others[-1].position.offset == 0  # half way
            membership.leave_nowait()
            await wait_all_tasks_blocked()
            assert others[-1].position.offset == 1
            await silence(last)
        nursery.cancel_scope.cancel()


class SlowBroker(MemoryBroker):
    """Its answers take a second to come, as from an engine behind a network."""

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        read = await super().history(group, since=since, limit=limit)
        await trio.sleep(1)
        return read


@pytest.mark.parametrize("since", [True, False])
@pytest.mark.parametrize("count", [1, 50, 1000])
async def test_what_is_sent_while_the_history_is_on_its_way_comes_once(
    count: int, since: bool, autojump_clock: MockClock
) -> None:
    room = Room(None, broker=SlowBroker(BIG))
    room.app.add_middleware(_unnoticed)
    start = await room.tail()
    await room.publish("before")
    async with TestClient(room.app, window=2000) as client:
        async with joined(client, start if since else None) as ws:
            await trio.sleep(0.5)
            for n in range(count):
                await room.publish(n)
            # without `since` one follows from some moment between the call of join() and its return
            first = 1 if since else 2 if count <= 256 else count + 2
            await trio.sleep(10)
            await room.publish("after")
            assert await offsets(ws, count + 3 - first) == list(range(first, count + 3))
            await silence(ws)


async def test_a_join_cancelled_at_any_step_leaves_no_trace_and_can_be_repeated(
    autojump_clock: MockClock,
) -> None:
    struck = 0
    async for interrupter in cancel_at_each_step():
        app = NexiosApp(history=BIG, presence_grace=1)

        @app.ws_route("/")
        async def handler(ws: WebSocket, interrupter: Any = interrupter) -> None:
            await ws.accept()
            hub = ws._hub()
            first = ws.join(GROUP, since=ws.query_params["since"], presence={}, envelope=True)

            async def join() -> None:
                async with first:
                    await trio.lowlevel.checkpoint()

            await interrupter.run(join)
            assert not hub.groups
            assert await hub.broker.members(GROUP) == ()
            assert ws._connection._at_end is None or first.leave_nowait not in ws._connection._at_end
            async with ws.join(GROUP, since=str(first.position), envelope=True) as group:
                assert group.recovered
                await ws.receive_text()

        async with TestClient(app, window=3) as client:
            start = str((await app.channels.hub.broker.history(GROUP)).position)
            for n in range(5):
                await app.channels.send(GROUP, n)
            async with client.connect("/", params={"since": start}) as ws:
                seen: list[int] = []
                while 5 not in seen:
                    envelope = _envelope.decode(await ws.receive_text())
                    if envelope.position is not None:
                        seen.append(envelope.offset)
                assert seen == [1, 2, 3, 4, 5]
        struck += interrupter.struck
    assert struck >= 4
