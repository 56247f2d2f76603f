"""What is known of a group on its way from Redis to this node."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import trio
from attrs import define, field, frozen
from trio.lowlevel import ParkingLot

from nexios_trio.brokers.base import Message
from nexios_trio.brokers.redis.parcels import Event
from nexios_trio.exceptions import BrokerError

__all__ = ["Item", "Page", "Request", "Track", "follows", "start_before"]

Item: TypeAlias = "tuple[Message, str] | Event"


@define(eq=False)
class Track:
    """How far the receiver was told in one group."""

    group: str
    exact: bool
    """Whether it is subscribed by its name."""
    epoch: str = ""
    """Empty: nothing is known yet."""
    offset: int = 0
    nonce: str = ""
    event_epoch: str = ""
    version: int = 0
    acknowledged: bool = False
    """Whether Redis sends us its messages, be it by a pattern."""
    named: bool = False
    """Whether it sends them by the name."""
    behind: bool = True
    held: deque[Item] = field(factory=deque)
    spilled: bool = False
    """Too much was held back; what did not fit is in the history, if anywhere."""
    ready: trio.Event = field(factory=trio.Event)
    """Set once it is subscribed by its name and the position is known."""
    problem: BrokerError | None = None
    """Why its history cannot be read."""
    changes: ParkingLot = field(factory=ParkingLot)
    """Who waits until presence events were told."""
    promised: bool = False
    """Somebody follows it who was not told from where."""


@frozen
class Request:
    """What the feed wants read of a group: all after ``since``, or (None) only where it ends."""

    group: str
    since: int | None
    version: int
    """Presence events after this one."""
    event_epoch: str


@frozen
class Page:
    """The answer."""

    epoch: str
    offset: int
    nonce: str
    messages: Sequence[tuple[Message, str]]
    more: bool
    """There is more than this."""
    event_epoch: str
    version: int
    events: Sequence[Event]


def start_before(track: Track, item: tuple[Message, str]) -> None:
    """Set the position so that this is the next one."""
    message, before = item
    if message.offset is not None:
        track.epoch, track.offset, track.nonce = message.epoch, message.offset - 1, before


def follows(track: Track, page: Page) -> bool:
    """Whether what was read goes on where the track ends."""
    if page.epoch != track.epoch or page.offset < track.offset:
        return False
    if page.offset == track.offset:
        return page.nonce == track.nonce
    if not page.messages:
        return False
    first, before = page.messages[0]
    return first.offset == track.offset + 1 and before == track.nonce
