"""The package as users get it: a wheel, installed away from the source tree."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nexios_trio.monitoring.dashboard.app import FILES

ROOT = Path(__file__).parents[2]
_README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("build", "hatchling"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} IS NOT INSTALLED: the wheel cannot be built and stays untested")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def python(
    site: Path, *arguments: str, cwd: Path, before: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel on its path; -S keeps an editable install of the source tree off it."""
    libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    path = os.pathsep.join([*map(str, before), str(site), *libraries])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV"))}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_all_modules_and_the_typing_marker(wheel: Path) -> None:
    package = ROOT / "nexios_trio"
    expected = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    expected.add("nexios_trio/py.typed")
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected |= {path.relative_to(ROOT).as_posix() for path in (package / "cli/template").iterdir()}
    assert expected <= packed
    others = {name for name in packed if not name.startswith(("nexios_trio/", "nexios_trio-"))}
    assert others == set()


def test_the_wheel_holds_the_files_of_the_dashboard(wheel: Path) -> None:
    folder = "nexios_trio/monitoring/dashboard/static/"
    packed = {name.removeprefix(folder) for name in zipfile.ZipFile(wheel).namelist() if folder in name}
    assert packed == {name for name, _ in FILES.values()}


PROJECT = """
import pathlib

import nexios_trio
import trio
from nexios_trio import NexiosApp, WebSocket
from trio_websocket import open_websocket_url


def make():
    app = NexiosApp()

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    return app


def test_it_is_the_wheel():
    assert str(pathlib.Path(nexios_trio.__file__)).startswith({site!r})


async def test_in_memory(nexios_client, autojump_clock):
    async with nexios_client(make()).connect("/echo") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"
        await trio.sleep(3600)


async def test_over_a_socket(nexios_server):
    server = await nexios_server(make())
    async with open_websocket_url(server.url + "/echo") as ws:
        await ws.send_message("hello")
        assert await ws.get_message() == "hello"
"""


@pytest.mark.untraced
def test_a_project_that_installs_it_finds_both_fixtures(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    (tmp_path / "test_app.py").write_text(PROJECT.replace("{site!r}", repr(str(site))))
    result = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "4 passed" in result.stdout, result.stdout + result.stderr
    fixtures = python(site, "-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider", cwd=tmp_path).stdout
    assert "nexios_client" in fixtures
    assert "nexios_server" in fixtures


def test_without_pytest_trio_the_fixtures_say_what_to_install(site: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "pytest_trio.py").write_text("raise ImportError('not installed')\n")
    (tmp_path / "test_app.py").write_text(
        "def test_memory(nexios_client): pass\n"
        "def test_socket(nexios_server): pass\n"
        "def test_neither(): pass\n"
    )
    result = python(
        site, "-m", "pytest", "-q", "-p", "no:trio", "-p", "no:cacheprovider", cwd=tmp_path, before=(blocked,)
    )
    assert "1 passed, 2 errors" in result.stdout, result.stdout + result.stderr
    for fixture in ("nexios_client", "nexios_server"):
        assert (
            f"{fixture} needs pytest-trio; install it with: pip install 'nexios-trio[test]'" in result.stdout
        )


def needed(wheel: Path) -> set[str]:
    """The distributions that the wheel asks for, and theirs in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    todo = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    todo = [requirement for requirement in todo if not requirement.marker or requirement.marker.evaluate()]
    found: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            if (key := (canonicalize_name(wanted.name), extra)) not in found:
                found.add(key)
                for text in importlib.metadata.requires(wanted.name) or ():
                    requirement = Requirement(text)
                    if not requirement.marker or requirement.marker.evaluate({"extra": extra}):
                        todo.append(requirement)
    return {name for name, _ in found}


IMPORT_ALL = """
import importlib, pkgutil, sys

forbidden = set(sys.argv[1].split(","))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"{name} is not among the dependencies", name=name)

sys.meta_path.insert(0, Refuse())
import nexios_trio
extras = {
    "nexios_trio.testing.plugin", "nexios_trio.testing.broker_contract", "nexios_trio.security.jwt",
    "nexios_trio.security.keys",
    "nexios_trio.monitoring.metrics", "nexios_trio.monitoring.tracing", "nexios_trio.brokers.redis",
    "nexios_trio.publishing.publisher", "nexios_trio.publishing.sync",
}
for module in pkgutil.walk_packages(nexios_trio.__path__, "nexios_trio."):
    if module.name in extras:
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(error)
    else:
        print(module.name, flush=True)
        importlib.import_module(module.name)
"""


def test_every_module_imports_with_nothing_but_the_dependencies(
    wheel: Path, site: Path, tmp_path: Path
) -> None:
    dependencies = needed(wheel)
    assert {"trio", "starlette", "wsproto"} <= dependencies
    assert "pytest" not in dependencies
    forbidden = {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & {*dependencies, "nexios-trio"}
    }
    assert {"pytest", "websockets", "httpx2"} <= forbidden
    result = python(site, "-W", "error", "-c", IMPORT_ALL, ",".join(sorted(forbidden)), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for extra in ("jwt", "metrics", "otel", "redis"):
        assert f'pip install "nexios-trio[{extra}]"' in result.stdout
    assert {"nexios_trio.cli", "nexios_trio.server.hypercorn", "nexios_trio.testing.client"} <= set(
        result.stdout.split()
    )


class NewUser:
    """Somebody at a shell, in an environment of their own that has nothing of ours but the wheel."""

    def __init__(self, home: Path) -> None:
        self.where = home
        self.venv = home / "venv"
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTEST_", "PYTHON", "COV"))
        } | {"PATH": f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}

    def borrow(self) -> None:
        """Dependencies as they are installed here already: no network, and no minute of pip. What is on a
        path of a .pth file is found; the .pth files there, and so an editable install of ours, are not."""
        (folder,) = self.venv.glob("lib/python*/site-packages")
        libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (folder / "borrowed.pth").write_text("\n".join(libraries) + "\n")

    def command(self, line: str) -> list[str]:
        program, *arguments = shlex.split(line, comments=True)
        found = shutil.which(program, path=self.environment["PATH"])
        assert found is not None, program
        return [found, *arguments]

    def run(self, line: str, stdin: str = "") -> str:
        """What it says; fails if it fails."""
        done = subprocess.run(
            self.command(line),
            cwd=self.where,
            env=self.environment,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, line: str) -> Iterator[str]:
        """A server in the background; where it listens."""
        with subprocess.Popen(
            self.command(line), cwd=self.where, env=self.environment, stderr=subprocess.PIPE, text=True
        ) as server:
            assert server.stderr is not None
            log = ""
            while (found := re.search(r"Running on http://(\S+)", log)) is None:
                following = server.stderr.readline()
                assert following, log
                log += following
            try:
                yield found[1]
            finally:
                server.terminate()
                server.communicate()
        assert server.returncode == 0


@pytest.mark.untraced
def test_a_new_user_follows_the_readme_from_the_wheel_to_a_running_project(
    wheel: Path, tmp_path: Path
) -> None:
    (told,) = re.findall(
        r"^## A project in a minute$.*?^```console\n(.*?)^```", _README, re.DOTALL | re.MULTILINE
    )
    pip, new, cd, pytest_, serve, connect, bench = [line.removeprefix("$ ") for line in told.splitlines()]
    user = NewUser(tmp_path)
    user.borrow()
    user.run(pip.replace("'.[", f"'{wheel}["))
    where = user.run("""python -c "import nexios_trio; print(nexios_trio.__file__)" """)
    assert where.startswith(str(user.venv))
    user.run(new)
    user.where /= cd.removeprefix("cd ")
    assert "2 passed" in user.run(pytest_)
    with user.running(f"{serve} --bind 127.0.0.1:0") as here:  # any port but the one that may be taken
        with urllib.request.urlopen(f"http://{here}/", timeout=60) as page:
            assert "<title>chat-room</title>" in page.read().decode()
        there = connect.partition("#")[0].strip().replace("127.0.0.1:8000", here)
        assert user.run(f"{there} -n 2", '{"text": "hello"}\n').splitlines()[1:] == [
            '{"room":"lobby"}',
            '{"text":"hello"}',
        ]
        report = user.run(bench.replace("127.0.0.1:8000", here) + " --seconds 1")
        assert "1 of 1 clients" in report
    for extension in ("ruff check .", "ruff format --check ."):
        user.run(f"python -m {extension} --isolated --line-length 110")
