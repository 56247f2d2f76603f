"""The broker contract on a real Redis: two nodes, real time."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import trio

from nexios_trio.brokers import Broker
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.config import HistoryLimits
from nexios_trio.testing.broker_contract import ROOMY, BrokerContract, Recorder
from tests.brokers.redis_server import RedisServer


class TestRedisBroker(BrokerContract):
    nodes: ClassVar[int] = 2
    grace: ClassVar[float] = 0.1

    @pytest.fixture(autouse=True)
    def _fresh(self, shared_redis: RedisServer) -> None:
        self.server = shared_redis
        self.prefix = f"{secrets.token_hex(4)}:"

    @pytest.fixture
    def broker_clock(self) -> trio.abc.Clock | None:
        return None  # Redis lives in real time

    @asynccontextmanager
    async def node(self, receiver: Recorder, *, limits: HistoryLimits = ROOMY) -> AsyncIterator[Broker]:
        broker = RedisBroker(self.server.url, limits, presence_grace=self.grace, prefix=self.prefix)
        broker.attach(receiver)
        async with broker.serving():
            yield broker
