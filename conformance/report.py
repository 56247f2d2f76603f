"""What the suite's results say: which cases are bad, and the summary that is committed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["GOOD", "SECTIONS", "bad", "counts", "markdown", "section_of", "shortened"]

GOOD: Final = frozenset({"OK", "INFORMATIONAL"})
"""What a case, and the way in which its connection ended, may be. NON-STRICT is not among it: the answer is
one that the RFC allows, but not the one that it asks for."""

SECTIONS: Final = {
    1: "Framing",
    2: "Pings and Pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Closing",
    9: "Limits and speed",
    10: "Sending in pieces",
    12: "permessage-deflate, as the client asks",
    13: "permessage-deflate, other parameters",
}

COLUMNS: Final = ("OK", "NON-STRICT", "INFORMATIONAL", "FAILED")

Results = Mapping[str, Mapping[str, Any]]


def section_of(number: str) -> int:
    """``"12.1.3"`` is of section 12."""
    return int(number.partition(".")[0])


def bad(results: Results) -> list[str]:
    """The numbers of the cases that are not `GOOD`, in themselves or in how they ended."""
    return [
        number
        for number, result in results.items()
        if result["behavior"] not in GOOD or result["close"] not in GOOD
    ]


def counts(results: Results) -> dict[int, dict[str, int]]:
    """How many cases of each section there are of each kind; whatever has a name of its own is FAILED."""
    table: dict[int, Counter[str]] = {}
    for number, result in results.items():
        kinds = {result["behavior"], result["close"]}
        worst = next((kind for kind in ("NON-STRICT", "INFORMATIONAL", "OK") if kind in kinds), "FAILED")
        if kinds - GOOD - {"NON-STRICT"}:
            worst = "FAILED"
        table.setdefault(section_of(number), Counter())[worst] += 1
    return {
        section: {column: table[section][column] for column in COLUMNS if table[section][column]}
        for section in sorted(table)
    }


def shortened(results: Results) -> dict[str, dict[str, Any]]:
    """The results without the words of those that are as they should be."""
    wrong = bad(results)
    words = ("result", "result_close")
    return {
        number: {key: value for key, value in result.items() if number in wrong or key not in words}
        for number, result in results.items()
    }


def markdown(results: Results, versions: Mapping[str, str], date: str) -> str:
    """The summary as a page."""
    table = counts(results)
    lines = [
        "# Conformance",
        "",
        "[Autobahn|Testsuite](https://github.com/crossbario/autobahn-testsuite) against an echo app on the",
        "engine. `scripts/conformance --write` writes this page, and `summary.json` with each case.",
        "",
        f"| section | | cases | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * (len(COLUMNS) + 1)}",
    ]
    rows = [(str(section), SECTIONS.get(section, ""), table[section]) for section in table]
    total: Counter[str] = Counter()
    for kinds in table.values():
        total.update(kinds)
    for name, title, kinds in [*rows, ("", "**all**", dict(total))]:
        numbers = " | ".join(str(kinds.get(column, 0)) for column in COLUMNS)
        lines.append(f"| {name} | {title} | {sum(kinds.values())} | {numbers} |")
    informational = [number for number, result in results.items() if result["behavior"] == "INFORMATIONAL"]
    if informational:
        lines += ["", f"INFORMATIONAL, for which no answer is right or wrong: {', '.join(informational)}."]
    if wrong := bad(results):
        lines += ["", "Neither OK nor INFORMATIONAL:", ""]
        for number in wrong:
            told = re.sub(r"\s+", " ", f"{results[number]['result']} {results[number]['result_close']}")
            lines.append(f"- {number}: {told}")
    took_part = [f"{name} {version}" for name, version in versions.items()]
    lines += ["", f"Date: {date}.", ", ".join(took_part) + "."]
    return "\n".join(lines) + "\n"
