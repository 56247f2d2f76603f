"""The dashboard's server, in memory; test_dashboard_browser.py has the page."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from examples.dashboard import app, metrics, server
from examples.dashboard.metrics import Meter, Sample
from examples.dashboard.server import INTERVAL, KEPT
from nexios_trio.testing import TestClient, TestWebSocket


async def next_event(ws: TestWebSocket, type: str) -> dict[str, Any]:
    with trio.fail_after(300):
        while True:
            event: dict[str, Any] = await ws.receive_json()
            if event["type"] == "ping":
                await ws.send_json({"type": "pong"})
            if event["type"] == type:
                return event


async def test_samples_come_at_even_intervals_and_say_what_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client, client.connect("/samples") as ws, client.connect("/echo") as noise:
        assert (await next_event(ws, "history"))["samples"] == []
        times = []
        for number in range(4):
            sample = msgspec.convert(await next_event(ws, "sample"), Sample)
            times.append(trio.current_time())
            assert (sample.seq, sample.connections, sample.viewers) == (number, 2, 1)
            assert sample.memory > 1 << 20
            assert sample.tasks > 3
            for _ in range(10):
                await noise.send_text("x" * 1000)
                assert await noise.receive_text() == "x" * server.NOISE
        assert [later - time for time, later in itertools.pairwise(times)] == pytest.approx([INTERVAL] * 3)
        assert sample.received == 10 / INTERVAL
        assert sample.sent == 11 / INTERVAL  # ten echoes, and a sample


async def test_who_comes_later_gets_the_past_and_a_bounded_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client:
        await trio.sleep((KEPT + 10.5) * INTERVAL)
        async with client.connect("/samples") as ws:
            history = await next_event(ws, "history")
            numbers = [sample["seq"] for sample in history["samples"]]
            assert numbers == list(range(10, KEPT + 10))
            assert (await next_event(ws, "sample"))["seq"] == numbers[-1] + 1


async def test_a_slow_viewer_gets_the_newest_sample_and_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        TestClient(app, window=2, timeout=300) as client,
        client.connect("/samples") as fast,
        client.connect("/samples") as slow,
    ):
        for ws in (fast, slow):
            await next_event(ws, "history")
        await slow.stall()
        for _ in range(60):
            newest = await next_event(fast, "sample")
        assert newest["conflated"] > 40
        await slow.resume()
        got: list[int] = []
        while not got or got[-1] < newest["seq"]:
            got.append((await next_event(slow, "sample"))["seq"])
        assert len(got) < 10
        assert got == sorted(got)


async def test_what_was_left_out_is_still_counted_when_its_viewer_has_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app, window=2, timeout=300) as client, client.connect("/samples") as ws:
        async with client.connect("/samples") as slow:
            await next_event(slow, "history")
            await slow.stall()
            for _ in range(30):
                before = (await next_event(ws, "sample"))["conflated"]
        after = await next_event(ws, "sample")
        assert after["viewers"] == 1
        assert after["conflated"] >= before > 10


async def test_lag_is_what_a_nap_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.watch_lag)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        while trio.current_time() - before < 0.05:  # hold the loop
            pass
        await trio.sleep(0)
        await trio.testing.wait_all_tasks_blocked()
        sample = meter.sample(connections=0, viewers=0, sent=0, conflated=0)
        nursery.cancel_scope.cancel()
    assert sample.worst_lag >= 1000 * (0.05 - metrics.NAP)
    assert sample.cpu > 0


def test_where_there_is_no_proc_memory_is_the_most_ever_had(monkeypatch: pytest.MonkeyPatch) -> None:
    now = metrics.memory()
    monkeypatch.setattr(metrics, "STATM", metrics.STATM / "missing")
    assert metrics.memory() >= now * 0.9
