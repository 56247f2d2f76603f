"""Floor 3: where group messages are numbered, kept and handed to all nodes."""

from typing import Final

from nexios_trio.brokers.base import (
    Broker,
    Draft,
    History,
    Member,
    Message,
    Position,
    PresenceEvent,
    Quotas,
    Receiver,
)
from nexios_trio.brokers.memory import MemoryBroker

REDIS_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "redis+unix", "redis+sentinel", "rediss+sentinel"}
)
"""Schemes of URLs that mean `nexios_trio.brokers.redis`."""

__all__ = [
    "REDIS_SCHEMES",
    "Broker",
    "Draft",
    "History",
    "Member",
    "MemoryBroker",
    "Message",
    "Position",
    "PresenceEvent",
    "Quotas",
    "Receiver",
]
