"""The `Broker` Protocol: what groups need from the engine behind them.

One process uses the embedded `MemoryBroker`; several share an engine such as Redis. The contract suite in
`nexios_trio.testing.broker_contract` holds for every implementation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, TypeAlias

from attrs import Factory, field, frozen

from nexios_trio.config import Rate
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
    "Quotas",
    "Receiver",
]

Kind: TypeAlias = Literal["json", "text", "bytes"]

_POSITION: Final = re.compile(r"([0-9A-Za-z_-]{1,64}):([0-9]{1,18})(?::([0-9A-Za-z_-]{1,64}))?")


@frozen
class Position:
    """A place in the history of a group: everything up to ``offset`` of this ``epoch``.

    The epoch is random, and new whenever the group's numbering starts afresh; offsets of different epochs
    cannot be compared. As text it is what a client sends to resume: ``epoch:offset``, and behind a further
    colon the ``nonce`` if the engine gives one. To the client it is opaque.
    """

    epoch: str
    offset: int
    nonce: str = ""
    """Proves that the engine still means the same message by this number; engines that can lose their last
    writes (a replica that took over) set it, compare it, and answer ``complete=False`` if it differs."""

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.offset}"
        return f"{text}:{self.nonce}" if self.nonce else text

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what ``str(position)`` wrote. Raises `WrongValueError` or `WrongTypeError`."""
        if not isinstance(text, str):
            raise WrongTypeError(f'a position is a str such as "k3J9:17", not {type(text).__name__}')
        match = _POSITION.fullmatch(text)
        if match is None:
            raise WrongValueError(f'a position is "epoch:offset", such as "k3J9:17", not {text[:100]!r}')
        return cls(match[1], int(match[2]), match[3] or "")


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
    """Random, made by the sender: a publish that is tried again has the same one, so that an engine behind a
    network can number it once. Empty: the engine makes one."""
    once: bool = False
    """The ``id`` is the caller's, and stands for this message: one with the same id in the same group, by
    whomever and for as long as the engine remembers it (some minutes), is not delivered again."""


@frozen(slots=True, eq=False)
class Message:
    """A message of a group."""

    group: str
    epoch: str
    """Empty if it is not kept."""
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
    nonce: str = ""
    """See `Position`."""

    @property
    def payload(self) -> Any:
        """What was sent: a str, bytes, or the JSON value (read anew at each call)."""
        return json.loads(self.data) if self.kind == "json" else self.data

    @property
    def position(self) -> Position | None:
        """Where to resume after this message; None if it was not kept."""
        return None if self.offset is None else Position(self.epoch, self.offset, self.nonce)


@frozen
class History:
    """Kept messages in order, and where they end."""

    messages: tuple[Message, ...]
    position: Position
    """The newest position of the group when this was read."""
    complete: bool = True
    """False: something after the position asked for is no longer kept. A ``limit`` does not make it so."""


@frozen
class Member:
    """One membership that is listed in a group."""

    connection: str
    """The id of the connection: one device of the user."""
    user: str
    """Who it is; several connections may be one user."""
    metadata: Mapping[str, Any] = field(factory=dict)
    joined_at: float = 0.0
    """POSIX time in seconds."""
    id: str = field(default=Factory(lambda self: self.connection, takes_self=True))
    """Unique per membership: a connection may be in a group twice."""


@frozen
class PresenceEvent:
    """A user has come to a group, or the user's last connection has left it."""

    type: Literal["presence.join", "presence.leave"]
    group: str
    member: Member


class Receiver(Protocol):
    """The node: whom a broker hands messages to.

    The methods never raise, never wait for a client and are not cut short by a cancellation; a broker may
    await them in the middle of its own work.
    """

    async def deliver(self, message: Message) -> None:
        """Hand on a message. Called in the order of the numbers; the next call for the same group may come
        before this one has returned."""

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """Hand on a presence event; as `deliver`."""

    async def resync(self, group: str) -> None:
        """Messages of this group were lost on the way to this node: members have to resume."""


class Quotas(Protocol):
    """What the nodes of an engine count together."""

    def charge(self, bucket: str, amount: float, rate: Rate, told: Callable[[float], None]) -> None:
        """Add what was taken on this node to a bucket that the nodes share, and that ``rate`` empties.

        ``told(owed)`` is called soon, with what is owed to it after that, taken on all nodes; not at all if
        the engine is away, and then nobody hears of it. Equal ones are called once for several charges.
        Never blocks, never raises.
        """

    async def hold(self, name: str, holder: str, most: int) -> bool:
        """Take one of ``most`` places for ``holder``, who may have it already; False: others have them all.

        Until `release`, or for a lease after this node has died. A checkpoint; whoever is cancelled in it
        releases. Raises `BrokerError` within a second or so if nobody can tell; then the place is taken as
        soon as the engine is there, whatever others have.
        """

    def release(self, name: str, holder: str) -> None:
        """Give a place back; harmless if it is not held. Never blocks, never raises."""


class Broker(Protocol):
    """An engine, as one node (one app in one process) sees it.

    The coroutines are checkpoints. A cancelled one has done all of its work or none; behind a network nobody
    knows which, so whoever is cancelled in `enter` calls `leave`. Calls of one node take effect in the order
    in which they were made. The other methods never block and never raise: they are called as a connection
    ends, and an engine that cannot be reached is told later. The coroutines of an engine behind a network
    may raise `BrokerUnavailable` and `BrokerCommandError`.
    """

    @property
    def shared(self) -> bool:
        """Whether there may be other nodes."""

    @property
    def available(self) -> bool:
        """Whether the engine can be reached now: a send gets to all nodes, and theirs to this one."""

    @property
    def quotas(self) -> Quotas | None:
        """What the nodes count together; None: each counts for itself."""

    def attach(self, receiver: Receiver) -> None:
        """Called once, before anything else."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Entered for as long as the app runs: connections and tasks of the engine live in it."""

    async def publish(self, group: str, draft: Draft, *, keep: bool) -> Message:
        """Number the message, keep it in the history if ``keep``, hand it to all nodes that subscribe.

        Messages of one group reach every node in the order of their numbers. When this returns, the own
        node has it. A draft that is ``once`` and was published before gives the message of that time (its
        number, if it was kept), and nobody gets it again.
        """

    async def subscribe(self, group: str, *, pattern: bool = False) -> None:
        """From the return of this on, messages and presence events of ``group`` reach the receiver, once
        each however many subscriptions match.

        With ``pattern`` it stands for all groups that `fnmatch.fnmatchcase` finds. Calling it again changes
        nothing but waits as well. The receiver may get more than it asked for, and filters.
        """

    def unsubscribe(self, group: str, *, pattern: bool = False) -> None:
        """Take `subscribe` back, however often it was called; harmless if it was not."""

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        """Kept messages, oldest first: all after ``since``, at most the last ``limit``.

        ``complete`` is False if messages after ``since`` are no longer kept, or if it is of another epoch or
        not yet reached in this one; then all kept ones are given.
        """

    async def forget(self, group: str | None = None) -> None:
        """Throw away the history of a group, or of all; the numbering goes on."""

    async def enter(self, group: str, member: Member) -> None:
        """Note a presence; ``presence.join`` follows if it is the user's first in this group and the user's
        last one did not end within the grace."""

    def leave(self, group: str, member: Member) -> None:
        """Take it back, by its ``id``; harmless if it is not there. ``presence.leave`` follows after the
        grace, once, unless the user is back by then."""

    async def members(self, group: str) -> tuple[Member, ...]:
        """Who is present, one entry per membership, in the order of coming."""
