"""The game's server, in memory; test_game_world.py has the rules, test_game_browser.py the page."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from examples.game import app, server
from examples.game.server import MAX_MISTAKES
from nexios_trio.testing import TestClient, TestWebSocket


async def next_event(ws: TestWebSocket, type: str, **fields: Any) -> dict[str, Any]:
    """The next event of this type with these fields; others are passed over, pings answered."""
    with trio.fail_after(60):
        while True:
            event: dict[str, Any] = await ws.receive_json()
            if event["type"] == "ping":
                await ws.send_json({"type": "pong"})
            if event["type"] == type and fields.items() <= event.items():
                return event


async def join(ws: TestWebSocket, name: str) -> int:
    await ws.send_json({"type": "join", "name": name})
    number: int = (await next_event(ws, "welcome"))["id"]
    return number


async def where(ws: TestWebSocket, id: int) -> tuple[float, float]:
    state = await next_event(ws, "state")
    return next((ship[1], ship[2]) for ship in state["ships"] if ship[0] == id)


async def steer(ws: TestWebSocket, x: object, y: object, seq: object = 0) -> None:
    await ws.send_json({"type": "steer", "seq": seq, "x": x, "y": y})


async def test_players_see_each_other_come_move_and_go(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, client.connect("/play") as ada:
        assert (await next_event(ada, "arena"))["width"] == 1600
        ada_id = await join(ada, "Ada")
        async with client.connect("/play") as grace:
            grace_id = await join(grace, " Grace\u200b \n H ")
            names = {str(ada_id): "Ada", str(grace_id): "Grace H"}
            await next_event(ada, "roster", names=names, watching=2)
            await next_event(grace, "roster", names=names)
            start, _ = await where(grace, ada_id)
            for seq in range(60):
                await steer(ada, 1 if start < 800 else -1, 0, seq)
                await trio.sleep(1 / 60)
            while abs((await where(grace, ada_id))[0] - start) < 100:
                pass
            assert server.app.state.game.world.ships[ada_id].seq == 59
        await next_event(ada, "roster", names={str(ada_id): "Ada"}, watching=1)


async def test_snapshots_come_twenty_times_a_second_and_stop_when_nobody_looks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client:
        async with client.connect("/play") as ws:
            first = await next_event(ws, "state")
            for _ in range(20):
                last = await next_event(ws, "state")
            assert last["at"] - first["at"] == 1000
        await trio.testing.wait_all_tasks_blocked()
        tick = server.app.state.game.world.tick
        await trio.sleep(3600)
        assert server.app.state.game.world.tick <= tick + 1
        async with client.connect("/play") as ws:
            await next_event(ws, "state")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "invalid JSON: the document is cut short or malformed"),
        ('{"type": "steer", "seq": 0, "x": NaN, "y": 0}', "invalid JSON: invalid character"),
        ('{"type": "steer", "seq": 0, "x": 1e300, "y": 0}', "expected float <= 1.0 at $.x"),
        ('{"type": "steer", "seq": -1, "x": 0, "y": 0}', "expected int >= 0 at $.seq"),
        ('{"type": "steer", "seq": 0, "x": "left", "y": 0}', "expected float, got str at $.x"),
        ('{"type": "win"}', "invalid value at $.type"),
        ('{"type": "join", "name": "Ada again"}', "you have a ship already"),
        (b"\x01\x02", "expected a text message, got a binary one"),
    ],
)
async def test_bad_input_is_answered_by_name_and_moves_nobody(
    bad: str | bytes, problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        TestClient(app) as client,
        client.connect("/play") as ada,
        client.connect("/play") as grace,
    ):
        ada_id, grace_id = await join(ada, "Ada"), await join(grace, "Grace")
        before = [await where(grace, ship) for ship in (ada_id, grace_id)]
        await (ada.send_text(bad) if isinstance(bad, str) else ada.send_bytes(bad))
        assert (await next_event(ada, "problem"))["text"].startswith(problem)
        await trio.sleep(0.5)
        assert [await where(grace, ship) for ship in (ada_id, grace_id)] == before
        await steer(ada, 0, 0)
        assert await where(ada, ada_id) == before[0]


async def test_who_sends_nothing_but_nonsense_is_sent_away(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        TestClient(app) as client,
        client.connect("/play") as good,
        client.connect("/play") as bad,
    ):
        await join(good, "Good")
        bad_id = await join(bad, "Bad")
        for _ in range(MAX_MISTAKES + 1):
            await steer(bad, 2, 2)
        assert await bad.wait_closed() == (1008, "too many bad messages")
        while str(bad_id) in (await next_event(good, "roster"))["names"]:
            pass


async def test_a_flood_of_inputs_is_dropped_and_slows_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        TestClient(app) as client,
        client.connect("/play") as calm,
        client.connect("/play") as flood,
        trio.open_nursery() as nursery,
    ):
        calm_id, flood_id = await join(calm, "Calm"), await join(flood, "Flood")
        ships = server.app.state.game.world.ships

        async def read(ws: TestWebSocket) -> None:
            while True:
                await ws.receive_json()

        nursery.start_soon(read, flood)
        dropped = app.guard.counts["rate_limit.drop"]
        for seq in range(1000):
            await steer(flood, 1, 0, seq)
        await steer(calm, 0, 1, 7)
        await trio.sleep(0.1)
        assert app.guard.counts["rate_limit.drop"] - dropped > 700
        assert ships[calm_id].seq == 7
        await trio.sleep(1)
        await steer(flood, 0, 1, 2000)  # what comes later counts again
        await trio.testing.wait_all_tasks_blocked()
        assert ships[flood_id].seq == 2000
        nursery.cancel_scope.cancel()


async def test_who_reads_slowly_gets_the_newest_and_nobody_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        TestClient(app, window=4) as client,
        client.connect("/play") as ada,
        client.connect("/play") as slow,
    ):
        await join(ada, "Ada")
        await next_event(slow, "state")
        await slow.stall()
        for _ in range(200):
            newest = await next_event(ada, "state")
        await slow.resume()
        got = 0
        while (await next_event(slow, "state"))["at"] < newest["at"]:
            got += 1
        assert got < 10


async def test_a_full_arena_takes_nobody_else(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_SHIPS", 1)
    async with (
        TestClient(app) as client,
        client.connect("/play") as ada,
        client.connect("/play") as late,
    ):
        await join(ada, "Ada")
        await late.send_json({"type": "join", "name": "Late"})
        assert (await next_event(late, "problem"))["text"] == "the arena is full, try again later"
        await next_event(late, "state")  # and may watch
    async with TestClient(app) as client, client.connect("/play") as ws:
        await ws.send_json({"type": "join", "name": "\u200b"})
        assert (await next_event(ws, "problem"))["text"] == "a name needs a visible character"
