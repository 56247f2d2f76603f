"""The site of docs/: the folder that Sphinx builds from, and the build. `scripts/docs` calls it.

What is added to docs/: the pages of files that lie outside it, the list of decisions, the navigation.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/RESULTS.md": "results.md",
    "conformance/SUMMARY.md": "conformance.md",
}
"""Files of the repository that are pages of the site, and their names there."""

NAVIGATION = {
    "Start": ["getting-started", "tutorial"],
    "Guides": [],  # every page of docs/ that is nowhere else, in the order of index.md
    "How to": ["deploy", "cli", "coming-from", "faq"],
    "Reference": [
        "reference/application",
        "reference/websocket",
        "reference/groups",
        "reference/routing",
        "reference/security",
        "reference/settings",
        "reference/errors",
        "reference/testing",
        "reference/server",
    ],
    "Security": ["security", "reporting"],
    "Performance": ["performance", "results"],
    "Inside": ["architecture", "decisions/index", "conformance", "changelog"],
}

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
UNKNOWN = re.compile(r"^```(?:caddy|dockerfile)$", re.MULTILINE)
"""Languages that Pygments does not colour."""


def stage(folder: Path) -> None:
    """Make ``folder`` what Sphinx builds from."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder)
    for page in folder.glob("**/*.md"):
        name = page.relative_to(folder).as_posix()
        page.write_text(moved(page.read_text("utf-8"), f"docs/{name}", name), "utf-8")
    for source, name in OUTSIDE.items():
        (folder / name).write_text(moved((ROOT / source).read_text("utf-8"), source, name), "utf-8")
    decisions = [path.stem for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))]
    (folder / "decisions/index.md").write_text(
        "# Decisions\n\nWhy things are as they are, for those who would change them.\n\n"
        + tree("", decisions)
    )
    index = folder / "index.md"
    text = index.read_text("utf-8")
    index.write_text(
        text + "\n" + "\n".join(tree(name, pages) for name, pages in navigation().items()), "utf-8"
    )


def navigation() -> dict[str, list[str]]:
    """The sections of the site and their pages; a page that nobody has put anywhere is a guide."""
    placed = {page for pages in NAVIGATION.values() for page in pages} | {"index"}
    told = re.findall(r"\]\(([\w-]+)\.md\)", (DOCS / "index.md").read_text("utf-8"))
    there = sorted(path.stem for path in DOCS.glob("*.md"))
    guides = [page for page in dict.fromkeys([*told, *there]) if page not in placed]
    return {name: pages or guides for name, pages in NAVIGATION.items()}


def tree(caption: str, pages: list[str]) -> str:
    """A table of contents that is only in the sidebar, or, without a caption, on the page."""
    options = [f":caption: {caption}", ":hidden:"] if caption else [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *pages, "```", ""])


def moved(markdown: str, source: str, name: str) -> str:
    """The text of the file ``source`` for the page ``name``: links that lead to no page become their text."""
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda link: _link(link, source, name), part) for part in parts[::2]]
    return UNKNOWN.sub("```text", "".join(parts))


def _link(link: re.Match[str], source: str, name: str) -> str:
    target = urlsplit(link["target"])
    if target.scheme or not target.path:
        return link[0]
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target.path))
    if place == "docs/decisions":
        place = "docs/decisions/index.md"
    page = OUTSIDE.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
    if page is None:
        return f"{link['text']} (`{place}`)"
    there = posixpath.relpath(page, posixpath.dirname(name) or ".")
    return f"{link['image']}[{link['text']}]({there}{'#' + target.fragment if target.fragment else ''})"


def build(folder: Path) -> int:
    """Build ``folder/html``, with warnings as errors; the exit code of Sphinx."""
    stage(folder / "source")
    command = ["--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    sphinx = [sys.executable, "-m", "sphinx", *command, str(folder / "source"), str(folder / "html")]
    return subprocess.run(sphinx, check=False).returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
