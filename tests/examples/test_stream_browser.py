"""The broadcast as people watch it: real pictures in a real player."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.examples.browsers import PHONE, Browser, Page, Visitors, connected, expect, flaws, try_now
from tests.examples.servers import Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.stream:app"

PICTURE: Final = """() => {
  const video = document.getElementById("video");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [48, 27];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 48, 27);
  const { data } = context.getImageData(0, 0, 48, 27);
  return { width: video.videoWidth, at: video.currentTime, pixels: [...data] };
}"""


def watch(visitors: Visitors, **options: Any) -> Page:
    page = visitors.page(**options)
    connected(page)
    return page


def plays(page: Page, seconds: float = 0.5) -> float:
    """Until the picture has moved for so long; returns where it is."""
    first = page.evaluate(PICTURE)
    for _ in range(200):
        page.wait_for_timeout(50)
        now = page.evaluate(PICTURE)
        if now["width"] == 480 and now["at"] > first["at"] + seconds and now["pixels"] != first["pixels"]:
            assert len({*now["pixels"]}) > 20  # the test picture is colourful
            at: float = now["at"]
            return at
    raise AssertionError(f"it does not play: at {first['at']}, later at {now['at']}")


def test_viewers_come_in_the_middle_see_the_same_and_talk(visitors: Visitors) -> None:
    ada = watch(visitors, reduced_motion="no-preference")
    plays(ada, 1.5)
    grace = watch(visitors, viewport=PHONE, has_touch=True, is_mobile=True)  # with reduced motion
    assert grace.evaluate("video.paused")
    grace.get_by_role("button", name="Play").focus()
    grace.keyboard.press("Enter")
    at = plays(grace)
    assert at > 1.5  # not from the beginning
    assert abs(ada.evaluate("video.currentTime") - grace.evaluate("video.currentTime")) < 5
    expect(ada.locator("#viewers")).to_have_text("2")
    grace.get_by_label("Your name").fill("Grace")
    grace.get_by_label("Message", exact=True).fill("<b>What a picture</b>")
    grace.keyboard.press("Enter")
    expect(ada.locator("#log li")).to_contain_text("<b>What a picture</b>")
    expect(grace.get_by_label("Message", exact=True)).to_have_value("")
    for page in (ada, grace):
        assert flaws(page) == []
    late = watch(visitors)
    expect(late.locator("#log li")).to_have_count(1)
    grace.get_by_role("button", name="Pause").click()
    assert grace.evaluate("video.paused")
    grace.wait_for_timeout(1500)
    grace.get_by_role("button", name="Play").click()
    plays(grace)
    assert ada.evaluate("document.getElementById('skipped').textContent") == "0"


def test_the_broadcast_comes_back_with_the_server(
    browser: Browser, make_server: Callable[[str], Server]
) -> None:
    server = make_server("nexios-trio")
    visitors = Visitors(browser, server.url)
    page = watch(visitors, reduced_motion="no-preference")
    plays(page)
    assert server.stop() == 0
    expect(page.get_by_role("status").first).to_have_text("Server restarts")
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Message", exact=True).fill("still here?")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("There is no connection")
    server.start()
    try_now(page)
    plays(page)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#log li")).to_contain_text("still here?")
    visitors.leave()
    assert visitors.complaints == []


def test_who_cannot_see_the_video_is_told_so_and_can_chat(visitors: Visitors) -> None:
    page = visitors.page()
    page.add_init_script("delete window.MediaSource")  # as on an iPhone
    page.reload()
    connected(page)
    expect(page.locator("#trouble")).to_contain_text("cannot play WebM")
    expect(page.get_by_role("button", name="Play")).to_be_disabled()
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Message", exact=True).fill("No picture here")
    page.keyboard.press("Enter")
    expect(page.locator("#log li")).to_contain_text("No picture here")
