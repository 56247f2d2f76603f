"""What the tests of the Redis engine share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.redis_server import RedisServer


@pytest.fixture
def prefix() -> str:
    """For keys and channels in the Redis that tests share."""
    return f"{secrets.token_hex(4)}:"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One of the test's own, without an append file, which it may kill."""
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()
