"""The engine of a single process: everything in memory, everything bounded."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import define, field, frozen

from nexios_trio.brokers.base import (
    Draft,
    History,
    Member,
    Message,
    Position,
    PresenceEvent,
    Quotas,
    Receiver,
)
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["MemoryBroker"]

ONCE_FOR: Final = 300.0
"""Seconds for which a caller's message id is remembered."""
ONCE: Final = 10_000
"""How many of them, at most."""


@frozen
class _Kept:
    message: Message
    at: float


@define
class _Log:
    """The numbering and the ring of one group."""

    epoch: str = field(factory=lambda: secrets.token_urlsafe(9))
    offset: int = 0
    ring: deque[_Kept] = field(factory=deque)
    size: int = 0


@define(eq=False)
class _Leaving:
    """A user whose last connection has gone, and who may be back within the grace."""

    member: Member
    scope: trio.CancelScope
    unknown: bool = False
    """Somebody has come since, who was not told of this user and would not learn of a silent return."""


class MemoryBroker:
    """See `nexios_trio.brokers.base.Broker`. Rings are bounded in messages, bytes and age, and so is
    their number; a group that is forgotten for want of room starts again with a new epoch.

    ``presence_grace`` is in seconds: a user who is back by then has not left.
    """

    def __init__(self, limits: HistoryLimits | None = None, *, presence_grace: float = 2.0) -> None:
        if isinstance(presence_grace, bool) or not isinstance(presence_grace, int | float):
            raise WrongTypeError(f"presence_grace is a number of seconds, not {presence_grace!r}")
        if not presence_grace >= 0:
            raise WrongValueError(f"presence_grace is 0 or more seconds, not {presence_grace!r}")
        self.limits = limits or HistoryLimits()
        self.presence_grace = presence_grace
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        """Those used least recently first."""
        self._filled: OrderedDict[str, None] = OrderedDict()
        """The groups whose rings hold something, by their newest message."""
        self._present: dict[str, dict[str, Member]] = {}
        self._devices: dict[tuple[str, str], int] = {}
        """How many memberships a user has in a group, if any."""
        self._leaving: dict[tuple[str, str], _Leaving] = {}
        self._receiver: Receiver | None = None
        self._once: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        """Messages whose ids are the caller's, by group and id, the oldest first."""

    @property
    def shared(self) -> bool:
        """See `Broker.shared`: never."""
        return False

    @property
    def available(self) -> bool:
        """See `Broker.available`: always."""
        return True

    @property
    def quotas(self) -> Quotas | None:
        """See `Broker.quotas`: there is one node, and its own counts are all."""
        return None

    def attach(self, receiver: Receiver) -> None:
        """See `Broker.attach`."""
        self._receiver = receiver

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """See `Broker.serving`."""
        try:
            yield
        finally:
            for leaving in self._leaving.values():
                leaving.scope.cancel()
            self._leaving.clear()

    @property
    def receiver(self) -> Receiver:
        """The node."""
        assert self._receiver is not None, "attach() comes first"
        return self._receiver

    # Messages

    async def publish(self, group: str, draft: Draft, *, keep: bool) -> Message:
        """See `Broker.publish`."""
        # A full checkpoint, so that the writers of the members run between the sends of a loop, and a client
        # that was accepted before gets to join before.
        await trio.lowlevel.checkpoint()
        if draft.once and (known := self._known(group, draft.id)) is not None:
            return known
        log = self._log(group) if keep else None
        if log is not None:
            log.offset += 1
        message = Message(
            group,
            log.epoch if log is not None else "",
            log.offset if log is not None else None,
            draft.kind,
            draft.data,
            time.time(),
            draft.sender,
            draft.id or secrets.token_hex(16),
            draft.exclude,
        )
        now = trio.current_time()
        kept = _Kept(message, now)
        if draft.once:
            self._once[group, draft.id] = kept
            if len(self._once) > ONCE:
                self._once.popitem(last=False)
        if log is not None:
            log.ring.append(kept)
            log.size += len(draft.data)
            self._trim(log, now)
            self._filled[group] = None
            self._filled.move_to_end(group)
            self._sweep(now)
        await self.receiver.deliver(message)
        return message

    def _known(self, group: str, id: str) -> Message | None:
        oldest = trio.current_time() - ONCE_FOR
        while self._once and next(iter(self._once.values())).at <= oldest:
            self._once.popitem(last=False)
        known = self._once.get((group, id))
        return None if known is None else known.message

    def _log(self, group: str) -> _Log:
        log = self._logs.get(group)
        if log is None:
            while len(self._logs) >= self.limits.groups:
                gone, _ = self._logs.popitem(last=False)
                self._filled.pop(gone, None)
            log = self._logs[group] = _Log()
        else:
            self._logs.move_to_end(group)
        return log

    def _trim(self, log: _Log, now: float) -> None:
        ring, limits = log.ring, self.limits
        oldest = now - limits.age
        while ring and (len(ring) > limits.messages or log.size > limits.bytes or ring[0].at <= oldest):
            log.size -= len(ring.popleft().message.data)

    def _sweep(self, now: float) -> None:
        """Empty the rings of groups in which nothing was sent for so long that all of it is too old."""
        oldest = now - self.limits.age
        while self._filled:
            group = next(iter(self._filled))
            ring = self._logs[group].ring
            if ring and ring[-1].at > oldest:
                return
            self._empty(group)

    def _empty(self, group: str) -> None:
        self._filled.pop(group, None)
        if (log := self._logs.get(group)) is not None:
            log.ring.clear()
            log.size = 0

    async def subscribe(self, group: str, *, pattern: bool = False) -> None:
        """See `Broker.subscribe`; a single node gets all there is."""
        await trio.lowlevel.checkpoint()

    def unsubscribe(self, group: str, *, pattern: bool = False) -> None:
        """See `Broker.unsubscribe`."""

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        """See `Broker.history`."""
        await trio.lowlevel.checkpoint()
        log = self._log(group)
        self._trim(log, trio.current_time())
        kept = [entry.message for entry in log.ring]
        complete = True
        if since is not None:
            before = log.offset - len(kept)
            complete = since.epoch == log.epoch and before <= since.offset <= log.offset
            if complete:
                kept = kept[since.offset - before :]
        if limit is not None:
            kept = kept[-limit:] if limit > 0 else []
        return History(tuple(kept), Position(log.epoch, log.offset), complete)

    async def forget(self, group: str | None = None) -> None:
        """See `Broker.forget`."""
        await trio.lowlevel.checkpoint()
        for name in list(self._logs) if group is None else [group]:
            self._empty(name)

    # Presence

    async def enter(self, group: str, member: Member) -> None:
        """See `Broker.enter`."""
        await trio.lowlevel.checkpoint()
        here = self._present.setdefault(group, {})
        if member.id in here:
            return
        here[member.id] = member
        user = (group, member.user)
        devices = self._devices[user] = self._devices.get(user, 0) + 1
        back = self._leaving.pop(user, None)
        if back is not None:
            back.scope.cancel()
        known = back is not None and not back.unknown and back.member.metadata == member.metadata
        for (name, _), leaving in self._leaving.items():
            if name == group:
                leaving.unknown = True
        if devices == 1 and not known:
            await self.receiver.deliver_presence(PresenceEvent("presence.join", group, member))

    def leave(self, group: str, member: Member) -> None:
        """See `Broker.leave`."""
        here = self._present.get(group, {})
        if here.pop(member.id, None) is None:
            return
        if not here:
            del self._present[group]
        user = (group, member.user)
        self._devices[user] -= 1
        if not self._devices[user]:
            del self._devices[user]
            deadline = trio.current_time() + self.presence_grace
            leaving = self._leaving[user] = _Leaving(member, trio.CancelScope(deadline=deadline))
            trio.lowlevel.spawn_system_task(self._tell_later, group, member, leaving)

    async def _tell_later(self, group: str, member: Member, leaving: _Leaving) -> None:
        with leaving.scope:
            await trio.sleep_forever()
        if self._leaving.get((group, member.user)) is leaving:
            del self._leaving[group, member.user]
            await self.receiver.deliver_presence(PresenceEvent("presence.leave", group, member))

    async def members(self, group: str) -> tuple[Member, ...]:
        """See `Broker.members`."""
        await trio.lowlevel.checkpoint()
        return tuple(self._present.get(group, {}).values())
