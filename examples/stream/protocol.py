"""What travels over the WebSocket.

Binary messages come from the server, each whole in itself: a byte that says what it is (0: what a player
needs first, 1: a segment of video), the segment's number (u32, big-endian; of the first, the number of the
one that comes next), and the bytes for the player. Text messages are JSON, told apart by the field ``type``.
"""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

INIT: Final = 0
SEGMENT: Final = 1
HEAD: Final = struct.Struct("!BI")

Name = Annotated[str, Meta(min_length=1, max_length=24)]
Text = Annotated[str, Meta(max_length=300, pattern=r"\S")]


def media(kind: int, number: int, data: bytes) -> bytes:
    return HEAD.pack(kind, number & 0xFFFFFFFF) + data


class Say(Struct, tag="say"):
    """From a viewer: to all others."""

    name: Name
    text: Text

    def __post_init__(self) -> None:
        self.name = " ".join("".join(filter(str.isprintable, self.name)).split())


class Pong(Struct, tag="pong"):
    """The answer to the heartbeat."""


FromViewer: TypeAlias = Say | Pong


class Said(Struct, tag="said"):
    """What somebody has said; ``id`` tells whether one has it already."""

    id: str
    name: str
    text: str
    at: datetime


class History(Struct, tag="history"):
    """What was said last."""

    said: list[Said]


class Viewers(Struct, tag="viewers"):
    count: int


class Problem(Struct, tag="problem"):
    """A message of this client was not taken, and why."""

    text: str


class Ping(Struct, tag="ping"):
    pass
