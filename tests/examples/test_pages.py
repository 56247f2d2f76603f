"""What holds for the page of every example, and for its place in the project."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Final

import pytest
from starlette.testclient import TestClient

from nexios_trio import NexiosApp
from tests.examples import screenshots
from tests.examples.servers import ROOT

NAMES: Final = sorted(path.parent.name for path in (ROOT / "examples").glob("*/server.py"))
each_example = pytest.mark.parametrize("name", NAMES)


def own(name: str, pattern: str) -> list[Path]:
    """Files of an example that are not somebody else's."""
    found = (ROOT / "examples" / name / "static").glob(pattern)
    return [path for path in found if "vendor" not in path.parts]


def test_there_are_six() -> None:
    assert NAMES == ["chat", "collab", "dashboard", "game", "iot", "stream"]
    assert set(screenshots.SCENES) == set(NAMES)


@each_example
def test_a_page_and_its_files_are_served_under_a_strict_policy(name: str) -> None:
    app: NexiosApp = importlib.import_module(f"examples.{name}").app
    with TestClient(app, backend="trio") as client:
        page = client.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        files = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert len({*files}) >= 3
        imports = [
            file
            for script in own(name, "**/*.js")
            for file in re.findall(r'from "(?:\.\./|\./)?([^"]+)"', script.read_text("utf-8"))
        ]
        for file in [*files, *(file if "common" in file else f"static/{file}" for file in imports)]:
            assert client.get(f"/{file}").status_code == 200, file
        assert client.get("/static/../server.py").status_code == 404
        assert client.get("/static/missing").status_code == 404


@each_example
def test_a_page_has_nothing_inline_and_asks_nobody_else(name: str) -> None:
    texts = [
        path.read_text("utf-8")
        for pattern in ("**/*.html", "**/*.js", "**/*.css")
        for path in own(name, pattern)
    ]
    assert texts
    for text in texts:
        assert not re.search(r"<script(?![^>]*src=)|<style|\bstyle=|\bon\w+=\"", text)
        assert not re.search(
            r"innerHTML\s*\+?=|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(", text
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@each_example
def test_an_example_is_told_of_and_has_a_short_readme(name: str) -> None:
    readme = (ROOT / "examples" / name / "README.md").read_text("utf-8")
    assert readme.startswith("# ")
    assert 8 <= len(readme.splitlines()) <= 24
    assert f"hypercorn --worker-class trio examples.{name}:app" in readme
    assert f"nexios-trio run examples.{name}:app" in readme
    assert f"]({name}/README.md)" in (ROOT / "examples/README.md").read_text("utf-8")
    assert f"](examples/{name}/README.md)" in (ROOT / "README.md").read_text("utf-8")


def test_what_is_not_ours_comes_with_its_licence() -> None:
    for vendored in ROOT.glob("examples/*/static/vendor/*.js"):
        head = vendored.read_text("utf-8")[:300]
        assert "MIT licence" in head
        assert "scripts/vendor-" in head
        licence = vendored.with_name(f"{vendored.stem}.LICENSE.txt").read_text("utf-8")
        assert "Permission is hereby granted" in licence
        assert vendored.stat().st_size < 120_000
