"""A member that does not read: what the others notice, what becomes of it, and what it costs in memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

import click

from benchmarks.harness import (
    Tools,
    built_tools,
    free_port,
    load,
    order,
    pinned,
    record,
    running,
    spread,
    versions,
)
from benchmarks.servers import Command, ours

APP = "benchmarks.apps.stalled:app"
CASES = {"without": 0, "with": 1}


@click.command()
@click.option("--readers", default=199, show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--rate", default=40.0, show_default=True, help="Messages to the group per second.")
@click.option("--size", default=8192, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=3, show_default=True, help="Alternations.")
@click.option("--sends", default=100_000, show_default=True, help="Messages for the memory figure.")
@click.option(
    "--server", "lane", type=click.Choice(["engine", "hypercorn"]), default="engine", show_default=True
)
def stall(readers: int, seconds: float, rate: float, size: int, rounds: int, sends: int, lane: str) -> None:
    """Delivery delay of the readers with and without a member that never reads, and resident memory."""
    click.echo(versions())
    with built_tools() as tools:
        head_of_line(tools, ours(APP, lane), readers, seconds, rate, size, rounds)
        for overflow in ("disconnect", "drop_oldest"):
            resident(tools, ours(APP, lane), overflow, sends)


def head_of_line(
    tools: Tools, command: Command, readers: int, seconds: float, rate: float, size: int, rounds: int
) -> None:
    p99: dict[str, list[float]] = {case: [] for case in CASES}
    fates: list[Any] = []
    runs = [case for round_ in range(rounds) for case in order(CASES, round_)]
    with click.progressbar(runs, file=sys.stderr) as bar:
        for case in bar:
            port = free_port()
            options = ("--clients", readers, "--stalled", CASES[case], "--size", size, "--rate", rate)
            with running(command(port, tools), port, "/listen"):
                figures = load(
                    tools.wsload,
                    "broadcast",
                    port,
                    "/listen",
                    *options,
                    "--seconds",
                    seconds,
                    seconds=seconds,
                )
            p99[case].append(figures["p99_ms"])
            expected = readers * rate * seconds
            if figures["deliveries_per_second"] * seconds < 0.98 * expected:
                click.echo(f"{case}: the server did not keep up with the rate, so this is no delay", err=True)
            fates += figures["stalled"]
    ratios = [after / before for after, before in zip(p99["with"], p99["without"], strict=True)]
    for case in CASES:
        click.echo(f"{case:8} a stalled member: p99 {spread(p99[case])} ms")
    click.echo(
        f"{readers} readers, {rate:g} messages/s of {size} bytes: with / without = "
        f"{statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f} over {rounds} pairs)"
    )
    click.echo(f"the stalled member, reading at last: {json.dumps(fates)}")
    record(
        "stall",
        {"versions": versions(), "readers": readers, "rate": rate, "size": size, "p99": p99, "fates": fates},
    )


def resident(
    tools: Tools, command: Command, overflow: str, sends: int, readers: int = 4, size: int = 1024
) -> None:
    """Few readers, so that it ends: what piles up for the one who stalls does not depend on them."""
    samples: list[tuple[int, int]] = []
    told: dict[str, int] = {"sent": 0}
    port = free_port()
    with running(command(port, tools), port, "/listen") as server:
        load_command = [
            tools.wsload,
            "broadcast",
            str(port),
            f"/listen?overflow={overflow}",
            "--seconds",
            "600",
        ]
        load_command += ["--clients", str(readers), "--stalled", "1", "--size", str(size)]
        listener = subprocess.Popen(pinned(-1, load_command), stdout=subprocess.DEVNULL)
        try:
            for share in (0.1, 0.25, 0.5, 0.75, 1.0):
                while told["sent"] < share * sends and listener.poll() is None:
                    time.sleep(0.1)
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/statistics") as answer:
                        told = json.load(answer)
                samples.append((told["sent"], server.resident_kib()))
        finally:
            listener.kill()
            listener.wait()
    shown = ", ".join(f"{sent}: {kib / 1024:.1f}" for sent, kib in samples)
    click.echo(f"resident MiB after so many sends of {size} bytes, Overflow {overflow}: {shown}")
    click.echo(f"  at the end: {json.dumps(told)}")
    record(
        "stall-memory",
        {"versions": versions(), "overflow": overflow, "size": size, "samples": samples, "end": told},
    )
