"""Real pages in a real Chromium, for the tests of the examples, and what holds for each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

UNTESTED: Final = "THE EXAMPLES WERE NOT TESTED IN A BROWSER: "


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(UNTESTED + what, pytrace=False)
    pytest.skip(UNTESTED + what, allow_module_level=True)


try:
    from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright
    from playwright.sync_api import Error as PlaywrightError
except ImportError:
    _missing("playwright is missing (pip install playwright)")

__all__ = [
    "BACK",
    "DESKTOP",
    "FAINT",
    "NAMELESS",
    "PHONE",
    "SOON",
    "TOO_WIDE",
    "VISIBLE_FOCUS",
    "Browser",
    "Page",
    "Visitors",
    "chromium",
    "connected",
    "expect",
    "flaws",
    "try_now",
]

ARGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP: Final[ViewportSize] = {"width": 1280, "height": 800}
PHONE: Final[ViewportSize] = {"width": 375, "height": 667}
SOON: Final = 10_000  # ms for what takes no time but the machine's
BACK: Final = 45_000  # ms for coming back: a page waits up to 30 s between two attempts

expect.set_options(timeout=SOON)


@contextmanager
def chromium() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        _missing("no chromium on the path (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


class Visitors:
    """Opens pages, each in a browser profile of its own, and notes what they complain about."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self.complaints: list[str] = []

    def page(self, fragment: str = "", **options: Any) -> Page:
        context = self._browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message.type, message.text, message.location["url"]))
        page.goto(self._url + (f"#{fragment}" if fragment else ""))
        return page

    def _console(self, kind: str, text: str, where: str) -> None:
        gone = text.startswith("WebSocket connection to") or where.endswith(
            "/icon.svg"
        )  # the server, that is
        if kind in ("error", "warning") and not gone:
            self.complaints.append(f"{text} ({where})")

    def leave(self) -> None:
        for context in self._browser.contexts:
            context.close()


def connected(page: Page, timeout: float = SOON) -> None:
    expect(page.get_by_role("status").first).to_have_text("Connected", timeout=timeout)


def try_now(page: Page) -> None:
    """Reconnect now that the server is back, if the page has not done so by itself."""
    try:
        page.get_by_role("button", name="Try now").click(timeout=500)
    except PlaywrightError:
        pass  # there is no such button any more
    connected(page, BACK)


def flaws(page: Page) -> list[str]:
    """What is wrong with a page as it stands, in light and in dark."""
    found: list[str] = [*page.evaluate(NAMELESS), *page.evaluate(TOO_WIDE)]
    schemes: tuple[Any, Any] = ("dark", "light")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {faint}" for faint in page.evaluate(FAINT)]
    return found


NAMELESS: Final = """() => {
  const wrong = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (element) => element.checkVisibility();
  for (const field of all("input, textarea"))
    if (![...field.labels].some((label) => label.textContent.trim())) wrong.push(field.outerHTML);
  for (const control of all("button, a"))
    if (!(control.getAttribute("aria-label") || control.textContent).trim()) wrong.push(control.outerHTML);
  for (const image of all("img")) if (!image.hasAttribute("alt")) wrong.push(image.outerHTML);
  const ids = all("[id]").map(({ id }) => id);
  wrong.push(...ids.filter((id, i) => ids.indexOf(id) !== i));
  for (const kind of ["for", "aria-labelledby", "aria-describedby", "aria-controls"])
    for (const element of all(`[${kind}]`))
      if (!ids.includes(element.getAttribute(kind))) wrong.push(element.outerHTML);
  for (const single of ["main", "h1"])
    if (all(single).filter(shown).length !== 1) wrong.push(`not one ${single}`);
  for (const target of all("button, input, textarea").filter(shown)) {
    const { width, height } = target.getBoundingClientRect();
    if (Math.min(width, height) < 36) wrong.push(`too small: ${target.outerHTML}`);
  }
  if (!document.documentElement.lang || !document.title) wrong.push("no language or title");
  return wrong;
}"""

TOO_WIDE: Final = """() => {
  const wide = document.documentElement.scrollWidth > innerWidth ? ["page"] : [];
  const boxes = [...document.querySelectorAll("main, main *, aside.open, aside.open *")];
  return wide.concat(boxes
    .filter((box) => box.getClientRects().length && !box.closest(".unseen, svg"))
    .filter((box) => box.getBoundingClientRect().right > innerWidth + 1
      || (box.matches(".log, .bubble, .people, .card") && box.scrollWidth > box.clientWidth))
    .map((box) => box.outerHTML.slice(0, 80)));
}"""

FAINT: Final = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = parse(colour).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((parse(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  const check = (element, colour, what) => {
    const [bright, dark] = [light(colour), light(behind(element))].sort((a, b) => b - a);
    const ratio = (bright + .05) / (dark + .05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${what}`);
  };
  for (const element of document.querySelectorAll("body, body *")) {
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (own || element.value) check(element, getComputedStyle(element).color, element.outerHTML.slice(0, 90));
    if (element.placeholder)
      check(element, getComputedStyle(element, "::placeholder").color, `${element.id} placeholder`);
  }
  return faint;
}"""

VISIBLE_FOCUS: Final = """() => {
  const element = document.activeElement;
  if (element === document.body) return "body";
  const seen = [element, element.closest("form")].some((place) => {
    const style = place && getComputedStyle(place);
    return style && ((style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2)
      || style.boxShadow !== "none");
  });
  return `${element.id || element.hash || element.getAttribute("aria-label")}${seen ? "" : " unseen focus"}`;
}"""
