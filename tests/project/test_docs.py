"""The documentation is run: what it shows works, what it lists exists, where it links to is there.

How the code blocks of a page (``README.md``, ``docs/**/*.md``, ``examples/**/*.md``) are treated:

* ```` ```python ```` blocks run one after the other, in one namespace per page. Each block works on a copy of
  the names before it, so that ``app`` in a test means the ``app`` that a reader saw last.
* A block that begins with the comment ``# name.py`` (``<!-- name.html -->`` in HTML) is that file. A Python
  file is a module with names of its own; later blocks of the page may import it. All of them lie in the
  working directory.
* Functions ``test_*`` are collected by pytest from here, with their fixtures.
* ``app``: every WebSocket route without parameters is connected to, every such GET endpoint is asked; no
  handler may fail.
* ``async def main(url)`` is called with the page's last ``app`` behind ``url``, on a real server.
* ```` ```nginx ```` and ```` ```caddy ```` blocks are run by ``tests/server/test_behind_proxies.py`` and
  ``tests/server/test_several_servers.py``.
* systemd units and Dockerfiles: what they start is parsed as below.
* In ```` ```sh ```` blocks, and behind ``$ `` in ```` ```console ```` blocks, ``hypercorn`` and
  ``nexios-trio`` lines are parsed by these commands' own parsers; ``module:app`` must be there, on the page
  or to import.

Nothing can be excluded: a language tag with anything behind it is an error.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import logging
import math
import re
import shlex
import shutil
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

import attrs
import click
import hypercorn.__main__
import pytest
import trio
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient as StarletteClient
from trio.testing import MockClock

import nexios_trio
from nexios_trio import (
    AuthenticationError,
    ChannelBox,
    CloseCode,
    Deflate,
    FirstMessage,
    Heartbeat,
    HistoryLimits,
    Identity,
    LimitError,
    Limits,
    MessageTypeError,
    NexiosApp,
    Overflow,
    PermissionDenied,
    Proxy,
    Rate,
    RateLimit,
    SubprotocolToken,
    WebSocketConsumer,
    exceptions,
)
from nexios_trio.cli import main as command
from nexios_trio.monitoring.dashboard import Dashboard
from nexios_trio.monitoring.tracing import Tracing
from nexios_trio.security.jwt import JWT
from nexios_trio.server.hypercorn import hypercorn_config
from nexios_trio.testing import TestClient, WebSocketRejected, serve
from nexios_trio.transports.asgi import AsgiTransport
from nexios_trio.transports.base import Closure
from nexios_trio.transports.states import TRANSITIONS, Event, State

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / "scripts/site.py")
assert _spec is not None
assert _spec.loader is not None
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)
EXAMPLES = sorted((ROOT / "examples").glob("**/*.md"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("**/*.md")), *EXAMPLES]
LANGUAGES = {
    *("python", "sh", "console", "html", "ini", "toml", "text", "nginx", "caddy", "dockerfile"),
}

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (?P<script>\w+\.py)\b|<!-- (?P<page>\w+\.html) -->\n")


class Block:
    """One fenced block of a page."""

    def __init__(self, path: Path, text: str, match: re.Match[str]) -> None:
        self.path = path
        self.info = match["info"]
        self.code = match["code"]
        self.line = text.count("\n", 0, match.start("code")) + 1
        name = FILE.match(self.code)
        self.file = name and (name["script"] or name["page"])
        self.names: dict[str, Any] = {}
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def run(self, names: dict[str, Any]) -> None:
        """Execute a Python block; tracebacks show the line of the page."""
        self.names = names
        try:
            # dont_inherit: or it would inherit our __future__ import
            exec(compile("\n" * (self.line - 1) + self.code, self.path, "exec", dont_inherit=True), names)
        except Exception as error:
            self.error = error

    @property
    def defined(self) -> list[str]:
        """The names of functions and variables at the top level of a Python block."""
        try:
            tree = ast.parse(self.code)
        except SyntaxError:
            return []
        names = []
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        return names


class Page:
    """One Markdown file, its Python blocks executed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text("utf-8")
        self.blocks = [Block(path, self.text, match) for match in FENCE.finditer(self.text)]
        self.prose = FENCE.sub("", self.text)
        self.python = [block for block in self.blocks if block.info == "python"]
        self.files = {block.file: block for block in self.blocks if block.file}
        self._run()

    def __repr__(self) -> str:
        return str(self.path.relative_to(ROOT))

    def _run(self) -> None:
        names: dict[str, Any] = {"__name__": self.path.stem}
        before: dict[str, types.ModuleType | None] = {}
        try:
            for block in self.python:
                if block.file is None:
                    names = dict(names)
                    block.run(names)
                else:
                    module = types.ModuleType(block.file.removesuffix(".py"))
                    # A page may show a file several times, as it grows.
                    before.setdefault(module.__name__, sys.modules.get(module.__name__))
                    sys.modules[module.__name__] = module
                    block.run(module.__dict__)
        finally:
            for name, other in before.items():
                del sys.modules[name]
                if other is not None:
                    sys.modules[name] = other

    def app_before(self, block: Block) -> NexiosApp:
        """The last ``app`` that a reader of this block has seen."""
        apps = [
            other.names["app"] for other in self.python if "app" in other.names and other.line <= block.line
        ]
        assert apps, f"no app on this page before line {block.line}"
        app = apps[-1]
        assert isinstance(app, NexiosApp)
        return app

    @functools.cached_property
    def anchors(self) -> set[str]:
        """The anchors of the headings, as GitHub and mkdocs make them."""
        headings = re.findall(r"^#{1,6} (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

    @property
    def tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        """The tables of the page: header cells, rows of cells."""
        for table in re.findall(r"(?:^\|.*\|\n)+", self.prose, re.MULTILINE):
            header, _, *rows = [
                [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()
            ]
            yield header, rows

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the table that begins with these header cells."""
        (rows,) = [rows for head, rows in self.tables if tuple(head[: len(header)]) == header]
        return rows


ALL = [Page(path) for path in PAGES]
BLOCKS = [(page, block) for page in ALL for block in page.blocks]
PYTHON = [(page, block) for page in ALL for block in page.python]
each_page = pytest.mark.parametrize("page", ALL, ids=repr)


def each_block(
    cases: list[tuple[Page, Block]], wanted: Callable[[Block], object] = lambda _: True
) -> pytest.MarkDecorator:
    chosen = [(page, block) for page, block in cases if wanted(block)]
    return pytest.mark.parametrize(("page", "block"), chosen, ids=[repr(block) for _, block in chosen])


def the_page(name: str) -> Page:
    return next(page for page in ALL if page.path == DOCS / name)


# The tests of the documentation itself

for _, _block in PYTHON:
    for _name in _block.defined:
        if _name.startswith("test_") and _name in _block.names:
            _test = f"test_in_{_block.path.stem.replace('-', '_')}_{_block.line}{_name.removeprefix('test')}"
            globals()[_test] = _block.names[_name]


# Code


@each_block(PYTHON)
def test_a_block_runs(page: Page, block: Block) -> None:
    if block.error is not None:
        raise block.error


@each_block(BLOCKS)
def test_a_block_says_what_it_is(page: Page, block: Block) -> None:
    assert block.info in LANGUAGES


@pytest.fixture
def in_page(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory holds the files that the page shows."""
    for name, block in page.files.items():
        (tmp_path / name).write_text(block.code, "utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in page.files:
        sys.modules.pop(name.removesuffix(".py"), None)


@functools.cache
def _untouched(path: Path) -> Page:
    """The page run once more: the tests in it have not worked on these objects."""
    return Page(path)


@each_block(PYTHON, lambda block: "app" in block.defined)
def test_an_app_takes_connections(
    page: Page, block: Block, in_page: None, caplog: pytest.LogCaptureFixture
) -> None:
    app = _untouched(page.path).python[page.python.index(block)].names["app"]
    assert isinstance(app, NexiosApp)
    paths = [route.pattern.path for route in app.ws_router.routes if not route.pattern.convertors]

    async def connect() -> None:
        async with TestClient(app, timeout=60) as client:
            for path in paths:
                try:
                    async with client.connect(path):
                        await trio.sleep(0)
                except WebSocketRejected as answer:
                    assert answer.status != 500

    trio.run(connect, clock=MockClock(autojump_threshold=0))
    pages = [route.path for route in app.routes if isinstance(route, Route) and not route.param_convertors]
    with StarletteClient(app, backend="trio") as http:
        for path in pages:
            assert http.get(path).status_code == 200
    failed = [r for r in caplog.records if r.name == "nexios_trio.connection" and r.levelno >= logging.ERROR]
    assert failed == []


@each_block(PYTHON, lambda block: "main" in block.defined)
async def test_a_script_talks_to_the_app(page: Page, block: Block) -> None:
    main = block.names["main"]
    default = inspect.signature(main).parameters["url"].default
    async with serve(page.app_before(block)) as server:
        await main(server.url + urlsplit(default).path)


@each_block(BLOCKS, lambda block: block.info == "html")
def test_a_web_page_connects_to_a_route_of_the_app(page: Page, block: Block) -> None:
    (url,) = re.findall(r'new WebSocket\("([^"]+)"', block.code)
    assert page.app_before(block).ws_router.find(urlsplit(url).path) is not None


@each_block(BLOCKS, lambda block: block.info == "toml")
def test_the_settings_of_hypercorn_told_are_there(page: Page, block: Block) -> None:
    hypercorn_config(**tomllib.loads(block.code))


def test_configurations_of_proxies_are_where_they_are_tried() -> None:
    told = [(page.path.name, block.info) for page, block in BLOCKS if block.info in ("nginx", "caddy")]
    assert told == [
        ("scaling.md", "nginx"),
        ("scaling.md", "caddy"),
        ("security.md", "nginx"),
        ("security.md", "caddy"),
    ]


# Commands


def _lines(block: Block) -> list[str]:
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.info == "sh":
        return lines
    return [line.removeprefix("$ ") for line in lines if block.info == "console" and line.startswith("$ ")]


LINES = [(page, line) for page, block in BLOCKS for line in _lines(block)]


class _Known(Exception):
    """The command line was understood."""


@pytest.mark.parametrize(("page", "line"), LINES, ids=[line for _, line in LINES])
def test_a_command_line_is_understood(
    page: Page, line: str, in_page: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "hypercorn":
        assert _app_of_hypercorn(arguments, monkeypatch)
    elif program == "nexios-trio":
        _nexios_trio(arguments, monkeypatch)
    elif program == "python":
        module = arguments[0] == "-m" and importlib.util.find_spec(arguments[1])
        assert module or arguments[0] in page.files
    elif program.startswith("scripts/"):
        assert (ROOT / program).is_file()
    else:
        known = ("pip", "pip-audit", "git", "cd", "source", "docker")
        assert program in known, "this test does not know the command"


def _app_of_hypercorn(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What hypercorn's parser takes as the application, once it has accepted all the options."""
    parsed: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def spy(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        parsed.append(parse(parser, *args, **kwargs))
        raise _Known

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", spy)
    with pytest.raises(_Known):
        hypercorn.__main__.main(arguments)
    (options,) = parsed
    return _load(options.application)


def _load(spec: str) -> NexiosApp:
    module, _, name = spec.partition(":")
    app = getattr(importlib.import_module(module), name or "app")
    assert isinstance(app, NexiosApp)
    return app


def _nexios_trio(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, *rest = arguments
    assert isinstance(command, click.Group)
    subcommand = command.commands[name]
    context = subcommand.make_context(name, rest)
    if name == "run":
        assert _app_of_hypercorn(
            [context.params["application"], *context.params["hypercorn_options"]], monkeypatch
        )
    elif "application" in context.params:
        _load(context.params["application"])
    else:
        assert name in ("bench", "connect", "new")


# Tables and diagrams

OPTIONS: dict[str, Callable[..., Any]] = {
    "NexiosApp": NexiosApp,
    "Deflate": Deflate,
    "FirstMessage": FirstMessage,
    "Heartbeat": Heartbeat,
    "Identity": Identity,
    "JWT": JWT,
    "Limits": Limits,
    "Proxy": Proxy,
    "RateLimit": RateLimit,
    "TestClient": TestClient,
    "TestClient.connect": TestClient.connect,
    "serve": serve,
    "Dashboard": Dashboard,
    "Tracing": Tracing,
}
NOT_OPTIONS = {"self", "app", "path", "config"}


def test_the_tables_of_options_are_complete_and_their_defaults_right() -> None:
    seen = []
    for page in ALL:
        for header, rows in page.tables:
            owner = header[0].removesuffix(" option")
            if owner == header[0] or owner not in OPTIONS:
                continue
            seen.append(owner)
            parameters = inspect.signature(OPTIONS[owner]).parameters.values()
            known = {p.name: p.default for p in parameters if p.name not in NOT_OPTIONS}
            told = {row[0].strip("`"): row[1] for row in rows}
            assert list(told) == list(known), f"{page}: {owner}'s options and their order"
            for name, default in told.items():
                if default == "required":
                    assert known[name] is inspect.Parameter.empty, f"{page}: {owner}.{name}"
                elif default.startswith("`"):
                    names = {"math": math, "trio": trio, "Heartbeat": Heartbeat, "Rate": Rate}
                    assert known[name] == eval(default.strip("`"), names), f"{page}: {owner}.{name}"
                else:  # in words
                    assert callable(known[name]), f"{page}: {owner}.{name}"
    assert sorted(seen) == sorted(OPTIONS)


@each_page
def test_limits_told_in_passing_are_right(page: Page) -> None:
    units = {None: 1, "MiB": 1 << 20, "seconds": 1}
    for name, number, unit in re.findall(r"`Limits\.(\w+)` \(([\d,]+)(?: (MiB|seconds))?\)", page.prose):
        assert getattr(Limits(), name) == int(number.replace(",", "")) * units[unit or None], name


def test_the_options_of_the_runner_are_all_told() -> None:
    assert isinstance(command, click.Group)
    rows = the_page("serving.md").table("nexios-trio run option")
    options = [p for p in command.commands["run"].params if isinstance(p, click.Option)]
    assert [row[0].strip("`") for row in rows] == [option.opts[0] for option in options]


@pytest.mark.parametrize("name", ["connect", "bench"])
def test_the_options_of_a_command_are_all_told(name: str) -> None:
    assert isinstance(command, click.Group)
    rows = the_page("cli.md").table(f"nexios-trio {name} option")
    options = [p for p in command.commands[name].params if isinstance(p, click.Option)]
    assert [row[0].strip("`") for row in rows] == [option.opts[-1] for option in options]
    for option, row in zip(options, rows, strict=True):
        for short in option.opts[:-1]:
            assert f"Short: `{short}`." in row[1]
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert re.search(rf"; {option.default:g}\.", row[1]), f"the default of {option.opts[-1]}"


def test_the_commands_are_all_told() -> None:
    assert isinstance(command, click.Group)
    told = {row[0].strip("`") for row in the_page("cli.md").table("command")}
    assert told == {f"nexios-trio {name}" for name in command.commands}


def _blocks(name: str, info: str, beginning: str) -> Iterator[str]:
    for block in the_page(name).blocks:
        if block.info == info and block.code.startswith(beginning):
            yield block.code


def test_the_unit_of_systemd_starts_the_app_and_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    (unit,) = _blocks("deploy.md", "ini", "# /etc/systemd")
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    service = parser["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "nexios-trio"
    monkeypatch.setitem(sys.modules, "chat", _module_of("deploy.md", "chat.py"))
    _nexios_trio(arguments, monkeypatch)
    # What docs/serving.md says of the worst case: less than 20 seconds.
    assert int(service["TimeoutStopSec"]) > 20
    assert service["ExecStart"].partition("unix:")[2].startswith(f"/run/{service['RuntimeDirectory']}/")


def test_the_dockerfile_starts_the_app_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    (dockerfile,) = _blocks("deploy.md", "dockerfile", "FROM")
    steps = [line.split(" ", 1) for line in dockerfile.splitlines()]
    assert {word for word, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "CMD"}
    (started,) = [ast.literal_eval(rest) for word, rest in steps if word == "CMD"]
    program, *arguments = started
    assert program == "nexios-trio"
    monkeypatch.setitem(sys.modules, "chat", _module_of("deploy.md", "chat.py"))
    _nexios_trio(arguments, monkeypatch)
    assert started[-1].endswith(next(rest for word, rest in steps if word == "EXPOSE"))


def _module_of(page: str, file: str) -> types.ModuleType:
    module = types.ModuleType(file.removesuffix(".py"))
    module.__dict__.update(the_page(page).files[file].names)
    return module


def test_the_table_of_timeouts_agrees_with_the_settings() -> None:
    settings = NexiosApp().settings
    for name, default, _ in the_page("lifetime.md").table("option"):
        holder = settings.limits if hasattr(settings.limits, name.strip("`")) else settings
        assert getattr(holder, name.strip("`")) == eval(default.strip("`"), {"math": math})


def test_the_table_of_history_limits_is_complete_and_its_defaults_right() -> None:
    rows = the_page("history.md").table("history option")
    told = {row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in rows}
    assert told == attrs.asdict(HistoryLimits())


def test_the_table_of_overflow_rules_is_complete() -> None:
    rows = the_page("groups.md").table("Overflow")
    told = {eval(row[0].strip("`"), {"Overflow": Overflow}).rule for row in rows}
    assert told == set(get_args(get_type_hints(Overflow)["rule"]))


def test_the_table_of_a_consumer_s_attributes_is_complete_and_its_defaults_right() -> None:
    rows = the_page("consumers.md").table("attribute of the class")
    told = {row[0].strip("`"): eval(row[1].strip("`"), {"Any": Any}) for row in rows}
    assert told == {name: getattr(WebSocketConsumer, name) for name in told}
    assert {*told, "logger"} == {
        name
        for name, value in vars(WebSocketConsumer).items()
        if not name.startswith("_") and not callable(value) and not isinstance(value, classmethod)
    } | {"message_type"}


def test_the_methods_of_a_channel_box_are_all_told() -> None:
    rows = the_page("channels.md").table("call", "does", "gives")
    nexios = {row[0].strip("`").partition("(")[0] for row in rows}
    ours = set(re.findall(r"app\.channels\.(\w+)", the_page("groups.md").prose))
    public = {name for name in vars(ChannelBox) if not name.startswith("_")} - {"current"}
    assert nexios | ours == public


def test_the_arrows_between_states_agree_with_the_table() -> None:
    (arrows,) = [block.code for block in the_page("websocket.md").blocks if "▶" in block.code]
    drawn = {}
    for line in filter(None, arrows.splitlines()):
        arrow = re.fullmatch(r"(\w+) ─+ ([\w, ]+) ─+▶ (\w+)", line)
        assert arrow is not None, line
        for event in arrow[2].split(", "):
            drawn[State(arrow[1]), Event(event)] = State(arrow[3])
    assert drawn == TRANSITIONS


def test_the_states_are_all_explained() -> None:
    rows = the_page("websocket.md").table("state")
    assert [row[0].strip("`") for row in rows] == [state.value for state in State]


async def test_the_table_of_calls_agrees_with_what_they_do() -> None:
    page = the_page("websocket.md")
    ((header, rows),) = [(head, rows) for head, rows in page.tables if head[0] == "in state"]
    assert len(rows) == len(State)
    for name, *cells in rows:
        state = State(name.strip("`"))
        transport = _transport(state)
        for event, cell in zip((Event(cell.strip("`")) for cell in header[1:]), cells, strict=True):
            legal = TRANSITIONS.get((state, event))
            result = legal.value if legal is not None else type(transport.refusal(event)).__name__
            assert cell == f"`{result}`", (state, event)


def _transport(state: State) -> AsgiTransport:
    async def unused(*_: object) -> Any:
        raise AssertionError

    transport = AsgiTransport(unused, unused, atomic=True, limits=Limits())
    transport.state = state
    if state in (State.CLOSING, State.CLOSED):
        transport.closure = Closure(1000)
    return transport


def test_the_table_of_errors_is_complete_and_its_codes_right() -> None:
    rows = the_page("websocket.md").table("error")
    told = {row[0].strip("`"): row[2] for row in rows if row[0].startswith("`")}
    roots = {"NexiosTrioError", "UsageError"}
    errors = {name for name in exceptions.__all__ if isinstance(getattr(exceptions, name), type)}
    assert set(told) == errors - roots
    for name, code in told.items():
        if code.isdigit():
            assert int(code) == getattr(exceptions, name).close_code


# What the package tells clients, found in its source


@dataclasses.dataclass(frozen=True)
class Call:
    """A call in the source of the package."""

    name: str
    arguments: list[ast.expr]

    def number(self, index: int) -> int | None:
        """A constant, or an attribute of one of our errors."""
        match self.arguments[index : index + 1]:
            case [ast.Constant(value=int(number))]:
                return number
            case [ast.Attribute(value=ast.Name(id=owner), attr=attribute)] if owner in exceptions.__all__:
                number = getattr(getattr(exceptions, owner), attribute)
                assert isinstance(number, int)
                return number
        return None

    def text(self, index: int) -> str | None:
        """A constant as a regular expression, or an f-string with anything in its holes; of a variable, what
        is assigned to that name in the package."""
        match self.arguments[index : index + 1]:
            case [ast.Name(id=name)]:
                return "|".join(filter(None, (_text(value) for value in _assigned(name)))) or None
            case [value]:
                return _text(value)
        return None


def _text(value: ast.expr) -> str | None:
    match value:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts
            )
    return None


def _assigned(name: str) -> list[ast.expr]:
    return [
        node.value
        for node in _source()
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]


@functools.cache
def _source() -> list[ast.AST]:
    files = [path for path in (ROOT / "nexios_trio").glob("**/*.py") if "testing" not in path.parts]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))]


def _calls(*names: str) -> list[Call]:
    calls = []
    for node in _source():
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
            if name in names:
                calls.append(Call(name, node.args))
    return calls


def _errors() -> Iterator[tuple[int, int, str]]:
    """Close code, HTTP status and text (a regular expression) of the errors whose text is always the same."""
    for error in (AuthenticationError(), AuthenticationError("bad"), PermissionDenied("why")):
        yield error.close_code, error.status, re.escape(error.public_reason)
    for call in _calls("LimitError"):
        problem = call.text(2)
        assert problem is not None
        yield LimitError.close_code, LimitError.status, problem


WORDS = {"what is wrong", "the problem and its place", "the text of the error"}


def _agree(rows: list[list[str]], sent: set[tuple[int, str]], more: set[tuple[int, str]]) -> None:
    """The rows tell all that is ``sent``, and nothing that is neither there nor in ``more``."""
    told = []
    for number, text, *_ in rows:
        if not text.startswith("`"):
            assert text in {"", *WORDS}
            text = f"`{text}`" if text == "" else text
        told.append((int(number), text))
    literal = [(number, text.strip("`")) for number, text in told if text.startswith("`")]

    def fits(row: tuple[int, str], entry: tuple[int, str]) -> bool:
        text = row[1].removesuffix("…") + "anything" * row[1].endswith("…")
        return row[0] == entry[0] and re.fullmatch(entry[1], text) is not None

    for entry in sent:
        assert any(fits(row, entry) for row in literal), f"sent, and not told: {entry}"
    for row in literal:
        assert any(fits(row, entry) for entry in sent | more), f"told, and not sent: {row}"


def test_the_table_of_close_codes_is_that_of_the_source() -> None:
    sent = {(code, text) for code, _, text in _errors()}
    for call in _calls("close_soon", "kick", "close", "Farewell"):
        code, text = call.number(0), call.text(1)
        if code is not None and text:
            sent.add((code, text))
    for call in _calls("declare_dead"):  # which says 1011, as `AsgiTransport.declare_dead` has it
        reason = call.text(0)
        assert reason is not None
        sent.add((1011, reason))
    mistaken = MessageTypeError("text", b"")
    sent.add((mistaken.close_code, re.escape(mistaken.public_reason)))
    assert len(sent) >= 20
    rows = the_page("security.md").table("close code")
    _agree(rows, sent, {(1000, ""), (1007, "invalid JSON: .+"), (1008, "no name for a group")})
    for told, *_ in rows:
        assert int(told) >= 4000 or CloseCode(int(told))


def test_the_table_of_statuses_is_that_of_the_source() -> None:
    sent = {
        (status, text)
        for call in _calls("Refusal")
        if (status := call.number(1)) is not None and (text := call.text(3)) is not None
    }
    sent |= {(status, text) for _, status, text in _errors() if status != LimitError.status}
    assert len(sent) >= 10
    bare = {(status, "") for call in _calls("Farewell") if (status := call.number(2)) is not None}
    assert {status for status, _ in bare} == {500, 503}
    limits = {(status, text) for _, status, text in _errors()}
    _agree(the_page("security.md").table("HTTP status"), sent | bare, limits | {(403, ""), (404, "")})


def test_what_is_counted_is_told() -> None:
    counted = {ast.literal_eval(call.arguments[0]) for call in _calls("Refusal")}
    for node in _source():
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("counts"):
            if isinstance(node.slice, ast.Constant):
                counted.add(node.slice.value)
            elif isinstance(node.slice, ast.JoinedStr):
                assert ast.unparse(node.slice).startswith("f'closed.")
                counted.add("closed.PermissionDenied")
    rows = the_page("security.md").table("in `app.guard.counts`")
    assert {name for row in rows for name in re.findall("`(.*?)`", row[0])} == counted


def test_the_table_of_convertors_is_complete() -> None:
    from nexios_trio.routing.paths import CONVERTORS

    told = {re.findall("`(.*?)`", row[0])[0] for row in the_page("routing.md").table("convertor")}
    assert told == set(CONVERTORS)


def test_the_attributes_told_are_there() -> None:
    rows = the_page("websocket.md").table("attribute")
    for name in re.findall(r"`ws\.(\w+)", " ".join(row[0] for row in rows)):
        assert hasattr(nexios_trio.WebSocket, name), name


def test_every_floor_is_in_the_architecture() -> None:
    from_contract = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL)
    assert from_contract is not None
    floors = [set(line.split(" | ")) for line in re.findall(r'"(.*)"', from_contract[1])]
    rows = the_page("architecture.md").table("floor")
    assert [set(re.findall("`(.*?)`", row[0])) for row in reversed(rows)] == floors


# Prose


@each_page
def test_a_page_is_plain_markdown_with_one_title(page: Page) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.prose)
    assert not re.search(r"<[a-zA-Z/!]", text), "no HTML, please"
    if page.text.strip():
        assert len(re.findall(r"^# ", page.prose, re.MULTILINE)) == 1
        assert page.text.startswith("# ")


LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for target in LINK.findall(page.prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), target
        if page.path.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            assert file.relative_to(ROOT).as_posix() in site.OUTSIDE, f"{target} is no page of the site"
        if anchor:
            assert anchor in next(other.anchors for other in ALL if other.path == file), target


def test_the_index_leads_to_every_page() -> None:
    linked = set(LINK.findall(the_page("index.md").prose))
    assert {page.path.name for page in ALL if page.path.parent == DOCS} - {"index.md"} <= linked


@each_page
def test_dotted_names_exist(page: Page) -> None:
    for name in re.findall(r"`(nexios_trio(?:\.\w+)*)(?=[`(])", page.prose):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                found = getattr(found, part)
            break
        else:
            raise AssertionError(f"{page}: {name}")


# The site


@pytest.mark.untraced
def test_the_site_has_every_page_and_fetches_nothing(tmp_path: Path) -> None:
    assert site.build(tmp_path) == 0  # with warnings as errors
    html = tmp_path / "html"
    names = {
        page.path.relative_to(DOCS).with_suffix(".html") for page in ALL if page.path.is_relative_to(DOCS)
    }
    names |= {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.glob("reference/*.rst")}
    assert {html / name for name in names} <= set(html.glob("**/*.html"))
    for page in html.glob("**/*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text("utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
    for style in html.glob("_static/**/*.css"):
        assert not re.search(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", style.read_text("utf-8")), style


def test_the_reference_has_every_public_name() -> None:
    told = "\n".join(path.read_text("utf-8") for path in DOCS.glob("reference/*.rst"))
    names = {name for name in nexios_trio.__all__ if not name.startswith("__")}
    elsewhere = {name for name in exceptions.__all__ if f"automodule:: {exceptions.__name__}" in told}
    assert {name for name in names - elsewhere if not re.search(rf"\b{name}\b", told)} == set()


# The browser's side of a token

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _browse(url: str, wanted: list[str]) -> None:
    """Show a page in a browser until these texts are in its log."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        for text in wanted:
            expect(page.get_by_role("log")).to_contain_text(text, timeout=30_000)
        browser.close()
    assert complaints == []


class Browsing:
    """The pages of docs/security.md, in a browser."""

    def __init__(self) -> None:
        page = the_page("security.md")
        (block,) = [block for block in page.python if "ws.renew(" in block.code]
        self.issue: Callable[[str, float], str] = block.names["issue"]
        self.verify = block.names["verify"]
        self._handler = block.names["chat"]

    async def show(
        self, name: str, authenticate: Any, tokens: Iterator[dict[str, Any]], *wanted: str
    ) -> NexiosApp:
        """The page with its chat and the place where it fetches its tokens, until its log has these texts."""
        app = NexiosApp(authenticate=authenticate)
        app.add_ws_route("/chat", self._handler)

        @app.post("/token")
        async def token(_request: Request) -> Response:
            return JSONResponse(next(tokens))

        async with serve(app) as server:
            html = the_page("security.md").files[name].code.replace("wss://chat.example.org", server.url)

            @app.get("/")
            async def page(_request: Request) -> Response:
                return HTMLResponse(html)

            await trio.to_thread.run_sync(_browse, f"{server.http_url}/", list(wanted))
        return app


@pytest.fixture
def browsing() -> Browsing:
    pytest.importorskip("playwright", reason="playwright IS NOT INSTALLED: tokens stay untested in a browser")
    if CHROMIUM is None:
        pytest.skip("no chromium IS INSTALLED: tokens stay untested in a browser")
    return Browsing()


async def test_a_page_renews_its_token(browsing: Browsing) -> None:
    tokens = ({"token": browsing.issue("ada", 300), "expires_in": 0.5} for _ in range(1000))
    subprotocol = SubprotocolToken(browsing.verify)
    await browsing.show("chat.html", subprotocol, tokens, '{"hello":"ada"}', '{"renewed":"ada"}')


async def test_a_page_whose_token_has_expired_comes_back(browsing: Browsing) -> None:
    def tokens() -> Iterator[dict[str, Any]]:
        yield {"token": browsing.issue("ada", 5), "expires_in": 1000}
        while True:
            yield {"token": browsing.issue("ada again", 300), "expires_in": 1000}

    subprotocol = SubprotocolToken(browsing.verify)
    app = await browsing.show("chat.html", subprotocol, tokens(), '{"hello":"ada"}', '{"hello":"ada again"}')
    assert app.guard.counts["expired"] == 1


async def test_a_page_sends_its_token_first(browsing: Browsing) -> None:
    tokens = ({"token": browsing.issue("ada", 5)} for _ in range(1000))
    first = FirstMessage(browsing.verify)
    await browsing.show("first.html", first, tokens, '{"hello":"ada"}', "4401 authentication expired")
