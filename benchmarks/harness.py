"""What all benchmarks need: a server, the load, and the record."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from attrs import frozen

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
STARTING = 20.0
"""Seconds that a server has until it answers a handshake."""
PATIENCE = 120.0
"""Seconds that a load may take beyond the time that it was given."""


class Failed(Exception):
    """A server did not start or died, or a load did not get what it was owed; the message says which."""


class Declined(Failed):
    """A server does not offer what a load asks for."""


def pinned(core: int, command: list[str]) -> list[str]:
    """``command`` on one core, where there are two to share between server and load."""
    return ["taskset", "-c", str(CORES[core]), *command] if len(CORES) > 1 else command


@frozen
class Tools:
    """The programs in C, in a folder of their own."""

    folder: Path

    @property
    def wsload(self) -> str:
        return str(self.folder / "wsload")

    @property
    def epoll(self) -> str:
        return str(self.folder / "epoll")


@contextlib.contextmanager
def built_tools() -> Iterator[Tools]:
    """Build the load generator and the server in C; without zlib's headers there is no ``--deflate``."""
    with tempfile.TemporaryDirectory() as folder:
        tools = Tools(Path(folder))
        compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
        load = [*compiler, tools.wsload, str(HERE / "load" / "wsload.c")]
        if subprocess.run([*load, "-DWITH_ZLIB", "-lz"], capture_output=True).returncode:
            subprocess.run(load, check=True)
        subprocess.run([*compiler, tools.epoll, str(HERE / "peers" / "epoll.c")], check=True)
        yield tools


@frozen
class Server:
    """A server process, or several of one session."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def resident_kib(self) -> int:
        """Resident memory of all its processes together, in KiB."""
        return sum(resident_kib(pid) for pid in self.pids())

    def cpu_seconds(self) -> float:
        """CPU time that all its processes have used."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        """All its processes."""
        return _session(self.process.pid)

    def complaint(self) -> str:
        """The last thing that it wrote."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


@contextlib.contextmanager
def running(command: list[str], port: int, path: str = "/echo") -> Iterator[Server]:
    """A server on its core, from its first answer to a handshake on ``path`` on; killed at the end.

    Raises `Failed` if it does not start, or dies during the block.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            pinned(0, command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=HERE.parent,
            start_new_session=True,
        )
        server = Server(port, process, log)
        try:
            _wait_for(server, path)
            try:
                yield server
            except Failed as failure:
                if (code := process.poll()) is not None:
                    problem = f"the server died with {code}: {server.complaint()}"
                    raise Failed(problem) from failure
                raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(server: Server, path: str) -> None:
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    deadline = time.monotonic() + STARTING
    answer = b""
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise Failed(f"the server did not start: {server.complaint()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as client:
            client.sendall(request.encode())
            answer = client.recv(4096)
            if answer.startswith(b"HTTP/1.1 101"):
                return
        time.sleep(0.02)
    raise Failed(f"the server did not answer with 101 within {STARTING:g} s, but {answer[:40]!r}")


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to clients."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _session(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(folder.name))
    return found


def resident_kib(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU time that anything has used on this machine, or taken from it."""
    _, user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split(maxsplit=10)
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def load(wsload: str, *arguments: object, seconds: float = 0) -> dict[str, Any]:
    """Run the load generator to its end, on a core of its own; returns what it prints. Raises `Failed`."""
    command = pinned(-1, [wsload, *map(str, arguments)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"the load did not end within {seconds + PATIENCE:g} s") from None
    if done.returncode:
        kind = Declined if done.returncode == 3 else Failed
        raise kind(done.stderr.strip().removeprefix("wsload: ") or f"wsload ended with {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


class Crowd:
    """Connected clients in a load generator that is told what to do; end it with `close`."""

    def __init__(self, wsload: str, mode: str, port: int, path: str, *options: object) -> None:
        self.process = subprocess.Popen(
            pinned(-1, [wsload, mode, str(port), path, *map(str, options)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        """The next line that it prints; waits for it. Raises `Failed` if it ends instead."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.process.stderr.read().strip().removeprefix("wsload: "))
        return line

    def tell(self, command: str) -> None:
        """Give it a command; `read` has its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it, and its connections."""
        self.process.kill()
        self.process.communicate()


def versions(*packages: str) -> str:
    """What was measured, for the record."""
    found = []
    for name in packages or ("trio", "hypercorn", "wsproto", "h11", "starlette"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {', '.join(found)}, {len(CORES)} cores"


def order(names: Iterable[str], round_: int) -> list[str]:
    """Forwards and backwards by turns, so that a machine that warms up or tires favours none."""
    return list(names) if round_ % 2 == 0 else list(names)[::-1]


def spread(values: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):10.1f}  ({min(values):.1f} to {max(values):.1f})"


def record(name: str, result: dict[str, Any]) -> None:
    """Keep the raw figures, one JSON object a line."""
    (HERE / "out").mkdir(exist_ok=True)
    with (HERE / "out" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
