"""Deliveries per second of one sender to many members."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import click

from benchmarks.harness import load, load_generator, order, pinned, record, server, spread, versions

APPS = {
    "loop of ASGI sends": "benchmarks.apps.fanout_raw:app",
    "group.send": "benchmarks.apps.fanout_group:app",
}
BASE, OURS = APPS


@click.command()
@click.option("--members", default=[100, 1000], show_default=True, multiple=True)
@click.option("--seconds", default=4.0, show_default=True)
@click.option("--size", default=32, show_default=True, help="Bytes of a message.")
@click.option("--rounds", default=5, show_default=True, help="Alternations.")
def fanout(members: tuple[int, ...], seconds: float, size: int, rounds: int) -> None:
    """Deliveries per second: a group against a loop over raw ASGI sends, then without any socket."""
    click.echo(versions())
    for count in members:
        on_hypercorn(count, seconds, size, rounds)
    for count in members:
        in_memory(count, seconds, rounds)


def on_hypercorn(members: int, seconds: float, size: int, rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in APPS}
    runs = [name for round_ in range(rounds) for name in order(APPS, round_)]
    with load_generator() as wsload, click.progressbar(runs, file=sys.stderr) as bar:
        for name in bar:
            with server(APPS[name]) as (port, _pid):
                path = f"/?members={members}&size={size}"
                figures = load(wsload, "listen", port, path, members, seconds, 0)
            rates[name].append(figures["messages_per_second"])
    ratios = [ours / base for ours, base in zip(rates[OURS], rates[BASE], strict=True)]
    for name in APPS:
        click.echo(f"{name:18} {spread(rates[name])} deliveries/s")
    click.echo(
        f"{members} members, {size} bytes: {OURS} / {BASE} = {statistics.median(ratios):.3f}  "
        f"({min(ratios):.3f} to {max(ratios):.3f} over {rounds} pairs)"
    )
    record("fanout", {"members": members, "size": size, "seconds": seconds, "rates": rates, "ratios": ratios})


def in_memory(members: int, seconds: float, rounds: int) -> None:
    rates: dict[str, list[float]] = {}
    command = pinned(0, [sys.executable, "-m", "benchmarks.inmemory", str(members), str(seconds / 2)])
    for _ in range(rounds):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, rate in json.loads(output).items():
            rates.setdefault(name, []).append(rate)
    click.echo(f"{members} members, no sockets:")
    click.echo(f"into the outboxes, writers held up:      {spread(rates['into_outboxes'])} members/s")
    click.echo(f"through the writers to a no-op ASGI send: {spread(rates['through_writers'])} members/s")
    record("fanout-in-memory", {"members": members, "seconds": seconds, "rates": rates})
