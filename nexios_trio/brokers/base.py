"""The `Broker` Protocol: what groups need from the engine behind them.

One process uses the embedded `MemoryBroker`; several share an engine such as Redis. The contract suite in
`nexios_trio.testing.broker_contract` holds for every implementation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol, TypeAlias

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = [
    "Broker",
    "Draft",
    "History",
    "Kind",
    "Member",
    "Message",
    "Position",
    "PresenceEvent",
    "Receiver",
]

Kind: TypeAlias = Literal["json", "text", "bytes"]

_POSITION: Final = re.compile(r"([0-9A-Za-z_-]{1,64}):(\d{1,18})")


@frozen
class Position:
    """A place in the history of a group: everything up to ``offset`` of this ``epoch``.

    The epoch is random, and new whenever the group's numbering starts afresh; offsets of different epochs
    cannot be compared. As text, ``epoch:offset``, it is what a client sends to resume.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read ``epoch:offset``. Raises `WrongValueError` or `WrongTypeError`."""
        if not isinstance(text, str):
            raise WrongTypeError(f'a position is a str such as "k3J9:17", not {type(text).__name__}')
        match = _POSITION.fullmatch(text)
        if match is None:
            raise WrongValueError(f'a position is "epoch:offset", such as "k3J9:17", not {text[:100]!r}')
        return cls(match[1], int(match[2]))


@frozen
class Draft:
    """A message before it has a place: what goes on the wire, and to whom it does not go."""

    kind: Kind
    data: str | bytes
    """As it is sent: str for text and JSON, bytes for bytes."""
    sender: str | None = None
    """The id of the connection that sends it."""
    exclude: frozenset[str] = frozenset()
    """Ids of connections that do not get it live; resuming, they do."""
    id: str = ""


@frozen(slots=True, eq=False)
class Message:
    """A message of a group."""

    group: str
    epoch: str
    offset: int | None
    """Its number in the group's history, from 1; None: not kept."""
    kind: Kind
    data: str | bytes
    sent_at: float
    """POSIX time in seconds."""
    sender: str | None
    id: str
    """Random, unique per message."""
    exclude: frozenset[str] = frozenset()

    @property
    def payload(self) -> Any:
        """What was sent: a str, bytes, or the JSON value (read anew at each call)."""
        return json.loads(self.data) if self.kind == "json" else self.data

    @property
    def position(self) -> Position | None:
        """Where to resume after this message; None if it was not kept."""
        return None if self.offset is None else Position(self.epoch, self.offset)


@frozen
class History:
    """Kept messages in order, and where they end."""

    messages: tuple[Message, ...]
    position: Position
    """The newest position of the group when this was read."""
    complete: bool = True
    """False: something between the position asked for and the first message is gone."""


@frozen
class Member:
    """One connection's presence in a group."""

    connection: str
    """The id of the connection: one device of the user."""
    user: str
    """Who it is; several connections may be one user."""
    metadata: Mapping[str, Any] = field(factory=dict)
    joined_at: float = 0.0
    """POSIX time in seconds."""


@frozen
class PresenceEvent:
    """A user has come to a group, or the user's last connection has left it."""

    type: Literal["presence.join", "presence.leave"]
    group: str
    member: Member


class Receiver(Protocol):
    """The node: whom a broker hands messages to."""

    async def deliver(self, message: Message) -> None:
        """Hand on a message of a group that was subscribed to, in order. Never raises, never waits for a
        client, not cancelled half way."""

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """Hand on a presence event; as `deliver`."""

    async def resync(self, group: str) -> None:
        """Messages of this group were lost on the way to this node: members have to resume."""


class Broker(Protocol):
    """An engine. All methods are checkpoints; a cancelled one has done all of its work or none."""

    def attach(self, receiver: Receiver) -> None:
        """Called once, before anything else."""

    async def publish(self, group: str, draft: Draft, *, keep: bool) -> Message:
        """Number the message, keep it in the history if ``keep``, hand it to all nodes that subscribe.

        Messages of one group reach every node in the order of their numbers. When this returns, the own
        node has it.
        """

    async def subscribe(self, group: str) -> None:
        """From now on messages of ``group`` reach the receiver."""

    async def unsubscribe(self, group: str) -> None:
        """No more of them."""

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        """Kept messages, oldest first: all after ``since``, at most the last ``limit``.

        ``complete`` is False if messages after ``since`` are no longer kept or its epoch is another one;
        then all kept ones are given.
        """

    async def forget(self, group: str | None = None) -> None:
        """Throw away the history of a group, or of all; the numbering goes on."""

    async def enter(self, group: str, member: Member) -> None:
        """Note a presence; ``presence.join`` follows if it is the user's first connection here."""

    async def leave(self, group: str, member: Member) -> None:
        """Take it back; ``presence.leave`` follows after the grace unless the user is back by then."""

    async def members(self, group: str) -> tuple[Member, ...]:
        """Who is present, one entry per connection, in the order of coming."""
