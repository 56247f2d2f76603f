"""Pictures of every example, on a desktop and a phone, light and dark: ``scripts/screenshots [NAME ...]``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.examples.browsers import DESKTOP, PHONE, Page, Visitors, chromium, connected
from tests.examples.servers import ROOT, Server

OUT: Final = ROOT / "screenshots"
SIZES: Final[dict[str, dict[str, Any]]] = {
    "desktop-light": {"viewport": DESKTOP, "color_scheme": "light"},
    "desktop-dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone-light": {"viewport": PHONE, "color_scheme": "light", "has_touch": True, "is_mobile": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
}


@contextmanager
def chat(pages: list[Page]) -> Iterator[None]:
    for page, name in zip(pages, ("Ada", "Grace", "Linus", "Barbara"), strict=True):
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Join the room").click()
        connected(page)
        page.get_by_label("Message", exact=True).fill(f"Hello, here is {name}")
        page.keyboard.press("Enter")
    yield


@contextmanager
def game(pages: list[Page]) -> Iterator[None]:
    keys = ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp")
    for page, name, key in zip(pages, ("Ada", "Grace", "Linus", "Barbara"), keys, strict=True):
        page.get_by_label("Your name").fill(name)
        page.keyboard.press("Enter")
        page.locator("#scores .mine").wait_for()
        page.keyboard.down(key)
    pages[0].wait_for_timeout(500)
    yield


@contextmanager
def dashboard(pages: list[Page]) -> Iterator[None]:
    pages[0].wait_for_timeout(3000)
    pages[0].get_by_role("button", name="Make some noise").click()
    pages[0].wait_for_timeout(4000)
    yield


@contextmanager
def iot(pages: list[Page]) -> Iterator[None]:
    url = f"{pages[0].url.replace('http', 'ws')}devices"
    command = [sys.executable, "-m", "examples.iot.device", "--devices", "14", "--loss", "0.2", "--url", url]
    devices = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    for page in pages:
        page.get_by_label("Your key").fill("demo")
        page.keyboard.press("Enter")
        connected(page)
    try:
        pages[0].wait_for_timeout(3000)
        for number, name in enumerate(("Blink", "Faster", "Restart", "Slower", "Blink", "Blink")):
            button = pages[number % 4].get_by_role("row", name=f"d-{number + 1:03}").get_by_text(name)
            button.click()
        pages[0].wait_for_timeout(1200)
        yield
    finally:
        devices.terminate()
        devices.wait()


LINES = ("Shopping\n", "- bread\n", "- a very good cheese\n", "- tea, and something for Sunday\n")


@contextmanager
def collab(pages: list[Page]) -> Iterator[None]:
    for page, name in zip(pages, ("Ada", "Grace", "Linus", "Barbara"), strict=True):
        page.get_by_label("Your name").fill(name)
        page.keyboard.press("Enter")
        page.locator("#people", has_text=f"{name} (you)").wait_for()
        connected(page)
    for page, line in zip(pages, LINES, strict=True):
        text = page.get_by_label("The shared text")
        text.press("ControlOrMeta+End")
        page.keyboard.type(line)
        page.wait_for_timeout(300)
    pages[2].keyboard.press("Shift+ArrowUp")
    pages[1].keyboard.press("Home")
    pages[0].keyboard.press("ControlOrMeta+Home")
    pages[3].wait_for_timeout(500)
    yield


@contextmanager
def stream(pages: list[Page]) -> Iterator[None]:
    for page, name, text in zip(
        pages,
        ("Ada", "Grace", "Linus", "Barbara"),
        ("Is this live?", "As live as a test picture can be.", "The clock says so", "I came in the middle"),
        strict=True,
    ):
        connected(page)
        page.get_by_role("button", name="Play").click()
        page.get_by_label("Your name").fill(name)
        page.get_by_label("Message", exact=True).fill(text)
        page.keyboard.press("Enter")
    pages[0].wait_for_timeout(3000)
    yield


SCENES: Final[dict[str, Callable[[list[Page]], Any]]] = {
    "chat": chat,
    "game": game,
    "dashboard": dashboard,
    "iot": iot,
    "collab": collab,
    "stream": stream,
}


def take(name: str) -> None:
    server = Server(f"examples.{name}:app")
    server.start()
    try:
        with chromium() as browser:
            visitors = Visitors(browser, server.url)
            pages = [visitors.page("lobby" if name == "chat" else "", **size) for size in SIZES.values()]
            with SCENES[name](pages):
                for size, page in zip(SIZES, pages, strict=True):
                    page.screenshot(path=OUT / f"{name}-{size}.png")
                server.stop()
                pages[1].wait_for_timeout(300)
                pages[1].screenshot(path=OUT / f"{name}-server-gone.png")
            visitors.leave()
    finally:
        server.stop()


def main(names: list[str]) -> None:
    OUT.mkdir(exist_ok=True)
    for name in names or list(SCENES):
        take(name)
        print(f"{name}: {len(list(OUT.glob(f'{name}-*.png')))} pictures in {OUT.relative_to(ROOT)}/")


if __name__ == "__main__":
    main(sys.argv[1:])
