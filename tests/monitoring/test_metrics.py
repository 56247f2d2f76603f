"""Metrics, as Prometheus reads them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx2
import pytest
import trio
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from nexios_trio import Limits, NexiosApp, Overflow, Rate, WebSocket
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.monitoring.families import Family, merged, read, written
from nexios_trio.monitoring.metrics import DEAD_AFTER, Metrics
from nexios_trio.monitoring.recorder import Recorder
from nexios_trio.testing import TestClient, WebSocketRejected
from tests.lanes import Lane, lane, lane_clock, lane_name

__all__ = ["lane", "lane_clock", "lane_name"]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def chat(**options: object) -> NexiosApp:
    app = NexiosApp(**options)  # type: ignore[arg-type]

    @app.ws_route("/rooms/{room}", rate_limit=Rate(1000))
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async with ws.join(room) as group:
            async for text in ws.iter_text():
                await group.send(text)

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(401)

    return app


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def scrape(app: NexiosApp, path: str = "/metrics", **options: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://server", headers=options, follow_redirects=True
    ) as client:
        return await client.get(path)


async def numbers(app: NexiosApp) -> Samples:
    response = await scrape(app)
    assert response.status_code == 200
    return samples(response.text)


def route(name: str) -> tuple[tuple[str, str], ...]:
    return (("route", name),)


async def test_a_scrape_has_what_happened_on_each_route(lane: Lane) -> None:
    app = chat()
    app.mount("/metrics", Metrics(app))
    async with lane.serving(app):
        async with lane.connect("/rooms/7") as one, lane.connect("/rooms/7") as two:
            groups = app.channels.hub.groups
            while "7" not in groups or len(groups["7"].members) < 2:  # they join after they have accepted
                await trio.lowlevel.checkpoint()
            await one.send("hello")
            assert await one.receive() == "hello"
            assert await two.receive() == "hello"
            seen = await numbers(app)
            room = route("/rooms/{room}")
            assert seen["nexios_connections", room] == 2
            assert seen["nexios_connections_opened_total", room] == 2
            assert seen["nexios_messages_received_total", room] == 1
            assert seen["nexios_messages_sent_total", room] == 2
            assert seen["nexios_received_bytes_total", room] == 5
            assert seen["nexios_sent_bytes_total", room] == 10
            assert seen["nexios_group_members", (("group", "7"),)] == 2
            assert seen["nexios_groups", ()] == 1
            assert seen["nexios_latency_seconds_count", room] == 1
            assert seen["nexios_broker_lag_seconds_count", ()] == 1
            assert seen["nexios_broker_available", ()] == 1
            assert seen["nexios_draining_workers", ()] == 0
            assert seen["nexios_workers", ()] == 1
    seen = await numbers(app)
    assert seen["nexios_connections", room] == 0
    assert seen["nexios_messages_sent_total", room] == 2  # what ended connections did stays
    assert seen["nexios_connection_seconds_count", room] == 2
    closed = {key: value for key, value in seen.items() if key[0] == "nexios_connections_closed_total"}
    assert sum(closed.values()) == 2


async def test_refusals_and_rate_limits_are_counted_by_cause(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(query_bytes=10))
    app.mount("/metrics", Metrics(app))

    @app.ws_route("/slow", rate_limit=Rate(1, burst=1))
    async def slow(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(401)

    async with TestClient(app) as client:
        for path in ("/no?" + "x" * 100, "/no"):
            with pytest.raises(WebSocketRejected):
                async with client.connect(path):
                    pass
        async with client.connect("/slow") as ws:
            for text in ("a", "b"):
                await ws.send_text(text)
                assert await ws.receive_text() == text
        seen = await numbers(app)
    assert seen["nexios_refused_total", (("cause", "query_bytes"),)] == 1
    assert seen["nexios_connections_rejected_total", route("/no")] == 1
    assert seen["nexios_rate_limited_total", (("action", "delay"),)] == 1


async def test_what_an_overflow_rule_took_out_is_counted_also_after_the_end(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(limits=Limits(outbox_messages=2))
    app.mount("/metrics", Metrics(app))

    @app.ws_route("/ticker")
    async def ticker(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("ticks", overflow=Overflow.DROP_OLDEST):
            await ws.receive_text()

    async with TestClient(app, window=1) as client:
        async with client.connect("/ticker") as ws:
            await trio.testing.wait_all_tasks_blocked()
            await ws.stall()
            for number in range(20):
                await app.channels.send("ticks", number)
            during = await numbers(app)
            dropped = during["nexios_dropped_total", (("rule", "drop_oldest"),)]
            assert dropped > 0
            assert during["nexios_outbox_messages", ()] == 2
            assert during["nexios_outbox_longest_messages", ()] == 2
            await ws.drop()
        await trio.testing.wait_all_tasks_blocked()
        after = await numbers(app)
    assert after["nexios_dropped_total", (("rule", "drop_oldest"),)] >= dropped
    assert after["nexios_outbox_messages", ()] == 0


async def test_close_codes_that_clients_make_up_share_a_label() -> None:
    app = chat()
    recorder = Recorder.of(app)
    async with TestClient(app) as client:
        for code in (1000, 4001, 4002, 3500):
            async with client.connect("/rooms/1") as ws:
                await ws.close(code)
    closed = recorder.routes["/rooms/{room}"].closed
    assert closed == {("1000", "peer"): 1, ("4xxx", "peer"): 2, ("3xxx", "peer"): 1}


async def test_only_the_largest_groups_are_named() -> None:
    app = chat()
    app.mount("/metrics", Metrics(app, groups=1))
    async with TestClient(app) as client:
        async with client.connect("/rooms/small"), client.connect("/rooms/big"), client.connect("/rooms/big"):
            await trio.testing.wait_all_tasks_blocked()
            seen = await numbers(app)
    named = {key[1]: value for key, value in seen.items() if key[0] == "nexios_group_members"}
    assert named == {(("group", "big"),): 2}
    assert seen["nexios_groups", ()] == 2


async def test_the_event_loop_is_looked_at_while_the_app_runs(autojump_clock: MockClock) -> None:
    app = chat()
    app.mount("/metrics", Metrics(app))
    for _ in range(2):  # an app may run twice
        async with TestClient(app):
            await trio.sleep(10.1)
    assert (await numbers(app))["nexios_loop_lag_seconds_count", ()] == 40


async def test_a_drained_app_says_so() -> None:
    app = chat()
    app.mount("/metrics", Metrics(app))
    async with TestClient(app):
        await app.drain()
        assert (await numbers(app))["nexios_draining_workers", ()] == 1


async def test_only_get_is_answered_and_openmetrics_to_whom_it_pleases() -> None:
    app = chat()
    app.mount("/metrics", Metrics(app))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://server", follow_redirects=True
    ) as client:
        assert (await client.post("/metrics")).status_code == 405
        wanted = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = await client.get("/metrics", headers=wanted)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    async with TestClient(app) as ours:
        with pytest.raises(WebSocketRejected):
            async with ours.connect("/metrics"):
                pass


async def test_numbers_of_your_own_come_along_in_a_registry_of_yours() -> None:
    registry = CollectorRegistry()
    orders = Counter("orders", "Orders.", registry=registry)
    orders.inc(3)
    app = chat()
    app.mount("/metrics", Metrics(app, registry=registry, prefix="shop_"))
    seen = await numbers(app)
    assert seen["orders_total", ()] == 3
    assert seen["shop_workers", ()] == 1


# Several workers


async def test_whichever_worker_is_asked_answers_for_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    apps = [chat(), chat()]
    for app in apps:
        app.mount("/metrics", Metrics(app, directory=tmp_path))
    async with TestClient(apps[0]) as one, TestClient(apps[1]) as two:
        async with one.connect("/rooms/1") as first, two.connect("/rooms/1"), two.connect("/rooms/2"):
            await first.send_text("x")
            await first.receive_text()
            await trio.sleep(2)  # both have written
            await trio.testing.wait_all_tasks_blocked()
            for app in apps:
                seen = await numbers(app)
                assert seen["nexios_connections", route("/rooms/{room}")] == 3
                assert seen["nexios_messages_received_total", route("/rooms/{room}")] == 1
                assert seen["nexios_latency_seconds_count", route("/rooms/{room}")] == 1
                assert seen["nexios_group_members", (("group", "1"),)] == 2
                assert seen["nexios_broker_available", ()] == 1
                assert seen["nexios_workers", ()] == 2
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert not list(tmp_path.glob("*.part"))


async def test_counters_of_a_worker_that_has_ended_stay_and_its_gauges_go(tmp_path: Path) -> None:
    old = Family("messages_received", "counter", "", ("route",))
    old.put(5, "/rooms/{room}")
    gauge = Family("connections", "gauge", "", ("route",))
    gauge.put(7, "/rooms/{room}")
    path = tmp_path / "1-dead.json"
    path.write_text(written([old, gauge], time.time() - 2 * DEAD_AFTER))
    (tmp_path / "2-broken.json").write_text("{")
    app = chat()
    app.mount("/metrics", Metrics(app, directory=tmp_path))
    async with TestClient(app) as client:
        async with client.connect("/rooms/1") as ws:
            await ws.send_text("x")
            await ws.receive_text()
            seen = await numbers(app)
    assert seen["nexios_messages_received_total", route("/rooms/{room}")] == 6
    assert seen["nexios_connections", route("/rooms/{room}")] == 1
    assert seen["nexios_workers", ()] == 1


async def test_a_directory_that_cannot_be_written_ends_nothing(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = chat()
    metrics = Metrics(app, directory=tmp_path / "shared")
    app.mount("/metrics", metrics)
    async with TestClient(app) as client:
        for path in (tmp_path / "shared").iterdir():
            path.unlink()
        (tmp_path / "shared").rmdir()
        (tmp_path / "shared").touch()  # a file where the directory was
        await trio.sleep(3)
        async with client.connect("/rooms/1") as ws:
            await ws.send_text("x")
            assert await ws.receive_text() == "x"
        assert "cannot write metrics" in caplog.text
        (tmp_path / "shared").unlink()  # and it goes on when there is room again
        await trio.sleep(3)
        await trio.testing.wait_all_tasks_blocked()
        assert len(list((tmp_path / "shared").iterdir())) == 1


@pytest.mark.parametrize("way", ["anybody may write", "of somebody else", "a link of somebody else"])
async def test_a_directory_that_others_may_write_to_is_refused(way: str, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    if way == "a link of somebody else":
        directory.symlink_to(tmp_path)
    else:
        directory.mkdir()
    if way == "anybody may write":
        directory.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(directory, 12345, 12345, follow_symlinks=False)
    else:
        pytest.skip("ONLY ROOT can make what belongs to somebody else")
    app = chat()
    app.mount("/metrics", Metrics(app, directory=directory))
    with pytest.raises(WrongValueError, match="can be written by other users"):
        async with TestClient(app):
            pass
    assert list(tmp_path.glob("*.json")) == []


async def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    app = chat()
    app.mount("/metrics", Metrics(app, directory=tmp_path / "run" / "metrics"))
    async with TestClient(app):
        assert (tmp_path / "run" / "metrics").stat().st_mode & 0o077 == 0


def test_workers_of_two_versions_leave_out_what_does_not_fit() -> None:
    own = Family("x", "counter", "", ("route",))
    own.put(1, "a")
    other = Family("x", "counter", "", ("route", "code"))
    other.put(5, "a", "1000")
    unknown = Family("y", "gauge", "")
    (result,) = merged([own], [([other, unknown], True)])
    assert result.values == {("a",): 1}


def test_what_is_written_is_read_again() -> None:
    family = Family("lag", "histogram", "Late.", ("route",), bounds=(0.1, 1.0))
    family.counts["/a",] = [1, 2, 3]
    family.values["/a",] = 4.5
    assert read(written([family], 17.0)) == ([family], 17.0)


@pytest.mark.parametrize(
    ("was", "became"),
    [
        ('"time": 17.0', '"time": "soon"'),
        ('[["/a", 2.0]]', '[["/a", "two"]]'),
        ('[["/a", [1, 0, 1]]]', '[["/a", [1]]]'),
        ('[["/a", [1, 0, 1]]]', '[["/a", {}]]'),
    ],
)
def test_what_another_worker_cannot_have_written_is_an_error_where_it_is_read(was: str, became: str) -> None:
    family = Family(*("length", "histogram", "It.", ("route",)), values={("/a",): 2.0}, bounds=(1.0, 2.0))
    family.counts[("/a",)] = [1, 0, 1]
    text = written([family], 17.0)
    assert read(text) == ([family], 17.0)
    assert was in text
    with pytest.raises((ValueError, TypeError, LookupError)):
        read(text.replace(was, became))


@pytest.mark.parametrize(("groups", "error"), [(-1, WrongValueError), (True, WrongValueError)])
def test_a_bad_number_of_groups_is_told(groups: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="0 to 1000"):
        Metrics(chat(), groups=groups)


def test_metrics_are_those_of_an_app() -> None:
    with pytest.raises(WrongTypeError, match="takes a NexiosApp"):
        Metrics(object())  # type: ignore[arg-type]
