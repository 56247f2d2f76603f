"""The chat's server, without a browser: see test_chat_browser.py for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from examples.chat import app, rooms
from examples.chat.protocol import Join
from examples.chat.rooms import BURST, HISTORY, OUTBOX, RATE, Lobby
from nexios_trio import testing


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app, backend="trio") as client:  # a lifespan of its own, so empty rooms
        yield client


def path(room: str = "lobby") -> str:
    return f"/rooms/{room}/ws"


def join(ws: WebSocketTestSession, name: str, key: str | None = None) -> dict[str, Any]:
    ws.send_json({"type": "join", "name": name, "key": key or name})
    welcome: dict[str, Any] = ws.receive_json()
    assert welcome["type"] == "welcome"
    return welcome


def say(ws: WebSocketTestSession, text: str, id: str = "1") -> None:
    ws.send_json({"type": "say", "id": id, "text": text})


def until(ws: WebSocketTestSession, type: str, **fields: Any) -> dict[str, Any]:
    """The next event of this type with these fields; others are passed over."""
    while True:
        event: dict[str, Any] = ws.receive_json()
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


def test_members_see_what_is_said_who_is_there_and_who_types(client: TestClient) -> None:
    with client.websocket_connect(path()) as ada, client.websocket_connect(path()) as grace:
        assert join(ada, "Ada") == {"type": "welcome", "name": "Ada", "history": []}
        join(grace, "Grace")
        until(ada, "people", names=["Ada", "Grace"])
        until(grace, "people", names=["Ada", "Grace"])
        ada.send_json({"type": "typing"})
        until(grace, "typing", name="Ada")
        say(ada, "hello", id="a1")
        said = until(grace, "said")
        assert {**said, "at": ""} == {"type": "said", "id": "a1", "name": "Ada", "text": "hello", "at": ""}
        assert until(ada, "said") == said
        say(grace, "hi")
        until(ada, "said", name="Grace", text="hi")
        grace.close()
        until(ada, "people", names=["Ada"])


def test_rooms_do_not_hear_each_other(client: TestClient) -> None:
    with client.websocket_connect(path("one")) as ada, client.websocket_connect(path("two")) as grace:
        join(ada, "Ada")
        join(grace, "Ada")
        say(ada, "only here")
        until(ada, "said")
        say(grace, "first thing heard in two")
        assert until(grace, "said")["text"] == "first thing heard in two"


def test_who_comes_later_gets_the_last_messages(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "RATE", 1e6)
    with client.websocket_connect(path()) as ada:
        join(ada, "Ada")
        for number in range(HISTORY + 3):
            say(ada, f"message {number}")
            until(ada, "said", text=f"message {number}")
        with client.websocket_connect(path()) as grace:
            history = join(grace, "Grace")["history"]
    assert [said["text"] for said in history] == [f"message {n}" for n in range(3, HISTORY + 3)]


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
    client: TestClient, bad: str | bytes, problem: str
) -> None:
    with client.websocket_connect(path()) as ada, client.websocket_connect(path()) as grace:
        join(ada, "Ada")
        join(grace, "Grace")
        if isinstance(bad, str):
            ada.send_text(bad)
        else:
            ada.send_bytes(bad)
        assert until(ada, "problem")["text"] == problem
        say(ada, "still here")
        while (event := grace.receive_json())["type"] != "said":
            assert event["type"] != "problem"
        assert event["text"] == "still here"


@pytest.mark.parametrize("name", ["", " ", "\u200b\u202e", "x" * 25, 7, None])
def test_a_name_that_cannot_be_shown_is_refused(client: TestClient, name: object) -> None:
    with client.websocket_connect(path()) as ws:
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


def test_two_members_of_a_room_never_have_the_same_name(client: TestClient) -> None:
    with client.websocket_connect(path()) as first, client.websocket_connect(path()) as second:
        assert join(first, "Ada", key="1")["name"] == "Ada"
        assert join(second, "ADA", key="2")["name"] == "ADA 2"


def test_who_comes_back_with_the_same_key_takes_the_old_place(client: TestClient) -> None:
    with client.websocket_connect(path()) as before, client.websocket_connect(path()) as after:
        join(before, "Ada", key="1")
        assert join(after, "Ada", key="1")["name"] == "Ada"
        with pytest.raises(WebSocketDisconnect) as replaced:
            until(before, "never")
        assert replaced.value.code == 4001
        until(after, "people", names=["Ada"])
        say(after, "only me")
        until(after, "said", text="only me")


@pytest.mark.parametrize("room", ["a%20b", "x" * 33, "%00", "a.b"])
def test_a_room_with_a_strange_name_does_not_exist(client: TestClient, room: str) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(path(room)):
        pass


def test_a_full_room_takes_nobody_else_in(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_MEMBERS", 1)
    with client.websocket_connect(path()) as ada, client.websocket_connect(path()) as grace:
        join(ada, "Ada")
        grace.send_json({"type": "join", "name": "Grace", "key": "g"})
        with pytest.raises(WebSocketDisconnect) as full:
            grace.receive_json()
        assert full.value.code == 1013
        say(ada, "alone")
        until(ada, "said")


def test_the_room_left_alone_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_ROOMS", 2)
    lobby = Lobby()
    one = lobby.enter("one")
    two = lobby.enter("two")
    assert lobby.enter("one") is one  # now "two" is the oldest
    lobby.enter("three")
    assert set(lobby.rooms) == {"one", "three"}
    assert lobby.enter("two") is not two


def test_no_room_with_somebody_in_it_is_forgotten(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "MAX_ROOMS", 1)
    with client.websocket_connect(path("one")) as ada, client.websocket_connect(path("two")) as grace:
        join(ada, "Ada")
        grace.send_json({"type": "join", "name": "Grace", "key": "g"})
        with pytest.raises(WebSocketDisconnect) as full:
            grace.receive_json()
    assert full.value.code == 1013


# What needs a clock of its own: the framework's client, under which hours pass in no time.


async def enter(ws: testing.TestWebSocket, name: str) -> None:
    await ws.send_json({"type": "join", "name": name, "key": name})
    assert (await ws.receive_json())["type"] == "welcome"


async def send_all(ws: testing.TestWebSocket, texts: list[str]) -> None:
    for text in texts:
        await ws.send_json({"type": "say", "id": text, "text": text})


async def next_said(ws: testing.TestWebSocket) -> str:
    while (event := await ws.receive_json())["type"] != "said":
        if event["type"] == "ping":
            await ws.send_json({"type": "pong"})
    return str(event["text"])


async def collect(ws: testing.TestWebSocket, texts: list[str], count: int) -> None:
    while len(texts) < count:
        texts.append(await next_said(ws))


async def names_in_lobby(ws: testing.TestWebSocket) -> list[str]:
    while (event := await ws.receive_json())["type"] != "people":
        pass
    names: list[str] = event["names"]
    return names


async def test_a_member_that_does_not_read_is_closed_and_nobody_waits_for_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "RATE", 100.0)  # before the heartbeat finds out
    many = [f"message {number}" for number in range(OUTBOX + 20)]
    async with (
        testing.TestClient(app, window=1) as client,
        client.connect(path()) as ada,
        client.connect(path()) as grace,
        client.connect(path()) as stalled,
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
        assert set(client.state["lobby"].rooms["lobby"].members) == {"Ada", "Grace"}
        await stalled.resume()
        assert await stalled.wait_closed() == (1013, "too slow")


async def test_a_flood_waits_in_its_own_socket_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    many = [f"message {number}" for number in range(2000)]
    async with (
        testing.TestClient(app) as client,
        client.connect(path()) as ada,
        client.connect(path()) as grace,
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


async def test_who_does_not_join_is_sent_away(autojump_clock: trio.testing.MockClock) -> None:
    async with testing.TestClient(app) as client, client.connect(path()) as silent:
        assert await silent.wait_closed() == (1008, "the first message is a join")


async def test_who_does_not_answer_the_ping_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        testing.TestClient(app, timeout=60) as client,
        client.connect(path()) as ada,
        client.connect(path()) as mute,
    ):
        await enter(ada, "Ada")
        await enter(mute, "Mute")
        for names in (["Ada"], ["Ada", "Mute"]):
            assert await names_in_lobby(ada) == names
        pings = 0
        while (event := await ada.receive_json())["type"] == "ping":
            pings += 1
            await ada.send_json({"type": "pong"})
        assert pings > 0
        assert event == {"type": "people", "names": ["Ada"]}
