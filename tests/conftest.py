"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.brokers.redis_fixtures import shared_redis
from tests.lanes import lane, lane_clock, lane_name, serve, server_lane

__all__ = ["lane", "lane_clock", "lane_name", "serve", "server_lane", "shared_redis"]


if os.environ.get("CI"):
    # Hypothesis' own profile for such machines, with half of its examples: coverage makes each one slow.
    settings.register_profile("ci", settings.get_profile("ci"), max_examples=50)
    settings.load_profile("ci")

# Whoever is started by nohup, or in the background of a script, ignores these two, and so would all servers
# and clients that the tests start. What has a handler here is at its default there.
signal.signal(signal.SIGHUP, lambda _number, _frame: None)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A server that ran in this process leaves signals ignored, since it was to be the last it did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names that are the same in every process, also for what is random or the time: workers compare them."""
    if isinstance(val, bytes) and (len(val) > 24 or (val.isdigit() and len(val) == 10)):
        return argname
    if isinstance(val, str) and len(val) > 200:
        return argname
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped: what a test needs, the scripts install."""
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
