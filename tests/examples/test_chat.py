"""The chat's server, without a browser: see test_chat_browser.py for the rest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
import trio
import trio.testing
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from examples.chat import app, server
from examples.chat.protocol import Join
from examples.chat.server import BURST, KEPT, OUTBOX, RATE, SHOWN
from nexios_trio import testing

NUMBERS: Final = itertools.count()


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app, backend="trio") as client:
        yield client


@pytest.fixture
def room() -> str:
    """The app outlives the test, so each test has a room of its own."""
    return f"room-{next(NUMBERS)}"


@pytest.fixture
def path(room: str) -> str:
    return f"/rooms/{room}/ws"


def join(
    ws: WebSocketTestSession, name: str, key: str | None = None, since: str | None = None
) -> dict[str, Any]:
    ws.send_json({"type": "join", "name": name, "key": key or name, "since": since})
    return until(ws, "welcome")


def say(ws: WebSocketTestSession, text: str, id: str = "1") -> None:
    ws.send_json({"type": "say", "id": id, "text": text})


def opened(event: dict[str, Any]) -> dict[str, Any]:
    """Without the envelope that messages of the room have; the position stays."""
    payload = event.get("payload")
    return event if payload is None else {**payload, "position": event["position"]}


def until(ws: WebSocketTestSession, type: str, **fields: Any) -> dict[str, Any]:
    """The next event of this type with these fields; others are passed over."""
    while True:
        event = opened(ws.receive_json())
        if event["type"] == type and fields.items() <= event.items():
            return event


def test_the_page_and_its_files_are_served_under_a_strict_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for file in ("chat.js", "chat.css", "icon.svg"):
        assert f"static/{file}" in page.text
        assert client.get(f"/static/{file}").status_code == 200
    assert "style=" not in page.text
    assert "<script>" not in page.text


def test_members_see_what_is_said_who_is_there_and_who_types(path: str, client: TestClient) -> None:
    with client.websocket_connect(path) as ada, client.websocket_connect(path) as grace:
        welcome = join(ada, "Ada")
        assert [*welcome["people"].values()] == ["Ada"]
        assert (welcome["name"], welcome["history"], welcome["recovered"]) == ("Ada", [], False)
        assert [*join(grace, "Grace")["people"].values()] == ["Ada", "Grace"]
        came = until(ada, "presence.join", metadata={"name": "Grace"})
        ada.send_json({"type": "typing"})
        until(grace, "typing", name="Ada")
        say(ada, "hello", id="a1")
        said = until(grace, "said")
        assert {**said, "at": "", "position": ""} == {
            "type": "said",
            "id": "a1",
            "user": welcome["user"],
            "name": "Ada",
            "text": "hello",
            "at": "",
            "position": "",
        }
        assert until(ada, "said") == said
        say(grace, "hi")
        until(ada, "said", name="Grace", text="hi")
        grace.close()
        until(ada, "presence.leave", user=came["user"])


def test_rooms_do_not_hear_each_other(room: str, client: TestClient) -> None:
    with (
        client.websocket_connect(f"/rooms/{room}-one/ws") as ada,
        client.websocket_connect(f"/rooms/{room}-two/ws") as grace,
    ):
        join(ada, "Ada")
        join(grace, "Ada")
        say(ada, "only here")
        until(ada, "said")
        say(grace, "first thing heard in two")
        assert until(grace, "said")["text"] == "first thing heard in two"


def test_who_comes_later_gets_the_last_messages(
    path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 1e6)
    with client.websocket_connect(path) as ada:
        join(ada, "Ada")
        for number in range(SHOWN + 3):
            say(ada, f"message {number}")
            until(ada, "said", text=f"message {number}")
        with client.websocket_connect(path) as grace:
            history = join(grace, "Grace")["history"]
    assert [said["text"] for said in history] == [f"message {n}" for n in range(3, SHOWN + 3)]


def test_who_was_away_gets_exactly_what_was_missed(
    path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 1e6)
    with client.websocket_connect(path) as ada:
        join(ada, "Ada")
        with client.websocket_connect(path) as grace:
            join(grace, "Grace")
            say(ada, "heard")
            position = until(grace, "said")["position"]
        for number in range(SHOWN + 10):
            say(ada, f"message {number}")
            until(ada, "said", text=f"message {number}")
        ada.send_json({"type": "typing"})
        with client.websocket_connect(path) as grace:
            grace.send_json({"type": "join", "name": "Grace", "key": "Grace", "since": position})
            missed = []
            while (event := opened(grace.receive_json()))["type"] != "welcome":
                missed.append(event)
            assert (event["recovered"], event["history"]) == (True, [])
            assert event["place"] == missed[-1]["position"]
            assert [said.get("text") for said in missed] == [f"message {n}" for n in range(SHOWN + 10)]
            say(ada, "and on it goes")
            assert until(grace, "said")["text"] == "and on it goes"


def test_who_was_away_for_too_long_gets_the_last_messages(
    path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 1e6)
    with client.websocket_connect(path) as ada, client.websocket_connect(path) as grace:
        place = join(ada, "Ada")["place"]
        for number in range(KEPT + 1):
            say(ada, f"message {number}")
            until(ada, "said", text=f"message {number}")
        welcome = join(grace, "Grace", since=place)
    assert welcome["recovered"] is False
    assert len(welcome["history"]) == SHOWN
    assert welcome["history"][-1]["text"] == f"message {KEPT}"


@pytest.mark.parametrize("since", ["", "here", "a:1\n", "a:" + "1" * 19, 7])
def test_a_place_that_is_none_is_refused(path: str, client: TestClient, since: object) -> None:
    with client.websocket_connect(path) as ws:
        ws.send_json({"type": "join", "name": "Ada", "key": "a", "since": since})
        with pytest.raises(WebSocketDisconnect) as refused:
            ws.receive_json()
    assert refused.value.code == 1007
    assert "since" in refused.value.reason


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("not json", "invalid JSON: invalid character"),
        ("", "invalid JSON: the document is cut short or malformed"),
        ("[]", "expected object, got array at $"),
        ("{}", "object missing required field type at $"),
        ('{"type": "shout"}', "invalid value at $.type"),
        ('{"type": "say", "id": "1"}', "object missing required field text at $"),
        ('{"type": "say", "id": "1", "text": 7}', "expected str, got int at $.text"),
        ('{"type": "say", "id": "1", "text": " \\n "}', r"expected str matching regex '\\S' at $.text"),
        (
            json.dumps({"type": "say", "id": "1", "text": "x" * 501}),
            "expected str of length <= 500 at $.text",
        ),
        (json.dumps({"type": "say", "id": "x" * 37, "text": "x"}), "expected str of length <= 36 at $.id"),
        (b"\x00\xff", "expected a text message, got a binary one"),
    ],
)
def test_a_bad_message_is_answered_to_its_sender_and_hurts_nobody(
    path: str, client: TestClient, bad: str | bytes, problem: str
) -> None:
    with client.websocket_connect(path) as ada, client.websocket_connect(path) as grace:
        join(ada, "Ada")
        join(grace, "Grace")
        if isinstance(bad, str):
            ada.send_text(bad)
        else:
            ada.send_bytes(bad)
        assert until(ada, "problem")["text"] == problem
        say(ada, "still here")
        while (event := opened(grace.receive_json()))["type"] != "said":
            assert event["type"] != "problem"
        assert event["text"] == "still here"


@pytest.mark.parametrize("name", ["", " ", "\u200b\u202e", "x" * 25, 7, None])
def test_a_name_that_cannot_be_shown_is_refused(path: str, client: TestClient, name: object) -> None:
    with client.websocket_connect(path) as ws:
        ws.send_json({"type": "join", "name": name, "key": "k"})
        with pytest.raises(WebSocketDisconnect) as refused:
            ws.receive_json()
    assert refused.value.code == 1007
    assert "name" in refused.value.reason


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("  Ada \n Lovelace ", "Ada Lovelace"),
        ("A\u202eda", "Ada"),
        ("<b>Ada</b>", "<b>Ada</b>"),
        ("李", "李"),
    ],
)
def test_a_name_is_shown_without_what_cannot_be_seen(typed: str, shown: str) -> None:
    assert Join(typed, "k").name == shown


def test_two_members_of_a_room_never_have_the_same_name(path: str, client: TestClient) -> None:
    with client.websocket_connect(path) as first, client.websocket_connect(path) as second:
        assert join(first, "Ada", key="1")["name"] == "Ada"
        assert join(second, "ADA", key="2")["name"] == "ADA 2"


def test_who_comes_back_with_the_same_key_takes_the_old_place(path: str, client: TestClient) -> None:
    with client.websocket_connect(path) as before, client.websocket_connect(path) as after:
        join(before, "Ada", key="1")
        assert join(after, "Ada", key="1")["name"] == "Ada"
        with pytest.raises(WebSocketDisconnect) as replaced:
            until(before, "never")
        assert replaced.value.code == 4001
        say(after, "only me")
        until(after, "said", text="only me")


@pytest.mark.parametrize("room", ["a%20b", "x" * 33, "%00", "a.b"])
def test_a_room_with_a_strange_name_does_not_exist(client: TestClient, room: str) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"/rooms/{room}/ws"):
        pass


def test_a_full_room_takes_nobody_else_in(
    path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_MEMBERS", 1)
    with client.websocket_connect(path) as ada, client.websocket_connect(path) as grace:
        join(ada, "Ada")
        grace.send_json({"type": "join", "name": "Grace", "key": "g"})
        with pytest.raises(WebSocketDisconnect) as full:
            grace.receive_json()
        assert full.value.code == 1013
        say(ada, "alone")
        until(ada, "said")


# What needs a clock of its own: the framework's client, under which hours pass in no time.


async def enter(ws: testing.TestWebSocket, name: str) -> None:
    await ws.send_json({"type": "join", "name": name, "key": name})
    await next_event(ws, "welcome")


async def send_all(ws: testing.TestWebSocket, texts: list[str]) -> None:
    for text in texts:
        await ws.send_json({"type": "say", "id": text, "text": text})


async def next_event(ws: testing.TestWebSocket, *types: str) -> dict[str, Any]:
    while (event := opened(await ws.receive_json()))["type"] not in types:
        if event["type"] == "ping":
            await ws.send_json({"type": "pong"})
    return event


async def collect(ws: testing.TestWebSocket, texts: list[str], count: int) -> None:
    while len(texts) < count:
        texts.append((await next_event(ws, "said"))["text"])


async def test_a_member_that_does_not_read_is_closed_and_nobody_waits_for_it(
    path: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 100.0)  # before the heartbeat finds out
    many = [f"message {number}" for number in range(OUTBOX + 20)]
    async with (
        testing.TestClient(app, window=1) as client,
        client.connect(path) as ada,
        client.connect(path) as grace,
        client.connect(path) as stalled,
        trio.open_nursery() as nursery,
    ):
        for ws, name in ((ada, "Ada"), (grace, "Grace"), (stalled, "Stalled")):
            await enter(ws, name)
        await stalled.stall()
        nursery.start_soon(send_all, ada, many)
        nursery.start_soon(collect, ada, [], len(many))
        heard: list[str] = []
        await collect(grace, heard, len(many))
        assert heard == many
        gone = await next_event(grace, "presence.leave")
        assert gone["metadata"] == {"name": "Stalled"}
        await stalled.resume()
        assert await stalled.wait_closed() == (1013, "too slow")


async def test_a_flood_waits_in_its_own_socket_and_loses_nothing(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    many = [f"message {number}" for number in range(2000)]
    async with (
        testing.TestClient(app) as client,
        client.connect(path) as ada,
        client.connect(path) as grace,
        trio.open_nursery() as nursery,
    ):
        await enter(ada, "Ada")
        await enter(grace, "Grace")
        heard: list[str] = []
        nursery.start_soon(send_all, ada, many)
        nursery.start_soon(collect, ada, [], len(many) + 1)
        nursery.start_soon(collect, grace, heard, len(many) + 1)
        await trio.sleep(1)
        assert len(heard) <= BURST + RATE + 1  # one second's share
        await grace.send_json({"type": "say", "id": "g", "text": "not held up"})
        await trio.testing.wait_all_tasks_blocked()
        assert heard[-1] == "not held up"
    assert [text for text in heard if text != "not held up"] == many


async def test_who_does_not_join_is_sent_away(path: str, autojump_clock: trio.testing.MockClock) -> None:
    async with testing.TestClient(app, timeout=60) as client, client.connect(path) as silent:
        assert await silent.wait_closed() == (1008, "the first message is a join")


async def test_who_does_not_answer_the_ping_is_gone(
    path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        testing.TestClient(app, timeout=60) as client,
        client.connect(path) as ada,
        client.connect(path) as mute,
    ):
        await enter(ada, "Ada")
        await enter(mute, "Mute")
        mute_came = await next_event(ada, "presence.join")
        await next_event(ada, "ping")
        await ada.send_json({"type": "pong"})
        mute_left = await next_event(ada, "presence.leave", "presence.join")
        assert mute_left["type"] == "presence.leave"
        assert mute_left["user"] == mute_came["user"]
