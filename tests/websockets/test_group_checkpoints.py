"""Joining, sending, looking back and leaving, cancelled at every step: all or nothing, and nothing left."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket
from nexios_trio.testing import TestClient, cancel_at_each_step
from nexios_trio.testing.checkpoints import Interrupter
from nexios_trio.websockets.groups import Group


def _tasks() -> set[trio.lowlevel.Task]:
    found, todo = set(), [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        if task is not None:
            found.add(task)
            todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


class Round:
    """One run: a member that is struck, and two that are not."""

    def __init__(self, interrupter: Interrupter) -> None:
        self.app = NexiosApp(presence_grace=1)
        self.interrupter = interrupter
        self.since = ""
        self.struck: WebSocket

        @self.app.ws_route("/struck")
        async def struck(ws: WebSocket) -> None:
            self.struck = ws
            await ws.accept()
            await interrupter.run(self.scenario, ws)
            hub = self.app.channels.hub
            assert ws.id not in [connection.id for connection in hub.groups["room"].members]
            assert not [user for user in await self.listed() if user == "struck"]
            assert not ws._connection._at_end
            await ws.send_text("alive")  # the connection goes on
            async with ws.join("room"):  # and may come back
                await ws.send_text("back")

        @self.app.ws_route("/other")
        async def other(ws: WebSocket) -> None:
            await ws.accept()
            async with ws.join("room", presence={}, user_id=ws.query_params["user"]) as group:
                self.other = group
                await ws.send_text("in")
                async for text in ws.iter_text():
                    await ws.send_text(text)

    other: Group

    async def listed(self) -> list[str]:
        return [user.user for user in await self.other.presence.list()]

    async def scenario(self, ws: WebSocket) -> None:
        async with ws.join("room", since=self.since, presence={"n": 1}, user_id="struck") as group:
            await group.send("one")
            await ws.send_text("direct")
            await group.history(2)
            await group.presence.list()
            await group.send({"n": 2}, exclude_self=True, save_history=False)
            await group.send(b"three")


async def test_every_step_of_a_membership_can_be_cancelled(autojump_clock: MockClock) -> None:
    rounds = struck = 0
    before = _tasks()
    async for interrupter in cancel_at_each_step():
        run = Round(interrupter)
        app, hub = run.app, run.app.channels.hub
        async with TestClient(app) as client:
            run.since = str((await app.channels.send("room", "missed 0")).position)
            for number in (1, 2):
                await app.channels.send("room", f"missed {number}")
            async with client.connect("/other?user=a") as a, client.connect("/other?user=b") as b:
                got: dict[str, list[str | bytes]] = {"a": [], "b": [], "struck": []}
                async with client.connect("/struck") as ws:
                    while (data := await ws._data()) != "alive":
                        got["struck"].append(data)
                    while await ws._data() != "back":
                        pass
                await trio.sleep(2)  # the grace of the presence
                for name, peer in (("a", a), ("b", b)):
                    await peer.send_text("end")
                    while (data := await peer._data()) != "end":
                        if not (isinstance(data, str) and '"presence.' in data) and data != "in":
                            got[name].append(data)
                # all or none, and in order
                assert got["a"] == got["b"] == ["one", '{"n":2}', b"three"][: len(got["a"])]
                kept = [m.payload for m in (await app.channels.show_history("room"))[3:]]
                assert kept == [data for data in got["a"] if data != '{"n":2}']
                mine = [
                    data for data in got["struck"] if not (isinstance(data, str) and '"presence.' in data)
                ]
                told = ["missed 1", "missed 2", "one", "direct", b"three"]
                assert mine == told[: len(mine)]
                assert sorted(await run.listed()) == ["a", "b"]
                assert len(hub.groups["room"].members) == hub.groups["room"].statistics.members == 2
            await wait_all_tasks_blocked()
            assert not hub.groups
            assert not hub._wanted
        if not interrupter.struck:
            assert len(got["a"]) == 3
            assert len(mine) == 5
        rounds += 1
        struck += interrupter.struck
    assert rounds == struck + 2
    assert struck >= 10
    await trio.sleep(2)
    assert _tasks() == before


@pytest.mark.untraced
async def test_every_step_of_a_replay_that_waits_for_the_client_can_be_cancelled(
    autojump_clock: MockClock,
) -> None:
    struck = 0
    async for interrupter in cancel_at_each_step():
        app = NexiosApp(limits=Limits(outbox_messages=20))

        @app.ws_route("/")
        async def handler(ws: WebSocket, interrupter: Interrupter = interrupter) -> None:
            await ws.accept()

            async def resume() -> None:
                async with ws.join("room", since=ws.query_params["since"]):
                    pass

            await interrupter.run(resume)
            assert not ws._connection._at_end
            await ws.send_text("end")

        async with TestClient(app, window=1) as client:
            since = (await app.channels.send("room", "0")).position
            for number in range(1, 90):
                await app.channels.send("room", str(number))
            got = []
            async with client.connect("/", params={"since": str(since)}) as ws:
                while (text := await ws.receive_text()) != "end":
                    got.append(text)
            assert got == [str(number) for number in range(1, len(got) + 1)]
            assert interrupter.struck or len(got) == 89
            assert not app.channels.hub.groups
        struck += interrupter.struck
    assert struck >= 3


async def test_a_connection_that_ends_while_it_joins_is_no_member(autojump_clock: MockClock) -> None:
    """At each step of the join the peer goes away, instead of a cancellation."""
    for steps in range(12):
        app, joined = NexiosApp(presence_grace=0.1, disconnect_grace=100), 0

        @app.ws_route("/")
        async def handler(ws: WebSocket) -> None:
            nonlocal joined
            await ws.accept()
            await ws.send_text("joining")
            async with ws.join("room", since=ws.query_params["since"], presence={}):
                joined += 1

        async with TestClient(app) as client:
            since = (await app.channels.send("room", "0")).position
            await app.channels.send("room", "1")
            async with client.connect("/", params={"since": str(since)}) as ws:
                await ws.receive_text()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await ws.drop()
            await trio.sleep(1)
            hub = app.channels.hub
            assert not hub.groups
            assert not hub._wanted
            assert await hub.broker.members("room") == ()
