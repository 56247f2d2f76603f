"""The broadcast, without a browser; test_stream_browser.py has the page."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

import pytest
import trio
import trio.testing

from examples.stream import app, server
from examples.stream.protocol import HEAD, INIT, SEGMENT
from examples.stream.server import SHOWN
from examples.stream.webm import (
    CLUSTER,
    DURATION,
    EBML,
    INFO,
    KEY_FRAME,
    SIMPLE_BLOCK,
    TIMESTAMP,
    TRACKS,
    FormatError,
    Recording,
    elements,
)
from nexios_trio.testing import TestClient, TestWebSocket
from tests.examples.servers import ROOT

PATTERN: Final = (ROOT / "examples/stream/pattern.webm").read_bytes()
RECORDING: Final = Recording.read(PATTERN)


def start_of(cluster: bytes) -> int:
    """When a whole cluster begins, in ms; it is checked to begin with a key frame."""
    (whole,) = elements(cluster)
    assert whole.id == CLUSTER
    timestamp, *blocks = whole.children()
    assert timestamp.id == TIMESTAMP
    assert {block.id for block in blocks} == {SIMPLE_BLOCK}
    assert blocks[0].body[3] & KEY_FRAME
    return timestamp.number()


def test_a_recording_is_taken_apart_and_has_no_end() -> None:
    assert len(PATTERN) < 300_000
    assert (len(RECORDING.pieces), RECORDING.duration, RECORDING.piece_length) == (12, 12_000, 1.0)
    assert [start_of(RECORDING.cluster(number)) for number in range(30)] == list(range(0, 30_000, 1000))
    assert start_of(RECORDING.cluster(40 * 365 * 86_400)) == 40 * 365 * 86_400_000
    assert len({RECORDING.cluster(number)[-100:] for number in range(24)}) == 12
    head = RECORDING.init.index(bytes.fromhex("18538067") + b"\x01" + b"\xff" * 7)
    assert [element.id for element in elements(RECORDING.init[:head])] == [EBML]
    info, tracks = elements(RECORDING.init[head + 12 :])
    assert (info.id, tracks.id) == (INFO, TRACKS)
    assert DURATION not in {part.id for part in info.children()}


def test_what_is_no_recording_is_refused() -> None:
    random = Random(1)
    for bad in (b"", b"\x00" * 20, PATTERN[:100], PATTERN[:-1], PATTERN[4:]):
        with pytest.raises(FormatError):
            Recording.read(bad)
    delta = bytearray(PATTERN)
    delta[delta.index(b"\xa3", delta.index(bytes.fromhex("1f43b675"))) + 6] &= ~KEY_FRAME
    with pytest.raises(FormatError, match="does not begin with a key frame"):
        Recording.read(bytes(delta))
    for _ in range(300):
        damaged = bytearray(PATTERN)
        for _ in range(3):
            damaged[random.randrange(600)] = random.randrange(256)
        try:
            Recording.read(bytes(damaged))
        except FormatError:
            pass


class Viewer:
    """Takes messages apart, and answers pings."""

    def __init__(self, ws: TestWebSocket) -> None:
        self.ws = ws

    async def next_media(self) -> tuple[int, int, bytes]:
        while True:
            message = await self.ws.receive()
            if message.get("bytes") is not None:
                kind, number = HEAD.unpack_from(message["bytes"])
                return kind, number, message["bytes"][HEAD.size :]
            await self._answer(message["text"])

    async def next_event(self, type: str) -> dict[str, Any]:
        with trio.fail_after(60):
            while True:
                message = await self.ws.receive()
                if message.get("text") is None:
                    continue
                event: dict[str, Any] = json.loads(message["text"])
                await self._answer(message["text"])
                if event["type"] == type:
                    return event

    async def _answer(self, text: str) -> None:
        if text == '{"type":"ping"}':
            await self.ws.send_text('{"type":"pong"}')


async def test_who_comes_in_the_middle_gets_what_a_player_needs_then_the_next_segment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client:
        await trio.sleep(7.5)
        async with client.connect("/watch") as ws:
            viewer = Viewer(ws)
            kind, number, init = await viewer.next_media()
            assert (kind, number, init) == (INIT, 8, RECORDING.init)
            for expected in range(8, 30):
                kind, number, segment = await viewer.next_media()
                assert (kind, number) == (SEGMENT, expected)
                assert start_of(segment) == expected * 1000
                assert trio.current_time() == pytest.approx(server.app.state.broadcast.began + expected)


async def test_a_slow_viewer_skips_whole_segments_and_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        TestClient(app, window=2, timeout=300) as client,
        client.connect("/watch") as fast,
        client.connect("/watch") as slow,
    ):
        for ws in (fast, slow):
            assert (await Viewer(ws).next_media())[0] == INIT
        await slow.stall()
        numbers = [(await Viewer(fast).next_media())[1] for _ in range(20)]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
        await slow.resume()
        got: list[int] = []
        while not got or got[-1] < numbers[-1]:
            _, number, segment = await Viewer(slow).next_media()
            assert start_of(segment) == number * 1000  # whole, and a beginning
            got.append(number)
        assert got == sorted(got)
        assert len(got) < 8


async def test_what_a_stall_of_the_server_has_cost_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client, client.connect("/watch") as ws:
        viewer = Viewer(ws)
        await viewer.next_media()
        _, before, _ = await viewer.next_media()
        server.app.state.broadcast.began -= 5.2  # as if the process had been stopped for so long
        await viewer.next_media()
        _, after, segment = await viewer.next_media()
        assert after - before in (6, 7)
        assert start_of(segment) == after * 1000


async def test_viewers_are_counted_and_talk(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, client.connect("/watch") as ws:
        ada = Viewer(ws)
        assert (await ada.next_event("viewers"))["count"] == 1
        async with client.connect("/watch") as other:
            while (await ada.next_event("viewers"))["count"] != 2:
                pass
            await other.send_json({"type": "say", "name": " Gr\u200bace ", "text": "<b>hello</b>"})
            said = await ada.next_event("said")
            assert (said["name"], said["text"]) == ("Grace", "<b>hello</b>")
        while (await ada.next_event("viewers"))["count"] != 1:
            pass
        async with client.connect("/watch") as late:
            history = (await Viewer(late).next_event("history"))["said"]
            assert [each["text"] for each in history] == ["<b>hello</b>"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"type": "say", "name": "Ada", "text": " "}, r"expected str matching regex '\\S' at $.text"),
        ({"type": "say", "name": "Ada", "text": "x" * 301}, "expected str of length <= 300 at $.text"),
        ({"type": "say", "name": "\u200b", "text": "x"}, "a name needs a visible character"),
        ({"type": "stop"}, "invalid value at $.type"),
    ],
)
async def test_a_bad_message_is_answered_and_the_video_goes_on(
    bad: dict[str, str], problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with TestClient(app) as client, client.connect("/watch") as ws:
        viewer = Viewer(ws)
        await ws.send_json(bad)
        assert (await viewer.next_event("problem"))["text"] == problem
        assert (await viewer.next_media())[0] == SEGMENT


async def test_a_flood_of_chat_waits_in_its_own_socket(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        TestClient(app, timeout=300) as client,
        client.connect("/watch") as ws,
        client.connect("/watch") as flood,
        trio.open_nursery() as nursery,
    ):
        viewer = Viewer(ws)

        async def pour() -> None:
            for number in range(SHOWN + 10):
                await flood.send_json({"type": "say", "name": "Flood", "text": f"{number}"})

        async def drain() -> None:
            while True:
                await Viewer(flood).next_media()

        nursery.start_soon(pour)
        nursery.start_soon(drain)
        start = trio.current_time()
        texts = [(await viewer.next_event("said"))["text"] for _ in range(SHOWN + 10)]
        assert texts == [f"{number}" for number in range(SHOWN + 10)]
        assert trio.current_time() - start >= SHOWN + 10 - 6
        nursery.cancel_scope.cancel()
    async with TestClient(app) as client, client.connect("/watch") as ws:
        assert len((await Viewer(ws).next_event("history"))["said"]) <= SHOWN
