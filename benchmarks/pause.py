"""How long a send to a large group keeps the other tasks of the process waiting."""

from __future__ import annotations

import json
import statistics
import sys
import urllib.request
from typing import Any

import click

from benchmarks.harness import built_tools, free_port, load, record, running, versions
from benchmarks.servers import ours

FIGURES = {
    "longest_step_ms": "longest time between two yields of a task, ms",
    "longest_pass_ms": "longest time between two looks at I/O, ms",
    "longest_collection_ms": "longest garbage collection (part of the above), ms",
    "longest_send_ms": "longest send to the group, ms",
}


@click.command()
@click.option("--members", default=5000, show_default=True)
@click.option("--rate", default=10.0, show_default=True, help="Messages to the group per second.")
@click.option("--seconds", default=5.0, show_default=True)
@click.option("--size", default=32, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--server", "lane", type=click.Choice(["engine", "hypercorn"]), default="engine", show_default=True
)
def pause(members: int, rate: float, seconds: float, size: int, rounds: int, lane: str) -> None:
    """Event-loop stall during sends to a large group, as an instrument inside the server sees it."""
    click.echo(versions())
    told: list[dict[str, Any]] = []
    options = ("--clients", members, "--addresses", 20, "--size", size, "--rate", rate, "--seconds", seconds)
    with built_tools() as tools, click.progressbar(range(rounds), file=sys.stderr) as bar:
        for _ in bar:
            port = free_port()
            with running(ours("benchmarks.apps.pauses:app", lane)(port, tools), port, "/listen"):
                figures = load(tools.wsload, "broadcast", port, "/listen", *options, seconds=seconds)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/pauses") as answer:
                    told.append({**json.load(answer), "load": figures})
    click.echo(f"{members} members on {lane}, {rate:g} sends/s of {size} bytes, {rounds} processes:")
    for name, title in FIGURES.items():
        values = [each[name] for each in told]
        shown = ", ".join(f"{value:.2f}" for value in values)
        click.echo(f"{title}: {statistics.median(values):.2f}  ({shown})")
    worst = max(told, key=lambda each: float(each["longest_step_ms"]))
    click.echo(f"the longest steps of the worst process: {json.dumps(worst['longest_steps'])}")
    click.echo(f"delivery delay p99: {statistics.median(each['load']['p99_ms'] for each in told):.2f} ms")
    record("pause", {"versions": versions(), "members": members, "rate": rate, "server": lane, "told": told})
