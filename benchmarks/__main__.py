"""scripts/bench: alternate servers under one load, print medians and ratios."""

from __future__ import annotations

import click

from benchmarks.echo import echo, guard, memory
from benchmarks.fanout import fanout
from benchmarks.stall import stall
from benchmarks.wire import wire


@click.group()
def main() -> None:
    """Benchmarks; each prints its figures and appends them as JSON lines to benchmarks/out/."""


for command in (echo, guard, memory, fanout, stall, wire):
    main.add_command(command)

if __name__ == "__main__":
    main()
