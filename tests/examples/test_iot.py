"""Devices and operators, in memory, and the simulator against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from examples.iot import app, fleet, server
from examples.iot.device import Thermometer, live
from examples.iot.frames import Ack, Action, Frame, Heartbeat, Order, Result, Telemetry, pack, unpack
from examples.iot.server import ACK_WITHIN, ATTEMPTS, SILENCE, keys
from nexios_trio.testing import TestClient, TestServer, TestWebSocket, WebSocketRejected

WARM = Telemetry(0, 10, 2150, 4800, 4100)


@asynccontextmanager
async def device(client: TestClient, name: str) -> AsyncIterator[TestWebSocket]:
    headers = {"Authorization": f"Bearer {keys.token(name)}"}
    async with client.connect("/devices", headers=headers) as ws:
        await trio.testing.wait_all_tasks_blocked()  # it is in the fleet
        yield ws


@asynccontextmanager
async def operator(client: TestClient) -> AsyncIterator[tuple[TestWebSocket, dict[str, Any]]]:
    async with client.connect("/operators") as ws:
        await ws.send_json({"token": keys.token("operator")})
        yield ws, await until(ws, "fleet")


async def until(ws: TestWebSocket, type: str, **fields: Any) -> dict[str, Any]:
    """The next event of this type with these fields; others are passed over."""
    with trio.fail_after(60):
        while True:
            event: dict[str, Any] = await ws.receive_json()
            if event["type"] == type and fields.items() <= event.items():
                return event


async def say(ws: TestWebSocket, frame: Frame) -> None:
    await ws.send_bytes(pack(frame))


async def ordered(ws: TestWebSocket) -> Order:
    frame = unpack(await ws.receive_bytes())
    assert isinstance(frame, Order)
    return frame


async def give(ws: TestWebSocket, name: str, action: str = "blink", argument: object = 5) -> None:
    await ws.send_json({"type": "give", "device": name, "action": action, "argument": argument})


@pytest.mark.parametrize("token", [None, "", "guess", "d-001.guess", keys.token("d-001")[:-1] + "x", "demo"])
async def test_a_device_needs_a_token_of_its_own(
    token: str | None, autojump_clock: trio.testing.MockClock
) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as answer:
            async with client.connect("/devices", headers=headers):
                pass
        assert answer.value.status in (400, 401)
        async with operator(client) as (_, snapshot):
            assert snapshot["devices"] == []


async def test_an_operator_needs_the_key(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client:
        for first in ({"token": keys.token("d-001")}, {"token": "guess"}, {}):
            async with client.connect("/operators") as ws:
                await ws.send_json(first)
                assert await ws.wait_closed() == (4401, "authentication failed")


async def test_operators_see_what_devices_say(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _):
        async with device(client, "d-001") as thing:
            await until(ws, "device", id="d-001", online=True, temperature=None)
            await say(thing, WARM)
            row = await until(ws, "device", temperature=21.5)
            assert (row["humidity"], row["battery"], row["lost"]) == (48, 4.1, 0)
            await say(thing, Telemetry(4, 14, -500, 4800, 4100))
            row = await until(ws, "device", temperature=-5)
            assert row["lost"] == 3
            await say(thing, Heartbeat(60))
            await until(ws, "device", uptime=60)
            async with operator(client) as (_, snapshot):
                (row,) = snapshot["devices"]
                assert (row["id"], row["online"], row["uptime"]) == ("d-001", True, 60)
        await until(ws, "device", id="d-001", online=False, temperature=-5)


async def test_a_device_without_a_heartbeat_is_offline(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app, timeout=60) as client, operator(client) as (ws, _):
        async with device(client, "alive") as alive, device(client, "silent") as silent:
            await say(silent, WARM)
            start = trio.current_time()
            for _ in range(4):
                await trio.sleep(SILENCE / 3)
                await say(alive, Heartbeat(1))
            assert await silent.wait_closed() == (4408, "no heartbeat")
            row = await until(ws, "device", id="silent", online=False)
            assert trio.current_time() - start < SILENCE * 2
            assert row["temperature"] == 21.5
            assert server.app.state.fleet.devices["alive"].ws is not None


async def test_a_command_is_acknowledged(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001") as thing:
        await give(ws, "d-001", "interval", 250)
        order = await ordered(thing)
        assert (order.action, order.argument) == (Action.INTERVAL, 250)
        await until(ws, "command", id=order.command, state="waiting", attempts=1)
        await say(thing, Ack(order.command, Result.DONE))
        await until(ws, "command", id=order.command, state="done", attempts=1)
        await give(ws, "d-001", "blink", 1000)
        order = await ordered(thing)
        await say(thing, Ack(order.command, Result.REFUSED))
        await until(ws, "command", id=order.command, state="refused")


async def test_a_lost_command_is_sent_again_with_the_same_number(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001") as thing:
        await give(ws, "d-001")
        first = await ordered(thing)
        start = trio.current_time()
        assert await ordered(thing) == first
        assert trio.current_time() - start == pytest.approx(ACK_WITHIN)
        await say(thing, Ack(first.command, Result.DONE))
        await until(ws, "command", state="done", attempts=2)
        await say(thing, Ack(first.command, Result.DONE))  # late, and harmless
        await say(thing, Ack(first.command + 1, Result.DONE))
        await say(thing, WARM)
        await until(ws, "device", temperature=21.5)


async def test_a_device_that_never_answers_fails_the_command(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001") as thing:
        await give(ws, "d-001")
        got = [await ordered(thing) for _ in range(ATTEMPTS)]
        assert len({order.command for order in got}) == 1
        await until(ws, "command", state="failed", attempts=ATTEMPTS)
        async with operator(client) as (_, snapshot):
            assert [row["state"] for row in snapshot["commands"]] == ["failed"]


async def test_a_command_outlives_its_operator_and_reaches_a_device_that_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client:
        async with device(client, "d-001") as thing, operator(client) as (ws, _):
            await thing.drop()
            await until(ws, "device", online=False)
            await give(ws, "d-001")
            await until(ws, "command", attempts=1)
        async with device(client, "d-001") as thing:
            order = await ordered(thing)
            await say(thing, Ack(order.command, Result.DONE))
            await trio.sleep(1)
        async with operator(client) as (_, snapshot):
            assert [(row["state"], row["attempts"]) for row in snapshot["commands"]] == [("done", 2)]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"type": "give", "device": "nobody", "action": "blink"}, "there is no device 'nobody'"),
        ({"type": "give", "device": "d-001", "action": "explode"}, "invalid enum value at $.action"),
        ({"type": "give", "device": "d-001", "action": "blink", "argument": 1 << 40}, "expected int"),
        ({"type": "take"}, "invalid value at $.type"),
    ],
)
async def test_an_operator_is_told_what_is_wrong(
    message: dict[str, Any], problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001") as thing:
        await ws.send_json(message)
        assert (await until(ws, "problem"))["text"].startswith(problem)
        await give(ws, "d-001")
        await ordered(thing)


async def test_commands_for_one_device_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001"):
        await until(ws, "device", online=True)
        for _ in range(fleet.MAX_WAITING + 1):
            await give(ws, "d-001")
        assert "wait for d-001 already" in (await until(ws, "problem"))["text"]


@pytest.mark.parametrize("bad", [b"", b"\xff", b"\x01short", pack(Order(1, Action.BLINK, 1)), "text"])
async def test_what_is_no_frame_ends_that_device_s_connection_only(
    bad: bytes | str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        TestClient(app) as client,
        operator(client) as (ws, _),
        device(client, "good") as good,
        device(client, "bad") as thing,
    ):
        await (thing.send_text(bad) if isinstance(bad, str) else thing.send_bytes(bad))
        code, _ = await thing.wait_closed()
        assert code == (1003 if isinstance(bad, str) else 1007)
        await until(ws, "device", id="bad", online=False)
        await say(good, WARM)
        await until(ws, "device", id="good", temperature=21.5)


async def test_a_second_connection_of_a_device_takes_the_place_of_the_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client, operator(client) as (ws, _), device(client, "d-001") as before:
        async with device(client, "d-001") as after:
            assert await before.wait_closed() == (4001, "replaced by a newer connection")
            await say(after, WARM)
            await until(ws, "device", online=True, temperature=21.5)
            assert server.app.state.fleet.devices["d-001"].ws is not None
        await until(ws, "device", online=False)


async def test_when_there_are_too_many_those_that_are_gone_are_forgotten_first(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MAX_DEVICES", 2)
    async with TestClient(app) as client:
        async with device(client, "gone"):
            pass
        async with device(client, "one"), device(client, "two"):
            await trio.testing.wait_all_tasks_blocked()
            assert {*server.app.state.fleet.devices} == {"one", "two"}
            async with device(client, "three") as third:
                assert await third.wait_closed() == (1013, "no place left, try again later")


async def test_a_slow_operator_gets_the_last_of_each_device(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        TestClient(app, window=3, timeout=300) as client,
        operator(client) as (slow, _),
        device(client, "one") as one,
        device(client, "two") as two,
    ):
        await slow.stall()
        for number in range(100):
            for thing in (one, two):
                await say(thing, Telemetry(number, number, number, 0, 0))
            await trio.sleep(0.25)
        await slow.resume()
        last: dict[str, int] = {}
        count = 0
        while last != {"one": 99, "two": 99}:
            row = await until(slow, "device")
            last[row["id"]] = row["uptime"]
            count += 1
        assert count < 30


async def test_simulated_devices_report_obey_and_come_back(
    nexios_server: Callable[..., Awaitable[TestServer]],
) -> None:
    real = await nexios_server(app)
    state: fleet.Fleet = app.state.fleet
    things = [Thermometer(Random(number), trio.current_time, interval=0.05) for number in range(3)]

    async def holds(condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for number, thing in enumerate(things):
            name = f"s-{number}"
            nursery.start_soon(live, name, keys.token(name), f"{real.url}/devices", thing)
        await holds(
            lambda: len(state.devices) == 3 and all(each.telemetry for each in state.devices.values())
        )
        for action, argument in ((Action.INTERVAL, 100), (Action.BLINK, 0), (Action.RESTART, 0)):
            command = state.order("s-1", action, argument)
            assert isinstance(command, fleet.Command)
            app.start_soon(server.deliver, state, command)
            await holds(lambda command=command: command.state != "waiting")  # type: ignore[misc]
            assert command.state == ("refused" if action is Action.BLINK else "done")
        await holds(lambda: things[1].restarts == 1 and state.devices["s-1"].ws is not None)
        nursery.cancel_scope.cancel()
    await holds(lambda: all(each.ws is None for each in state.devices.values()))
