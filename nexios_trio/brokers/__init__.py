"""Floor 3: where group messages are numbered, kept and handed to all nodes."""

from nexios_trio.brokers.base import (
    Broker,
    Draft,
    History,
    Member,
    Message,
    Position,
    PresenceEvent,
    Receiver,
)
from nexios_trio.brokers.memory import MemoryBroker

__all__ = [
    "Broker",
    "Draft",
    "History",
    "Member",
    "MemoryBroker",
    "Message",
    "Position",
    "PresenceEvent",
    "Receiver",
]
