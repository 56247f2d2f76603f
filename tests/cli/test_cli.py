"""The command line, without a server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import nexios_trio
from nexios_trio.cli import main

MODULE = """
from starlette.applications import Starlette
from nexios_trio import AnyOf, BearerToken, NexiosApp, SessionUser, WebSocket, WSRouter, requires


async def guard(ws, call_next):
    await call_next()


class Tracing:
    def __init__(self, app): self.app = app

    async def __call__(self, scope, receive, send): ...


def verify(token): ...


async def who(ws): ...


app = NexiosApp()


@app.ws_route("/rooms/{name}", name="room", middleware=[guard, Tracing], authenticate=who)
@requires("chat", "write")
async def room(ws: WebSocket) -> None: ...


class Handler:
    async def __call__(self, ws: WebSocket) -> None: ...


router = WSRouter(prefix="/api", authenticate=AnyOf(BearerToken(verify), SessionUser()), requires="feed")
router.add_ws_route("/feed", Handler(), name="feed")
app.mount_ws_router(router)


@app.get("/")
async def page(request): ...


app.mount("/other", Starlette(), name="other")
star = Starlette()
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "listed.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_routes_are_printed_as_a_table_in_the_order_in_which_they_are_tried() -> None:
    result = run("routes", "listed:app")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    columns = ["kind", "path", "name", "handler", "authenticate", "requires", "middleware"]
    assert lines[0].split() == columns
    assert re.split("  +", lines[1]) == [
        "WebSocket",
        "/rooms/{name}",
        "room",
        "listed.room",
        "who",
        "chat, write",
        "guard, Tracing",
    ]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["WebSocket", "/api/feed"],
        ["GET,HEAD", "/"],
        ["Mount", "/other"],
    ]
    starts = {line.index("listed.") for line in lines if "listed." in line}
    assert len(starts) == 1  # columns are columns
    assert all(line == line.rstrip() for line in lines)


def test_the_routes_are_printed_as_json_for_programs() -> None:
    rows = [json.loads(line) for line in run("routes", "--json", "listed:app").output.splitlines()]
    assert rows[0] == {
        "kind": "WebSocket",
        "path": "/rooms/{name}",
        "name": "room",
        "handler": "listed.room",
        "authenticate": "who",
        "requires": "chat, write",
        "middleware": "guard, Tracing",
    }
    assert (rows[1]["authenticate"], rows[1]["requires"]) == ("BearerToken | SessionUser", "feed")
    assert [(row["kind"], row["path"], row["name"], row["handler"]) for row in rows[1:]] == [
        ("WebSocket", "/api/feed", "feed", "listed.Handler"),
        ("GET,HEAD", "/", "page", "listed.page"),
        ("Mount", "/other", "other", "starlette.applications.Starlette"),
    ]


def test_the_routes_of_mounted_apps_are_below_their_mounts(project: Path) -> None:
    (project / "outer.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.routing import Mount, Route, WebSocketRoute\n"
        "from nexios_trio import NexiosApp\n"
        "async def page(request): ...\n"
        "async def live(ws): ...\n"
        "inner = NexiosApp()\n"
        "inner.add_ws_route('/live/{name}', live)\n"
        "inner.add_route('/page', page)\n"
        "star = Starlette(routes=[Route('/', page), WebSocketRoute('/ws', live), Mount('/deep', inner)])\n"
        "app = NexiosApp()\n"
        "app.mount('/inner', inner)\n"
        "app.mount('/star', star)\n"
        "app.mount('/raw', lambda scope, receive, send: None)\n"
        "app.add_route('/last', page)\n"
    )
    rows = [json.loads(line) for line in run("routes", "--json", "outer:app").output.splitlines()]
    assert [(row["kind"], row["path"]) for row in rows] == [
        ("Mount", "/inner"),
        ("WebSocket", "/inner/live/{name}"),
        ("GET,HEAD", "/inner/page"),
        ("Mount", "/star"),
        ("GET,HEAD", "/star/"),
        ("WebSocketRoute", "/star/ws"),
        ("Mount", "/star/deep"),
        ("WebSocket", "/star/deep/live/{name}"),
        ("GET,HEAD", "/star/deep/page"),
        ("Mount", "/raw"),
        ("GET,HEAD", "/last"),
    ]


def test_an_app_without_routes_is_a_table_without_rows(project: Path) -> None:
    (project / "bare.py").write_text("from nexios_trio import NexiosApp\napp = NexiosApp()\n")
    assert len(run("routes", "bare:app").output.splitlines()) == 1
    assert run("routes", "--json", "bare:app").output == ""


def test_a_wrong_name_is_told_what_is_there() -> None:
    result = run("routes", "listed:ap")
    assert result.exit_code == 1
    assert result.output.startswith('Error: the module "listed" has no "ap"; it holds: listed:app')


def test_the_routes_of_another_framework_are_not_ours_to_read() -> None:
    result = run("routes", "listed:star")
    assert result.exit_code == 1
    assert '"listed:star" is a Starlette; routes are read from a NexiosApp' in result.output


def test_what_a_module_raises_passes_through() -> None:
    assert isinstance(run("routes", "broken:app").exception, ZeroDivisionError)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_the_commands_and_what_they_take(option: str) -> None:
    text = run(option).output
    assert "run" in text
    assert "routes" in text
    text = run("run", option).output
    for expected in ("MODULE:APP", "--bind HOST:PORT", "--drain-window", "[default: 5]", "1012"):
        assert expected in text
    assert "--json" in run("routes", option).output


def test_the_version_is_the_packages() -> None:
    assert run("--version").output == f"nexios-trio, version {nexios_trio.__version__}\n"


def test_without_an_app_there_is_an_error_with_the_usage() -> None:
    for command in ("run", "routes"):
        result = run(command)
        assert result.exit_code == 2
        assert "Missing argument 'MODULE:APP'" in result.output


def test_a_negative_drain_window_is_refused() -> None:
    result = run("run", "listed:app", "--drain-window", "-1")
    assert result.exit_code == 2
    assert "--drain-window" in result.output


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--pid", "no/x.pid"), "pid_path is a file, and no/x.pid cannot be written: No such file"),
        (("--access-logfile", "no/x.log"), "accesslog is a file, and no/x.log cannot be written: No such"),
        (("--error-logfile", "."), "errorlog is a file, and . cannot be written: Is a directory"),
        (("--log-level", "loud"), "loglevel is one of critical, fatal, error, warn, warning, info, debug,"),
        (("--log-config", "missing.ini"), "logconfig is a file, and missing.ini cannot be read"),
        (("--log-config", "json:broken.py"), "broken.py is no configuration of logging: JSONDecodeError: "),
        (("--log-config", "broken.py"), "broken.py is no configuration of logging: "),
    ],
)
def test_what_the_server_cannot_use_is_said_in_one_line(options: tuple[str, ...], problem: str) -> None:
    result = run("run", "listed:app", "--bind", "127.0.0.1:0", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"nexios-trio: {problem}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("broker", "problem"),
    [
        ("ftp://somewhere", 'broker is "memory://", the URL of a Redis such as'),
        ("redis://name:SECRET@127.0.0.1:99999", "a host or port of this URL is none; write redis://"),
    ],
)
def test_a_broker_that_is_none_is_refused(broker: str, problem: str) -> None:
    result = run("run", "listed:app", "--broker", broker)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert "SECRET" not in result.stderr
    assert isinstance(result.exception, SystemExit)
