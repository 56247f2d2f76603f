"""The enums and the message of channels, where Nexios has them too."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from attrs import frozen

from nexios_trio.brokers.base import Message

__all__ = [
    "ChannelAddStatusEnum",
    "ChannelMessageDC",
    "ChannelRemoveStatusEnum",
    "GroupSendStatusEnum",
    "PayloadTypeEnum",
]


class ChannelAddStatusEnum(Enum):
    """What `ChannelBox.add_channel_to_group` did."""

    CHANNEL_ADDED = "CHANNEL_ADDED"
    CHANNEL_EXIST = "CHANNEL_EXIST"
    """This channel was in the group already."""


class ChannelRemoveStatusEnum(Enum):
    """What `ChannelBox.remove_channel_from_group` did."""

    CHANNEL_REMOVED = "CHANNEL_REMOVED"
    CHANNEL_DOES_NOT_EXIST = "CHANNEL_DOES_NOT_EXIST"
    """The group has members on this server, but this channel is none."""
    GROUP_REMOVED = "GROUP_REMOVED"
    """The channel was removed, and the group has no member left on this server."""
    GROUP_DOES_NOT_EXIST = "GROUP_DOES_NOT_EXIST"


class GroupSendStatusEnum(Enum):
    """What `ChannelBox.group_send` and `ChannelBox.send_to` did."""

    GROUP_SEND = "GROUP_SEND"
    NO_SUCH_GROUP = "NO_SUCH_GROUP"
    """Nobody on this server gets it; for `send_to`: no such channel."""


class PayloadTypeEnum(Enum):
    """How a channel sends and receives."""

    JSON = "json"
    TEXT = "text"
    BYTES = "bytes"


@frozen
class ChannelMessageDC:
    """A message of a group's history: what was sent, its own id, and when."""

    payload: Any
    uuid: uuid.UUID
    created: datetime
    """In UTC."""
    offset: int | None = None
    """Its number in the group's history."""

    @classmethod
    def of(cls, message: Message) -> ChannelMessageDC:
        """The same message in Nexios' form."""
        created = datetime.fromtimestamp(message.sent_at, UTC)
        return cls(message.payload, uuid.UUID(message.id), created, message.offset)
