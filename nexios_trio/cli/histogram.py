"""Durations in buckets: any number of them in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import Final

__all__ = ["Histogram", "duration"]

_BITS: Final = 6
"""A bucket is at most 2**-_BITS (1.6 %) of its value wide."""
_MICROSECOND: Final = 1e6
_STEPS: Final = (1, 2, 5)


class Histogram:
    """Durations, kept as microseconds within 1.6 %; below 64 microseconds they are exact."""

    __slots__ = ("_counts", "count", "longest", "shortest", "total")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.shortest = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration in seconds."""
        if not self.count or seconds < self.shortest:
            self.shortest = seconds
        if seconds > self.longest:
            self.longest = seconds
        self.count += 1
        self.total += seconds
        micros = int(seconds * _MICROSECOND)
        shift = micros.bit_length() - _BITS
        # The leading bits; below them all values of a bucket are the same.
        self._counts[micros if shift <= 0 else micros >> shift << shift] += 1

    def percentile(self, percent: float) -> float:
        """The duration in seconds that ``percent`` of all do not exceed; 0 if there are none."""
        wanted = self.count * percent / 100
        seen = 0
        for micros in sorted(self._counts):
            seen += self._counts[micros]
            if seen >= wanted:
                return min(max(_middle(micros) / _MICROSECOND, self.shortest), self.longest)
        return self.longest

    def rows(self) -> list[tuple[float, float, int]]:
        """``(from, to, count)`` in seconds by steps of 1, 2 and 5, without empty rows at either end."""
        if not self.count:
            return []
        found: Counter[int] = Counter()
        edges = [0, *(step * 10**power for power in range(13) for step in _STEPS)]
        index = 0
        for micros in sorted(self._counts):
            while micros >= edges[index + 1]:
                index += 1
            found[index] += self._counts[micros]
        return [
            (edges[index] / _MICROSECOND, edges[index + 1] / _MICROSECOND, found[index])
            for index in range(min(found), max(found) + 1)
        ]


def duration(seconds: float) -> str:
    """``seconds`` for people: 350 µs, 1.25 ms, 2.0 s."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"


def _middle(micros: int) -> float:
    shift = micros.bit_length() - _BITS
    return micros + (0.5 if shift <= 0 else (1 << shift) / 2)
