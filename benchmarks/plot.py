"""The picture of a run: a panel of bars for each of a few scenarios."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.report import Results
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import PEERS

__all__ = ["draw"]

PANELS: Final = {
    "echo-50-32": "Echo, 50 clients, 32 B: messages/s",
    "echo-500-32": "Echo, 500 clients, 32 B: messages/s",
    "echo-50-65536": "Echo, 50 clients, 64 KiB: messages/s",
    "fanout-100": "Fan-out, 100 members: deliveries/s",
    "fanout-1000": "Fan-out, 1,000 members: deliveries/s",
    "fanout-5000": "Fan-out, 5,000 members: deliveries/s",
    "connect": "Connections opened and closed per second",
    "idle": "5,000 idle connections: KiB each (less is better)",
    "mixed": "50 busy beside 1,000 idle: messages/s",
}
OURS_COLOUR, THEIRS, LIMIT = "#1f6f8b", "#b9c4c9", "#e0d3b8"


def draw(results: Results, stem: Path) -> list[Path]:
    """Write ``stem``.svg and .png; returns their paths."""
    mpl.rcParams.update({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "nexios_trio"})
    shown = [name for name in PANELS if name in results.scenarios()]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    peers = results.peers(shown)
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(4.6 * across, (0.6 + 0.2 * len(peers)) * down),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for number, (axis, name) in enumerate(zip(axes.flat, shown, strict=False)):
        column = SCENARIOS[name].columns[0]
        values = [results.values(name, peer, column.figure) for peer in peers]
        medians = [statistics.median(found) if found else 0.0 for found in values]
        places = range(len(peers))
        axis.barh(places, medians, color=[_colour(peer) for peer in peers], height=0.72)
        for place, found, median in zip(places, values, medians, strict=True):
            label = f" {median:,.0f}" if median >= 100 else f" {median:.3g}"
            missing = " failed" if (name, peers[place]) in results.errors else " not measured"
            end = max(found, default=0)
            axis.text(end, place, label if found else missing, va="center", fontsize=7)
            if found:
                axis.plot([min(found), end], [place, place], color="#444444", linewidth=0.8)
        axis.set_title(PANELS[name], fontsize=9, loc="left")
        axis.set_yticks(places, [PEERS[peer].title for peer in peers] if number % across == 0 else [])
        axis.invert_yaxis()
        axis.set_xlim(0, max(max(found, default=0) for found in values) * 1.22)
        axis.set_xticks([])
        axis.tick_params(left=False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    stem.parent.mkdir(exist_ok=True)
    paths = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=90)
    plt.close(figure)
    return paths


def _colour(peer: str) -> str:
    return LIMIT if peer == "c" else OURS_COLOUR if peer.startswith("nexios") else THEIRS
