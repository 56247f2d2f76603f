"""Ten thousand clients at once."""

from __future__ import annotations

import contextlib
import json
import statistics
from typing import Any

import click

from benchmarks.harness import Crowd, Server, Tools, built_tools, free_port, record, running, versions
from benchmarks.servers import ours


@click.command()
@click.option("--clients", default=10_000, show_default=True)
@click.option("--processes", default=2, show_default=True, help="That the clients are spread over.")
@click.option("--rounds", default=5, show_default=True, help="Of a message from each, and one to all.")
@click.option("--size", default=32, show_default=True, help="Bytes of a message.")
@click.option(
    "--server", "lane", type=click.Choice(["engine", "hypercorn"]), default="engine", show_default=True
)
def crowd(clients: int, processes: int, rounds: int, size: int, lane: str) -> None:
    """Many clients of one server: each sends and gets a message, then all get one. Default limits.

    The clients come from as many addresses as the guard wants to see.
    """
    click.echo(versions())
    port = free_port()
    with built_tools() as tools:
        command = ours("benchmarks.peers.nexios_app:app", lane)(port, tools)
        with running(command, port, "/crowd") as server:
            result = measure_crowd(server, tools, clients, processes, rounds, size)
    click.echo(f"{clients} clients of one process on {lane}, from {processes} processes, {size} bytes:")
    click.echo(f"connected and in a group within: {result['connecting_seconds']:.2f} s")
    click.echo(
        f"resident MiB: {result['kib_before'] / 1024:.1f} before, {result['kib_after'] / 1024:.1f} with them"
    )
    click.echo(
        f"  {(result['kib_after'] - result['kib_before']) / clients:.2f} KiB per connection, in a group"
    )
    click.echo(f"  {result['kib_end'] / 1024:.1f} MiB at the end")
    for kind, title in (("echo", "each sent one and got it back"), ("broadcast", "one message reached all")):
        times = [1e3 * each for each in result[kind]]
        shown = ", ".join(f"{each:.1f}" for each in times)
        click.echo(f"{title} within: {statistics.median(times):.1f} ms  ({shown})")
    record("crowd", {"versions": versions(), "clients": clients, "server": lane, "size": size, **result})


def measure_crowd(
    server: Server, tools: Tools, clients: int, processes: int, rounds: int, size: int
) -> dict[str, Any]:
    before = server.resident_kib()
    shares = [clients // processes + (number < clients % processes) for number in range(processes)]
    addresses = max(20, clients // 500)
    with contextlib.ExitStack() as stack:
        crowds = []
        for number, share in enumerate(shares):
            options = (
                "--clients",
                share,
                "--first",
                sum(shares[:number]),
                "--addresses",
                addresses,
                "--size",
                size,
            )
            crowds.append(Crowd(tools.wsload, "crowd", server.port, "/crowd", *options))
            stack.callback(crowds[-1].close)
        connecting = max(float(each.read().split()[1]) for each in crowds)
        after = server.resident_kib()
        times: dict[str, list[float]] = {"echo": [], "broadcast": []}
        for _ in range(rounds):
            times["echo"].append(_exchange(crowds, "echo", "echo", clients))
            times["broadcast"].append(_exchange(crowds, "send", "receive", clients))
        end = server.resident_kib()
    return {
        "connecting_seconds": connecting,
        "kib_before": before,
        "kib_after": after,
        "kib_end": end,
        "processes": processes,
        **times,
    }


def _exchange(crowds: list[Crowd], first: str, others: str, clients: int) -> float:
    """Seconds from the first message sent to the last one received."""
    for number, each in reversed([*enumerate(crowds)]):
        each.tell(others if number else first)
    answers = [json.loads(each.read()) for each in crowds]
    assert sum(answer["messages"] for answer in answers) == clients
    begun = answers[0]["first"] if first == "send" else min(answer["first"] for answer in answers)
    return float(max(answer["last"] for answer in answers) - begun)
