"""The engine of a single process: everything in memory, everything bounded."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque

import trio
from attrs import define, field

from nexios_trio.brokers.base import Draft, History, Member, Message, Position, PresenceEvent, Receiver
from nexios_trio.config import HistoryLimits

__all__ = ["MemoryBroker"]


@define
class _Kept:
    message: Message
    size: int
    at: float


@define
class _Log:
    """The numbering and the ring of one group."""

    epoch: str = field(factory=lambda: secrets.token_urlsafe(9))
    offset: int = 0
    ring: deque[_Kept] = field(factory=deque)
    size: int = 0
    used: float = 0.0


class MemoryBroker:
    """See `nexios_trio.brokers.base.Broker`. Rings are bounded in messages, bytes and age, and so is
    their number; a group that is forgotten for want of room starts again with a new epoch.
    """

    def __init__(self, limits: HistoryLimits | None = None, *, presence_grace: float = 2.0) -> None:
        self.limits = limits or HistoryLimits()
        self.presence_grace = presence_grace
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        self._present: dict[str, dict[str, Member]] = {}
        self._leaving: dict[tuple[str, str], trio.CancelScope] = {}
        self._receiver: Receiver | None = None

    def attach(self, receiver: Receiver) -> None:
        """See `Broker.attach`."""
        self._receiver = receiver

    @property
    def receiver(self) -> Receiver:
        """The node."""
        assert self._receiver is not None, "attach() comes first"
        return self._receiver

    # Messages

    async def publish(self, group: str, draft: Draft, *, keep: bool) -> Message:
        """See `Broker.publish`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        log = self._log(group)
        if keep:
            log.offset += 1
        message = Message(
            group,
            log.epoch,
            log.offset if keep else None,
            draft.kind,
            draft.data,
            time.time(),
            draft.sender,
            draft.id or secrets.token_hex(16),
            draft.exclude,
        )
        if keep:
            log.ring.append(_Kept(message, len(draft.data), trio.current_time()))
            log.size += len(draft.data)
            self._trim(log)
        await self.receiver.deliver(message)
        return message

    def _log(self, group: str) -> _Log:
        log = self._logs.get(group)
        if log is None:
            while len(self._logs) >= self.limits.groups:
                self._logs.popitem(last=False)
            log = self._logs[group] = _Log()
        else:
            self._logs.move_to_end(group)
        return log

    def _trim(self, log: _Log) -> None:
        ring, limits = log.ring, self.limits
        oldest = trio.current_time() - limits.age
        while ring and (len(ring) > limits.messages or log.size > limits.bytes or ring[0].at < oldest):
            log.size -= ring.popleft().size

    async def subscribe(self, group: str) -> None:
        """See `Broker.subscribe`; a single node gets all there is."""
        await trio.lowlevel.checkpoint()

    async def unsubscribe(self, group: str) -> None:
        """See `Broker.unsubscribe`."""
        await trio.lowlevel.checkpoint()

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        """See `Broker.history`."""
        await trio.lowlevel.checkpoint()
        log = self._log(group)
        self._trim(log)
        kept = [entry.message for entry in log.ring]
        complete = True
        if since is not None:
            first = kept[0].offset if kept else log.offset + 1
            assert first is not None
            complete = since.epoch == log.epoch and first - 1 <= since.offset <= log.offset
            if complete:
                kept = [message for message in kept if (message.offset or 0) > since.offset]
        if limit is not None:
            kept = kept[-limit:] if limit > 0 else []
        return History(tuple(kept), Position(log.epoch, log.offset), complete)

    async def forget(self, group: str | None = None) -> None:
        """See `Broker.forget`."""
        await trio.lowlevel.checkpoint()
        for name in list(self._logs) if group is None else [group]:
            if (log := self._logs.get(name)) is not None:
                log.ring.clear()
                log.size = 0

    # Presence

    async def enter(self, group: str, member: Member) -> None:
        """See `Broker.enter`."""
        await trio.lowlevel.checkpoint()
        here = self._present.setdefault(group, {})
        known = any(other.user == member.user for other in here.values())
        here[member.connection] = member
        flapped = self._leaving.pop((group, member.user), None)
        if flapped is not None:
            flapped.cancel()
        elif not known:
            await self.receiver.deliver_presence(PresenceEvent("presence.join", group, member))

    async def leave(self, group: str, member: Member) -> None:
        """See `Broker.leave`."""
        self.leave_nowait(group, member)
        await trio.lowlevel.checkpoint()

    def leave_nowait(self, group: str, member: Member) -> None:
        """As `leave`, at once: nothing here waits."""
        here = self._present.get(group, {})
        if here.pop(member.connection, None) is None:
            return
        if not here:
            del self._present[group]
        if not any(other.user == member.user for other in here.values()):
            scope = self._leaving[group, member.user] = trio.CancelScope(
                deadline=trio.current_time() + self.presence_grace
            )
            trio.lowlevel.spawn_system_task(self._tell_later, group, member, scope)

    async def _tell_later(self, group: str, member: Member, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_forever()
        if self._leaving.get((group, member.user)) is scope:
            del self._leaving[group, member.user]
            await self.receiver.deliver_presence(PresenceEvent("presence.leave", group, member))

    async def members(self, group: str) -> tuple[Member, ...]:
        """See `Broker.members`."""
        await trio.lowlevel.checkpoint()
        return tuple(self._present.get(group, {}).values())
