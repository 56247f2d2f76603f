"""What is made of the conformance suite's results, and that the summary in the repository is made so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.__main__ import GROUPS
from conformance.report import SECTIONS, bad, counts, markdown, section_of, shortened

FOLDER = Path(__file__).parents[2] / "conformance"


def result(behavior: str, close: str = "OK") -> dict[str, Any]:
    return {"behavior": behavior, "close": close, "code": 1000, "result": "this", "result_close": "and\nthat"}


RESULTS = {
    "1.1.1": result("OK"),
    "6.4.1": result("NON-STRICT"),
    "7.1.6": result("INFORMATIONAL", "INFORMATIONAL"),
    "7.1.7": result("OK", "WRONG CODE"),
    "7.9.1": result("OK", "UNCLEAN"),
    "10.1.1": result("FAILED"),
    "12.1.1": result("UNIMPLEMENTED"),
}


def test_whatever_is_not_ok_or_informational_is_bad() -> None:
    assert bad(RESULTS) == ["6.4.1", "7.1.7", "7.9.1", "10.1.1", "12.1.1"]


def test_each_case_is_counted_once_in_its_section_under_the_worst_that_is_said_of_it() -> None:
    assert counts(RESULTS) == {
        1: {"OK": 1},
        6: {"NON-STRICT": 1},
        7: {"INFORMATIONAL": 1, "FAILED": 2},
        10: {"FAILED": 1},
        12: {"FAILED": 1},
    }


def test_a_page_names_what_is_bad_and_what_took_part() -> None:
    page = markdown(RESULTS, {"trio": "1.2"}, "2026-01-02")
    assert "| 7 | Closing | 3 | 0 | 0 | 1 | 2 |" in page
    assert "|  | **all** | 7 | 1 | 1 | 1 | 4 |" in page
    assert "- 6.4.1: this and that\n" in page
    assert page.endswith("Date: 2026-01-02.\ntrio 1.2.\n")


def test_what_is_kept_has_words_only_where_something_is_wrong() -> None:
    kept = shortened(RESULTS)
    assert kept["1.1.1"] == {"behavior": "OK", "close": "OK", "code": 1000}
    assert kept["6.4.1"] == RESULTS["6.4.1"]


def test_the_summary_in_the_repository_is_made_of_its_results_and_none_is_bad() -> None:
    told = json.loads((FOLDER / "summary.json").read_text())
    cases = told["cases"]
    assert (FOLDER / "SUMMARY.md").read_text() == markdown(cases, told["versions"], told["date"])
    assert told["sections"] == {str(section): kinds for section, kinds in counts(cases).items()}
    assert bad(cases) == []
    assert {section_of(number) for number in cases} >= {1, 2, 3, 4, 5, 6, 7, 9, 10}
    assert sum(section_of(number) not in (9, 12, 13) for number in cases) == 247


@pytest.mark.parametrize("group", GROUPS)
def test_the_groups_are_of_sections_that_there_are(group: str) -> None:
    assert {section_of(pattern) for pattern in GROUPS[group]} <= set(SECTIONS)
