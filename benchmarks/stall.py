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
    load,
    load_generator,
    order,
    pinned,
    record,
    resident_kib,
    server,
    spread,
    versions,
)

APP = "benchmarks.apps.fanout_group:app"
CASES = {"without": 0, "with": 1}


@click.command()
@click.option("--readers", default=199, show_default=True)
@click.option("--seconds", default=15.0, show_default=True)
@click.option("--rate", default=20.0, show_default=True, help="Messages to the group per second.")
@click.option("--size", default=8192, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=3, show_default=True, help="Alternations.")
@click.option("--sends", default=100_000, show_default=True, help="Messages for the memory figure.")
def stall(readers: int, seconds: float, rate: float, size: int, rounds: int, sends: int) -> None:
    """Delivery delay of the readers with and without a member that never reads, and resident memory."""
    click.echo(versions())
    with load_generator() as wsload:
        head_of_line(wsload, readers, seconds, rate, size, rounds)
        for overflow in ("disconnect", "drop_oldest"):
            resident(wsload, overflow, sends)


def head_of_line(wsload: str, readers: int, seconds: float, rate: float, size: int, rounds: int) -> None:
    p99: dict[str, list[float]] = {case: [] for case in CASES}
    fates: list[Any] = []
    runs = [case for round_ in range(rounds) for case in order(CASES, round_)]
    with click.progressbar(runs, file=sys.stderr) as bar:
        for case in bar:
            stalled = CASES[case]
            with server(APP) as (port, _pid):
                path = f"/?members={readers + stalled}&size={size}&rate={rate}"
                figures = load(wsload, "listen", port, path, readers, seconds, stalled)
            p99[case].append(figures["p99_ms"])
            expected = readers * rate * seconds
            if figures["messages_per_second"] * seconds < 0.98 * expected:
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
    record("stall", {"readers": readers, "rate": rate, "size": size, "p99": p99, "fates": fates})


def resident(wsload: str, overflow: str, sends: int, readers: int = 4, size: int = 1024) -> None:
    """Few readers, so that it ends: what piles up for the one who stalls does not depend on them."""
    samples: list[tuple[int, int]] = []
    told: dict[str, int] = {"sent": 0}
    with server(APP) as (port, pid):
        path = f"/?members={readers + 1}&size={size}&overflow={overflow}"
        command = [wsload, "listen", str(port), path, str(readers), "600", "1"]
        listener = subprocess.Popen(pinned(-1, command), stdout=subprocess.DEVNULL)
        try:
            for share in (0.1, 0.25, 0.5, 0.75, 1.0):
                while told["sent"] < share * sends and listener.poll() is None:
                    time.sleep(0.1)
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/statistics") as answer:
                        told = json.load(answer)
                samples.append((told["sent"], resident_kib(pid)))
        finally:
            listener.kill()
            listener.wait()
    shown = ", ".join(f"{sent}: {kib / 1024:.1f}" for sent, kib in samples)
    click.echo(f"resident MiB after so many sends of {size} bytes, Overflow {overflow}: {shown}")
    click.echo(f"  at the end: {json.dumps(told)}")
    record("stall-memory", {"overflow": overflow, "size": size, "samples": samples, "end": told})
