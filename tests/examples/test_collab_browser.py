"""The shared text, as people write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.examples.browsers import BACK, PHONE, Browser, Page, Visitors, connected, expect, flaws, try_now
from tests.examples.servers import Server

pytestmark = pytest.mark.untraced


APP: Final = "examples.collab:app"


def writer(visitors: Visitors, name: str, document: str = "notes", **options: Any) -> Page:
    page = visitors.page(document, **options)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#people")).to_contain_text(f"{name} (you)")
    connected(page)
    return page


def sheet(page: Page) -> Any:
    return page.get_by_label("The shared text")


def same(pages: list[Page]) -> str:
    """The text that all of them show, in the end."""
    text: str = ""
    for _ in range(200):
        texts = [sheet(page).input_value() for page in pages]
        if len({*texts}) == 1:
            text = texts[0]
            break
        pages[0].wait_for_timeout(25)
    else:
        raise AssertionError(f"they do not converge: {texts}")
    return text


TYPE: Final = """async ([words, at]) => {
  const text = document.getElementById("text");
  text.focus();
  text.setSelectionRange(at === "end" ? text.value.length : 0, at === "end" ? text.value.length : 0);
  for (const letter of words) {
    document.execCommand("insertText", false, letter);
    await new Promise((done) => setTimeout(done, 5));
  }
}"""


BEFORE_CARET: Final = """(mirror) => {
  const range = new Range();
  range.setStart(mirror, 0);
  range.setEndBefore(mirror.querySelector(".caret"));
  return range.toString();
}"""


def test_two_who_write_at_once_converge_and_cursors_move_with_the_text(visitors: Visitors) -> None:
    ada, grace = writer(visitors, "Ada"), writer(visitors, "Grace")
    sheet(ada).press_sequentially("one two 😀")
    expect(sheet(grace)).to_have_value("one two 😀")
    for page, words, at in ((ada, "AAAA aaaa BBBB " * 3, "start"), (grace, " xxxx YYYY xxxx" * 3, "end")):
        page.evaluate(f"(args) => {{ window.typing = ({TYPE})(args); }}", [words, at])
    for page in (ada, grace):
        page.evaluate("window.typing")
    expected = "AAAA aaaa BBBB " * 3 + "one two 😀" + " xxxx YYYY xxxx" * 3
    expect(sheet(ada)).to_have_value(expected)
    expect(sheet(grace)).to_have_value(expected)
    # Ada's cursor stands before "one"; what is written before it pushes it on, there and in Grace's page.
    assert ada.evaluate("text.selectionStart") == 45
    sheet(grace).press("ControlOrMeta+Home")
    grace.keyboard.type("zero\n")
    expect(sheet(ada)).to_have_value("zero\n" + expected)
    assert ada.evaluate("text.selectionStart") == 50
    expect(grace.locator("#mirror .caret .flag")).to_have_text("Ada")
    expect(grace.locator("#people li", has_text="Ada")).to_contain_text("line 2")
    assert grace.locator("#mirror").evaluate(BEFORE_CARET) == "zero\n" + "AAAA aaaa BBBB " * 3
    sheet(ada).press("ControlOrMeta+a")
    expect(grace.locator("#mirror .selection")).to_have_text(["zero\n" + expected], use_inner_text=False)
    for _ in range(60):  # at once goes what was written within half a second, however much that was
        sheet(grace).press("ControlOrMeta+z")  # only what was hers
    expect(sheet(ada)).not_to_have_value(re.compile("zero|YYYY"))
    assert "AAAA" in same([ada, grace])
    assert flaws(grace) == []
    grace.context.close()
    expect(ada.locator("#people li")).to_have_count(1)


def test_what_is_written_without_a_network_comes_together(visitors: Visitors) -> None:
    ada = writer(visitors, "Ada", "tunnel", viewport=PHONE, has_touch=True, is_mobile=True)
    grace = writer(visitors, "Grace", "tunnel")
    sheet(ada).fill("middle")
    expect(sheet(grace)).to_have_value("middle")
    ada.context.set_offline(True)
    expect(ada.get_by_role("status").first).to_have_text("Offline")
    sheet(ada).press("ControlOrMeta+End")
    ada.keyboard.type(" end")
    expect(ada.locator("#saved")).to_have_text("Your changes wait for the connection")
    assert flaws(ada) == []
    sheet(grace).press("ControlOrMeta+Home")
    grace.keyboard.type("start ")
    ada.context.set_offline(False)
    connected(ada, BACK)
    for page in (ada, grace):
        expect(sheet(page)).to_have_value("start middle end")
    expect(ada.locator("#saved")).to_have_text("Everything is with the server")


def test_a_restart_loses_nothing(browser: Browser, make_server: Callable[[str], Server]) -> None:
    server = make_server("nexios-trio")
    visitors = Visitors(browser, server.url)
    ada, grace = writer(visitors, "Ada"), writer(visitors, "Grace")
    sheet(ada).fill("kept")
    expect(sheet(grace)).to_have_value("kept")
    assert server.stop() == 0
    expect(ada.get_by_role("status").first).to_have_text("Server restarts")
    sheet(grace).press("ControlOrMeta+End")
    grace.keyboard.type(" by its writers")
    server.start()
    for page in (ada, grace):
        try_now(page)
        expect(sheet(page)).to_have_value("kept by its writers")
        expect(page.locator("#people li")).to_have_count(2)
    late = writer(visitors, "Late")
    expect(sheet(late)).to_have_value("kept by its writers")
    visitors.leave()
    assert visitors.complaints == []


def test_who_leaves_a_document_with_unsent_changes_is_asked(visitors: Visitors) -> None:
    page = writer(visitors, "Ada", "unsent")
    page.context.set_offline(True)
    expect(page.get_by_role("status").first).to_have_text("Offline")
    sheet(page).press_sequentially("kept")
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", stay)
    page.get_by_label("Another document").fill("elsewhere")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#unsent$"))
    assert asked == ["Your changes have not reached the server. Leave them behind?"]
    expect(sheet(page)).to_have_value("kept")
    page.context.set_offline(False)
    connected(page, BACK)
    page.get_by_label("Another document").fill("elsewhere")
    page.keyboard.press("Enter")
    expect(sheet(page)).to_have_value("")
    assert len(asked) == 1


def test_who_writes_more_than_fits_is_told_how_to_go_on(visitors: Visitors) -> None:
    ada, grace = writer(visitors, "Ada", "full"), writer(visitors, "Grace", "full")
    sheet(ada).fill("before")
    expect(sheet(grace)).to_have_value("before")
    sheet(ada).fill("x" * 100_001)
    expect(ada.locator("#banner-text")).to_contain_text("the text is full")
    expect(ada.locator("#saved")).to_have_text(
        "Your last changes do not fit. Copy them, then reload the page."
    )
    ada.reload()
    connected(ada)
    expect(sheet(ada)).to_have_value("before")
    expect(sheet(grace)).to_have_value("before")
