"""``module:app``: what it may name, and what is said when it names something else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexios_trio import NexiosApp
from nexios_trio.server.loading import AppLoadError, load_app

MODULE = """
import functools
from nexios_trio import NexiosApp

app = NexiosApp()
other = NexiosApp()
number = 7
Class = NexiosApp


async def raw(scope, receive, send): ...
async def handler(ws): ...
async def star(*args): ...
async def coroutine_factory(): return app
def sync_app(scope, receive, send): ...
def make(): return app
def make_wrong(): return 7
def make_with(setting): return app


class Box:
    inner = NexiosApp()

    async def asgi(self, scope, receive, send): ...


box = Box()
bound = box.asgi
partial = functools.partial(raw)
_hidden = NexiosApp()
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that holds modules; nothing of them is left behind."""
    (tmp_path / "site_one.py").write_text(MODULE)
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("from nexios_trio import NexiosApp\nmain = NexiosApp()\n")
    (package / "web.py").write_text("from nexios_trio import NexiosApp\napp = NexiosApp()\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import no_such_library\n")
    (tmp_path / "lacking_part.py").write_text("import shop.no_such_part\n")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(
    "spec",
    [
        "site_one:app",
        "site_one",
        "site_one:",
        "site_one:other",
        "site_one:_hidden",
        "site_one:raw",
        "site_one:star",
        "site_one:partial",
        "site_one:bound",
        "site_one:box.inner",
        "site_one:box.asgi",
        "site_one:make()",
        "shop:main",
        "shop.web:app",
        "shop.web",
    ],
)
def test_an_app_is_found_where_the_name_says(spec: str) -> None:
    assert callable(load_app(spec))


def test_the_app_itself_comes_back(project: Path) -> None:
    app = load_app("site_one:other")
    assert isinstance(app, NexiosApp)
    assert app is sys.modules["site_one"].other
    assert load_app("site_one:make()") is sys.modules["site_one"].app
    assert sys.path.count(str(project)) == 1


HOLDS = (
    "it holds: site_one:app, site_one:bound, site_one:other, site_one:partial, site_one:raw, site_one:star"
)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("site_one.py:app", '"site_one.py" is a file; name the module: site_one:app'),
        ("./shop/web.py", '"./shop/web.py" is a file; name the module: shop.web:app'),
        ("shop/web:app", '"shop/web" is a file; name the module: shop.web:app'),
        ("", '"" is not of the form module:app, such as examples.chat:app'),
        (":app", '":app" is not of the form module:app'),
        ("site one:app", '"site one:app" is not of the form module:app'),
        ("shop..web:app", '"shop..web:app" is not of the form module:app'),
        ("nowhere:app", 'there is no module "nowhere" (looking for "nowhere" in {here} and the installed'),
        ("shop.nowhere:app", 'there is no module "shop.nowhere" (looking for "shop.nowhere"'),
        ("nowhere.web:app", 'there is no module "nowhere" (looking for "nowhere.web"'),
        ("shop.web.app", '"shop.web.app" is not of the form module:app; write shop.web:app'),
        ("site_one:ap", f'the module "site_one" has no "ap"; {HOLDS}'),
        ("site_one:box.outer", 'the module "site_one" has no "box.outer"'),
        ("shop:app", 'the module "shop" has no "app"; it holds: shop:main'),
        ("empty", 'the module "empty" has no "app"; it holds no ASGI app'),
        ("site_one:number", f'"site_one:number" is a int, not an ASGI app; {HOLDS}'),
        ("site_one:Class", '"site_one:Class" is a type, not an ASGI app; it holds'),
        ("site_one:handler", '"site_one:handler" is a function, not an ASGI app; it holds'),
        ("site_one:sync_app", '"site_one:sync_app" is a function, not an ASGI app; it holds'),
        ("site_one:make", "is a function, not an ASGI app; to call it, write site_one:make(); it holds"),
        ("site_one:make_with", '"site_one:make_with" is a function, not an ASGI app; it holds'),
        ("site_one:make_wrong()", '"site_one:make_wrong()" is a int, not an ASGI app; it holds'),
        ("site_one:coroutine_factory()", '"site_one:coroutine_factory()" is a coroutine, not an ASGI app'),
        ("site_one:app()", '"site_one:app()" cannot be called without arguments'),
        ("site_one:number()", '"site_one:number()" cannot be called without arguments'),
        ("site_one:make_with()", '"site_one:make_with()" cannot be called without arguments'),
    ],
)
def test_a_wrong_name_is_told_what_is_there(spec: str, complaint: str, project: Path) -> None:
    with pytest.raises(AppLoadError) as error:
        load_app(spec)
    assert complaint.replace("{here}", str(project)) in str(error.value)


def test_what_the_module_itself_raises_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        load_app("broken:app")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_app("lacking:app")
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        load_app("lacking_part:app")


def test_what_a_factory_raises_passes_through(project: Path) -> None:
    (project / "factory.py").write_text("def make(): raise KeyError('SETTING')\n")
    with pytest.raises(KeyError, match="SETTING"):
        load_app("factory:make()")


def test_a_default_name_that_is_a_factory_is_shown_with_its_name(project: Path) -> None:
    (project / "factory.py").write_text("def app(): ...\n")
    with pytest.raises(AppLoadError, match=r"to call it, write factory:app\(\)"):
        load_app("factory")
