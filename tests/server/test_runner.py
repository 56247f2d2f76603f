"""``nexios-trio run`` as a process: signals, workers, reloading, exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from nexios_trio.server.command import _replaced

PATIENCE = 60.0
"""Seconds after which a process that does nothing more counts as broken."""

MODULE = """
import os
import trio
from nexios_trio import NexiosApp, WebSocket

app = NexiosApp(disconnect_grace={grace})


@app.ws_route("/pid")
async def pid(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text(f"{{os.getpid()}} {version}")
    await ws.receive_text()


@app.ws_route("/deaf")
async def deaf(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text("here")
    await trio.sleep_forever()
"""


FLOOD = """
app = NexiosApp(disconnect_grace=0.0, close_timeout=0.5)
STUCK = trio.Event()


@app.ws_route("/flood")
async def flood(ws: WebSocket) -> None:
    await ws.accept()
    while True:
        with trio.move_on_after(0.2) as scope:
            await ws.send_bytes(bytes(100_000))
        if scope.cancelled_caught:
            STUCK.set()


@app.ws_route("/stuck")
async def stuck(ws: WebSocket) -> None:
    await ws.accept()
    await STUCK.wait()
    await ws.send_text("the other one is stuck")
    await ws.receive_text()
"""


def write(
    folder: Path, *, name: str = "served", grace: float = 0.0, version: int = 1, more: str = ""
) -> None:
    (folder / f"{name}.py").write_text(MODULE.format(grace=grace, version=version) + more)


class Runner:
    """A running command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.log.append(line)
                self._more.notify_all()

    @property
    def text(self) -> str:
        return "".join(self.log)

    def url(self) -> str:
        """Where it serves, as soon as it says so."""
        return "ws://" + self.until(r"Running on http://(\S+)")[1]

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until its log has this."""
        with self._more:
            found = self._more.wait_for(lambda: re.search(pattern, self.text), timeout=PATIENCE)
        assert found, self.text
        return found

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    @property
    def reading(self) -> bool:
        """Whether a process is left that may still write into the log."""
        return self._reader.is_alive()

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)


@contextmanager
def running(folder: Path, *arguments: str, measured: bool = True) -> Iterator[Runner]:
    """The command; not ``measured``: without coverage, whose own handler of SIGTERM may fail in a worker
    that is told twice."""
    script = Path(sysconfig.get_path("scripts")) / "nexios-trio"
    environment = {
        key: value for key, value in os.environ.items() if measured or not key.startswith("COVERAGE")
    }
    process = subprocess.Popen(
        [str(script), "run", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
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


BIND = ("--bind", "127.0.0.1:0")


def closed_with(ws: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as over:
        while True:
            ws.recv(timeout=PATIENCE)
    assert over.value.rcvd is not None, "the connection broke without a Close frame"
    return over.value.rcvd.code, over.value.rcvd.reason


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("ws://").rpartition(":")
    return host, int(port)


def pid_of(ws: ClientConnection) -> int:
    return int(str(ws.recv(timeout=PATIENCE)).split()[0])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


ON_EACH_SERVER = pytest.mark.parametrize("server", ["hypercorn", "engine"])


@pytest.mark.untraced
@ON_EACH_SERVER
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_signal_closes_every_connection_with_1012_and_exits_with_0(
    number: signal.Signals, workers: str, server: str, tmp_path: Path
) -> None:
    write(tmp_path)
    options = (*BIND, "-w", workers, "--server", server)
    with running(tmp_path, "served:app", *options) as runner, ExitStack() as stack:
        url = runner.url()
        for beginning in (b"", b"G", b"GET / HTTP/1.1\r\n"):  # waiting for these would take 10 seconds
            waiting = stack.enter_context(socket.create_connection(address(url)))
            waiting.sendall(beginning)
        clients = [stack.enter_context(connect(url + "/pid")) for _ in range(3)]
        pids = {pid_of(ws) for ws in clients}
        assert (pids == {runner.process.pid}) is (workers == "0")
        runner.process.send_signal(number)
        assert [closed_with(ws) for ws in clients] == [(1012, "service restart")] * 3
        assert runner.wait() == 0
        assert not any(map(alive, pids))
        assert "Traceback" not in runner.text


def test_the_engine_drains_beside_a_client_that_does_not_read(tmp_path: Path) -> None:
    write(tmp_path, more=FLOOD)
    options = ("--server", "engine", "--drain-window", "1", "--graceful-timeout", "0")
    with running(tmp_path, "served:app", *BIND, *options) as runner, ExitStack() as stack:
        url = runner.url()
        stalled = stack.enter_context(socket.create_connection(address(url)))
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(
            b"GET /flood HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        ws = stack.enter_context(connect(url + "/stuck"))
        assert ws.recv(timeout=PATIENCE) == "the other one is stuck"
        runner.process.send_signal(signal.SIGTERM)
        assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0
    assert "Traceback" not in runner.text


def test_all_workers_drain_and_none_is_left_behind(tmp_path: Path) -> None:
    write(tmp_path)
    options = (*BIND, "-w", "2")
    with running(tmp_path, "served:app", *options, measured=False) as runner, ExitStack() as stack:
        url = runner.url()
        clients: list[ClientConnection] = []
        pids: set[int] = set()
        until = time.monotonic() + PATIENCE
        while len(pids) < 2 or len(clients) < 6:
            assert time.monotonic() < until, "one worker serves nobody"
            clients.append(stack.enter_context(connect(url + "/pid")))
            pids.add(pid_of(clients[-1]))
        runner.process.send_signal(signal.SIGTERM)
        assert {closed_with(ws) for ws in clients} == {(1012, "service restart")}
        assert runner.wait() == 0
        assert not any(map(alive, pids))
        assert "Traceback" not in runner.text


def test_a_worker_that_is_ended_drains_and_is_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND) as runner:
        url = runner.url()
        with connect(url + "/pid") as ws:
            first = pid_of(ws)
            os.kill(first, signal.SIGTERM)
            assert closed_with(ws) == (1012, "service restart")
        with connect(url + "/pid") as ws:  # waits in the backlog until the new one is there
            assert pid_of(ws) != first
            runner.process.send_signal(signal.SIGTERM)
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0


@ON_EACH_SERVER
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_second_interrupt_does_not_wait(workers: str, server: str, tmp_path: Path) -> None:
    write(tmp_path, grace=3600)
    options = (*BIND, "-w", workers, "--drain-window", "3600", "--server", server)
    with running(tmp_path, "served:app", *options) as runner:
        with connect(runner.url() + "/deaf") as ws:
            assert ws.recv(timeout=PATIENCE) == "here"
            runner.interrupt()
            assert closed_with(ws) == (1012, "service restart")
            assert runner.process.poll() is None
            runner.interrupt()
            assert runner.wait() == 0
        assert "Traceback" not in runner.text


def test_a_config_file_of_hypercorn_holds_everything(tmp_path: Path) -> None:
    write(tmp_path, grace=0)
    (tmp_path / "server.toml").write_text('bind = "127.0.0.1:0"\nworkers = 0\ndrain_window = 0\n')
    with running(tmp_path, "--config", "server.toml", "served:app") as runner:
        with connect(runner.url() + "/pid") as ws:
            assert pid_of(ws) == runner.process.pid
            runner.process.send_signal(signal.SIGTERM)
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0


@pytest.mark.parametrize("value", ['"long"', "-1", "true", "inf"])
def test_a_drain_window_that_is_no_time_is_refused(value: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "server.toml").write_text(f"drain_window = {value}\n")
    with running(tmp_path, "served:app", *BIND, "-c", "server.toml") as runner:
        assert runner.wait() == 2
        assert "drain_window is a number of seconds, 0 or more, not" in runner.text


@pytest.mark.parametrize(
    "line", ["handshake_timeout = 0", 'handshake_timeout = "long"', "handshake_timeout = nan"]
)
def test_a_handshake_timeout_that_is_no_time_is_refused(line: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "server.toml").write_text(line)
    with running(tmp_path, "served:app", *BIND, "-c", "server.toml") as runner:
        assert runner.wait() == 2
        assert "handshake_timeout is a number of seconds, more than 0, not" in runner.text


@pytest.mark.parametrize("value", ["0", "true", "1.5"])
def test_a_bound_on_waiting_connections_that_is_none_is_refused(value: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "server.toml").write_text(f"waiting_connections = {value}\n")
    with running(tmp_path, "served:app", *BIND, "-c", "server.toml") as runner:
        assert runner.wait() == 2
        assert "waiting_connections is a whole number, at least 1, not" in runner.text


@ON_EACH_SERVER
def test_own_settings_are_read_from_a_config_file(server: str, tmp_path: Path) -> None:
    write(tmp_path)
    settings = "workers = 0\nhandshake_timeout = 0.2\nwaiting_connections = 10\nkeep_alive_timeout = 1000\n"
    (tmp_path / "server.toml").write_text(settings)
    with running(tmp_path, "served:app", *BIND, "-c", "server.toml", "--server", server) as runner:
        with socket.create_connection(address(runner.url()), PATIENCE) as silent:
            assert silent.recv(100) == b""


@pytest.mark.parametrize(("server", "evil"), [("hypercorn", "\x1b"), ("engine", "\x9b")])
def test_no_client_writes_lines_of_its_own_into_the_logs(server: str, evil: str, tmp_path: Path) -> None:
    more = """
@app.ws_route("/fail/{text:path}")
async def fail(ws: WebSocket, text: str) -> None:
    raise ValueError(ws.headers["x-evil"] + "\\n[CRITICAL] forged")
"""
    write(tmp_path, more=more)
    log = tmp_path / "access.log"
    options = (*BIND, "-w", "0", "--access-logfile", str(log), "--log-level", "debug", "--server", server)
    with running(tmp_path, "served:app", *options) as runner:
        for path, status in (("fail/%0a[CRITICAL]%20forged", 404), ("fail/x", 500)):
            with socket.create_connection(address(runner.url()), PATIENCE) as client:
                client.sendall(
                    b"GET /%s?token=SECRET HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nX-Evil: %s[2J\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    b"Sec-WebSocket-Version: 13\r\n\r\n" % (path.encode(), evil.encode("latin-1"))
                )
                assert client.recv(1000).startswith(b"HTTP/1.1 %d " % status)
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == 0
    bad, failed = log.read_text().splitlines()
    assert '"GET /fail/%0a[CRITICAL]%20forged 1.1" 404' in bad
    assert '"GET /fail/x 1.1" 500' in failed
    assert f"    ValueError: \\x{ord(evil):x}[2J\n    [CRITICAL] forged\n" in runner.text
    for text in (runner.text, bad, failed):
        assert "SECRET" not in text
        assert evil not in text
    assert not [line for line in runner.text.splitlines() if line.startswith("[CRITICAL]")]


@pytest.mark.parametrize("options", [(), ("-w", "0"), ("--reload",)])
def test_a_wrong_name_exits_with_2_and_says_what_is_there(options: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:ap", *BIND, *options) as runner:
        assert runner.wait() == 2
        assert 'nexios-trio: the module "served" has no "ap"; it holds: served:app' in runner.text
        assert "Traceback" not in runner.text


@pytest.mark.parametrize("options", [(), ("-w", "0"), ("--reload",)])
def test_a_module_that_fails_to_import_shows_its_traceback(options: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, more="\n1 / 0\n")
    with running(tmp_path, "served:app", *BIND, *options) as runner:
        assert runner.wait() not in (0, 2)
        assert "ZeroDivisionError" in runner.text
        assert "served.py" in runner.text


def test_an_option_that_hypercorn_does_not_know_exits_with_2(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", "--no-such-option") as runner:
        assert runner.wait() == 2
        assert "--no-such-option" in runner.text


def test_fewer_workers_than_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND, "-w", "-1") as runner:
        assert runner.wait() == 2
        assert "workers is how many processes serve, 0 or more, not -1" in runner.text


def test_reloading_needs_workers(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND, "--reload", "-w", "0") as runner:
        assert runner.wait() == 2
        assert "leave --workers 0 away" in runner.text


def test_a_startup_that_fails_exits_with_an_error_that_says_why(tmp_path: Path) -> None:
    write(tmp_path, more="\n@app.on_startup\ndef fail():\n    raise KeyError('DATABASE')\n")
    with running(tmp_path, "served:app", *BIND) as runner:
        assert runner.wait() not in (0, 2)
        assert "KeyError: 'DATABASE'" in runner.text


def test_a_background_task_may_end_the_process_with_an_error(tmp_path: Path) -> None:
    more = """
crash = trio.Event()

@app.ws_route("/crash")
async def set_crash(ws: WebSocket) -> None:
    await ws.accept()
    crash.set()
    await trio.sleep_forever()

async def background():
    await crash.wait()
    raise KeyError("in the background")

app.start_soon(background, on_crash="stop")
"""
    write(tmp_path, more=more)
    with running(tmp_path, "served:app", *BIND) as runner:
        with connect(runner.url() + "/crash") as ws:
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() not in (0, 2)
        assert "KeyError: 'in the background'" in runner.text


def test_a_changed_file_is_taken_up(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND, "--reload") as runner:
        url = runner.url()
        with connect(url + "/pid") as ws:
            first = str(ws.recv(timeout=PATIENCE))
            assert first.endswith(" 1")
            write(tmp_path, version=2)
            os.utime(tmp_path / "served.py", (time.time() + 10, time.time() + 10))
            assert closed_with(ws) == (1012, "service restart")
        with connect(url + "/pid") as ws:
            assert str(ws.recv(timeout=PATIENCE)).endswith(" 2")
            runner.process.send_signal(signal.SIGTERM)
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0


def test_any_asgi_app_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "raw.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'websocket':\n"
        "        await receive()\n"
        "        await send({'type': 'websocket.accept'})\n"
        "        await send({'type': 'websocket.send', 'text': 'hello'})\n"
        "        await receive()\n"
    )
    with running(tmp_path, "raw:app", *BIND, "-w", "0") as runner:
        with connect(runner.url()) as ws:
            assert ws.recv(timeout=PATIENCE) == "hello"
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == 0


def test_a_version_of_hypercorn_without_some_internal_is_left_as_it_is() -> None:
    module = SimpleNamespace(there=1)
    with _replaced(module, "there", 2), _replaced(module, "gone", 3):
        assert vars(module) == {"there": 2}
    assert vars(module) == {"there": 1}


def test_the_command_can_be_run_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexios_trio.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("nexios-trio")


def test_a_port_that_is_taken_is_said_and_exits_with_2(tmp_path: Path) -> None:
    write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with running(tmp_path, "served:app", "--bind", bind) as runner:
            assert runner.wait() == 2
            assert (
                f"nexios-trio: cannot listen on {bind}: Address already in use; give another" in runner.text
            )
            assert "Traceback" not in runner.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--bind", "127.0.0.1:99999"), "cannot listen on 127.0.0.1:99999: bind(): port must be 0-65535"),
        (("--bind", "unix:no/such/folder/x.sock"), "cannot listen on unix:no/such/folder/x.sock: No such"),
        (("--config", "missing.toml"), "there is no file missing.toml"),
        (("--config", "broken.toml"), "the configuration file is no TOML: Invalid value"),
        (("--certfile", "missing.pem"), "certfile is a file, and missing.pem cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_said_and_exits_with_2(
    options: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / "broken.toml").write_text("bind = [")
    with running(tmp_path, "served:app", *options) as runner:
        assert runner.wait() == 2
        assert f"nexios-trio: {problem}" in runner.text
        assert "Traceback" not in runner.text


def test_each_line_of_the_log_comes_once(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND, "-w", "0") as runner:
        runner.url()
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == 0
        assert runner.text.count("Running on") == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_configuration_of_logging_brings_each_line_once(workers: str, tmp_path: Path) -> None:
    more = """
import logging

async def tell():
    logging.getLogger("nexios_trio.probe").warning("by the app")
    await trio.sleep_forever()

app.start_soon(tell)
"""
    write(tmp_path, more=more)
    (tmp_path / "log.toml").write_text(
        "version = 1\nroot = {level = 'INFO', handlers = ['all']}\n"
        "handlers.all = {class = 'logging.StreamHandler', formatter = 'short'}\n"
        "formatters.short = {format = 'short: %(message)s'}\ndisable_existing_loggers = false\n"
    )
    options = (*BIND, "-w", workers, "--log-config", "toml:log.toml")
    with running(tmp_path, "served:app", *options) as runner, connect(runner.url() + "/pid") as ws:
        assert pid_of(ws)
        runner.process.send_signal(signal.SIGTERM)
        assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0
    assert runner.text.count("by the app") == 1
    assert "short: by the app\n" in runner.text


@ON_EACH_SERVER
def test_a_process_without_workers_drains_at_sighup(server: str, tmp_path: Path) -> None:
    write(tmp_path)
    options = (*BIND, "-w", "0", "--server", server)
    with running(tmp_path, "served:app", *options) as runner, connect(runner.url() + "/pid") as ws:
        assert pid_of(ws) == runner.process.pid
        runner.process.send_signal(signal.SIGHUP)
        assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 0


def test_a_worker_that_is_told_sighup_drains_and_is_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND) as runner:
        url = runner.url()
        with connect(url + "/pid") as ws:
            first = pid_of(ws)
            os.kill(first, signal.SIGHUP)
            assert closed_with(ws) == (1012, "service restart")
        with connect(url + "/pid") as ws:
            assert pid_of(ws) != first
            # A terminal that is closed tells all of them.
            os.killpg(runner.process.pid, signal.SIGHUP)
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == 128 + signal.SIGHUP


def test_nohup_keeps_a_process_from_ending_at_sighup(tmp_path: Path) -> None:
    write(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a new process inherits
    try:
        with running(tmp_path, "served:app", *BIND, "-w", "0") as runner:
            url = runner.url()
            runner.process.send_signal(signal.SIGHUP)
            with connect(url + "/pid") as ws:
                assert pid_of(ws) == runner.process.pid
                runner.process.send_signal(signal.SIGTERM)
                assert closed_with(ws) == (1012, "service restart")
            assert runner.wait() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_last_moments_does_not_change_the_exit_code(
    number: signal.Signals, tmp_path: Path
) -> None:
    more = f"\nimport atexit, signal\natexit.register(os.kill, os.getpid(), {int(number)})\n"
    write(tmp_path, more=more)
    with running(tmp_path, "served:app", *BIND, "-w", "0") as runner:
        runner.url()
        runner.process.send_signal(signal.SIGTERM)
        assert runner.wait() == 0
    assert "Traceback" not in runner.text


def test_a_worker_that_is_killed_at_its_start_again_and_again_is_restarted_ever_later(
    tmp_path: Path,
) -> None:
    write(tmp_path, more="\nimport signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with running(tmp_path, "served:app", *BIND, measured=False) as runner:
        runner.until("waits for 1 s.*\n.*waits for 2 s")
        runner.process.send_signal(signal.SIGTERM)  # while the third waits
        assert runner.wait() == 128 + signal.SIGSEGV
    assert runner.text.count("was killed by SIGSEGV") == 2


def test_workers_whose_parent_was_killed_drain_and_end(tmp_path: Path) -> None:
    write(tmp_path)
    with running(tmp_path, "served:app", *BIND) as runner:
        with connect(runner.url() + "/pid") as ws:
            assert pid_of(ws) != runner.process.pid
            runner.process.kill()
            assert closed_with(ws) == (1012, "service restart")
        assert runner.wait() == -signal.SIGKILL
        assert not runner.reading, "a process is left that holds our end of its log"
    assert "the parent process has been killed" in runner.text


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    write(tmp_path)
    options = (*BIND, "-w", "2")
    with running(tmp_path, "served:app", *options, measured=False) as runner, ExitStack() as stack:
        url = runner.url()
        clients: dict[int, ClientConnection] = {}
        until = time.monotonic() + PATIENCE
        while len(clients) < 2:
            assert time.monotonic() < until, "one worker serves nobody"
            ws = stack.enter_context(connect(url + "/pid"))
            clients[pid_of(ws)] = ws
        killed, other = clients
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            clients[killed].recv(timeout=PATIENCE)
        pid = killed
        while pid in clients:
            assert time.monotonic() < until, "it was not replaced"
            with connect(url + "/pid") as ws:
                pid = pid_of(ws)
        runner.process.send_signal(signal.SIGTERM)
        assert closed_with(clients[other]) == (1012, "service restart")
        assert runner.wait() == 128 + signal.SIGKILL
        assert not alive(pid)
    assert f"worker {killed} was killed by SIGKILL after " in runner.text
