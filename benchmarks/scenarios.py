"""What is measured of each server."""

from __future__ import annotations

import json
import resource
import time
from typing import Any, Final

from attrs import frozen

from benchmarks.harness import Crowd, Server, busy_seconds, load
from benchmarks.servers import Peer

__all__ = ["SCENARIOS", "Column", "Scenario", "measure", "per_core"]

NAMES: Final = {32: "32 B", 1 << 10: "1 KiB", 1 << 16: "64 KiB", 1 << 20: "1 MiB"}


@frozen
class Column:
    """A figure of a scenario."""

    figure: str
    title: str
    unit: str
    more_is_better: bool = True


@frozen(kw_only=True)
class Scenario:
    """One kind of load."""

    group: str
    """The table that it is in."""
    mode: str
    path: str = "/echo"
    options: tuple[object, ...]
    columns: tuple[Column, ...]


def per_core(figure: str) -> str:
    """The name of the figure that counts the seconds of the server's CPU, not those of the clock."""
    return f"{figure}_per_core"


def _echo(clients: int, size: int, *more: object, title: str = "", group: str = "") -> Scenario:
    return Scenario(
        group=group or f"Echo of {NAMES[size]}, messages/s",
        mode="echo",
        options=("--clients", clients, "--size", size, *more),
        columns=(
            Column("messages_per_second", title or f"{clients} client{'s' * (clients > 1)}", "messages/s"),
        ),
    )


def _fanout(members: int, size: int = 32, *more: object, title: str = "", group: str = "") -> Scenario:
    return Scenario(
        group=group or f"Fan-out of {NAMES[size]}, deliveries/s",
        mode="broadcast",
        path="/listen",
        options=("--clients", members, "--size", size, *_addresses(members), *more),
        columns=(Column("deliveries_per_second", title or f"{members:,} members", "deliveries/s"),),
    )


def _addresses(clients: int) -> tuple[object, ...]:
    """Our guard, by default, lets an address have 1,000 connections, and 100 new ones a second."""
    return ("--addresses", 20) if clients > 500 else ()


_DEFLATE = "With permessage-deflate, 1 KiB"
_CONNECTIONS = "Connections"

SCENARIOS: Final[dict[str, Scenario]] = {
    **{f"echo-{clients}-{size}": _echo(clients, size) for size in NAMES for clients in (1, 50, 500)},
    **{f"fanout-{members}": _fanout(members) for members in (100, 1000, 5000)},
    "connect": Scenario(
        group=_CONNECTIONS,
        mode="connect",
        options=("--addresses", 2000),
        columns=(Column("connects_per_second", "opened and closed", "connections/s"),),
    ),
    "idle": Scenario(
        group=_CONNECTIONS,
        mode="idle",
        options=("--clients", 5000, *_addresses(5000)),
        columns=(Column("kib_per_connection", "5,000 idle, KiB each", "KiB", more_is_better=False),),
    ),
    "mixed": Scenario(
        group=_CONNECTIONS,
        mode="echo",
        options=("--clients", 50, "--idle", 1000, *_addresses(1050)),
        columns=(
            Column("messages_per_second", "1,000 idle, 50 busy: messages/s", "messages/s"),
            Column("p50_ms", "p50, ms", "ms", more_is_better=False),
            Column("p99_ms", "p99, ms", "ms", more_is_better=False),
        ),
    ),
    "deflate-echo": _echo(50, 1024, "--deflate", title="echo, 50 clients, messages/s", group=_DEFLATE),
    "deflate-fanout": _fanout(
        1000, 1024, "--deflate", title="fan-out, 1,000 members, deliveries/s", group=_DEFLATE
    ),
}


def measure(scenario: Scenario, peer: Peer, server: Server, wsload: str, seconds: float) -> dict[str, Any]:
    """Put this load on a running server; returns the figures. Raises `Failed`.

    ``server_cpu`` is the share of a core that the server used; a rate is told per second of that, too, which
    still says something where others have disturbed; ``foreign_cpu`` is what they used of a core.
    """
    path = peer.path(scenario.path)
    options = [*scenario.options, *(["--socketio"] if peer.socketio else [])]
    if scenario.mode == "idle":
        return _idle(server, path, wsload, options)
    options += ["--seconds", seconds, *(f"--pid={pid}" for pid in server.pids())]
    begun, before = time.perf_counter(), _foreign_seconds(server)
    figures = load(wsload, scenario.mode, server.port, path, *options, seconds=seconds)
    foreign = (_foreign_seconds(server) - before) / (time.perf_counter() - begun)
    figures["foreign_cpu"] = round(max(foreign, 0), 3)
    rate = scenario.columns[0].figure
    if figures["server_cpu"]:
        figures[per_core(rate)] = figures[rate] / figures["server_cpu"]
    return figures


def _foreign_seconds(server: Server) -> float:
    """CPU time that neither the server nor a load has used."""
    loads = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy_seconds() - server.cpu_seconds() - loads.ru_utime - loads.ru_stime


def _idle(server: Server, path: str, wsload: str, options: list[object]) -> dict[str, Any]:
    socketio = ["--socketio"] if "--socketio" in options else []
    load(wsload, "echo", server.port, path, "--clients", 20, "--seconds", 0.3, *socketio)  # warm
    before = _settled(server)
    crowd = Crowd(wsload, "idle", server.port, path, *options)
    try:
        seconds = float(crowd.read().split()[1])
        after = _settled(server)
        crowd.tell("enough")
        clients: int = json.loads(crowd.read())["clients"]
    finally:
        crowd.close()
    return {"kib_per_connection": (after - before) / clients, "connecting_seconds": seconds, "kib": after}


def _settled(server: Server) -> int:
    """Resident memory in KiB, once it grows no more."""
    last = -1
    for _ in range(25):
        time.sleep(0.2)
        now = server.resident_kib()
        if now == last:
            break
        last = now
    return last
