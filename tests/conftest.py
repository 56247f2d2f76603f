"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.lanes import lane, lane_clock, lane_name, serve, server_lane

__all__ = ["lane", "lane_clock", "lane_name", "serve", "server_lane"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped: what a test needs, the scripts install."""
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
