"""Clients who come, go, drop, stall and send garbage: does anything grow, is anything left behind?"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
import trio
from attrs import asdict, define, field, frozen

from benchmarks.client import Wrong, ask, dial
from benchmarks.harness import HERE, Failed, Server, Tools, free_port, record, resident_kib, running, versions
from benchmarks.servers import ours
from benchmarks.visits import Visitor

__all__ = ["Sample", "Soak", "faults", "measure", "soak"]

APP: Final = "benchmarks.apps.soak:app"
WARM_UP: Final = 0.25
"""The part of the run after which all leave, and what is then there is what has to be there at the end."""
DRAINING: Final = 30.0
"""Seconds."""
OBJECTS: Final = 500
"""That the collector may know more of at the end than after the warm-up: caches, and what is under way."""
ASKING: Final = 2
"""Tasks and descriptors that the request may have, or not, by which all this is asked."""
STEADY: Final = 200
"""By so many objects two looks may differ if nothing goes on."""
SHOWN: Final = 20
"""Problems that are told one by one."""

_LEVEL: Final = re.compile(rb"\[(WARNING|ERROR|CRITICAL)\]")


@frozen(kw_only=True)
class Sample:
    """The server at one moment."""

    progress: float
    """0 to 1."""
    seconds: float
    """Since the beginning."""
    kib: int
    """Resident memory."""
    descriptors: int
    tasks: int
    names: dict[str, int]
    """Of the tasks, and how many have each."""
    objects: int
    """That the garbage collector knows."""
    connections: int
    groups: int
    """With members."""
    warnings: int
    """Lines of the log, so far."""
    errors: int


@define(eq=False)
class Soak:
    """A run against a server that serves the soak's app; it ends after ``seconds``, or after ``visits``."""

    server: Server
    clients: int
    seconds: float
    visits: int | None
    every: float
    """Seconds between two samples; there are 40 at least."""
    seed: int
    draining: float
    """Seconds in which everything has to be gone once all clients are."""
    samples: list[Sample] = field(factory=list)
    """Under load, after the warm-up and before."""
    counts: Counter[str] = field(factory=Counter)
    problems: list[str] = field(factory=list)
    """What clients saw that they should not have seen; the first ones."""
    wrongs: int = 0
    done: int = 0
    _started: int = 0
    _began: float = 0.0
    _paused: float = 0.0
    _log_offset: int = 0
    _levels: Counter[str] = field(factory=Counter)

    @property
    def progress(self) -> float:
        """0 to 1."""
        if self.visits is not None:
            return self.done / self.visits
        return min(1.0, (trio.current_time() - self._began - self._paused) / self.seconds)

    async def run(self, on_progress: Callable[[float], object]) -> tuple[Sample, Sample]:
        """Returns what was left without clients, after the warm-up and at the end."""
        self._began = trio.current_time()
        visitors = [Visitor(self.server.port, self.counts) for _ in range(self.clients)]
        empty: list[Sample] = []
        for until in (WARM_UP, 1.0):
            async with trio.open_nursery() as sampling:
                sampling.start_soon(self._sample_on, on_progress)
                async with trio.open_nursery() as visiting:
                    for visitor in visitors:
                        visiting.start_soon(self._visit, visitor, until)
                sampling.cancel_scope.cancel()
            if until == 1.0:
                self.samples.append(await self.sample())  # so that there is one of the last quarter
            empty.append(await self._drained(empty[0] if empty else None))
            # Leaving and waiting is no part of the run: it goes on where the warm-up has ended.
            self._paused = trio.current_time() - self._began - until * self.seconds
        return empty[0], empty[1]

    async def _visit(self, visitor: Visitor, until: float) -> None:
        while (self.progress if self.visits is None else self._started / self.visits) < until:
            number = self._started
            self._started += 1
            try:
                await visitor.visit(self.seed, number)
            except Wrong as wrong:
                self.wrongs += 1
                if len(self.problems) < SHOWN:
                    self.problems.append(f"visit {number}, {wrong}")
                await trio.sleep(0.1)  # should the server be gone
            self.done += 1

    async def _sample_on(self, on_progress: Callable[[float], object]) -> None:
        due, due_progress = trio.current_time(), self.progress
        while True:
            on_progress(self.progress)
            if trio.current_time() >= due or self.progress >= due_progress:
                due, due_progress = trio.current_time() + self.every, self.progress + 1 / 40
                self.samples.append(await self.sample())
            await trio.sleep(0.05)

    async def _drained(self, baseline: Sample | None) -> Sample:
        """Wait until nothing is left, but not for ever; returns what there is then."""
        sample = await self.sample(tidy=True)
        deadline = trio.current_time() + self.draining
        calm = 0
        while calm < 3 and trio.current_time() < deadline:
            await trio.sleep(0.5)
            before, sample = sample, await self.sample(tidy=True)
            gone = not left_behind(sample, baseline or sample)
            calm = calm + 1 if gone and abs(before.objects - sample.objects) <= STEADY else 0
        return sample

    async def _state(self, tidy: bool) -> dict[str, Any]:
        try:
            with trio.fail_after(60):
                # On one connection: the end of another one would be seen, or not.
                async with await dial(self.server.port, 0) as stream:
                    if tidy:
                        await ask(stream, "POST", "/tidy")
                    state: dict[str, Any] = json.loads(await ask(stream, "GET", "/state"))
                    return state
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, Wrong) as error:
            problem = f"the server does not answer: {error!r}; its last words: {self.server.complaint()}"
            raise Failed(problem) from None

    async def sample(self, tidy: bool = False) -> Sample:
        """Look at the server now; ``tidy``: without what it keeps on purpose."""
        pid = self.server.process.pid
        told = await self._state(tidy)
        self._read_log()
        return Sample(
            progress=self.progress,
            seconds=trio.current_time() - self._began,
            kib=resident_kib(pid),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            warnings=self._levels["WARNING"],
            errors=self._levels["ERROR"] + self._levels["CRITICAL"],
            tasks=sum(told["tasks"].values()),
            names=told["tasks"],
            objects=told["objects"],
            connections=told["connections"],
            groups=told["groups"],
        )

    def _read_log(self) -> None:
        # Not read(): the server writes where this file's offset is.
        while data := os.pread(self.server.log.fileno(), 1 << 20, self._log_offset):
            whole = data.rfind(b"\n") + 1
            if not whole:
                break
            self._log_offset += whole
            for line in data[:whole].splitlines():
                if level := _LEVEL.search(line):
                    name = level[1].decode()
                    self._levels[name] += 1
                    if name != "WARNING" and len(self.problems) < SHOWN:
                        self.problems.append(f"in the log: {line.decode(errors='replace')}")


def left_behind(end: Sample, baseline: Sample) -> list[str]:
    """What is there without clients, and should not be."""
    found = [
        f"{getattr(end, name)} {name} are left" for name in ("connections", "groups") if getattr(end, name)
    ]
    for name, margin in (("tasks", ASKING), ("descriptors", ASKING), ("objects", OBJECTS)):
        was, now = getattr(baseline, name), getattr(end, name)
        if now > was + margin:
            problem = f"{now} {name} without clients, {was} after the warm-up; allowed are {margin} more"
            if name == "tasks":
                more = Counter(end.names) - Counter(baseline.names)
                problem += f" ({', '.join(sorted(more.elements()))})"
            found.append(problem)
    return found


def medians(samples: list[Sample]) -> list[float]:
    """Resident memory under load in the second quarter of the run and in the last one, in MiB."""
    quarters = (
        [each.kib / 1024 for each in samples if low <= each.progress < high]
        for low, high in ((0.25, 0.5), (0.75, 1.01))
    )
    return [statistics.median(each) for each in quarters]


def faults(samples: list[Sample], baseline: Sample, end: Sample, wrongs: int, margin: float) -> list[str]:
    """Why a run has failed; empty: it has not. ``margin`` is in MiB."""
    found = left_behind(baseline, baseline) + left_behind(end, baseline)
    before, after = medians(samples)
    if after > before + margin:
        found.append(f"memory rose from {before:.1f} to {after:.1f} MiB; allowed are {margin:g} more")
    if end.errors:
        found.append(f"{end.errors} lines of the log are errors")
    if wrongs:
        found.append(f"{wrongs} visits saw what they should not have seen")
    return found


def measure(
    on_progress: Callable[[float], object],
    *,
    clients: int,
    seconds: float,
    visits: int | None,
    every: float,
    margin: float,
    seed: int,
    app: str = APP,
    draining: float = DRAINING,
) -> dict[str, Any]:
    """Run one; returns the record, of which ``faults`` is empty if all was well.

    Raises `Failed` if the server dies.
    """
    port = free_port()
    with running(ours(app, "engine")(port, Tools(HERE)), port) as server:
        run = Soak(server, clients, seconds, visits, every, seed, draining)
        try:
            baseline, end = trio.run(run.run, on_progress)
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from None
            failures, others = group.split(Failed)
            if failures is None or others is not None:
                raise
            raise Failed("; ".join(map(str, failures.exceptions))) from None
    return {
        "versions": versions(),
        "clients": clients,
        "visits": run.done,
        "seconds": end.seconds,
        "seed": seed,
        "counts": dict(run.counts),
        "mib": medians(run.samples),
        "margin": margin,
        "baseline": asdict(baseline),
        "end": asdict(end),
        "problems": run.problems,
        "faults": faults(run.samples, baseline, end, run.wrongs, margin),
        "samples": [asdict(each) for each in run.samples],
    }


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=30.0, show_default=True)
@click.option("--visits", type=click.IntRange(min=100), help="End after so many, whatever the time.")
@click.option("--clients", type=click.IntRange(1, 200), default=60, show_default=True)
@click.option("--every", default=5.0, show_default=True, help="Seconds between two samples.")
@click.option("--margin", default=8.0, show_default=True, help="MiB that memory may rise by.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the record instead.")
def soak(
    minutes: float, visits: int | None, clients: int, every: float, margin: float, seed: int, as_json: bool
) -> None:
    """Good and bad clients for a long time; exits with 1 if something grows, stays behind or is wrong.

    After a quarter of the run all clients leave once: what the server then has is the baseline for tasks,
    descriptors and objects at the end. Memory is compared under load, second quarter against last.
    """
    try:
        with click.progressbar(length=1000, label=f"{clients} clients", file=sys.stderr) as bar:
            result = measure(
                lambda progress: bar.update(int(1000 * progress) - bar.pos),
                clients=clients,
                seconds=60 * minutes,
                visits=visits,
                every=every,
                margin=margin,
                seed=seed,
            )
    except Failed as failure:
        raise click.ClickException(str(failure)) from None
    record("soak", result)
    del result["samples"]
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo("\n".join(told(result)))
    sys.exit(bool(result["faults"]))


def told(result: dict[str, Any]) -> Iterator[str]:
    """The lines for a reader."""
    yield result["versions"]
    yield f"{result['visits']} visits of {result['clients']} clients in {result['seconds']:.0f} s:"
    yield "  " + ", ".join(f"{name}: {count}" for name, count in sorted(result["counts"].items()))
    before, after = result["mib"]
    yield f"resident MiB under load: {before:.1f} in the second quarter, {after:.1f} in the last"
    for name in ("tasks", "descriptors", "objects", "connections", "groups"):
        was, now = result["baseline"][name], result["end"][name]
        yield f"{name} without clients: {was} after the warm-up, {now} at the end"
    yield f"lines of the log: {result['end']['errors']} errors, {result['end']['warnings']} warnings"
    yield from (f"  {problem}" for problem in result["problems"])
    yield from (f"FAILED: {fault}" for fault in result["faults"])
    if not result["faults"]:
        yield "passed: nothing grew, nothing stayed behind, nobody saw anything wrong"
