"""The soak of benchmarks/, for as long as CI has time; and that it would find what it looks for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from attrs import evolve

from benchmarks.client import Wrong
from benchmarks.soak import Sample, faults, measure, told
from benchmarks.visits import Told, Visitor
from nexios_trio import NexiosApp, WebSocket
from nexios_trio.testing import TestServer

ENGINE = pytest.mark.parametrize("nexios_server_name", ["engine"], indirect=True)


def short(**options: Any) -> dict[str, Any]:
    return measure(lambda _: None, clients=12, seconds=600, every=1, seed=1, **options)


@pytest.mark.untraced
def test_good_and_bad_clients_leave_nothing_behind_and_see_nothing_wrong() -> None:
    # In so short a run the allocator is still warming up.
    result = short(visits=400, margin=24)
    assert result["faults"] == [], "\n".join(told(result))
    assert result["visits"] >= 400
    done = result["counts"]
    assert {"echo", "room", "http", "garbage", "large", "half", "stall", "dropped"} <= done.keys()
    assert done["resumed, all replayed"] > 0
    assert done["closed with 1013"] > 0


@pytest.mark.untraced
def test_what_leaks_or_logs_errors_is_found() -> None:
    result = short(visits=200, margin=8, app="tests.project.leaky_soak:app", draining=8)
    for fault in ("memory rose", "tasks without clients", "descriptors without", "objects without", "errors"):
        assert any(fault in each for each in result["faults"]), "\n".join(told(result))
    assert any("something went wrong" in each for each in result["problems"])


# The verdict

GOOD = Sample(
    progress=0.3,
    seconds=1.0,
    kib=50 << 10,
    descriptors=12,
    tasks=16,
    names={"tick": 16},
    objects=2000,
    connections=0,
    groups=0,
    warnings=0,
    errors=0,
)


@pytest.mark.parametrize(
    ("change", "wrongs", "found"),
    [
        ({}, 0, None),
        ({"tasks": 18, "descriptors": 14, "objects": 2500}, 0, None),
        ({"tasks": 19, "names": {"tick": 16, "lost": 3}}, 0, "allowed are 2 more (lost, lost, lost)"),
        ({"descriptors": 15}, 0, "15 descriptors without clients, 12 after the warm-up"),
        ({"objects": 2501}, 0, "2501 objects without clients"),
        ({"connections": 1}, 0, "1 connections are left"),
        ({"groups": 2}, 0, "2 groups are left"),
        ({"errors": 1}, 0, "1 lines of the log are errors"),
        ({}, 3, "3 visits saw what they should not have seen"),
    ],
)
def test_the_verdict_names_what_is_left(change: dict[str, Any], wrongs: int, found: str | None) -> None:
    samples = [GOOD, evolve(GOOD, progress=0.8)]
    said = faults(samples, GOOD, evolve(GOOD, **change), wrongs, 8.0)
    assert len(said) == (found is not None)
    assert found is None or found in said[0]


def test_the_verdict_compares_medians_of_memory() -> None:
    def samples(*mib: int) -> list[Sample]:
        progress = (0.1, 0.3, 0.4, 0.45, 0.6, 0.8, 0.9, 1.0)
        return [evolve(GOOD, progress=at, kib=each << 10) for at, each in zip(progress, mib, strict=True)]

    assert faults(samples(10, 50, 50, 50, 99, 58, 58, 99), GOOD, GOOD, 0, 8.0) == []
    (said,) = faults(samples(99, 50, 50, 99, 50, 59, 59, 50), GOOD, GOOD, 0, 8.0)
    assert said == "memory rose from 50.0 to 59.0 MiB; allowed are 8 more"


# What a client of a room knows


def message(position: str, payload: Any) -> str:
    return json.dumps({"group": "room", "position": position, "payload": payload})


def greeting(recovered: bool | None, position: str) -> str:
    return json.dumps({"recovered": recovered, "position": position})


@pytest.mark.parametrize(
    ("since", "texts", "found"),
    [
        (None, [greeting(None, "e:4"), message("e:5", "a"), message("e:6", "b")], None),
        (None, [greeting(None, "e:4"), message("e:6", "b")], "e:6 came behind e:4"),
        (None, [greeting(None, "e:4"), message("e:5", "a"), message("e:5", "a")], "e:5 came behind e:5"),
        (None, [greeting(None, "e:4"), message("f:5", "a")], "f:5 came behind e:4"),
        (None, [greeting(None, "e:4"), message("e:5", {"tick": 1}), message("e:6", {"tick": 3})], "tick 3"),
        ("e:4", [message("e:5", "a"), greeting(True, "e:5"), message("e:6", "b")], None),
        (
            "e:4",
            [message("e:6", "a"), greeting(True, "e:6")],
            "recovered=True at e:6, but e:6 came behind e:4",
        ),
        ("e:4", [greeting(True, "e:5")], "recovered=True at e:5, but nothing came behind e:4"),
        ("e:4", [greeting(False, "e:9"), message("e:10", "a")], None),
        ("e:4", [message("e:5", "a"), greeting(False, "e:9"), message("e:11", "a")], "e:11 came behind e:9"),
        ("e:4", [greeting(False, "f:1"), message("f:2", "a")], None),
    ],
)
def test_a_hole_in_a_room_is_found_unless_it_was_told(
    since: str | None, texts: list[str], found: str | None
) -> None:
    known = Told(since)
    if found is None:
        for text in texts:
            known.take(text)
    else:
        for text in texts[:-1]:
            known.take(text)
        with pytest.raises(Wrong, match=found):
            known.take(texts[-1])


def test_after_a_hole_that_was_told_the_ticks_count_from_anew() -> None:
    known = Told("e:4", tick=1)
    for text in (message("e:9", "a"), greeting(False, "e:9")):
        known.take(text)
    known = known.again()
    for text in (message("e:10", {"tick": 7}), greeting(True, "e:10"), message("e:11", {"tick": 8})):
        known.take(text)


@ENGINE
@pytest.mark.parametrize("lie", [lambda text: text + "!", lambda _text: ""])
async def test_a_wrong_echo_is_found(
    nexios_server: Callable[[NexiosApp], Awaitable[TestServer]], lie: Callable[[str], str]
) -> None:
    app = NexiosApp()

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(lie(text))

    server = await nexios_server(app)
    visitor = Visitor(server.port, Counter())
    with pytest.raises(Wrong, match="an echo was another text than was sent"), trio.fail_after(60):
        while True:
            await visitor.echo()
