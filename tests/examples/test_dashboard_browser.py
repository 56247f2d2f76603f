"""The dashboard as somebody looks at it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import pytest

from tests.examples.browsers import BACK, PHONE, Browser, Visitors, connected, expect, flaws
from tests.examples.servers import Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.dashboard:app"


def test_figures_come_are_plotted_and_rise_with_noise(visitors: Visitors) -> None:
    page = visitors.page()
    connected(page)
    expect(page.locator("#connections-value")).to_have_text("1open")
    expect(page.locator("#memory-value")).to_have_text(re.compile(r"^[1-9]\d+MiB$"))
    line = page.get_by_role("img", name=re.compile("^Loop lag")).locator(".line").last
    expect(line).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+){2,}$"))
    noise = page.get_by_role("button", name="Make some noise")
    noise.focus()
    page.keyboard.press("Enter")
    # Chromium opens one socket at a time.
    expect(page.locator("#connections-value")).to_have_text("51open", timeout=60_000)
    expect(page.locator("#messages-value")).to_have_text(re.compile(r"^\d{2,}a second"))
    page.get_by_text("As a table").click()
    assert flaws(page) == []
    page.get_by_role("button", name="Stop the noise").click()
    expect(page.locator("#connections-value")).to_have_text("1open")


def test_the_past_is_looked_at_with_the_keyboard_and_on_a_phone(visitors: Visitors) -> None:
    page = visitors.page(viewport=PHONE, has_touch=True, is_mobile=True)
    connected(page)
    plot = page.get_by_role("img", name=re.compile("^Connections"))
    expect(plot.locator(".line")).to_have_attribute("d", re.compile("L.*L"))
    plot.focus()
    page.keyboard.press("ArrowLeft")
    expect(plot.locator(".cursor")).to_have_count(1)
    expect(page.locator("#when")).to_contain_text("seconds ago")
    assert flaws(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#when")).to_have_text("The last two minutes")
    expect(plot.locator(".cursor")).to_have_count(0)
    other = visitors.page()  # who comes later sees the past, too
    expect(other.locator("#connections-value")).to_have_text("2open")
    drawn = other.get_by_role("img", name=re.compile("^Connections")).locator(".line").get_attribute("d")
    assert drawn is not None
    assert drawn.count("L") >= 3


def test_it_comes_back_by_itself_and_shows_the_gap(
    browser: Browser, make_server: Callable[[str], Server]
) -> None:
    server = make_server("nexios-trio")
    visitors = Visitors(browser, server.url)
    page = visitors.page()
    connected(page)
    line = page.get_by_role("img", name=re.compile("^Memory")).locator(".line")
    expect(line).to_have_attribute("d", re.compile("L.*L"))
    assert server.stop() == 0
    expect(page.get_by_role("status").first).to_have_text("Server restarts")
    server.start()
    connected(page, BACK)
    expect(line).to_have_attribute("d", re.compile(r"^M[^M]*M[^M]*L"))
    visitors.leave()
    assert visitors.complaints == []
