"""The dashboard in a real browser: by mouse, by keyboard, on a phone, and without a server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from websockets.sync.client import ClientConnection, connect

from tests.examples.browsers import DESKTOP, PHONE, SOON
from tests.examples.conftest import browser

pytestmark = pytest.mark.untraced


__all__ = ["browser"]

ROOT = Path(__file__).parents[2]


class Server:
    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.port = 0
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """On a free port; later on the same one."""
        command = [
            *(sys.executable, "-m", "nexios_trio.cli", "run", "tests.monitoring.dashboard_app:app"),
            *(
                "--bind",
                f"127.0.0.1:{self.port}",
                "--workers",
                "0",
                "--server",
                "engine",
                "--drain-window",
                "0",
            ),
        ]
        process = self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **self.environment}, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if running := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(running[1])
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(self.log))
        self._reader = threading.Thread(target=self.log.extend, args=(process.stderr,))
        self._reader.start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is None or self._reader is None:
            return
        process.send_signal(how)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            self._reader.join()
            assert process.stderr is not None
            process.stderr.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**environment: str) -> Server:
        server = Server(environment)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()
        assert "Traceback" not in "".join(server.log), "".join(server.log)


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    complaints: list[str] = []
    network = re.compile("WebSocket connection to|Failed to load resource")

    def open_(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning") and not network.match(message.text)
                else None
            ),
        )
        page.goto(url)
        return page

    yield open_
    for context in browser.contexts:
        context.close()
    assert complaints == []  # the policy of the page complains on the console


@pytest.fixture
def visitors(server: Server) -> Iterator[Callable[[str, str], ClientConnection]]:
    with ExitStack() as stack:

        def visit(room: str, user: str) -> ClientConnection:
            url = f"ws://127.0.0.1:{server.port}/rooms/{room}?user={user}"
            return stack.enter_context(connect(url, compression=None))

        yield visit


Visit = Callable[[str, str], ClientConnection]


def tile(page: Page, name: str) -> Any:
    return page.locator("#tiles > div").filter(has_text=name).locator("dd")


def connected(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text("Connected")


def test_an_empty_server_says_so(server: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url + "ops")  # redirected to the slash
    connected(page)
    expect(tile(page, "Connections")).to_have_text("0")
    for text in ("Nobody is connected.", "No group has members.", "every client reads"):
        expect(page.get_by_text(text)).to_be_visible()
    expect(page.get_by_role("img", name="Connections: open 0")).to_be_visible()
    expect(page).to_have_title(re.compile("Dashboard"))


def test_what_happens_is_seen_within_a_second_or_two(
    server: Server, open_page: Callable[..., Page], visitors: Visit
) -> None:
    page = open_page(server.url + "ops/")
    connected(page)
    for number in range(3):
        ws = visitors("lobby", f"user-{number}")
        ws.send("hello")
        assert ws.recv() == "hello"
    expect(tile(page, "Connections")).to_have_text("3")
    expect(page.locator("#groups tbody tr")).to_have_count(1)
    expect(page.locator("#routes tbody tr").first).to_contain_text("/rooms/{room}")
    expect(page.locator("#connections tbody tr")).to_have_count(3)
    expect(page.get_by_role("img", name=re.compile("^Connections: open 3"))).to_be_visible()
    paths = page.locator("#chart-connections path")
    expect(paths).to_have_attribute("d", re.compile("L"))
    page.get_by_label("Find by id").fill("user-1")
    expect(page.locator("#connections tbody tr")).to_have_count(1)
    expect(page.locator("#connections tbody")).to_contain_text("user-1")


def test_who_opens_the_page_later_sees_how_it_was_before(
    server: Server, open_page: Callable[..., Page]
) -> None:
    early = open_page(server.url + "ops/")
    connected(early)
    path = "#chart-connections path"
    expect(early.locator(path)).to_have_attribute("d", re.compile("(L.*){4}"))
    for _ in range(3):  # the history and the answer to the page's first command race
        late = open_page(server.url + "ops/")
        connected(late)
        expect(late.locator(path)).to_have_attribute("d", re.compile("M"))
        late_line, early_line = (page.locator(path).get_attribute("d") or "" for page in (late, early))
        assert late_line.count("L") >= early_line.count("L") - 1


def test_one_connection_is_looked_into_and_ended_by_keyboard_alone(
    server: Server, open_page: Callable[..., Page], visitors: Visit
) -> None:
    ws = visitors("lobby", "bob")
    page = open_page(server.url + "ops/")
    connected(page)
    link = page.locator("#connections a")
    link.focus()
    page.wait_for_timeout(1500)  # the table is drawn anew meanwhile
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#connection-title")).to_be_focused()
    expect(page.locator("#tasks")).to_contain_text("tick (dashboard_app.py:")
    expect(page.locator("#tasks ul ul li")).not_to_have_count(0)
    expect(page.locator("#facts")).to_contain_text("bob")
    trace = page.get_by_role("button", name="Trace frames")
    trace.focus()
    page.keyboard.press("Enter")
    stop = page.get_by_role("button", name="Stop the trace")
    expect(stop).to_be_focused()
    ws.send("a secret")
    assert ws.recv() == "a secret"
    expect(page.locator("#frames tbody tr")).to_have_count(2)
    expect(page.locator("#frames")).not_to_contain_text("secret")
    expect(page.get_by_text("Payloads are masked.")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Disconnect…")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Enter")  # on "Cancel", which has the focus
    expect(page.get_by_role("dialog")).to_be_hidden()
    ws.send("still here")
    assert ws.recv() == "still here"
    page.get_by_role("button", name="Disconnect the user…").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Closed 1 connections of bob.")).to_be_visible()
    expect(page.get_by_text("This connection is over.")).to_be_visible()
    with pytest.raises(Exception, match="1008"):
        ws.recv()


def test_payloads_are_text_if_they_are_shown(
    make_server: Callable[..., Server], open_page: Callable[..., Page]
) -> None:
    server = make_server(PAYLOADS="1")
    page = open_page(server.url + "ops/")
    connected(page)
    with connect(f"ws://127.0.0.1:{server.port}/rooms/%3Cb%3E?user=%3Ci%3E", compression=None) as ws:
        page.locator("#connections a").click()
        page.get_by_role("button", name="Trace frames").click()
        expect(page.get_by_role("button", name="Stop the trace")).to_be_visible()
        ws.send("<img src=x onerror=alert(1)>")
        expect(page.locator("#frames td.payload").first).to_have_text("<img src=x onerror=alert(1)>")
        expect(page.locator("#connection-page :is(img, b, i)")).to_have_count(0)
        expect(page.locator("#facts")).to_contain_text("<i>")


def test_a_token_is_asked_for_and_kept_out_of_the_url(
    make_server: Callable[..., Server], open_page: Callable[..., Page]
) -> None:
    server = make_server(TOKEN="1")
    page = open_page(server.url + "ops/")
    expect(page.get_by_role("status")).to_have_text("Not let in")
    expect(page.locator("#overview")).to_be_hidden()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("status")).to_have_text("Not let in")
    page.get_by_label("Token").fill("let-me-in")
    page.keyboard.press("Enter")
    connected(page)
    expect(page.get_by_label("Token")).to_be_hidden()
    assert "let-me-in" not in page.url
    assert "let-me-in" not in "".join(server.log)


def test_the_page_says_that_the_server_is_gone_and_comes_back_with_it(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(server.url + "ops/")
    connected(page)
    expect(page.locator("#overview")).to_be_visible()
    server.stop(signal.SIGKILL)
    expect(page.get_by_role("status")).to_have_text("Reconnecting")
    expect(page.get_by_role("alert")).to_contain_text("What is shown is how it was")
    expect(page.locator("#overview")).to_be_visible()
    expect(page.get_by_role("button", name="Drain…")).to_be_hidden()
    server.start()
    expect(page.get_by_role("status")).to_have_text("Connected", timeout=45_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_operator_drains_from_the_page(
    server: Server, open_page: Callable[..., Page], visitors: Visit
) -> None:
    ws = visitors("lobby", "bob")
    page = open_page(server.url + "ops/")
    connected(page)
    page.get_by_role("button", name="Drain…").click()
    page.get_by_role("button", name="Drain", exact=True).click()
    with pytest.raises(Exception, match="1012"):
        ws.recv(timeout=SOON / 1000)
    expect(page.get_by_role("status")).to_have_text("Not let in")


def test_a_broken_link_shows_the_overview(server: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url + "ops/#connection/%zz")
    connected(page)
    expect(page.locator("#overview")).to_be_visible()


def test_who_may_only_look_has_no_buttons(
    server: Server, open_page: Callable[..., Page], visitors: Visit
) -> None:
    visitors("lobby", "bob")
    page = open_page(server.url + "watch/")
    connected(page)
    expect(page.get_by_role("button")).to_have_count(0)
    page.locator("#connections a").click()
    expect(page.locator("#facts")).to_contain_text("bob")
    expect(page.get_by_role("button")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_in_the_dark(
    server: Server, open_page: Callable[..., Page], visitors: Visit, scheme: str
) -> None:
    visitors("a-room-with-quite-a-long-name-that-goes-on-and-on", "somebody@a-long-host.example" + "n" * 99)
    page = open_page(server.url + "ops/", viewport=PHONE, color_scheme=scheme)
    connected(page)
    expect(tile(page, "Connections")).to_have_text("1")
    for link in ("#groups a", "#members a"):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator(link).click()
    expect(page.locator("#facts")).to_contain_text("somebody")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Disconnect the user…").click()
    assert page.get_by_role("dialog").evaluate("node => node.scrollWidth <= node.clientWidth")
    page.keyboard.press("Escape")
    assert contrast(page, "#facts dt") >= 4.5
    assert contrast(page, "#facts dd") >= 7


def contrast(page: Page, selector: str) -> float:
    """Of text against the page, as WCAG 2 counts it."""
    colours = page.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)).color,
                        getComputedStyle(document.body).backgroundColor]""",
        selector,
    )
    light, dark = sorted(map(luminance, colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
