"""The broker contract on two nodes that share an engine, as two processes will share one behind a network."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio

from nexios_trio.brokers import Broker, MemoryBroker, Message, PresenceEvent
from nexios_trio.config import HistoryLimits
from nexios_trio.testing.broker_contract import ROOMY, BrokerContract, Recorder


class Engine:
    """One `MemoryBroker`, whose messages go to all nodes that subscribe; each hop takes a step."""

    def __init__(self, limits: HistoryLimits, grace: float) -> None:
        self.memory = MemoryBroker(limits, presence_grace=grace)
        self.memory.attach(self)
        self.nodes: list[Node] = []

    async def deliver(self, message: Message) -> None:
        for node in [node for node in self.nodes if node.wants(message.group)]:
            await node.receiver.deliver(message)

    async def deliver_presence(self, event: PresenceEvent) -> None:
        for node in [node for node in self.nodes if node.wants(event.group)]:
            await node.receiver.deliver_presence(event)

    async def resync(self, group: str) -> None:
        raise AssertionError("nothing is lost here")


class Node:
    """A `Broker`: what it does not do itself, the engine does."""

    def __init__(self, engine: Engine, receiver: Recorder) -> None:
        self.engine = engine
        self.receiver = receiver
        self.subscribed: set[tuple[str, bool]] = set()
        engine.nodes.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.memory, name)

    def wants(self, group: str) -> bool:
        return any(
            fnmatch.fnmatchcase(group, name) if pattern else group == name
            for name, pattern in self.subscribed
        )

    async def subscribe(self, group: str, *, pattern: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.subscribed.add((group, pattern))

    def unsubscribe(self, group: str, *, pattern: bool = False) -> None:
        self.subscribed.discard((group, pattern))


class TestTwoNodes(BrokerContract):
    nodes: ClassVar[int] = 2

    @pytest.fixture(autouse=True)
    def _fresh(self) -> None:
        self.engine: Engine | None = None

    @asynccontextmanager
    async def node(self, receiver: Recorder, *, limits: HistoryLimits = ROOMY) -> AsyncIterator[Broker]:
        if self.engine is None:
            self.engine = Engine(limits, self.grace)
        yield Node(self.engine, receiver)
