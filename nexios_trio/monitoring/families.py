"""Numbers with names and labels: as they are counted here, put together with those of other workers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import define, field

from nexios_trio.instrument import Histogram

__all__ = ["Family", "Kind", "merged", "read", "written"]

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[str, ...]


@define
class Family:
    """One metric: a value, or a histogram, for each combination of labels."""

    name: str
    """Without prefix and without ``_total``."""
    kind: Kind
    help: str
    labels: Labels = ()
    join: Literal["sum", "max", "min"] = "sum"
    """What several workers' values become."""
    values: dict[Labels, float] = field(factory=dict)
    bounds: tuple[float, ...] = ()
    counts: dict[Labels, list[int]] = field(factory=dict)
    """Of a histogram, whose sums are the ``values``."""

    def put(self, value: float, *labels: str) -> None:
        """Set a value."""
        self.values[labels] = value

    def put_histogram(self, histogram: Histogram, *labels: str) -> None:
        """Set a histogram; all of one family have the same bounds."""
        self.bounds = tuple(histogram.bounds)
        self.counts[labels] = list(histogram.counts)
        self.values[labels] = histogram.total

    def fits(self, other: Family) -> bool:
        """Whether this is the same metric: during an upgrade another worker may be of another version."""
        same_bounds = not self.bounds or not other.bounds or self.bounds == other.bounds
        return self.kind == other.kind and self.labels == other.labels and same_bounds

    def take_in(self, other: Family, *, alive: bool) -> None:
        """Add what another worker has counted; of one that has ended only what can never sink again."""
        if self.kind == "gauge" and not alive:
            return
        for labels, value in other.values.items():
            mine = self.values.get(labels)
            self.values[labels] = value if mine is None else self._joined(mine, value)
        for labels, counts in other.counts.items():
            own = self.counts.setdefault(labels, [0] * len(counts))
            self.counts[labels] = [a + b for a, b in zip(own, counts, strict=True)]
        self.bounds = self.bounds or other.bounds

    def _joined(self, one: float, other: float) -> float:
        if self.join == "sum":
            return one + other
        return max(one, other) if self.join == "max" else min(one, other)


def merged(own: Sequence[Family], others: Iterable[tuple[Sequence[Family], bool]]) -> list[Family]:
    """All workers' families as one list; each of ``others`` with whether that worker is alive."""
    by_name = {family.name: family for family in own}
    for families, alive in others:
        for family in families:
            mine = by_name.get(family.name)
            if mine is not None and mine.fits(family):
                mine.take_in(family, alive=alive)
    return list(by_name.values())


def written(families: Iterable[Family], now: float) -> str:
    """As text, for `read`; ``now`` is POSIX time."""
    return json.dumps(
        {
            "time": now,
            "families": [
                {
                    "name": family.name,
                    "kind": family.kind,
                    "help": family.help,
                    "labels": family.labels,
                    "join": family.join,
                    "bounds": family.bounds,
                    "values": [[*labels, value] for labels, value in family.values.items()],
                    "counts": [[*labels, counts] for labels, counts in family.counts.items()],
                }
                for family in families
            ],
        }
    )


def read(text: str) -> tuple[list[Family], float]:
    """What `written` wrote, and when. Raises `ValueError`, `TypeError` or `LookupError` for anything else."""
    content: Mapping[str, Any] = json.loads(text)
    return [
        Family(
            entry["name"],
            entry["kind"],
            entry["help"],
            tuple(entry["labels"]),
            entry["join"],
            {tuple(labels): float(value) for *labels, value in entry["values"]},
            tuple(entry["bounds"]),
            {
                tuple(labels): [int(counts[index]) for index in range(len(entry["bounds"]) + 1)]
                for *labels, counts in entry["counts"]
            },
        )
        for entry in content["families"]
    ], float(content["time"])
