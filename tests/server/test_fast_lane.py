"""``hypercorn --worker-class trio module:app`` with an app that has called `install_fast_lane`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hypercorn.trio.run
import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper, WSGIWrapper
from hypercorn.config import Config
from websockets.sync.client import ClientConnection, connect

from nexios_trio.exceptions import WrongValueError
from nexios_trio.server import install_fast_lane
from nexios_trio.server.fast_lane import _warn
from nexios_trio.server.versions import plain_worker_serve
from nexios_trio.types import Receive, Scope, Send
from tests.server.test_runner import BIND, PATIENCE, Runner, closed_with

MODULE = """
import os
from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.server import install_fast_lane

installed = [install_fast_lane(), install_fast_lane()]
app = NexiosApp(disconnect_grace=0)


@app.ws_route("/")
async def lane(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text(f"{os.getpid()} {type(ws._transport).__name__} {installed}")
    try:
        await ws.receive_text()
    except WebSocketDisconnect as over:
        print("ended with", over.code, flush=True)
"""

UNTRIED = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.99.1" if name == "hypercorn" else real(name)
"""


@contextmanager
def hypercorn_running(folder: Path, *arguments: str, more: str = "") -> Iterator[Runner]:
    (folder / "served.py").write_text(more + MODULE)
    process = subprocess.Popen(
        [
            str(Path(sysconfig.get_path("scripts")) / "hypercorn"),
            *("--worker-class", "trio", *BIND, *arguments, "served:app"),
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield Runner(process)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hypercorn as it is; what a test installs is gone afterwards."""
    plain = plain_worker_serve()
    monkeypatch.setattr(hypercorn.trio.run, "worker_serve", plain)  # undone whatever is put there
    return plain


@pytest.mark.untraced
@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_the_exact_command_of_hypercorn_serves_by_the_engine_and_drains(workers: str, tmp_path: Path) -> None:
    with hypercorn_running(tmp_path, "--workers", workers) as runner, ExitStack() as stack:
        url = runner.url()
        pids: set[int] = set()
        clients: list[ClientConnection] = []
        while len(clients) < 3 or len(pids) < int(workers):
            ws = stack.enter_context(connect(url))
            pid, transport, installed = str(ws.recv(timeout=PATIENCE)).split(maxsplit=2)
            assert (transport, installed) == ("EngineTransport", "[True, True]")
            pids.add(int(pid))
            clients.append(ws)
        runner.process.send_signal(signal.SIGTERM)
        assert {closed_with(ws) for ws in clients} == {(1012, "service restart")}
        assert runner.wait() == 0
    assert "Traceback" not in runner.text


def test_an_interrupt_drains_too(tmp_path: Path) -> None:
    with hypercorn_running(tmp_path, "--workers", "0") as runner, connect(runner.url()) as ws:
        ws.recv(timeout=PATIENCE)
        runner.interrupt()
        assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0


def test_another_version_of_hypercorn_is_left_alone_with_one_warning(tmp_path: Path) -> None:
    with hypercorn_running(tmp_path, "--workers", "0", more=UNTRIED) as runner:
        with connect(runner.url()) as ws:
            assert str(ws.recv(timeout=PATIENCE)).split(maxsplit=1)[1] == "AsgiTransport [False, False]"
    assert runner.text.count("hypercorn 0.99.1 has not been tried; install_fast_lane()") == 1


def test_our_own_runner_serves_as_its_option_says(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(MODULE)
    for server, transport in (("engine", "EngineTransport"), ("hypercorn", "AsgiTransport")):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nexios_trio.cli", "run", "served:app", *BIND, "-w", "0"),
                *("--server", server),
            ],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        runner = Runner(process)
        try:
            with connect(runner.url()) as ws:
                assert str(ws.recv(timeout=PATIENCE)).split()[1] == transport
        finally:
            process.terminate()
            assert runner.wait() == 0
            assert process.stderr is not None
            process.stderr.close()


def test_it_replaces_one_name_once(plain: Any) -> None:
    assert install_fast_lane()
    ours = hypercorn.trio.run.worker_serve
    assert ours is not plain
    assert install_fast_lane()
    assert hypercorn.trio.run.worker_serve is ours
    assert plain_worker_serve() is plain
    assert vars(hypercorn.trio)["worker_serve"] is plain  # what hypercorn.trio.serve calls


def test_a_hypercorn_without_that_name_is_left_alone(
    plain: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _warn.cache_clear()
    monkeypatch.delattr(hypercorn.trio.run, "worker_serve")
    assert not install_fast_lane()
    assert not install_fast_lane()
    assert not hasattr(hypercorn.trio.run, "worker_serve")
    assert len(caplog.records) == 1
    _warn.cache_clear()


async def test_a_setting_that_is_none_of_ours_ends_the_worker_with_the_reason(plain: Any) -> None:
    install_fast_lane()
    config = Config.from_mapping({"drain_window": "long"})

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("not called")

    with pytest.raises(WrongValueError, match="drain_window is a number of seconds, 0 or more, not 'long'"):
        await hypercorn.trio.run.worker_serve(ASGIWrapper(app), config)  # type: ignore[arg-type]


async def test_what_is_no_asgi_app_is_left_to_the_function_that_was_there(plain: Any) -> None:
    calls: list[Any] = []

    async def there(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    app, config = WSGIWrapper(lambda _environ, _start: [], 1 << 16), Config()
    hypercorn.trio.run.worker_serve = there
    install_fast_lane()
    await hypercorn.trio.run.worker_serve(app, config)
    rest = {"sockets": None, "shutdown_trigger": None, "task_status": trio.TASK_STATUS_IGNORED}
    assert calls == [((app, config), rest)]


def test_without_the_internals_of_hypercorn_the_plain_one_serves(tmp_path: Path) -> None:
    """Another version may have moved them: then the file that names them cannot be imported."""
    code = UNTRIED + textwrap.dedent("""
        import logging, sys
        import trio
        from trio_websocket import open_websocket_url
        sys.modules["nexios_trio.server.internals"] = None
        from nexios_trio import NexiosApp
        from nexios_trio.testing import serve

        logging.basicConfig()
        app = NexiosApp(heartbeat=None)

        @app.ws_route("/")
        async def echo(ws):
            await ws.accept()
            await ws.send_text(await ws.receive_text())

        async def main():
            for fast_lane in (False, True):
                async with serve(app, fast_lane=fast_lane) as server:
                    async with open_websocket_url(server.url + "/") as ws:
                        await ws.send_message("hello")
                        print(await ws.get_message())

        trio.run(main)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["hello", "hello"], 0), done.stderr
    assert done.stderr.count("hypercorn 0.99.1 has not been tried") == 2  # one for each server
