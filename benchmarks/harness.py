"""What all benchmarks need: a server, the load, and the record."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))


def pinned(core: int, command: list[str]) -> list[str]:
    """``command`` on one core, where there are two to share between server and load."""
    return ["taskset", "-c", str(CORES[core]), *command] if len(CORES) > 1 else command


@contextlib.contextmanager
def load_generator() -> Iterator[str]:
    """Build wsload; yields its path."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/wsload"
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, str(HERE / "wsload.c")], check=True)
        yield program


@contextlib.contextmanager
def server(app: str) -> Iterator[tuple[int, int]]:
    """Plain hypercorn with its Trio worker in one process; yields its port and process id."""
    command = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "--workers", "0"]
    command += ["--bind", "127.0.0.1:0", app]
    process = subprocess.Popen(pinned(0, command), stderr=subprocess.PIPE, text=True, cwd=HERE.parent)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.search(r"Running on http://[^ ]*:(\d+)", line):
                yield int(match[1]), process.pid
                break
        else:
            raise SystemExit(f"the server of {app} did not start")
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def versions() -> str:
    """What was measured, for the record."""
    packages = ("trio", "hypercorn", "wsproto", "h11", "starlette")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{platform.python_implementation()} {platform.python_version()}, {found}, {len(CORES)} cores"


def resident_kib(pid: int) -> int:
    """Resident memory of a process in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]


def load(wsload: str, *arguments: object) -> dict[str, Any]:
    """Run the load generator to its end, on a core of its own; returns what it prints."""
    command = pinned(-1, [wsload, *map(str, arguments)])
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(output)
    return figures


def order(names: Iterable[str], round_: int) -> list[str]:
    """Forwards and backwards by turns, so that a machine that warms up or tires favours none."""
    return list(names) if round_ % 2 == 0 else list(names)[::-1]


def spread(values: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):10.1f}  ({min(values):.1f} to {max(values):.1f})"


def record(name: str, result: dict[str, Any]) -> None:
    """Keep the raw figures."""
    (HERE / "out").mkdir(exist_ok=True)
    with (HERE / "out" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"versions": versions(), **result}) + "\n")
