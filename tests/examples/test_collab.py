"""The shared text's server, in memory; test_collab_browser.py has the page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from pycrdt import Doc, Text
from starlette.testclient import TestClient as HttpClient

from examples.collab import app, server
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected

STATE, UPDATE = b"\x00", b"\x01"


class Page:
    """What a page does: a copy of the text, and its connection."""

    def __init__(self, doc: Doc[Text] | None = None) -> None:
        self.doc = Doc() if doc is None else doc
        self.text = self.doc.get("text", type=Text)
        self.events: list[dict[str, Any]] = []
        self.ws: TestWebSocket

    @asynccontextmanager
    async def open(self, client: TestClient, name: str, document: str = "notes") -> AsyncIterator[Page]:
        async with client.connect(f"/documents/{document}/ws") as self.ws:
            await self.ws.send_json({"type": "hello", "name": name, "key": f"the key of {name}"})
            await self.until("state")
            yield self

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Take messages in up to one of this type."""
        with trio.fail_after(60):
            while True:
                message = await self.ws.receive()
                event = await self._take(message)
                if event["type"] == type and fields.items() <= event.items():
                    return event

    async def _take(self, message: Any) -> dict[str, Any]:
        assert message["type"] == "websocket.send", message
        if (data := message.get("bytes")) is None:
            event: dict[str, Any] = json.loads(message["text"])
            if event["type"] == "ping":
                await self.ws.send_json({"type": "pong"})
            return event
        if data[:1] == UPDATE:
            self.doc.apply_update(data[1:])
            return {"type": "update"}
        await self.ws.send_bytes(UPDATE + self.doc.get_update(data[1:]))
        await self.ws.send_bytes(STATE + self.doc.get_state())
        return {"type": "state"}

    async def write(self, at: int, what: str) -> None:
        before = self.doc.get_state()
        self.text.insert(at, what)
        await self.ws.send_bytes(UPDATE + self.doc.get_update(before))

    async def shows(self, text: str) -> None:
        while str(self.text) != text:
            await self.until("update")


async def test_two_who_write_at_once_end_up_with_the_same(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        TestClient(app) as client,
        Page().open(client, "Ada") as ada,
        Page().open(client, "Grace") as grace,
    ):
        await ada.write(0, "shared")
        await grace.shows("shared")
        for number in range(20):  # neither has heard of the other
            await ada.write(0, f"a{number} ")
            await grace.write(len(str(grace.text)), f" g{number}")
        expected = "".join(f"a{n} " for n in reversed(range(20))) + "shared"
        expected += "".join(f" g{n}" for n in range(20))
        await ada.shows(expected)
        await grace.shows(expected)
        assert server.app.state.shelf.documents["notes"].text == expected


async def test_who_comes_later_gets_the_text(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client:
        async with Page().open(client, "Ada") as ada:
            await ada.write(0, "written before")
        async with Page().open(client, "Late") as late:
            await late.shows("written before")
        async with Page().open(client, "Elsewhere", "other") as other:
            await other.until("update")
            assert str(other.text) == ""


async def test_what_was_written_offline_on_both_sides_comes_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app) as client, Page().open(client, "Grace") as grace:
        ada = Page()
        async with ada.open(client, "Ada"):
            await ada.write(0, "middle")
            await grace.shows("middle")
            await ada.ws.drop()
        ada.text.insert(6, " end")
        await grace.write(0, "start ")
        async with ada.open(client, "Ada"):
            await ada.shows("start middle end")
            await grace.shows("start middle end")


async def test_after_a_restart_the_pages_bring_the_text_back(autojump_clock: trio.testing.MockClock) -> None:
    ada, grace = Page(), Page()
    async with TestClient(app) as client, ada.open(client, "Ada"), grace.open(client, "Grace"):
        await ada.write(0, "kept by its writers")
        await grace.shows("kept by its writers")
    grace.text.insert(0, "all ")
    async with TestClient(app) as client:
        assert server.app.state.shelf.documents == {}
        async with ada.open(client, "Ada"), grace.open(client, "Grace"):
            await ada.shows("all kept by its writers")
            assert server.app.state.shelf.documents["notes"].text == "all kept by its writers"


async def test_people_come_go_and_have_cursors(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app) as client, client.connect("/documents/people/ws") as ws:
        await ws.send_json({"type": "hello", "name": "A\u200bda", "key": "the key of Ada"})
        assert (await ws.receive_json())["type"] == "presence.join"
        welcome = await ws.receive_json()
        assert [person["name"] for person in welcome["people"]] == ["Ada"]
        await ws.receive_bytes()
        async with Page().open(client, "Grace", "people") as grace:
            joined = await ws.receive_json()
            assert joined["metadata"] == {"name": "Grace"}
            at = {"item": [5, 0], "assoc": 0}
            await grace.ws.send_json({"type": "cursor", "anchor": at, "head": {"item": None, "assoc": -1}})
            cursor = await ws.receive_json()
            assert (cursor["type"], cursor["user"], cursor["anchor"]) == ("cursor", joined["user"], at)
        assert (await ws.receive_json())["type"] == "presence.leave"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "a binary message begins with 0 or 1"),
        (b"\x02", "a binary message begins with 0 or 1"),
        (b"\x00\xff", "the update is cut short"),
        (b"\x01garbage", "a number is too large"),
        (b"\x01\x01\x00\x05\x00\x00", "a client with nothing"),
        ("{", "a text message is a cursor"),
        ("[" * 5000, "a text message is a cursor"),
        ('{"type":"cursor","anchor":{"item":[-1,0]},"head":{"item":null}}', "a text message is a cursor"),
    ],
)
async def test_what_is_none_ends_that_connection_only(
    bad: bytes | str, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        TestClient(app) as client,
        Page().open(client, "Good") as good,
        Page().open(client, "Bad") as evil,
    ):
        await (evil.ws.send_text(bad) if isinstance(bad, str) else evil.ws.send_bytes(bad))
        assert await evil.ws.wait_closed() == (1007, reason)
        await good.until("presence.leave")
        await good.write(0, "untouched")
        async with Page().open(client, "Other") as other:
            await other.shows("untouched")


async def test_who_does_not_read_is_closed_and_syncs_anew(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app, window=2, timeout=300) as client, Page().open(client, "Ada") as ada:
        slow = Page()
        async with slow.open(client, "Slow"):
            await slow.ws.stall()
            for number in range(400):
                await ada.write(0, f"{number} ")
            await slow.ws.resume()
            assert await slow.ws.wait_closed() == (1013, "too slow")
        async with slow.open(client, "Slow"):
            await slow.shows(str(ada.text))


@pytest.mark.parametrize("name", ["a%20b", "x" * 33, "a.b"])
async def test_a_document_with_a_strange_name_does_not_exist(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as answer:
            async with client.connect(f"/documents/{name}/ws"):
                pass
    assert answer.value.status == 404


async def test_who_says_no_hello_is_sent_away(autojump_clock: trio.testing.MockClock) -> None:
    async with TestClient(app, timeout=60) as client:
        async with client.connect("/documents/notes/ws") as ws:
            assert await ws.wait_closed() == (1008, "the first message is a hello")
        async with client.connect("/documents/notes/ws") as ws:
            await ws.send_json({"type": "hello", "name": "\u200b", "key": "12345678"})
            assert await ws.wait_closed() == (1007, "a name needs a visible character")


async def test_documents_are_bounded_and_the_one_used_least_recently_goes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_DOCUMENTS", 2)
    async with TestClient(app) as client:
        for name in ("one", "two", "one", "three"):
            async with Page().open(client, "Ada", name):
                pass
        assert [*server.app.state.shelf.documents] == ["one", "three"]
        async with (
            Page().open(client, "Ada", "one"),
            Page().open(client, "Ada", "three"),
            client.connect("/documents/four/ws") as late,
        ):
            await late.send_json({"type": "hello", "name": "Late", "key": "12345678"})
            assert await late.wait_closed() == (1013, "no place left, try again later")
    assert server.app.state.shelf.open == {}


def test_a_text_is_also_plain() -> None:
    with HttpClient(app, backend="trio") as client:
        assert client.get("/documents/none.txt").status_code == 404
        writer: Doc[Text] = Doc()
        writer.get("text", type=Text).insert(0, "héllo")
        server.app.state.shelf.take("notes").apply(writer.get_update())
        answer = client.get("/documents/notes.txt")
        assert (answer.status_code, answer.text) == (200, "héllo")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
