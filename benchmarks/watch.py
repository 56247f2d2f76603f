"""What it costs to watch: echoes with metrics, with a dashboard closed and open, and without."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from statistics import median

import click
from websockets.sync.client import connect

from benchmarks.harness import Tools, built_tools, free_port, load, order, record, running, versions
from benchmarks.servers import ours

__all__ = ["measured", "watch"]

KINDS = {
    "nobody watches": ("plain", False),
    "metrics": ("metrics", False),
    "dashboard, closed": ("dashboard", False),
    "dashboard, open": ("dashboard", True),
    "spans and access log": ("traced", False),
}


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Each kind is measured once in each.")
@click.option("--seconds", default=3.0, show_default=True, help="Length of one measurement.")
@click.option("--clients", default=50, show_default=True)
def watch(rounds: int, seconds: float, clients: int) -> None:
    """Echoes per second of the engine and per CPU second of it, by who watches."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    click.echo(versions())
    with built_tools() as tools:
        for number in range(rounds):
            for kind in order(KINDS, number):
                rate, cost = measured(tools, *KINDS[kind], seconds, clients)
                rates[kind].append(rate)
                costs[kind].append(cost)
    base = next(iter(KINDS))
    for kind in KINDS:
        ratio = median(a / b for a, b in zip(rates[kind], rates[base], strict=True))
        cpu = median(a / b for a, b in zip(costs[kind], costs[base], strict=True))
        click.echo(
            f"{kind:22}{median(rates[kind]):>10,.0f} /s  x{ratio:.3f}"
            f"{median(costs[kind]):>12,.0f} per CPU second  x{cpu:.3f}"
        )
    record(
        "watch",
        {
            "versions": versions(),
            "rates": rates,
            "per_cpu_second": costs,
            "clients": clients,
            "seconds": seconds,
        },
    )


def measured(tools: Tools, app: str, viewed: bool, seconds: float, clients: int) -> tuple[float, float]:
    """Echoes per second, and per CPU second of the server."""
    port = free_port()
    with running(ours(f"benchmarks.apps.watched:{app}", "engine")(port, tools), port) as server:
        with viewer(port) if viewed else contextlib.nullcontext():
            options = ("--clients", clients, "--seconds", seconds, "--pid", server.process.pid)
            figures = load(tools.wsload, "echo", port, "/echo", *options, seconds=seconds)
    rate = figures["messages_per_second"]
    return rate, rate * figures["seconds"] / figures["server_cpu"]


@contextlib.contextmanager
def viewer(port: int) -> Iterator[None]:
    """Somebody with the dashboard open, who reads."""
    with connect(f"ws://127.0.0.1:{port}/ops/dashboard-live", compression=None, max_size=None) as ws:
        thread = threading.Thread(target=lambda: [None for _ in ws])
        thread.start()
        try:
            yield
        finally:
            ws.close()
            thread.join()
