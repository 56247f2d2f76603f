"""``nexios-trio new``: a project to start from."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

__all__ = ["new"]

_NAME: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_HOLE: Final = "@NAME@"
_OWN: Final = "nexios-trio"
_NOT_FOR_APPS: Final = re.compile(r"extra\s*==\s*['\"](dev|docs|examples)['\"]")
FILES: Final = {
    "README.md": "README.md.txt",
    "app.py": "app.py.txt",
    "index.html": "index.html.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "serve.toml": "serve.toml.txt",
    "test_app.py": "test_app.py.txt",
    ".gitignore": "gitignore.txt",
}
"""What is made, and of which template: with names of their own, or tools would take them for modules."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
def new(name: str) -> None:
    """Make a small project in the folder NAME: a chat room, its page, its test, a configuration, a README.

    The folder must not be there, or be empty. NAME is made of letters, digits, and between them '-' and '_'.
    """
    folder = Path(name)
    title = folder.name
    if not _NAME.fullmatch(title) or keyword.iskeyword(title):
        raise click.BadParameter(
            f"a name is made of letters, digits, '-' and '_' between them, such as chat-room, not {title!r}",
            param_hint="NAME",
        )
    if _plain(title) in _packages():
        raise click.BadParameter(
            f"{title} is a package that the project needs, and would stand in for it; give another name",
            param_hint="NAME",
        )
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise click.ClickException(f"{folder} is there already, and not empty; give another name")
        folder.mkdir(parents=True, exist_ok=True)
        for made, text in project(title).items():
            (folder / made).write_text(text, "utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename or folder}: {error.strerror}") from None
    click.echo(f"made {folder}/: {', '.join(FILES)}")
    click.echo("next:")
    click.echo(f"  cd {folder}")
    click.echo("  python -m pytest")
    click.echo("  nexios-trio run app:app --config serve.toml")


def _plain(package: str) -> str:
    """The one of a package's names by which installers know it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _packages() -> set[str]:
    """Us, what we need with whatever extra an app may want, and what that needs in turn."""
    found, waiting = {_OWN}, [_OWN]
    while waiting:
        package = waiting.pop()
        try:
            wanted = requires(package) or ()
        except PackageNotFoundError:
            continue
        for requirement in wanted:
            name, _, marker = requirement.partition(";")
            skipped = _NOT_FOR_APPS.search(marker) if package == _OWN else "extra" in marker
            match = _NAME.match(name)
            if match is not None and not skipped and (plain := _plain(match[0])) not in found:
                found.add(plain)
                waiting.append(plain)
    return found


def project(name: str) -> dict[str, str]:
    """The files of a new project by their names."""
    templates = files("nexios_trio.cli") / "template"
    return {
        made: (templates / template).read_text("utf-8").replace(_HOLE, name)
        for made, template in FILES.items()
    }
