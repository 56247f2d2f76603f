"""The operator's page, with simulated devices in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.examples.browsers import BACK, PHONE, Browser, Page, Visitors, connected, expect, flaws, try_now
from tests.examples.servers import ROOT, Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.iot:app"


@contextmanager
def devices(server: Server, count: int, prefix: str = "d") -> Iterator[None]:
    url = f"{server.url.replace('http', 'ws')}devices"
    command = ["-m", "examples.iot.device", "--devices", str(count), "--url", url, "--interval", "0.5"]
    command += ["--prefix", prefix]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def log_in(page: Page) -> None:
    page.get_by_label("Your key").fill("demo")
    page.keyboard.press("Enter")
    connected(page)


def test_an_operator_sees_devices_and_commands_them(server: Server, visitors: Visitors) -> None:
    page = visitors.page()
    assert flaws(page) == []
    page.get_by_label("Your key").fill("guess")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_have_text("That key is not right.")
    expect(page.get_by_role("status").first).to_have_text("Not logged in")
    expect(page.locator("#banner")).to_be_hidden()
    log_in(page)
    with devices(server, 20):
        expect(page.locator("#count")).to_have_text("20 of 20 online")
        row = page.get_by_role("row", name="d-007")
        expect(row.locator(".temperature")).to_contain_text("°C")
        button = row.get_by_role("button", name="Blink for five seconds")
        button.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#commands li").first).to_contain_text("d-007 blink 5done")
        row.get_by_role("button", name="Restart").click()
        expect(page.locator("#commands li").first).to_contain_text("d-007 restartdone")
        expect(page.locator("#count")).to_have_text("19 of 20 online")
        expect(page.locator("#count")).to_have_text("20 of 20 online")
        page.get_by_label("Show only").fill("01")
        expect(page.locator("#rows tr:visible")).to_have_count(11)  # d-001, d-010 to d-019
        assert flaws(page) == []
        page.set_viewport_size(PHONE)
        assert flaws(page) == []
    expect(page.locator("#count")).to_have_text("0 of 20 online")
    page.get_by_label("Show only").fill("d-003")
    page.get_by_role("row", name="d-003").get_by_role("button", name="Restart").click()
    expect(page.locator("#commands li").first).to_contain_text("d-003 restartno answer", timeout=BACK)
    expect(page.locator("#commands li").first).to_contain_text("3 attempts")


def test_page_and_devices_come_back_when_the_server_does(
    browser: Browser, make_server: Callable[[str], Server]
) -> None:
    server = make_server("nexios-trio")
    visitors = Visitors(browser, server.url)
    page = visitors.page()
    log_in(page)
    with devices(server, 2):
        expect(page.locator("#count")).to_have_text("2 of 2 online")
        assert server.stop() == 0
        expect(page.get_by_role("status").first).to_have_text("Server restarts")
        expect(page.get_by_role("row", name="d-001").get_by_role("button", name="Restart")).to_be_disabled()
        server.start()
        try_now(page)
        expect(page.locator("#count")).to_have_text("2 of 2 online", timeout=BACK)
        expect(page.get_by_role("row", name="d-001").get_by_role("button", name="Restart")).to_be_enabled()
    visitors.leave()
    assert visitors.complaints == []


def test_long_names_of_devices_push_nothing_off_the_screen(server: Server, visitors: Visitors) -> None:
    page = visitors.page()
    log_in(page)
    with devices(server, 2, prefix="a-name-of-a-device-as-long-a"):
        expect(page.locator("#count")).to_have_text("2 of 2 online")
        assert flaws(page) == []
        page.set_viewport_size(PHONE)
        assert flaws(page) == []
