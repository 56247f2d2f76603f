"""scripts/bench: alternate servers under one load, print medians and ratios."""

from __future__ import annotations

import signal
import sys

import click

from benchmarks.cluster import cluster
from benchmarks.crowd import crowd
from benchmarks.frozen import frozen
from benchmarks.inmemory import inmemory
from benchmarks.limits import limits
from benchmarks.matrix import peers, tables
from benchmarks.pause import pause
from benchmarks.soak import soak
from benchmarks.stall import stall
from benchmarks.watch import watch
from benchmarks.wire import wire


@click.group()
def main() -> None:
    """Benchmarks; each prints its figures and appends them as JSON lines to benchmarks/out/."""


for command in (peers, tables, cluster, frozen, limits, pause, crowd, stall, inmemory, watch, wire, soak):
    main.add_command(command)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # servers that it started end too
    main()
