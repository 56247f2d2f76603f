"""The chat as people meet it: two real browsers' pages, a real server, and what may go wrong between."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.examples.browsers import (
    BACK,
    FAINT,
    NAMELESS,
    PHONE,
    SOON,
    TOO_WIDE,
    VISIBLE_FOCUS,
    Browser,
    Page,
    Visitors,
    connected,
    expect,
)
from tests.examples.servers import Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.chat:app"


class Guests(Visitors):
    def join(self, name: str, room: str = "lobby", **options: Any) -> Page:
        page = self.page(room, **options)
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Join the room").click()
        connected(page)
        return page


@pytest.fixture
def visitors(browser: Browser, server: Server) -> Iterator[Guests]:
    guests = Guests(browser, server.url)
    yield guests
    guests.leave()
    assert guests.complaints == []


def write(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def sees(page: Page, text: str, timeout: float = SOON) -> None:
    expect(page.locator("#messages .bubble", has_text=text)).to_have_count(1, timeout=timeout)


def test_two_people_talk_and_see_each_other_typing(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada"), visitors.join("Grace")
    expect(ada.locator("#people bdi")).to_have_text(["Ada", "Grace"])
    write(ada, "Hello Grace")
    sees(grace, "Hello Grace")
    expect(grace.locator(".message").last).to_contain_text("Ada")
    expect(ada.locator(".message").last).to_contain_text("You")
    grace.get_by_label("Message", exact=True).press_sequentially("Hel")
    expect(ada.get_by_text("Grace is typing")).to_be_visible()
    expect(grace.locator("#typing")).not_to_be_visible()
    write(grace, "Hello Ada")
    sees(ada, "Hello Ada")
    expect(ada.locator("#typing")).not_to_be_visible()
    grace.context.close()
    expect(ada.locator("#people bdi")).to_have_text(["Ada"])


def test_who_comes_later_reads_what_was_said(visitors: Guests) -> None:
    ada = visitors.join("Ada", "history")
    for number in range(1, 4):
        write(ada, f"Message {number}")
        sees(ada, f"Message {number}")
    late = visitors.join("Late", "history")
    expect(late.locator("#messages .bubble")).to_have_text(["Message 1", "Message 2", "Message 3"])
    same_name = visitors.join("Ada", "history")
    expect(same_name.locator("#people bdi")).to_have_text(["Ada", "Ada 2", "Late"])


def test_rooms_are_apart_and_have_links(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada", "one"), visitors.join("Grace", "two")
    write(ada, "In room one")
    sees(ada, "In room one")
    expect(grace.locator("#people bdi")).to_have_text(["Grace"])
    expect(grace.locator(".message")).to_have_count(0)
    grace.get_by_label("Go to another room").fill("One")
    grace.keyboard.press("Enter")
    connected(grace)
    sees(grace, "In room one")
    assert grace.url.endswith("/#one")
    grace.go_back()
    expect(grace.get_by_role("heading", level=1)).to_contain_text("two")
    connected(grace)
    grace.get_by_role("link", name="lobby").click()
    expect(grace.get_by_role("heading", level=1)).to_contain_text("lobby")
    expect(grace.locator("[aria-current]")).to_contain_text("lobby")


def test_what_people_write_is_text(visitors: Guests) -> None:
    ada, grace = visitors.join("<i>Ada</i>", "markup"), visitors.join("Grace", "markup")
    write(ada, "<img src=x onerror=alert(1)><b>bold</b> &amp;")
    sees(grace, "<img src=x onerror=alert(1)><b>bold</b> &amp;")
    expect(grace.locator(".message .who")).to_have_text("<i>Ada</i>")
    expect(grace.locator("#messages :is(img, b, i)")).to_have_count(0)
    expect(grace.locator("#people i")).to_have_count(0)


def test_pages_come_back_by_themselves_when_the_server_does(
    browser: Browser, make_server: Callable[[], Server]
) -> None:
    server = make_server()
    visitors = Guests(browser, server.url)
    ada, grace = visitors.join("Ada"), visitors.join("Grace")
    write(ada, "Before")
    sees(grace, "Before")
    server.stop(signal.SIGKILL)
    for page in (ada, grace):
        expect(page.get_by_role("status").first).to_have_text("Reconnecting")
        expect(page.get_by_text("What you write is kept")).to_be_visible()
    write(ada, "Written without a server")
    expect(ada.locator("#pending")).to_contain_text("Waiting for the connection")
    server.start()
    for page in (ada, grace):
        connected(page, BACK)
        expect(page.get_by_text("What you write is kept")).not_to_be_visible()
        expect(page.locator("#people bdi")).to_have_text(["Ada", "Grace"], timeout=BACK)
    sees(grace, "Written without a server")
    expect(ada.locator("#pending .message")).to_have_count(0)
    write(grace, "We are back")
    sees(ada, "We are back")
    write(ada, "Both of us")
    sees(grace, "Both of us")
    expected = ["Before", "Written without a server", "We are back", "Both of us"]
    for page in (ada, grace):
        expect(page.locator("#messages .bubble")).to_have_text(expected)
    visitors.leave()
    assert visitors.complaints == []


def test_a_page_that_loses_its_network_says_so_and_loses_nothing(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada", "train"), visitors.join("Grace", "train")
    ada.context.set_offline(True)
    expect(ada.get_by_role("status").first).to_have_text("Offline")
    write(ada, "From the tunnel")
    write(grace, "Are you there?")
    sees(grace, "Are you there?")
    ada.context.set_offline(False)
    connected(ada, BACK)
    sees(grace, "From the tunnel")
    sees(ada, "Are you there?")
    sees(ada, "From the tunnel")
    expect(grace.locator("#people bdi")).to_have_text(["Ada", "Grace"])


def test_a_page_that_was_offline_gets_exactly_what_it_missed(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada", "tunnel"), visitors.join("Grace", "tunnel")
    write(grace, "Before")
    sees(ada, "Before")
    ada.context.set_offline(True)
    expect(ada.get_by_role("status").first).to_have_text("Offline")
    joins: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []

    def watch(socket: Any) -> None:
        socket.on("framesent", lambda data: joins.append(json.loads(data)))
        socket.on("framereceived", lambda data: answers.append(json.loads(data)))

    ada.on("websocket", watch)
    missed = [f"While away {number}" for number in range(8)]
    for text in missed:
        write(grace, text)
        sees(grace, text)
    ada.context.set_offline(False)
    connected(ada, BACK)
    expect(ada.locator("#messages .bubble")).to_have_text(["Before", *missed])
    expect(ada.locator(".gap")).to_have_count(0)
    said = [
        answer["payload"]["text"] for answer in answers if answer.get("payload", {}).get("type") == "said"
    ]
    assert joins[-1]["since"]
    assert said == missed
    assert {"recovered": True, "history": []}.items() <= next(
        answer for answer in answers if answer.get("type") == "welcome"
    ).items()
    write(grace, "And on")
    sees(ada, "And on")


def test_everything_can_be_done_with_the_keyboard(visitors: Guests) -> None:
    ada = visitors.page()
    expect(ada.get_by_label("Your name")).to_be_focused()
    ada.keyboard.type("Ada")
    ada.keyboard.press("Tab")
    ada.keyboard.press("ControlOrMeta+a")
    ada.keyboard.type("keys")
    ada.keyboard.press("Enter")
    connected(ada)
    expect(ada.get_by_label("Message", exact=True)).to_be_focused()
    ada.keyboard.type("one")
    ada.keyboard.press("Shift+Enter")
    ada.keyboard.type("two")
    ada.keyboard.press("Enter")
    expect(ada.locator("#messages .bubble")).to_have_text(["one\ntwo"])
    ada.keyboard.type("three")
    ada.keyboard.press("Tab")
    ada.keyboard.press("Space")
    expect(ada.locator("#messages .bubble")).to_have_text(["one\ntwo", "three"])
    stops: list[str] = []
    while not (stops and stops[-1] in stops[:-1]):
        ada.keyboard.press("Tab")
        stops.append(ada.evaluate(VISIBLE_FOCUS))
    assert not [stop for stop in stops if "unseen focus" in stop]
    for reachable in ("#lobby", "#trio", "go-room", "rename", "share", "log", "text"):
        assert any(reachable in stop for stop in stops), (reachable, stops)


def test_a_phone_needs_no_sideways_scrolling(visitors: Guests) -> None:
    ada = visitors.page("phone", viewport=PHONE, has_touch=True, is_mobile=True)
    assert ada.evaluate(TOO_WIDE) == []
    ada.get_by_label("Your name").fill("W" * 24)
    ada.get_by_role("button", name="Join the room").click()
    connected(ada)
    write(ada, "W" * 500)
    expect(ada.locator("#messages .message")).to_have_count(1)
    visitors.join("M" * 24, "phone", viewport=PHONE)
    expect(ada.locator("#people li")).to_have_count(2)
    assert ada.evaluate(TOO_WIDE) == []
    expect(ada.get_by_role("link", name="lobby")).not_to_be_visible()
    menu = ada.get_by_role("button", name="Rooms and people", exact=True)
    menu.tap()
    expect(menu).to_have_attribute("aria-expanded", "true")
    expect(ada.get_by_role("link", name="lobby")).to_be_visible()
    expect(ada.get_by_role("button", name="Close the list")).to_be_focused()
    assert ada.evaluate(TOO_WIDE) == []
    ada.keyboard.press("Escape")
    expect(menu).to_be_focused()
    menu.tap()
    ada.get_by_role("link", name="lobby").tap()
    expect(ada.get_by_role("heading", level=1)).to_contain_text("lobby")
    expect(ada.get_by_role("link", name="lobby")).not_to_be_visible()


def test_the_log_follows_only_who_is_at_its_end(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada", "scroll"), visitors.join("Grace", "scroll")
    for number in range(4):
        write(ada, f"{number}" + "\nline" * 8)
    log = grace.get_by_role("log")
    expect(grace.locator("#messages .message")).to_have_count(4)
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    assert log.evaluate(at_end)
    log.evaluate("log => log.scrollTo(0, 100)")
    write(ada, "Unseen")
    new_messages = grace.get_by_role("button", name="New messages")
    expect(new_messages).to_be_visible()
    assert log.evaluate("log => log.scrollTop") == 100
    new_messages.click()
    assert log.evaluate(at_end)
    expect(new_messages).not_to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(visitors: Guests, scheme: str) -> None:
    room = f"a11y-{scheme}"
    ada = visitors.page(room, color_scheme=scheme)
    assert ada.evaluate(NAMELESS) == []
    assert ada.evaluate(FAINT) == []
    ada.get_by_label("Your name").fill("Ada")
    ada.keyboard.press("Enter")
    connected(ada)
    assert ada.evaluate(FAINT) == []
    people = [visitors.join(name, room) for name in ("Grace", "Alan", "Inês", "Linus", "Barbara")]
    for person in people:
        write(person, "Hello")
    write(ada, "Hello all")
    expect(ada.locator("#messages .message")).to_have_count(6)
    people[0].get_by_label("Message", exact=True).press_sequentially("typing")
    expect(ada.locator("#typists")).to_be_visible()
    assert ada.evaluate(NAMELESS) == []
    assert ada.evaluate(FAINT) == []
    ada.context.set_offline(True)
    write(ada, "Waiting")
    expect(ada.locator("#pending .message")).to_have_count(1)
    assert ada.evaluate(FAINT) == []
    expect(ada.get_by_role("log")).to_have_attribute("aria-live", "polite")
    assert ada.evaluate("document.getAnimations().length") == 0  # reduced motion


def test_a_reload_keeps_the_name_and_what_one_has_said(visitors: Guests) -> None:
    ada = visitors.join("Ada", "reload")
    write(ada, "Mine")
    sees(ada, "Mine")
    ada.reload()
    connected(ada)
    expect(ada.locator("#people bdi")).to_have_text(["Ada"])
    expect(ada.locator("#messages .mine .bubble")).to_have_text(["Mine"])


def test_words_of_an_earlier_bearer_of_a_name_are_not_mine(visitors: Guests) -> None:
    ada, grace = visitors.join("Ada", "bearer"), visitors.join("Grace", "bearer")
    write(ada, "Said by the first Ada")
    sees(grace, "Said by the first Ada")
    ada.context.close()
    expect(grace.locator("#people bdi")).to_have_text(["Grace"])
    other = visitors.join("Ada", "bearer")
    sees(other, "Said by the first Ada")
    expect(other.locator("#messages .mine")).to_have_count(0)


def test_of_two_tabs_that_are_one_person_the_newer_one_stays(visitors: Guests) -> None:
    first = visitors.join("Ada", "twins")
    with first.context.expect_page() as opened:
        first.evaluate("open(location.href)")  # with a copy of the session's storage, like a duplicated tab
    connected(opened.value)
    expect(first.get_by_role("status").first).to_have_text("Disconnected")
    expect(first.locator("#banner-text")).to_contain_text("replaced by a newer connection")
    connected(opened.value)
    expect(opened.value.locator("#people bdi")).to_have_text(["Ada"])
