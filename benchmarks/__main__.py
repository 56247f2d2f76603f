"""scripts/bench: alternate servers under one load, print medians and ratios."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
APPS = {"raw ASGI": "benchmarks.apps.raw_asgi:app", "nexios_trio": "benchmarks.apps.framework:app"}
BASE, OURS = APPS
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


def spread(values: list[float]) -> str:
    """Median (least-most)."""
    return f"{statistics.median(values):10.1f}  ({min(values):.1f} to {max(values):.1f})"


@click.group()
def main() -> None:
    """Benchmarks; each prints its figures and appends them as JSON lines to benchmarks/out/."""


def record(name: str, result: dict[str, Any]) -> None:
    """Keep the raw figures."""
    (HERE / "out").mkdir(exist_ok=True)
    with (HERE / "out" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"versions": versions(), **result}) + "\n")


@main.command()
@click.option("--clients", default=50, show_default=True)
@click.option("--seconds", default=4.0, show_default=True)
@click.option("--size", default=32, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=7, show_default=True, help="Alternations.")
def echo(clients: int, seconds: float, size: int, rounds: int) -> None:
    """Round trips per second: our app against a raw ASGI echo, both on hypercorn's Trio worker."""
    click.echo(versions())
    rates: dict[str, list[float]] = {name: [] for name in APPS}
    p99: dict[str, list[float]] = {name: [] for name in APPS}
    with (
        load_generator() as wsload,
        click.progressbar([(r, name) for r in range(rounds) for name in _order(r)], file=sys.stderr) as bar,
    ):
        for _, name in bar:
            with server(APPS[name]) as (port, _pid):
                command = [wsload, "echo", str(port), "/", str(clients), str(seconds), str(size)]
                output = subprocess.run(
                    pinned(-1, command), check=True, capture_output=True, text=True
                ).stdout
            figures = json.loads(output)
            rates[name].append(figures["messages_per_second"])
            p99[name].append(figures["p99_ms"])
    for name in APPS:
        click.echo(f"{name:12} {spread(rates[name])} msg/s   p99 {statistics.median(p99[name]):.2f} ms")
    ratios = [ours / base for ours, base in zip(rates[OURS], rates[BASE], strict=True)]
    click.echo(
        f"{clients} clients, {size} bytes: {OURS} / {BASE} = {statistics.median(ratios):.3f}  "
        f"({min(ratios):.3f} to {max(ratios):.3f} over {rounds} pairs)"
    )
    record("echo", {"clients": clients, "size": size, "seconds": seconds, "rates": rates, "ratios": ratios})


@main.command()
@click.option("--clients", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def memory(clients: int, rounds: int) -> None:
    """Resident memory of an idle connection, beyond the process without one, in KiB."""
    click.echo(versions())
    costs: dict[str, list[float]] = {name: [] for name in APPS}
    with load_generator() as wsload:
        for round_ in range(rounds):
            for name in _order(round_):
                with server(APPS[name]) as (port, pid):
                    subprocess.run([wsload, "echo", str(port), "/", "20", "0.5", "32"], check=True, stdout=-3)
                    before = resident_kib(pid)
                    holder = subprocess.Popen(
                        [wsload, "idle", str(port), "/", str(clients)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    assert holder.stdout is not None
                    assert holder.stdout.readline() == "ready\n"
                    costs[name].append((resident_kib(pid) - before) / clients)
                    holder.communicate()
    for name in APPS:
        click.echo(f"{name:12} {spread(costs[name])} KiB per idle connection")
    more = statistics.median(costs[OURS]) - statistics.median(costs[BASE])
    click.echo(f"{clients} clients: {OURS} costs {more:.1f} KiB more than {BASE}")
    record("memory", {"clients": clients, "costs": costs})


def _order(round_: int) -> list[str]:
    names = list(APPS)
    return names if round_ % 2 == 0 else names[::-1]


if __name__ == "__main__":
    main()
