"""Tables of recorded runs: medians, spreads, and ratios pair by pair."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import Factory, define, evolve

from benchmarks.scenarios import SCENARIOS, Column, Scenario
from benchmarks.scenarios import per_core as _per_core
from benchmarks.servers import OURS, PEERS

__all__ = ["Results", "markdown", "read"]

DISTURBED: Final = 0.15
"""Of a core, used by others."""

Round = tuple[str, int]
"""When a run began, and which of its alternations it was."""


@define
class Results:
    """What came out, by scenario and peer."""

    figures: dict[tuple[str, str], dict[Round, dict[str, float]]] = Factory(dict)
    errors: dict[tuple[str, str], str] = Factory(dict)
    declined: set[tuple[str, str]] = Factory(set)
    """Of the errors, those that are no failure: the server does not offer it."""
    heads: list[dict[str, Any]] = Factory(list)

    def values(self, scenario: str, peer: str, figure: str) -> list[float]:
        found = self.figures.get((scenario, peer), {}).values()
        return [figures[figure] for figures in found if figure in figures]

    def ratios(self, scenario: str, peer: str, figure: str) -> list[float]:
        """Ours over theirs, of the same alternation."""
        ours = self.figures.get((scenario, OURS), {})
        theirs = self.figures.get((scenario, peer), {})
        return [
            ours[at][figure] / theirs[at][figure]
            for at in ours
            if at in theirs and figure in ours[at] and theirs[at].get(figure)
        ]

    def foreign_shares(self) -> list[float]:
        """Of each run that knows: how much of a core others used meanwhile."""
        return [
            found["foreign_cpu"]
            for runs in self.figures.values()
            for found in runs.values()
            if "foreign_cpu" in found
        ]

    def scenarios(self) -> list[str]:
        seen = {scenario for scenario, _ in (*self.figures, *self.errors)}
        return [name for name in SCENARIOS if name in seen]

    def peers(self, scenarios: Iterable[str]) -> list[str]:
        wanted = set(scenarios)
        seen = {peer for scenario, peer in (*self.figures, *self.errors) if scenario in wanted}
        return [name for name in PEERS if name in seen]


def read(files: list[Path], run: str | None = None) -> Results:
    """The records of these files; with ``run`` only those of one run."""
    results = Results()
    for path in files:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if run is not None and entry["run"] != run:
                continue
            if "scenario" not in entry:
                results.heads.append(entry)
                continue
            key = entry["scenario"], entry["peer"]
            if "error" in entry:
                results.errors[key] = entry["error"]
                if entry.get("declined"):
                    results.declined.add(key)
            else:
                results.figures.setdefault(key, {})[entry["run"], entry["round"]] = entry["figures"]
    return results


def markdown(results: Results, *, per_core: bool = False) -> str:
    """A table for each group of scenarios, with what failed below it.

    ``per_core``: rates per second of the server's CPU, not of the clock.
    """
    lines = [
        f"{head['run']}, {head['rounds']} rounds of {head['seconds']:g} s: {head['versions']}"
        for head in results.heads
    ]
    lines += ["", "Median (least to most); **ours divided by theirs**, pair by pair (least to most)."]
    shares = results.foreign_shares()
    if disturbed := sum(share > DISTURBED for share in shares):
        lines.append(
            f"In {disturbed} of {len(shares)} runs other processes used more than {DISTURBED:.0%} of a core."
        )
    groups: dict[str, list[str]] = {}
    for name in results.scenarios():
        groups.setdefault(SCENARIOS[name].group, []).append(name)
    for title, names in groups.items():
        columns = [(name, column) for name in names for column in SCENARIOS[name].columns]
        if per_core:
            columns = [
                (
                    name,
                    evolve(column, figure=_per_core(column.figure), title=f"{column.title}, per CPU second"),
                )
                for name, column in columns
                if column.more_is_better
            ]
            if not columns:
                continue
        lines += ["", f"### {title}", "", "| | " + " | ".join(c.title for _, c in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for peer in results.peers(names):
            cells = [_cell(results, name, peer, column) for name, column in columns]
            lines.append(f"| {PEERS[peer].title} | " + " | ".join(cells) + " |")
        lines += _problems(results, names)
    return "\n".join(lines)


def _cell(results: Results, scenario: str, peer: str, column: Column) -> str:
    values = results.values(scenario, peer, column.figure)
    if not values:
        if (scenario, peer) in results.declined:
            return "not offered"
        return "failed" if (scenario, peer) in results.errors else ""
    text = f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"
    ratios = results.ratios(scenario, peer, column.figure)
    if peer != OURS and ratios:
        text += f"; **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _problems(results: Results, names: list[str]) -> list[str]:
    found = [
        f"- {PEERS[peer].title}, {_what(SCENARIOS[name])}: {results.errors[name, peer]}"
        for name in names
        for peer in results.peers([name])
        if (name, peer) in results.errors and (name, peer) not in results.declined
    ]
    return ["", *found] if found else []


def _what(scenario: Scenario) -> str:
    return scenario.columns[0].title
