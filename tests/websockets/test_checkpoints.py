"""A handler is cancelled at its every step: nothing is lost, nothing leaks, nobody else is disturbed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.testing import TestClient, WebSocketRejected, cancel_at_each_step
from nexios_trio.testing.checkpoints import Interrupter
from nexios_trio.transports.asgi import AsgiTransport
from nexios_trio.transports.states import State
from tests.lanes import Lane

LEGAL_CODES = {1000, 4000}


async def _tick(ws: WebSocket) -> None:
    while True:
        await ws.send_text("tick")
        await trio.sleep(1)


async def _scenario(ws: WebSocket) -> None:
    await ws.accept()
    ws.start_soon(_tick, ws)
    await ws.send_text("hello")
    for _ in range(3):
        await ws.send_text(await ws.receive_text())
    await ws.send_json({"n": 1})
    await ws.send_bytes(b"bytes")
    await ws.close(4000, "done")


class Watch:
    """What must hold after each round."""

    def __init__(self, app: NexiosApp, interrupter: Interrupter) -> None:
        self.app = app
        self.seen: list[WebSocket] = []
        self.interrupter = interrupter

        @app.ws_route("/scenario")
        async def scenario(ws: WebSocket) -> None:
            self.seen.append(ws)
            await interrupter.run(_scenario, ws)

        @app.ws_route("/neighbour")
        async def neighbour(ws: WebSocket) -> None:
            await ws.accept()
            async for text in ws.iter_text():
                await ws.send_text(text)

    def check(self) -> None:
        (ws,) = self.seen
        transport = ws._transport
        assert len(self.app.connections) == 0
        assert transport.state in (State.CLOSED, State.REJECTED)
        if isinstance(transport, AsgiTransport):
            assert not transport._sending
            assert not transport._queue
        else:
            assert not transport.unsent


def _tasks() -> set[trio.lowlevel.Task]:
    found, todo = set(), [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        if task is not None:
            found.add(task)
            todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def test_in_memory_every_step_of_a_handler_can_be_cancelled(autojump_clock: MockClock) -> None:
    rounds = struck = 0
    before = _tasks()
    async for interrupter in cancel_at_each_step():
        watch = Watch(NexiosApp(), interrupter)
        texts: list[str | bytes] = []
        async with TestClient(watch.app) as client, client.connect("/neighbour") as neighbour:
            try:
                async with client.connect("/scenario") as ws:
                    for text in ("a", "b", "c"):
                        await ws.send_text(text)
                    try:
                        while True:
                            texts.append(await ws._data())
                    except WebSocketDisconnect as over:
                        assert over.code in LEGAL_CODES
                        assert over.by == "peer"  # a Close frame came, no bare end
            except WebSocketRejected as rejected:
                assert rejected.status == 403
            except WebSocketDisconnect:
                pass  # closed while the client was still sending
            await neighbour.send_text("still there?")
            assert await neighbour.receive_text() == "still there?"
        # whole messages in order, and none out of thin air
        told = [text for text in texts if text != "tick"]
        assert told == ["hello", "a", "b", "c", '{"n":1}', b"bytes"][: len(told)]
        if not interrupter.struck:
            assert len(told) == 6
        watch.check()
        rounds += 1
        struck += interrupter.struck
    assert rounds == struck + 2
    assert struck >= 15
    assert _tasks() == before


async def test_over_a_socket_every_step_of_a_handler_can_be_cancelled(
    lane_clock: MockClock, lane: Lane
) -> None:
    if lane.name == "memory":
        return  # the test above
    struck = 0
    before = _tasks()
    async for interrupter in cancel_at_each_step():
        watch = Watch(NexiosApp(), interrupter)
        async with lane.serving(watch.app), lane.connect("/neighbour") as neighbour:
            try:
                async with lane.connect("/scenario") as peer:
                    for text in ("a", "b", "c"):
                        await peer.send(text)
                    code, _ = await peer.wait_closed()
                    assert code in LEGAL_CODES
            except AssertionError as rejected:
                assert "status_code=403" in str(rejected)
            await neighbour.send("still there?")
            assert await neighbour.receive() == "still there?"
        watch.check()
        struck += interrupter.struck
    # On the engine neither a send that the kernel takes nor a message that has come already is a step.
    assert struck >= (3 if lane.name == "engine" else 15)
    assert _tasks() == before


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_round_trip_that_is_cancelled_at_any_step_can_be_taken_up_again(
    when: str, autojump_clock: MockClock
) -> None:
    """The connection goes on after the cancellation: every message arrives once, in order."""
    numbers = [str(number) for number in range(8)]
    for k in range(1, 60):
        app = NexiosApp()
        interrupter = Interrupter(k, when)  # type: ignore[arg-type]
        taken: list[str] = []

        @app.ws_route("/")
        async def handler(
            ws: WebSocket, interrupter: Interrupter = interrupter, taken: list[str] = taken
        ) -> None:
            await ws.accept()

            async def copy() -> None:
                while len(taken) < len(numbers):
                    taken.append(await ws.receive_text())

            await interrupter.run(copy)
            await copy()
            await ws.send_text(",".join(taken))

        async with TestClient(app) as client, client.connect("/") as ws:
            for number in numbers:
                await ws.send_text(number)
                await trio.sleep(0.1)
            assert await ws.receive_text() == ",".join(numbers)
        if not interrupter.struck:
            return
    raise AssertionError("never ran to its end")
