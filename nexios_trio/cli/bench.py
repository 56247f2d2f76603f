"""``nexios-trio bench``: a load on a WebSocket server that echoes, from the command line."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import click
import trio

from nexios_trio.cli.histogram import duration
from nexios_trio.cli.lines import one_line
from nexios_trio.cli.load import Load, Plan, run_load
from nexios_trio.cli.target import Number, Target, handshake_options, tls_context

__all__ = ["bench"]

REFRESH: Final = 0.2
"""Seconds between two pictures of the progress bar."""
BAR: Final = 24
BUSY: Final = 0.85
"""Share of a core from which on this process is likely to be what limits the rate."""
PERCENTILES: Final = (50, 90, 99, 99.9)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@handshake_options
@click.option("-c", "--clients", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option(
    "-t",
    "--seconds",
    type=Number(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long to send, once all are connected.",
)
@click.option(
    "--size",
    type=click.IntRange(0, 16 << 20),
    default=32,
    show_default=True,
    metavar="BYTES",
    help="Of each message.",
)
@click.option("--message", metavar="TEXT", help="Send this, instead of --size bytes of filling.")
@click.option("--binary", is_flag=True, help="Send binary messages.")
@click.option(
    "--rate",
    type=Number(min=0, min_open=True),
    metavar="PER SECOND",
    help="Messages per second of all clients together.  [default: each sends when its answer has come]",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="A progress bar on the standard error.  [default: if that is a terminal]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def bench(
    target: Target,
    headers: list[tuple[bytes, bytes]],
    subprotocols: tuple[str, ...],
    cafile: str | None,
    insecure: bool,
    timeout: float,
    clients: int,
    seconds: float,
    size: int,
    message: str | None,
    binary: bool,
    rate: float | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Put load on a WebSocket server that answers each message with a message, and measure how long it takes.

    Each client has one message under way. Without --rate it sends the next one when the answer has come:
    that finds the most that the server can do. With --rate the messages are due at fixed times, and the time
    of each counts from when it was due, also if the server was late with the one before.

    This is one Python process: it uses one core, and takes part in what it measures. The report says what it
    used; above 85 % of a core the rate is likely to be its own limit. Ctrl-C ends it early, with a report.

    Exit codes: 0; 1 if a client could not connect or lost its connection; 2 for a wrong option; 3 if no
    client could connect.
    """
    text = "x" * size if message is None else message
    plan = Plan(
        target,
        tls_context(target, cafile, insecure=insecure),
        headers,
        subprotocols,
        timeout,
        clients,
        seconds,
        text.encode("utf-8", "surrogateescape") if binary else text,
        rate,
    )
    load = Load()
    try:
        trio.run(_run, plan, load, sys.stderr.isatty() if progress is None else progress)
    except BaseExceptionGroup as group:
        raise _only(group) from None
    if as_json:
        click.echo(json.dumps(_summary(plan, load)))
    else:
        click.echo(_report(plan, load))
    sys.exit(1 if load.problems else 0)


async def _run(plan: Plan, load: Load, progress: bool) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_signal, signals, stop)
            if progress:
                nursery.start_soon(_show, plan, load)
            await run_load(plan, load, stop)
            nursery.cancel_scope.cancel()


async def _stop_at_signal(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for _ in signals:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()


def _only(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _show(plan: Plan, load: Load) -> None:
    """The progress bar, on one line of the standard error."""
    before, then = 0, trio.current_time()
    speed = 0.0
    try:
        while True:
            await trio.sleep(REFRESH)
            now = trio.current_time()
            speed, before, then = (load.answered - before) / (now - then), load.answered, now
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + _progress(plan, load, now, speed)[:width] + "\x1b[K")
            sys.stderr.flush()
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _progress(plan: Plan, load: Load, now: float, speed: float) -> str:
    problems = f"  {load.problems.total():,} lost" if load.problems else ""
    if math.isnan(load.started):
        return f"{_bar(load.dialed / plan.clients)} connecting, {load.dialed:,} of {plan.clients:,}{problems}"
    seconds = min(now - load.started, plan.seconds)
    middle = duration(load.latencies.percentile(50))
    return (
        f"{_bar(seconds / plan.seconds)} {seconds:.0f}/{plan.seconds:g} s  {speed:,.0f} messages/s  "
        f"median {middle}{problems}"
    )


def _bar(share: float) -> str:
    done = round(min(share, 1.0) * BAR)
    return "[" + "#" * done + "-" * (BAR - done) + "]"


def _summary(plan: Plan, load: Load) -> dict[str, Any]:
    """The result as data; times are in seconds."""
    latencies = load.latencies
    return {
        "url": plan.target.url,
        "clients": plan.clients,
        "connected": load.connected,
        "seconds": load.elapsed,
        "sent": load.sent,
        "answered": load.answered,
        "unanswered": len(load.unanswered),
        "longest_unanswered": max(load.unanswered, default=0.0),
        "other_answers": load.others,
        "unasked": load.unasked,
        "rate": _rate(load),
        "rate_wanted": plan.rate,
        "cpu_share": _share(load),
        "timer_lateness": {"p50": load.lateness.percentile(50), "p99": load.lateness.percentile(99)},
        "latency": {
            "mean": latencies.total / latencies.count if latencies.count else 0.0,
            "min": latencies.shortest,
            **{f"p{percent:g}": latencies.percentile(percent) for percent in PERCENTILES},
            "max": latencies.longest,
        },
        "histogram": [{"from": start, "to": end, "count": count} for start, end, count in latencies.rows()],
        "problems": dict(load.problems),
    }


def _rate(load: Load) -> float:
    return load.answered / load.elapsed if load.elapsed else 0.0


def _share(load: Load) -> float:
    return load.cpu / load.elapsed if load.elapsed else 0.0


def _report(plan: Plan, load: Load) -> str:
    size = len(plan.message if isinstance(plan.message, bytes) else plan.message.encode())
    kind = "binary" if isinstance(plan.message, bytes) else "text"
    lines = [
        f"{plan.target.url}",
        f"{load.connected:,} of {plan.clients:,} clients, {size:,} bytes of {kind}, {load.elapsed:.1f} s",
        "",
        f"{load.answered:,} answers, {_rate(load):,.0f} messages/s",
    ]
    latencies = load.latencies
    if latencies.count:
        shown = [f"p{percent:g} {duration(latencies.percentile(percent))}" for percent in PERCENTILES]
        low, high = duration(latencies.shortest), duration(latencies.longest)
        lines.append(f"latency: min {low}, {', '.join(shown)}, max {high}")
        lines += ["", *_drawn(latencies.rows()), ""]
    lines += [
        *_remarks(plan, load),
        *(f"{count:,} x {one_line(why)}" for why, count in load.problems.items()),
    ]
    return "\n".join(lines).rstrip()


def _drawn(rows: list[tuple[float, float, int]]) -> list[str]:
    most = max(count for _, _, count in rows)
    total = sum(count for _, _, count in rows)
    cells = [(f"{duration(start)} to {duration(end)}", count) for start, end, count in rows]
    width = max(len(label) for label, _ in cells)
    drawn = []
    for label, count in cells:
        # A row that is not empty shows that it is not.
        bar = "#" * max(round(count / most * BAR), 1 if count else 0)
        drawn.append(f"  {label:>{width}}  {bar:<{BAR}}  {count:>10,}  {count / total:6.2%}")
    return drawn


def _remarks(plan: Plan, load: Load) -> list[str]:
    remarks = []
    share = _share(load)
    text = f"this process used {share:.0%} of a core"
    if share > BUSY:
        text += ": the rate and the latency may be its own limits, not the server's"
    remarks.append(text)
    late = load.lateness
    if late.count:
        remarks.append(
            f"its timers ran late by {duration(late.percentile(50))} (median), "
            f"{duration(late.percentile(99))} (p99): so much of a latency may be its own"
        )
    if plan.rate is not None and _rate(load) < 0.95 * plan.rate:
        remarks.append(f"the rate of {plan.rate:,g} messages/s was not reached")
    # One per client is under way when the time is over; what is older than any answer is news.
    if load.unanswered and max(load.unanswered) > load.latencies.longest:
        longest = duration(max(load.unanswered))
        remarks.append(
            f"{len(load.unanswered):,} messages had no answer at the end, the oldest for {longest}"
        )
    if load.others:
        remarks.append(f"{load.others:,} answers were not what had been sent: is it an echo?")
    if load.unasked:
        remarks.append(f"{load.unasked:,} messages came that nothing had been sent for")
    return remarks
