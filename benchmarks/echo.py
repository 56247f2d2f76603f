"""Round trips per second, and memory per connection: our app against raw ASGI."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from benchmarks.harness import load, load_generator, order, record, resident_kib, server, spread, versions

APPS = {"raw ASGI": "benchmarks.apps.raw_asgi:app", "nexios_trio": "benchmarks.apps.framework:app"}
BASE, OURS = APPS


F = TypeVar("F", bound=Callable[..., None])


def _options(command: F) -> F:
    for option in (
        click.option("--rounds", default=7, show_default=True, help="Alternations."),
        click.option("--size", default=32, show_default=True, help="Bytes of a message."),
        click.option("--seconds", default=4.0, show_default=True),
        click.option("--clients", default=50, show_default=True),
    ):
        command = option(command)
    return command


@click.command()
@_options
def echo(clients: int, seconds: float, size: int, rounds: int) -> None:
    """Round trips per second: our app against a raw ASGI echo, both on hypercorn's Trio worker."""
    _compare("echo", APPS, clients, seconds, size, rounds)


@click.command()
@_options
def guard(clients: int, seconds: float, size: int, rounds: int) -> None:
    """Round trips per second: our app with its default limits against one without any."""
    apps = {"guard off": "benchmarks.apps.framework:unguarded", "guard on": "benchmarks.apps.framework:app"}
    _compare("guard", apps, clients, seconds, size, rounds)


def _compare(name: str, apps: dict[str, str], clients: int, seconds: float, size: int, rounds: int) -> None:
    base, ours = apps
    click.echo(versions())
    rates: dict[str, list[float]] = {app: [] for app in apps}
    p99: dict[str, list[float]] = {app: [] for app in apps}
    with (
        load_generator() as wsload,
        click.progressbar(
            [(r, app) for r in range(rounds) for app in order(apps, r)], file=sys.stderr
        ) as bar,
    ):
        for _, app in bar:
            with server(apps[app]) as (port, _pid):
                figures = load(wsload, "echo", port, "/", clients, seconds, size)
            rates[app].append(figures["messages_per_second"])
            p99[app].append(figures["p99_ms"])
    for app in apps:
        click.echo(f"{app:12} {spread(rates[app])} msg/s   p99 {statistics.median(p99[app]):.2f} ms")
    ratios = [one / other for one, other in zip(rates[ours], rates[base], strict=True)]
    click.echo(
        f"{clients} clients, {size} bytes: {ours} / {base} = {statistics.median(ratios):.3f}  "
        f"({min(ratios):.3f} to {max(ratios):.3f} over {rounds} pairs)"
    )
    record(name, {"clients": clients, "size": size, "seconds": seconds, "rates": rates, "ratios": ratios})


@click.command()
@click.option("--clients", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def memory(clients: int, rounds: int) -> None:
    """Resident memory of an idle connection, beyond the process without one, in KiB."""
    click.echo(versions())
    crowds = {**APPS, OURS: "benchmarks.apps.framework:unguarded"}  # all clients have one address here
    costs: dict[str, list[float]] = {name: [] for name in APPS}
    with load_generator() as wsload:
        for round_ in range(rounds):
            for name in order(APPS, round_):
                with server(crowds[name]) as (port, pid):
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
