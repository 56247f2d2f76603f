"""The programs of benchmarks/ build and measure our own server; the load generator finds out who lies."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from benchmarks import report
from benchmarks.cluster import measure_engine, measure_link, redis_running
from benchmarks.crowd import measure_crowd
from benchmarks.frozen import freeze
from benchmarks.harness import Declined, Failed, Server, Tools, built_tools, load
from benchmarks.limits import measure_limits
from benchmarks.scenarios import SCENARIOS, measure
from benchmarks.servers import OURS, PEERS, serving
from benchmarks.watch import measured
from nexios_trio.wire import Connection, Deflate, RequestReader, accept_response, agree
from tests.brokers.redis_server import needs_redis

SECONDS = 0.03


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with built_tools() as built:
        yield built


@pytest.fixture(scope="module")
def ours(tools: Tools) -> Iterator[Server]:
    with serving(PEERS[OURS], tools) as server:
        yield server


@pytest.mark.parametrize("name", ["echo-1-65536", "fanout-100", "connect", "idle", "mixed"])
def test_our_server_is_measured_under_each_kind_of_load(tools: Tools, ours: Server, name: str) -> None:
    scenario = SCENARIOS[name]
    fewer = [*scenario.options, "--clients", 5, "--parallel", 2, "--warmup", 0]
    if name == "mixed":
        fewer += ["--idle", 3]
    figures = measure(evolve(scenario, options=(*fewer,)), PEERS[OURS], ours, tools.wsload, SECONDS)
    assert all(column.figure in figures for column in scenario.columns)
    if name != "idle":
        assert figures[scenario.columns[0].figure] > 0


def test_a_crowd_of_two_processes_exchanges_messages_with_our_server(tools: Tools, ours: Server) -> None:
    result = measure_crowd(ours, tools, clients=9, processes=2, rounds=2, size=40)
    assert len(result["echo"]) == len(result["broadcast"]) == 2


@needs_redis
@pytest.mark.parametrize("engine", ["nexios", "nexios-unkept"])
def test_messages_from_one_process_to_another_over_redis_are_measured_and_none_is_lost(engine: str) -> None:
    figures = measure_engine(engine, groups=3, seconds=0.1)
    assert all(figures[f"{mode}_lost"] == 0 for mode in ("one", "many", "paced"))
    assert all(figures[f"{mode}_per_second"] > 0 for mode in ("one", "many", "paced"))


@needs_redis
def test_the_link_to_redis_is_measured_by_itself() -> None:
    figures = measure_link(0.1)
    assert all(found["messages"] > 0 and found["per_core"] > 0 for found in figures.values())


@needs_redis
def test_a_node_that_stood_still_has_all_messages_if_the_history_has_them() -> None:
    found = freeze(0.2, groups=5, history=1000, rate=200, size=10)
    assert found["received"] == found["sent"] > 0
    assert found["holes in silence"] == found["again"] == found["told"] == 0


@needs_redis
def test_the_limits_that_servers_share_are_measured() -> None:
    with redis_running() as redis:
        figures = trio.run(measure_limits, redis, 3)
    assert len(figures) == 9
    assert all(value >= 0 for value in figures.values())


def test_an_echo_is_measured_while_somebody_watches(tools: Tools) -> None:
    for app, viewed in (("metrics", False), ("dashboard", True), ("traced", False)):
        rate, per_cpu_second = measured(tools, app, viewed, seconds=0.3, clients=3)
        assert rate > 0
        assert per_cpu_second > 0


def test_the_server_in_c_echoes_and_broadcasts(tools: Tools) -> None:
    with serving(PEERS["c"], tools) as server:
        run = partial(load, tools.wsload)
        for size in (0, 125, 126, 65535, 65536, 1 << 20):
            run("echo", server.port, "/echo", "--clients", 3, "--size", size, "--seconds", SECONDS)
        run("broadcast", server.port, "/listen", "--clients", 7, "--seconds", SECONDS)
        run("connect", server.port, "/echo", "--parallel", 2, "--seconds", SECONDS)


def test_a_server_that_does_not_start_is_told_with_its_last_words(tools: Tools) -> None:
    peer = evolve(PEERS["c"], command=lambda _port, tools: [tools.epoll])
    with pytest.raises(Failed, match="did not start: usage: epoll PORT"), serving(peer, tools):
        raise AssertionError


# The load generator against servers that this file makes up

Answer = Callable[[Connection, str], list[bytes]]
"""What to send when this message has come, piece by piece."""


@asynccontextmanager
async def answering(answer: Answer, deflate: Deflate | None = None) -> AsyncIterator[int]:
    """A server that shakes hands as it should; yields its port."""

    async def serve(stream: trio.SocketStream) -> None:
        reader = RequestReader()
        while (request := reader.receive_data(await stream.receive_some())) is None:
            pass
        agreement = None if deflate is None else agree(deflate, request.extensions)
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        await stream.send_all(accept_response(request, subprotocol=None, agreement=agreement, headers=[]))
        wire = Connection.server(deflate=agreement)
        try:
            async for data in stream:
                for event in wire.receive_data(bytes(data)):
                    if isinstance(event, str):
                        for piece in answer(wire, event):
                            await stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(tools: Tools, port: int, *options: object) -> dict[str, Any]:
    arguments = (port, "/", "--seconds", SECONDS, "--warmup", 0, *options)
    return await trio.to_thread.run_sync(partial(load, tools.wsload, "echo", *arguments))


def fragmented(wire: Connection, text: str) -> list[bytes]:
    """In two frames with a Ping between them, each byte by itself."""
    half = len(text) // 2
    stream = bytes([1, half, *text[:half].encode()]) + wire.encode_ping(b"still there?")
    stream += bytes([0x80, len(text) - half, *text[half:].encode()])
    return [stream[i : i + 1] for i in range(len(stream))]


@pytest.mark.parametrize("size", [2, 32, 200])
async def test_frames_may_come_in_any_pieces(tools: Tools, size: int) -> None:
    async with answering(fragmented) as port:
        assert (await echo(tools, port, "--size", size))["messages_per_second"] > 0


@pytest.mark.parametrize("deflate", [Deflate(), Deflate(server_no_context_takeover=True)])
async def test_compressed_messages_are_unpacked_and_compared(tools: Tools, deflate: Deflate) -> None:
    sizes: list[int] = []

    def answer(wire: Connection, text: str) -> list[bytes]:
        frame = wire.encode_text(text)
        sizes.append(len(frame))
        return [frame[:7], frame[7:]]

    async with answering(answer, deflate) as port:
        assert (await echo(tools, port, "--deflate", "--size", 1024))["messages_per_second"] > 0
    assert max(sizes) < 900


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (
            lambda wire, text: [wire.encode_text(text[:-1] + "!")],
            "something else came than was sent, at byte",
        ),
        (lambda wire, text: [wire.encode_text(text[:-1])], "31 of 32 bytes came back"),
        (lambda wire, text: [wire.encode_text(text + "x")], "more than the 32 bytes"),
        (lambda _wire, text: [b"\x81\xa0\0\0\0\0" + text.encode()], "a masked frame came"),
        (lambda _wire, text: [b"\xc1\x20" + text.encode()], "a reserved bit is set"),
        (lambda _wire, text: [b"\x80\x20" + text.encode()], "opcode 0 came out of turn"),
        (lambda _wire, _text: [b"\x09\0"], "a bad control frame came"),
        (lambda wire, _text: [wire.encode_close(1011, "sorry")], "the server closed with 1011 sorry"),
    ],
)
async def test_a_server_that_lies_is_found_out(tools: Tools, lie: Answer, found: str) -> None:
    async with answering(lie) as port:
        with pytest.raises(Failed, match=re.escape(found)):
            await echo(tools, port)


async def test_a_server_without_deflate_is_not_measured_with_it(tools: Tools) -> None:
    async with answering(lambda wire, text: [wire.encode_text(text)]) as port:
        with pytest.raises(Declined, match="does not agree to permessage-deflate"):
            await echo(tools, port, "--deflate")


def test_ratios_are_made_of_runs_of_the_same_round(tmp_path: Path) -> None:
    def line(peer: str, round_: int, rate: float) -> dict[str, Any]:
        figures = {"messages_per_second": rate, "foreign_cpu": 0.5 if round_ else 0.0}
        return {"run": "now", "scenario": "echo-1-32", "peer": peer, "round": round_, "figures": figures}

    lines = [
        {"run": "now", "rounds": 2, "seconds": 1, "versions": "trio 1"},
        line(OURS, 0, 100),
        line("uvicorn", 0, 50),
        line("uvicorn", 1, 100),
        line(OURS, 1, 400),
        {"run": "now", "scenario": "echo-1-32", "peer": "picows", "round": 0, "error": "it died"},
        {"run": "now", "scenario": "echo-1-32", "peer": "c", "round": 0, "error": "no", "declined": True},
    ]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    table = report.markdown(report.read([path]))
    assert "| 75 (50 to 100); **3.00** (2.00 to 4.00) |" in table
    assert "picows + uvloop (callbacks), 1 client: it died" in table
    assert "| C, epoll (the limit) | not offered |" in table
    assert "In 2 of 4 runs other processes" in table
