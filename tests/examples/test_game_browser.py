"""The game as people play it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.examples.browsers import PHONE, Browser, Page, Visitors, expect, flaws, try_now
from tests.examples.servers import Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.game:app"


def play(visitors: Visitors, name: str, **options: Any) -> tuple[Page, list[dict[str, Any]]]:
    """A page with a ship, and what the server tells it."""
    heard: list[dict[str, Any]] = []
    page = visitors.page(**options)
    page.on("websocket", lambda ws: ws.on("framereceived", lambda data: heard.append(json.loads(data))))
    page.reload()
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#scores .mine")).to_contain_text(f"{name} (you)")
    return page, heard


def ship(heard: list[dict[str, Any]]) -> tuple[float, float]:
    mine = [event["id"] for event in heard if event["type"] == "welcome"][-1]
    state = [event for event in heard if event["type"] == "state" and event["ships"]][-1]
    return next((x, y) for number, x, y, *_ in state["ships"] if number == mine)


def moves(page: Page, heard: list[dict[str, Any]], changed: Callable[[float, float], bool]) -> None:
    """Until the ship has moved so."""
    x, y = ship(heard)
    for _ in range(200):
        page.wait_for_timeout(25)
        here = ship(heard)
        if changed(here[0] - x, here[1] - y):
            return
    raise AssertionError(f"it went from {x, y} to {ship(heard)}")


def test_players_meet_and_steer_with_keys_and_pointer(visitors: Visitors) -> None:
    ada, ada_hears = play(visitors, "Ada")
    grace, grace_hears = play(visitors, "Grace")
    expect(ada.locator("#scores bdi")).to_have_count(2)
    expect(ada.locator("#scores")).to_contain_text("Grace")
    expect(ada.locator("#news")).to_have_text("Grace has come")
    expect(ada.locator("#arena")).to_be_focused()
    x, _ = ship(ada_hears)
    away = 1 if x < 800 else -1
    ada.keyboard.down("ArrowRight" if away > 0 else "KeyA")
    moves(ada, ada_hears, lambda dx, dy: dx * away > 30)
    ada.keyboard.up("ArrowRight" if away > 0 else "KeyA")
    _, y = ship(grace_hears)
    away = 1 if y < 450 else -1
    grace.mouse.move(500, 400)
    grace.mouse.down()
    grace.mouse.move(500, 400 + 100 * away)
    moves(grace, grace_hears, lambda dx, dy: dy * away > 30)
    grace.mouse.up()
    assert ada.evaluate(DRAWN) > 3  # stars, ships, grid
    assert flaws(ada) == []
    grace.context.close()
    expect(ada.locator("#scores li")).to_have_count(1)
    expect(ada.locator("#scores .mine")).to_contain_text("Ada (you)")


DRAWN: Final = """() => {
  const canvas = document.getElementById("arena");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Map();
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] === 255) {
      const colour = data[i] << 16 | data[i + 1] << 8 | data[i + 2];
      colours.set(colour, (colours.get(colour) ?? 0) + 1);
    }
  return [...colours.values()].filter((pixels) => pixels > 100).length;
}"""


def test_on_a_phone_the_arena_stands_upright_and_a_finger_steers(visitors: Visitors) -> None:
    page, heard = play(visitors, "Ada", viewport=PHONE, has_touch=True, is_mobile=True)
    assert flaws(page) == []
    x, _ = ship(heard)
    away = 1 if x < 800 else -1  # in the world to the right is on the screen down
    page.mouse.move(180, 250)
    page.mouse.down()
    page.mouse.move(180, 250 + 80 * away)
    moves(page, heard, lambda dx, dy: dx * away > 30)
    page.mouse.up()


def test_players_come_back_when_the_server_does(
    browser: Browser, make_server: Callable[[str], Server]
) -> None:
    server = make_server("nexios-trio")
    visitors = Visitors(browser, server.url)
    page, _ = play(visitors, "Ada")
    assert server.stop() == 0
    expect(page.get_by_role("status").first).to_have_text("Server restarts")
    expect(page.get_by_text("comes back by itself")).to_be_visible()
    server.start()
    try_now(page)
    expect(page.locator("#scores .mine")).to_contain_text("Ada (you)")
    visitors.leave()
    assert visitors.complaints == []
