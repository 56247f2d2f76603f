"""A Redis that tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers.redis_server import REDIS, RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that tests share: each takes a prefix of its own, and does it no harm."""
    if REDIS is None:
        pytest.skip("needs Debian's redis-server; scripts/test installs it")
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()
