"""scripts/bench cluster: messages from one process to another over Redis, ours and others', by turns."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

import click
from attrs import define, frozen

from benchmarks.harness import (
    HERE,
    PATIENCE,
    STARTING,
    Failed,
    cpu_seconds,
    free_port,
    order,
    record,
    versions,
)

TASKS: Final = 100
PACED: Final = {"tasks": 20, "rate": 1000}
PACKAGES: Final = ("trio", "hiredis", "channels-redis", "python-socketio", "litestar", "redis", "uvloop")


@frozen
class Engine:
    """``kept``: what happens to a message that nobody takes at once."""

    module: str
    title: str
    kept: str


ENGINES: Final = {
    "nexios": Engine("ours", "nexios_trio", "history"),
    "nexios-unkept": Engine("ours", "nexios_trio, save_history=False", "nothing"),
    "channels": Engine("channels_layers", "channels_redis, core layer", "a queue, 60 s"),
    "channels-pubsub": Engine("channels_layers", "channels_redis, pub/sub layer", "nothing"),
    "socketio": Engine("socketio_manager", "python-socketio, Redis manager", "nothing"),
    "litestar": Engine("litestar_backends", "Litestar, pub/sub backend", "nothing"),
    "litestar-streams": Engine("litestar_backends", "Litestar, stream backend", "history"),
}
OURS: Final = {"nothing": "nexios-unkept"}
"""With which of ours an engine is compared, by what it keeps; else with the one that keeps all."""


@frozen
class Redis:
    """A server of our own."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)


@contextlib.contextmanager
def redis_running(*, unbounded: bool = True) -> Iterator[Redis]:
    """An empty one on a free port, without files; killed at the end.

    ``unbounded``: a receiver that is slower than its sender is to be measured, not cut off.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise click.ClickException("redis-server is missing: Debian's package of that name")
    port = free_port()
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--loglevel", "warning"]
    if unbounded:
        options += ["--client-output-buffer-limit", "pubsub 0 0 0"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([program, *options, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + STARTING
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.sendall(b"PING\r\n")
                    if client.recv(100).startswith(b"+PONG"):
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed("redis-server did not start")
                time.sleep(0.02)
            yield Redis(port, process)
        finally:
            process.kill()
            process.wait()


@define
class Node:
    """A process that does what it is told; see `benchmarks.peers.cluster`."""

    process: subprocess.Popen[str]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"a node ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(command)}\n")
        self.process.stdin.flush()

    def ask(self, **command: Any) -> dict[str, Any]:
        self.tell(**command)
        return self.answer()


def start(*arguments: object) -> subprocess.Popen[str]:
    """A module of ours as a process, to be spoken to by lines."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
    )


@contextlib.contextmanager
def node(name: str, role: str, redis: Redis, groups: int) -> Iterator[Node]:
    """A node that is ready."""
    process = start("benchmarks.peers.cluster", ENGINES[name].module, name, role, redis.url, groups)
    try:
        found = Node(process)
        found.answer()
        yield found
    finally:
        process.kill()
        process.communicate()


def measure_engine(name: str, groups: int, seconds: float) -> dict[str, Any]:
    """One sender, one receiver that follows all groups, an empty Redis; times in the unit that is named."""
    figures: dict[str, Any] = {}
    with (
        redis_running() as redis,
        node(name, "receive", redis, groups) as receiver,
        node(name, "send", redis, groups) as sender,
    ):
        sender.ask(mode="many", seconds=seconds / 4, tasks=TASKS, rate=0)  # warm
        time.sleep(0.3)
        for mode, options in (
            ("one", {"tasks": 1, "rate": 0}),
            ("many", {"tasks": TASKS, "rate": 0}),
            ("paced", PACED),
        ):
            receiver.ask(mode="begin")
            busy = redis.cpu_seconds()
            sent = sender.ask(mode=mode, seconds=seconds, **options)
            got = receiver.ask(mode="end", sent=sent["sent"])
            if not got["received"]:
                raise Failed(f"nothing came ({mode})")
            figures |= {
                f"{mode}_per_second": sent["sent"] / sent["seconds"],
                f"{mode}_received_per_second": got["received"] / got["seconds"],
                f"{mode}_per_core": got["received"] / (sent["cpu"] + got["cpu"]),
                f"{mode}_sender_us": sent["cpu"] / sent["sent"] * 1e6,
                f"{mode}_receiver_us": got["cpu"] / got["received"] * 1e6,
                f"{mode}_redis_us": (redis.cpu_seconds() - busy) / sent["sent"] * 1e6,
                f"{mode}_p50_ms": got["p50_ms"],
                f"{mode}_p99_ms": got["p99_ms"],
                f"{mode}_lost": sent["sent"] - got["received"],
            }
    return figures


# The link by itself


def measure_link(seconds: float) -> dict[str, Any]:
    """Messages per second, and per second of CPU of the one process."""
    figures: dict[str, Any] = {}
    with redis_running() as redis:
        process = start("benchmarks.peers.cluster.link", "publish", redis.url, seconds)
        figures["publish"] = Node(process).answer()
        process.communicate()
    with redis_running() as redis:
        process = start("benchmarks.peers.cluster.link", "receive", redis.url, seconds)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            sent = _feed(redis, seconds)
            output, _ = process.communicate(f"{sent}\n", timeout=PATIENCE)
            figures["receive"] = json.loads(output)
        finally:
            process.kill()
    for found in figures.values():
        found["per_second"] = found["messages"] / found["seconds"]
        found["per_core"] = found["messages"] / found["cpu"]
    return figures


def _feed(redis: Redis, seconds: float) -> int:
    """PUBLISH as fast as Redis takes it; returns how many."""
    at_once, data = 500, b"x" * 64
    batch = b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$64\r\n%s\r\n" % data * at_once
    answers = len(b":1\r\n") * at_once
    sent, until = 0, time.perf_counter() + seconds
    with socket.create_connection(("127.0.0.1", redis.port)) as client:
        client.settimeout(PATIENCE)
        client.sendall(batch)  # one batch is always on its way
        while time.perf_counter() < until:
            client.sendall(batch)
            sent += at_once
            left = answers
            while left:
                left -= len(client.recv(left))
        left = answers
        while left:
            left -= len(client.recv(left))
    return sent + at_once


# The tables


COLUMNS: Final = (
    ("one_per_second", "one by one, /s", 0),
    ("many_received_per_second", f"{TASKS} tasks, /s", 0),
    ("many_per_core", "per core, /s", 0),
    ("many_sender_us", "sender, µs", 1),
    ("many_receiver_us", "receiver, µs", 1),
    ("many_redis_us", "Redis, µs", 1),
    ("paced_p50_ms", "p50, ms", 2),
    ("paced_p99_ms", "p99, ms", 2),
)


@define
class Tables:
    """Figures by groups, engine and round."""

    figures: dict[tuple[int, str, int], dict[str, Any]]
    errors: dict[tuple[int, str], str]

    def markdown(self) -> str:
        lines: list[str] = []
        sizes = {groups for groups, _, _ in self.figures} | {groups for groups, _ in self.errors}
        for groups in sorted(sizes):
            heads = ["engine", "kept", *(title for _, title, _ in COLUMNS), "per core, ours / theirs", "lost"]
            lines += [f"\n{groups:,} group{'s' * (groups > 1)}\n", f"| {' | '.join(heads)} |"]
            lines.append("|---" * len(heads) + "|")
            lines += [line for name in ENGINES if (line := self._line(groups, name))]
        return "\n".join(lines)

    def _rounds(self, groups: int, name: str) -> dict[int, dict[str, Any]]:
        return {key[2]: found for key, found in self.figures.items() if key[:2] == (groups, name)}

    def _line(self, groups: int, name: str) -> str:
        engine, rounds = ENGINES[name], self._rounds(groups, name)
        if not rounds:
            error = self.errors.get((groups, name))
            return f"| {engine.title} | {engine.kept} | failed: {error} |" if error else ""
        cells = [
            f"{statistics.median(found[figure] for found in rounds.values()):,.{digits}f}"
            for figure, _, digits in COLUMNS
        ]
        ours = self._rounds(groups, OURS.get(engine.kept, "nexios"))
        ratios = [
            ours[at]["many_per_core"] / found["many_per_core"] for at, found in rounds.items() if at in ours
        ]
        if engine.module == "ours" or not ratios:
            cells.append("")
        else:
            cells.append(f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f} to {max(ratios):.1f})")
        lost = sum(found[f"{mode}_lost"] for found in rounds.values() for mode in ("one", "many", "paced"))
        return f"| {engine.title} | {engine.kept} | {' | '.join(cells)} | {lost:,} |"


@click.command()
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="Only this; may have * in it.")
@click.option("--groups", "sizes", multiple=True, type=int, help="How many; default: 1, and 10,000.")
@click.option("--rounds", default=5, show_default=True, help="Alternations.")
@click.option("--seconds", default=2.0, show_default=True, help="Of each kind of load, per run.")
@click.option("--link/--no-link", default=True, help="Measure the link to Redis by itself as well.")
def cluster(
    engines: tuple[str, ...], sizes: tuple[int, ...], rounds: int, seconds: float, link: bool
) -> None:
    """Messages from one process to another over Redis, ours and others'; prints tables in Markdown.

    One sender, one receiver that follows all groups, a fresh Redis for every run; processes are not pinned.
    CPU times are those of the two processes; "per core" divides the messages that came by both together.
    p50 and p99 are from the call to the callback at 1,000 messages a second.
    """
    chosen = [name for name in ENGINES if not engines or any(fnmatchcase(name, each) for each in engines)]
    if not chosen:
        raise click.BadParameter(f"there are: {', '.join(ENGINES)}")
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    server = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout.split()
    what = f"{versions(*PACKAGES)}, Redis {server[2].removeprefix('v=') if len(server) > 2 else '?'}"
    record("cluster", {"run": run, "versions": what, "rounds": rounds, "seconds": seconds})
    click.echo(f"{run}, {rounds} rounds of {seconds:g} s: {what}")
    tables = Tables({}, {})
    runs = [(n, at, name) for n in sizes or (1, 10_000) for at in range(rounds) for name in order(chosen, at)]
    with click.progressbar(runs, file=sys.stderr, item_show_func=lambda item: item and item[2]) as bar:
        for groups, at, name in bar:
            entry: dict[str, Any] = {"run": run, "groups": groups, "round": at, "engine": name}
            try:
                figures = measure_engine(name, groups, seconds)
                tables.figures[groups, name, at] = figures
                record("cluster", {**entry, "figures": figures})
            except Failed as failure:
                tables.errors[groups, name] = str(failure)
                record("cluster", {**entry, "error": str(failure)})
    click.echo(tables.markdown())
    if link:
        found = [measure_link(seconds) for _ in range(rounds)]
        record("cluster", {"run": run, "link": found})
        for role, title in (("publish", "pipelined PUBLISH"), ("receive", "received")):
            rates = {key: [each[role][key] for each in found] for key in ("per_second", "per_core")}
            click.echo(
                f"\nour link by itself, {title}: {statistics.median(rates['per_second']):,.0f}/s, "
                f"{statistics.median(rates['per_core']):,.0f} per second of its CPU"
            )
