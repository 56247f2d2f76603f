"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.brokers.redis_fixtures import shared_redis
from tests.lanes import lane, lane_clock, lane_name, serve, server_lane

__all__ = ["lane", "lane_clock", "lane_name", "serve", "server_lane", "shared_redis"]

COVERAGE = "COVERAGE_PROCESS_CONFIG"
"""The variable by which coverage tells programs that a test starts what to do."""

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
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is ``untraced`` computes much and runs no line that others do not: coverage, which makes it
    two or three times slower, does not look at it, nor at the programs that it starts."""
    tracer = sys.gettrace()
    if tracer is None or item.get_closest_marker("untraced") is None:
        return (yield)
    config = os.environ.pop(COVERAGE, None)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        if config is not None:
            os.environ[COVERAGE] = config


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped: what a test needs, the scripts install."""
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
