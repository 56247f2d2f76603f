"""scripts/bench peers: every server under every load, in alternation."""

from __future__ import annotations

import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from benchmarks import report
from benchmarks.harness import HERE, Declined, Failed, Tools, built_tools, order, record, versions
from benchmarks.scenarios import SCENARIOS, measure
from benchmarks.servers import OURS, PEERS, serving

PACKAGES = (
    *(
        "trio",
        "hypercorn",
        "h11",
        "wsproto",
        "starlette",
        "quart-trio",
        "trio-websocket",
        "uvicorn",
        "uvloop",
    ),
    *(
        "httptools",
        "fastapi",
        "granian",
        "aiohttp",
        "websockets",
        "picows",
        "channels",
        "daphne",
        "python-socketio",
    ),
)


def _chosen(names: tuple[str, ...], known: dict[str, Any], what: str, usual: list[str]) -> list[str]:
    for name in names:
        if not any(fnmatchcase(each, name) for each in known):
            raise click.BadParameter(f"there is no {what} {name!r}; there are: {', '.join(known)}")
    return [each for each in known if any(fnmatchcase(each, name) for name in names)] or usual


@click.command()
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this; may have * in it.")
@click.option("--peer", "peers", multiple=True, metavar="NAME", help="Only this, and ours; may have * in it.")
@click.option("--rounds", default=5, show_default=True, help="Alternations.")
@click.option("--seconds", default=3.0, show_default=True, help="Of load, per run.")
@click.option("--out", default="peers", show_default=True, help="Append to benchmarks/out/NAME.jsonl.")
@click.option("--list", "listing", is_flag=True, help="Name the scenarios and the peers.")
def peers(
    scenarios: tuple[str, ...], peers: tuple[str, ...], rounds: int, seconds: float, out: str, listing: bool
) -> None:
    """Compare servers: echo, fan-out, connections, memory; prints a table in Markdown.

    One process of each, pinned to one core, the load to the other; a fresh process for every run. A server
    that fails is told in the table and ends nothing.
    """
    if listing:
        click.echo(f"scenarios: {' '.join(SCENARIOS)}\npeers: {' '.join(PEERS)}")
        return
    wanted = _chosen(scenarios, SCENARIOS, "scenario", [*SCENARIOS])
    usual = [name for name, peer in PEERS.items() if peer.usual]
    compared = list(dict.fromkeys([OURS, *_chosen(peers, PEERS, "peer", usual)]))
    runs = [(s, r, p) for s in wanted for r in range(rounds) for p in order(compared, r)]
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    record(out, {"run": run, "versions": versions(*PACKAGES), "seconds": seconds, "rounds": rounds})
    # A peer that has failed twice at a scenario would do so again, after a long time.
    failures: dict[tuple[str, str], int] = {}
    with built_tools() as tools, click.progressbar(runs, file=sys.stderr, item_show_func=_shown) as bar:
        for scenario, round_, peer in bar:
            if failures.get((scenario, peer), 0) < 2:
                result = _run(scenario, peer, tools, seconds)
                failures[scenario, peer] = failures.get((scenario, peer), 0) + ("error" in result)
                record(out, {"run": run, "scenario": scenario, "round": round_, "peer": peer, **result})
    click.echo(report.markdown(report.read([HERE / "out" / f"{out}.jsonl"], run=run)))


def _shown(item: tuple[str, int, str] | None) -> str:
    return "" if item is None else f"{item[2]}, {item[0]}"


def _run(scenario: str, peer: str, tools: Tools, seconds: float) -> dict[str, Any]:
    try:
        with serving(PEERS[peer], tools) as server:
            return {"figures": measure(SCENARIOS[scenario], PEERS[peer], server, tools.wsload, seconds)}
    except Failed as failure:
        return {"error": str(failure), "declined": isinstance(failure, Declined)}


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--plot", "plot_name", metavar="NAME", help="Draw benchmarks/plots/NAME.svg and .png as well.")
@click.option("--per-core", is_flag=True, help="Rates per second of the server's CPU, not of the clock.")
@click.option("--run", help="Only the run of this time, as it stands in the file.")
def tables(files: tuple[Path, ...], plot_name: str | None, run: str | None, per_core: bool) -> None:
    """Print the tables of recorded runs again, of all in FILES (benchmarks/out/peers.jsonl) together."""
    results = report.read(list(files) or [HERE / "out" / "peers.jsonl"], run=run)
    click.echo(report.markdown(results, per_core=per_core))
    if plot_name:
        from benchmarks.plot import draw  # matplotlib is only in the peers' environment

        for path in draw(results, HERE / "plots" / plot_name):
            click.echo(f"drawn: {path.relative_to(HERE.parent)}", err=True)
