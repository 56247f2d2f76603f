"""Random operations on groups, in any order, against a model that is too simple to be wrong.

Hypothesis makes a list of operations; all of them run in one Trio run under a virtual clock, and after each
one everything that anybody can see is compared. The same on the embedded engine and on a real Redis.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
import trio
from attrs import define, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import Broker, Draft, MemoryBroker, Message, Position
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import WebSocketDisconnect
from nexios_trio.testing import TestClient, TestWebSocket
from nexios_trio.websockets.groups import Group
from tests.brokers.redis_server import RedisServer

USERS = ("ann", "ann", "bob", "cy")
"""Four clients; two of them are devices of one user."""
GROUPS = ("a", "b")
KEPT = 4
AGE = 100.0
GRACE = 2.0
TICK = 0.01
"""Seconds between operations, so that no two things happen at the same time."""

Seen = tuple[Any, ...]

# Operations


@frozen
class Drop:
    client: int
    politely: bool


@frozen
class Join:
    """Connects first if need be."""

    client: int
    group: str
    since: str | None
    presence: bool


@frozen
class Leave:
    client: int
    group: str


@frozen
class Send:
    client: int | None
    group: str
    keep: bool
    exclude_self: bool


@frozen
class Flush:
    group: str | None


@frozen
class Pass:
    seconds: float


Operation = Drop | Join | Leave | Send | Flush | Pass

clients = st.integers(0, len(USERS) - 1)
groups = st.sampled_from(GROUPS)
sinces = st.sampled_from([None, "last", "last", "last", "start", "foreign", "future"])
operations = st.lists(
    st.one_of(
        st.builds(Join, clients, groups, sinces, st.booleans()),
        st.builds(Send, st.none() | clients, groups, st.booleans() | st.just(True), st.booleans()),
        st.builds(Drop, clients, st.booleans()),
        st.builds(Leave, clients, groups),
        st.builds(Flush, st.none() | groups),
        st.builds(Pass, st.sampled_from([0.5, 0.5, GRACE * 1.5, AGE * 1.5])),
    ),
    max_size=40,
)


# The model


@define
class ModelGroup:
    offset: int = 0
    kept: list[tuple[int, int, float]] = field(factory=list)
    """Number, payload, time."""
    members: dict[int, bool] = field(factory=dict)
    """Client: whether it has a presence."""
    leaving: dict[str, float] = field(factory=dict)
    """User: when the leave will be told."""
    unknown: set[str] = field(factory=set)
    """Those of them of whom somebody has not heard, who came since."""

    def trim(self, now: float) -> None:
        self.kept = [entry for entry in self.kept if entry[2] > now - AGE][-KEPT:]

    def users(self) -> dict[str, int]:
        users: dict[str, int] = {}
        for client, present in self.members.items():
            if present:
                users[USERS[client]] = users.get(USERS[client], 0) + 1
        return users


class Model:
    def __init__(self) -> None:
        self.groups = {name: ModelGroup() for name in GROUPS}
        self.connected: set[int] = set()
        self.seen: list[dict[str, list[Seen]]] = [{name: [] for name in GROUPS} for _ in USERS]
        """What each client has seen of each group, over all its connections."""
        self.known: list[dict[str, int]] = [dict.fromkeys(GROUPS, 0) for _ in USERS]
        """The newest offset that each client knows."""
        self.sent: list[Seen] = []
        self.number = 0

    def tell_presence(self, name: str, kind: str, user: str) -> None:
        for client, present in self.groups[name].members.items():
            if present:
                self.seen[client][name].append(("presence", kind, user))

    def connect(self, client: int) -> bool:
        if client in self.connected:
            return False
        self.connected.add(client)
        return True

    def drop(self, client: int, now: float) -> bool:
        if client not in self.connected:
            return False
        for name in GROUPS:
            self.leave(client, name, now)
        self.connected.remove(client)
        return True

    def since(self, client: int, name: str, since: str) -> tuple[bool, int]:
        """Whether it is of this epoch, and the offset."""
        offset = self.groups[name].offset
        return {
            "last": (True, self.known[client][name]),
            "start": (True, 0),
            "foreign": (False, offset),
            "future": (True, offset + 1),
        }[since]

    def join(self, operation: Join, now: float) -> bool:
        client, name = operation.client, operation.group
        group, user, seen = self.groups[name], USERS[operation.client], self.seen[operation.client][name]
        if client not in self.connected or client in group.members:
            return False
        group.trim(now)
        recovered = None
        if operation.since is not None:
            ours, offset = self.since(client, name, operation.since)
            gone = group.offset - len(group.kept)
            recovered = ours and gone <= offset <= group.offset
            if recovered:
                seen += [("message", n, payload) for n, payload, _ in group.kept if n > offset]
        known = user in group.users()
        group.members[client] = operation.presence
        if operation.presence:
            away = group.leaving.pop(user, None) is not None and user not in group.unknown
            group.unknown = set(group.leaving)
            if not away and not known:
                self.tell_presence(name, "join", user)
        seen.append(("joined", recovered, group.offset, list(group.members), list(group.users().items())))
        self.known[client][name] = group.offset
        return True

    def leave(self, client: int, name: str, now: float) -> bool:
        group, user = self.groups[name], USERS[client]
        if client not in group.members:
            return False
        if group.members.pop(client) and user not in group.users():
            group.leaving[user] = now + GRACE
            group.unknown.discard(user)
        return True

    def send(self, operation: Send, now: float) -> int | None:
        """The payload, or None if this client cannot send there."""
        group, client = self.groups[operation.group], operation.client
        if client is not None and client not in group.members:
            return None
        self.number += 1
        group.offset += operation.keep
        offset = group.offset if operation.keep else None
        if offset is not None:
            group.kept.append((offset, self.number, now))
            group.trim(now)
        for member in group.members:
            if not (operation.exclude_self and member == client):
                self.seen[member][operation.group].append(("message", offset, self.number))
                self.known[member][operation.group] = offset or self.known[member][operation.group]
        self.sent.append((operation.group, offset, self.number))
        return self.number

    def flush(self, name: str | None) -> None:
        for each in GROUPS if name is None else [name]:
            self.groups[each].kept.clear()

    def until(self, now: float) -> None:
        """Time has passed."""
        for name, group in self.groups.items():
            for user, due in sorted(group.leaving.items(), key=lambda item: item[1]):
                if due <= now:
                    del group.leaving[user]
                    self.tell_presence(name, "leave", user)
            group.trim(now)


# The real thing


class Engine:
    """The embedded one. Time is virtual, and jumps when nothing else happens."""

    def clock(self) -> MockClock:
        return MockClock(autojump_threshold=0)

    def broker(self) -> Broker:
        return MemoryBroker(HistoryLimits(messages=KEPT, age=AGE), presence_grace=GRACE)

    async def settle(self, app: NexiosApp) -> None:
        """Block until nothing more happens."""
        await wait_all_tasks_blocked()

    async def sleep(self, app: NexiosApp, seconds: float) -> None:
        await trio.sleep(seconds)


class RedisEngine(Engine):
    """A real Redis. Time is virtual for it as well, and stands still while it works."""

    def __init__(self, url: str) -> None:
        self.url = url

    def clock(self) -> MockClock:
        self.time = MockClock()
        return self.time

    def broker(self) -> Broker:
        limits = HistoryLimits(messages=KEPT, age=AGE)
        return RedisBroker(
            self.url,
            limits,
            presence_grace=GRACE,
            prefix=f"{secrets.token_hex(4)}:",
            lease=1e6,
            clock=lambda: 1e9 + trio.current_time(),
        )

    async def settle(self, app: NexiosApp) -> None:
        broker = app.broker
        assert isinstance(broker, RedisBroker)
        if "settled" not in broker.feed.tracks:
            await broker.subscribe("settled")
        calls = -1
        while calls != broker.link.calls - 1:  # what came by Redis made somebody ask Redis for more
            await wait_all_tasks_blocked()
            calls = broker.link.calls
            # It comes back behind all that was published before.
            await broker.publish("settled", Draft("text", ""), keep=False)
            await wait_all_tasks_blocked()
            while broker.link.waiting:
                await trio.lowlevel.checkpoint()

    async def sleep(self, app: NexiosApp, seconds: float) -> None:
        await self.settle(app)
        self.time.jump(seconds)
        await self.settle(app)


class Real:
    def __init__(self, nursery: trio.Nursery, engine: Engine) -> None:
        self.engine = engine
        self.app = NexiosApp(broker=engine.broker(), disconnect_grace=0)
        self.nursery = nursery
        self.client = TestClient(self.app, timeout=1e9)
        self.sockets: dict[int, tuple[TestWebSocket, trio.Event]] = {}
        self.names: dict[str, int] = {}
        """The client of each connection, by the connection's id."""
        self.seen: list[dict[str, list[Seen]]] = [{name: [] for name in GROUPS} for _ in USERS]
        self.positions: list[dict[str, str]] = []
        self.epochs: dict[str, str] = {}
        self.sent: list[Seen] = []
        self.app.add_ws_route("/{client:int}", self.handler)

    async def start(self) -> None:
        for name in GROUPS:
            self.epochs[name] = (await self.history(name))[0].epoch
        self.positions = [{name: f"{epoch}:0" for name, epoch in self.epochs.items()} for _ in USERS]
        self.nursery.start_soon(self.listen)
        await self.engine.settle(self.app)

    async def history(self, name: str) -> tuple[Position, tuple[Message, ...]]:
        history = await self.app.channels.hub.broker.history(name)
        return history.position, history.messages

    async def listen(self) -> None:
        async with self.app.channels.subscribe("[ab]") as messages:
            async for message in messages:
                self.sent.append((message.group, message.offset, message.payload))

    async def handler(self, ws: WebSocket) -> None:
        client: int = ws.path_params["client"]
        self.names[ws.id] = client
        await ws.accept()
        joined: dict[str, Group] = {}
        async for command in ws.iter_json():
            name = command["group"]
            match command["do"]:
                case "join":
                    group = joined[name] = ws.join(
                        name,
                        since=command["since"],
                        presence={} if command["presence"] else None,
                        user_id=USERS[client] if command["presence"] else None,
                        envelope=True,
                    )
                    await group.join()
                    users = await group.presence.list()
                    await ws.send_json(
                        {
                            "joined": name,
                            "recovered": group.recovered,
                            "position": str(group.position),
                            "members": [self.names[member] for member in group.members()],
                            "users": [[user.user, len(user.devices)] for user in users],
                        }
                    )
                case "leave":
                    joined.pop(name).leave_nowait()
                case "send":
                    await joined[name].send(
                        command["payload"],
                        save_history=command["keep"],
                        exclude_self=command["exclude_self"],
                    )

    async def connect(self, client: int) -> None:
        ready, leave = trio.Event(), trio.Event()

        async def connected() -> None:
            async with self.client.connect(f"/{client}") as ws:
                self.sockets[client] = ws, leave
                ready.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.read, client, ws)
                    await leave.wait()
                    nursery.cancel_scope.cancel()

        self.nursery.start_soon(connected)
        await ready.wait()

    async def read(self, client: int, ws: TestWebSocket) -> None:
        try:
            while True:
                self.note(client, await ws.receive_json())
        except (WebSocketDisconnect, trio.ClosedResourceError):
            pass  # it was closed, or we have dropped it

    def note(self, client: int, got: dict[str, Any]) -> None:
        if "joined" in got:
            name = got["joined"]
            users = [tuple(user) for user in got["users"]]
            offset = Position.parse(got["position"]).offset
            self.seen[client][name].append(("joined", got["recovered"], offset, got["members"], users))
        else:
            name, payload = got["group"], got["payload"]
            if isinstance(payload, dict):
                assert payload["group"] == name
                kind = payload["type"].removeprefix("presence.")
                self.seen[client][name].append(("presence", kind, payload["user"]))
                return
            position = got["position"] and Position.parse(got["position"])
            assert position is None or position.epoch == self.epochs[name]
            self.seen[client][name].append(("message", position and position.offset, payload))
        if got["position"] is not None:
            self.positions[client][name] = got["position"]

    async def tell(self, client: int, do: str, group: str, **more: Any) -> None:
        await self.sockets[client][0].send_text(json.dumps({"do": do, "group": group, **more}))

    def since(self, operation: Join) -> str | None:
        match operation.since:
            case "last":
                return self.positions[operation.client][operation.group]
            case "start":
                return f"{self.epochs[operation.group]}:0"
            case _:
                return None


async def perform(operation: Operation, model: Model, real: Real, now: float) -> None:
    match operation:
        case Drop(client, politely):
            if model.drop(client, now):
                ws, leave = real.sockets.pop(client)
                if not politely:
                    await ws.drop()
                leave.set()
        case Join(client, name, since, presence):
            if model.connect(client):
                await real.connect(client)
            offset = model.groups[name].offset
            if model.join(operation, now):
                position = {
                    "foreign": f"elsewhere:{offset}",
                    "future": f"{real.epochs[name]}:{offset + 1}",
                }.get(since or "", real.since(operation))
                await real.tell(client, "join", name, since=position, presence=presence)
        case Leave(client, name):
            if model.leave(client, name, now):
                await real.tell(client, "leave", name)
        case Send(client, name, keep, exclude_self):
            payload = model.send(operation, now)
            if payload is not None and client is None:
                await real.app.channels.send(name, payload, save_history=keep)
            elif payload is not None and client is not None:
                await real.tell(client, "send", name, payload=payload, keep=keep, exclude_self=exclude_self)
        case Flush(name):
            model.flush(name)
            await real.app.channels.flush_history(name)
        case Pass(seconds):
            await real.engine.sleep(real.app, seconds)


async def compare(model: Model, real: Real) -> None:
    for client in range(len(USERS)):
        assert real.seen[client] == model.seen[client], (client, USERS[client])
    assert real.sent == model.sent
    hub = real.app.channels.hub
    assert len(real.app.connections) == len(model.connected)
    assert set(hub.groups) == {name for name in GROUPS if model.groups[name].members}
    for name in GROUPS:
        group = model.groups[name]
        position, kept = await real.history(name)
        assert (position.epoch, position.offset) == (real.epochs[name], group.offset)
        assert [(m.offset, m.payload) for m in kept] == [(n, payload) for n, payload, _ in group.kept]
        present = await hub.broker.members(name)
        assert [real.names[member.connection] for member in present] == [
            client for client, presence in group.members.items() if presence
        ]


async def drive(steps: list[Operation], engine: Engine) -> None:
    model = Model()
    async with trio.open_nursery() as nursery:
        real = Real(nursery, engine)
        async with real.client:
            await real.start()
            for step in steps:
                await perform(step, model, real, trio.current_time())
                await engine.settle(real.app)
                await engine.sleep(real.app, TICK)
                model.until(trio.current_time())
                await engine.settle(real.app)
                await compare(model, real)
            for _, leave in real.sockets.values():
                leave.set()
            await engine.settle(real.app)
            assert not real.app.connections
            assert not real.app.channels.hub.groups
            nursery.cancel_scope.cancel()


def run(steps: list[Operation], engine: Engine) -> None:
    trio.run(drive, steps, engine, clock=engine.clock())


@pytest.mark.untraced
@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(operations)
def test_groups_history_and_presence_do_what_the_model_does(steps: list[Operation]) -> None:
    run(steps, Engine())


@pytest.mark.untraced
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=operations)
def test_over_redis_they_do_the_same(shared_redis: RedisServer, steps: list[Operation]) -> None:
    run(steps, RedisEngine(shared_redis.url))


THE_CASES_THAT_MATTER: list[Operation] = [
    Join(0, "a", None, True),
    Join(2, "a", "start", True),
    Send(0, "a", True, True),
    Send(2, "a", False, False),
    Send(None, "a", True, False),
    Drop(2, False),
    Send(None, "a", True, False),
    Join(2, "a", "last", True),
    Join(1, "a", "start", True),
    Drop(0, True),
    Pass(GRACE * 1.5),
    Leave(1, "a"),
    Pass(GRACE * 1.5),
    *[Send(2, "a", True, False)] * (KEPT + 1),
    Join(0, "a", "last", False),
    Join(0, "b", "future", True),
    Leave(0, "a"),
    Flush("a"),
    Join(0, "a", "last", True),
    Pass(AGE * 1.5),
    Leave(0, "a"),
    Join(0, "a", "foreign", True),
]


def test_the_model_meets_the_cases_that_matter() -> None:
    """One run by hand, so that a model which skips everything does not pass unseen."""
    run(THE_CASES_THAT_MATTER, Engine())


def test_over_redis_it_meets_them_as_well(shared_redis: RedisServer) -> None:
    run(THE_CASES_THAT_MATTER, RedisEngine(shared_redis.url))
