"""``nexios-trio bench``: what it measures, and what it says about itself."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections import Counter
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.cli.bench import _progress, _remarks
from nexios_trio.cli.histogram import Histogram, duration
from nexios_trio.cli.load import CLOSING, Load, Plan, _Client, run_load
from nexios_trio.cli.target import ConnectError, parse_url
from nexios_trio.wire import Event, State
from tests.cli.commands import COMMAND, an_app, run


def plan(url: str, **options: Any) -> Plan:
    target = parse_url(None, None, url)  # type: ignore[arg-type]
    given: dict[str, Any] = {
        "context": None,
        "headers": [],
        "subprotocols": (),
        "timeout": 10.0,
        "clients": 3,
        "seconds": 0.3,
        "message": "hello",
        "rate": None,
        **options,
    }
    return Plan(target, **given)


async def load_of(url: str, **options: Any) -> Load:
    load = Load()
    await run_load(plan(url, **options), load, trio.Event())
    return load


@pytest.mark.parametrize("message", ["hello", b"\x00\xff", "", "ä" * 70_000])
async def test_each_message_is_answered_once(nexios_server: Any, message: str | bytes) -> None:
    app = an_app()
    server = await nexios_server(app, fast_lane=True)
    load = await load_of(f"{server.url}/echo", message=message)
    assert load.connected == load.dialed == 3
    assert 0 < load.answered <= load.sent <= load.answered + 3
    assert (load.others, load.unasked, load.problems) == (0, 0, Counter())
    assert len(load.unanswered) == load.sent - load.answered
    assert load.elapsed >= 0.3
    assert load.latencies.rows()
    server.stop()
    await server.wait_stopped()
    assert set(app.state.ends) <= {1000, 1006}  # 1006: cut in the middle of a frame, which cannot be closed
    assert len(app.state.ends) == 3


async def test_with_a_rate_messages_are_due_at_fixed_times(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    load = await load_of(f"{server.url}/echo", rate=100.0, seconds=0.5)
    assert 1 <= load.sent <= 51  # as fast as it goes it would be thousands
    assert load.problems == Counter()


async def test_a_message_that_was_due_while_the_server_stalled_counts_from_then(nexios_server: Any) -> None:
    app = NexiosApp()

    @app.ws_route("/slow-start")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        first = await ws.receive_text()
        await trio.sleep(0.4)
        await ws.send_text(first)
        async for text in ws.iter_text():
            await ws.send_text(text)

    server = await nexios_server(app, fast_lane=True)
    load = await load_of(f"{server.url}/slow-start", clients=1, rate=50.0, seconds=2.0)
    # 20 messages were due in these 0.4 seconds; measured from when they could be sent only the first is slow.
    waited = sum(count for start, _, count in load.latencies.rows() if start >= 0.1)
    assert waited >= 10


async def test_a_server_that_does_not_answer_has_its_messages_counted(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    options = plan(f"{server.url}/deaf")
    load = Load()
    await run_load(options, load, trio.Event())
    assert (load.sent, load.answered, len(load.unanswered)) == (3, 0, 3)
    assert "3 messages had no answer at the end" in "\n".join(_remarks(options, load))


async def test_answers_that_are_no_echo_are_said(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    options = plan(f"{server.url}/many", seconds=5.0)
    load = Load()
    await run_load(options, load, trio.Event())
    assert load.problems == {"closed by the server: 4001 enough \x1b[31m\nclosed: 1000": 3}
    assert load.others + load.unasked == 9


async def test_nobody_who_can_connect_is_an_error_with_the_reason(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    with pytest.raises(ConnectError, match="refused: HTTP 403 Forbidden"):
        await load_of(f"{server.url}/no")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0-x\r\n\r\n", "is not HTTP"),
        (None, "no answer to the handshake within 0.1 seconds"),
    ],
)
async def test_what_is_no_websocket_server_is_told(answer: bytes | None, problem: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if answer is None:
                await trio.sleep_forever()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectError, match=problem):
            await load_of(f"ws://127.0.0.1:{port}/", timeout=0.1 if answer is None else 10.0)
        nursery.cancel_scope.cancel()


async def test_stopped_while_it_connects_it_has_nothing_and_says_so() -> None:
    async def mute(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, mute, 0)
        port = listener.socket.getsockname()[1]
        stop, load = trio.Event(), Load()
        async with trio.open_nursery() as inner:
            inner.start_soon(run_load, plan(f"ws://127.0.0.1:{port}/"), load, stop)
            await trio.testing.wait_all_tasks_blocked()
            stop.set()
        nursery.cancel_scope.cancel()
    assert (load.connected, load.answered) == (0, 0)


async def test_the_report_has_a_histogram_and_what_the_client_itself_used(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    url = f"{server.url}/echo"
    done = await run("bench", "-c", "2", "-t", "0.3", "--size", "100", "--progress", url)
    assert done.code == 0, done.err
    first, second, *rest = done.out.splitlines()
    assert first == url
    assert second.startswith("2 of 2 clients, 100 bytes of text, 0.3 s")
    assert any(line.startswith("latency: min") and "p99.9" in line for line in rest)
    assert any("#" in line and "%" in line for line in rest)
    assert any(line.startswith("this process used") for line in rest)
    assert any(line.startswith("its timers ran late by") for line in rest)
    assert "messages/s" in done.err
    assert done.err.endswith("\r\x1b[K")


async def test_the_result_as_json_adds_up(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    done = await run("bench", "-c", "2", "-t", "0.3", "--json", f"{server.url}/echo")
    result = json.loads(done.out)
    assert done.err == ""  # no terminal, no progress bar
    assert sum(row["count"] for row in result["histogram"]) == result["answered"] > 0
    assert result["sent"] == result["answered"] + result["unanswered"]
    latency = result["latency"]
    assert latency["min"] <= latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


async def test_a_client_that_lost_its_connection_makes_the_exit_code_1(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    done = await run("bench", "-c", "2", "-t", "30", f"{server.url}/many")
    assert done.code == 1
    assert r"2 x closed by the server: 4001 enough \x1b[31m\nclosed: 1000" in done.out
    done = await run("bench", "-c", "2", "-t", "30", f"{server.url}/no")
    assert done.code == 3
    assert done.err == "Error: refused: HTTP 403 Forbidden\n"


async def test_ctrl_c_ends_it_early_with_a_report(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [*COMMAND, "bench", "-c", "2", "-t", "600", "--progress", "--json", f"{server.url}/echo"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )
        )
        seen = b""
        while b"messages/s" not in seen:
            seen += await process.stderr.receive_some()
        process.send_signal(signal.SIGINT)
        result = json.loads(b"".join([part async for part in process.stdout]))
        assert await process.wait() == 0
    assert result["answered"] > 0
    assert result["seconds"] < 600


def test_a_busy_client_says_that_it_may_be_what_is_measured() -> None:
    load = Load(elapsed=2.0, cpu=1.9)
    (remark,) = _remarks(plan("ws://x/"), load)
    assert "95% of a core: the rate and the latency may be its own limits" in remark
    load = Load(elapsed=2.0, cpu=0.1)
    remarks = _remarks(plan("ws://x/", rate=10.0), load)
    assert remarks[1] == "the rate of 10 messages/s was not reached"


def test_the_bar_shows_how_far_it_is() -> None:
    options = plan("ws://x/", clients=4, seconds=8.0)
    assert _progress(options, Load(dialed=2), 0.0, 0.0) == "[############------------] connecting, 2 of 4"
    load = Load(started=100.0, problems=Counter({"gone": 2}))
    assert math.isfinite(load.started)
    text = _progress(options, load, 102.0, 1234.5)
    assert text.startswith("[######------------------] 2/8 s  1,234 messages/s")
    assert text.endswith("2 lost")


@given(st.lists(st.floats(min_value=0, max_value=3600), min_size=1))
def test_a_percentile_is_within_two_percent_of_the_real_one(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.count == len(values) == sum(count for _, _, count in histogram.rows())
    ordered = sorted(values)
    for percent in (1, 50, 99, 100):
        real = ordered[max(math.ceil(len(values) * percent / 100) - 1, 0)]
        assert histogram.percentile(percent) == pytest.approx(real, rel=0.02, abs=2e-6)
    assert histogram.percentile(100) <= histogram.longest == max(values)


def test_an_empty_histogram_has_no_rows() -> None:
    assert Histogram().rows() == []
    assert Histogram().percentile(99) == 0


def test_durations_are_written_for_people() -> None:
    told = {0.00035: "350 µs", 0.00125: "1.25 ms", 0.0412: "41.2 ms", 2.0: "2 s"}
    assert {value: duration(value) for value in told} == told


class Slow:
    """A connection and its stream: always more to read, which takes a tenth of a second to understand."""

    state = State.OPEN

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock

    async def receive_some(self, _most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"\x89\x00"

    async def send_all(self, _data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def receive_data(self, _data: bytes) -> list[Event]:
        self._clock.jump(0.1)
        return []

    def encode_text(self, _text: str) -> bytes:
        return b"message"

    def encode_close(self) -> bytes:
        return b"close"

    def data_to_send(self) -> bytes:
        return b""


@pytest.mark.parametrize("trailing", [b"", b"\x89\x00"])
async def test_it_ends_in_time_beside_servers_that_flood_its_clients(
    trailing: bytes, mock_clock: MockClock
) -> None:
    load, slow = Load(connected=50, started=trio.current_time()), Slow(mock_clock)
    planned = plan("ws://x", seconds=1.0)
    clients = [_Client(planned, load, slow, slow, trailing) for _ in range(50)]  # type: ignore[arg-type]
    with trio.move_on_at(load.started + 1.0):
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.work, load.started)
    assert trio.current_time() - load.started < 1.2
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(client.close)
    assert trio.current_time() - load.started < 1.2 + CLOSING + 0.2
