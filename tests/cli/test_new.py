"""``nexios-trio new``. What it makes is tried by ``tests/testing/test_installed.py``."""

from __future__ import annotations

import importlib.util
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

import nexios_trio.cli
from nexios_trio.cli import main
from nexios_trio.cli.new import FILES


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(name: str) -> Result:
    return CliRunner().invoke(main, ["new", name])


def test_it_makes_the_files_and_says_what_to_do_next(here: Path) -> None:
    result = new("chat-room")
    assert result.exit_code == 0, result.output
    made = here / "chat-room"
    assert {path.name for path in made.iterdir()} == set(FILES)
    assert "nexios-trio run app:app --config serve.toml" in result.output
    for path in made.iterdir():
        assert "@NAME@" not in path.read_text("utf-8")
    assert tomllib.loads((made / "pyproject.toml").read_text())["project"]["name"] == "chat-room"


def test_every_template_is_used() -> None:
    folder = Path(nexios_trio.cli.__file__).with_name("template")
    assert {path.name for path in folder.iterdir()} == set(FILES.values())


def test_it_may_be_in_a_folder_that_is_not_there_or_empty(here: Path) -> None:
    (here / "empty").mkdir()
    assert new("empty").exit_code == 0
    assert new("a/b/deep").exit_code == 0
    assert (here / "a/b/deep/app.py").is_file()


def test_nothing_is_overwritten(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine/app.py").write_text("precious")
    result = new("mine")
    assert result.exit_code == 1
    assert "mine is there already, and not empty; give another name" in result.output
    assert (here / "mine/app.py").read_text() == "precious"
    (here / "file").write_text("")
    assert "file is there already" in new("file").output


@pytest.mark.parametrize("name", ["1st", "a b", "<b>", "class", "ä", "..", "-x", "a-", "a_"])
def test_a_name_that_is_none_is_refused(name: str, here: Path) -> None:
    result = CliRunner().invoke(main, ["new", "--", name])
    assert result.exit_code == 2
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["nexios-trio", "Nexios_Trio", "trio", "msgspec", "h11", "pytest"])
def test_a_name_of_a_package_that_it_needs_is_refused(name: str, here: Path) -> None:
    result = new(name)
    assert result.exit_code == 2
    assert f"{name} is a package that the project needs" in result.output
    assert list(here.iterdir()) == []


def test_its_package_is_the_app_without_the_tests(here: Path) -> None:
    # setuptools finds two modules, and asks which.
    new("mine")
    project = tomllib.loads((here / "mine/pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["py-modules"] == ["app"]


def test_a_folder_that_cannot_be_made_is_said(here: Path) -> None:
    (here / "file").write_text("")
    result = new("file/inside")
    assert result.exit_code == 1
    assert "cannot write" in result.output


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _talk(url: str) -> list[str]:
    """Two people open the page, one says something; gives what the pages complain of."""
    from playwright.sync_api import expect, sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        ada, ben = browser.new_page(), browser.new_page()
        for page in (ada, ben):
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            page.goto(url)
            expect(page.get_by_role("status")).to_have_text("in the room lobby", timeout=30_000)
        ada.get_by_role("textbox", name="Message").fill("<b>hello</b>")
        ada.get_by_role("button", name="Send").click()
        for page in (ada, ben):
            expect(page.get_by_role("listitem")).to_have_text("<b>hello</b>", timeout=30_000)
        expect(ada.get_by_role("textbox")).to_have_value("")
        browser.close()
    return complaints


async def test_its_page_talks_to_its_app(here: Path, nexios_server: Any) -> None:
    pytest.importorskip("playwright", reason="playwright IS NOT INSTALLED: the page stays untested")
    if CHROMIUM is None:
        pytest.skip("no chromium IS INSTALLED: the page of a new project stays untested")
    assert new("chat-room").exit_code == 0
    spec = importlib.util.spec_from_file_location("app_of_a_new_project", here / "chat-room/app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = await nexios_server(module.app)
    assert await trio.to_thread.run_sync(_talk, f"{server.http_url}/") == []
