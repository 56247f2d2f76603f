"""`RedisBroker`: the Protocol `Broker` on a Redis that several nodes share."""

from __future__ import annotations

import logging
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio
from attrs import evolve

from nexios_trio.brokers.base import Draft, History, Member, Message, Position, Receiver
from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.feed import Feed
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.presence import Presences
from nexios_trio.brokers.redis.quotas import RedisQuotas
from nexios_trio.brokers.redis.scripts import SETUP, Keys, escape
from nexios_trio.brokers.redis.settings import OnOutage, RedisSettings
from nexios_trio.brokers.redis.store import PAGE, Store
from nexios_trio.brokers.redis.subscriber import Key, Subscriber
from nexios_trio.brokers.redis.tracks import Page, Request, Track
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import (
    BrokerRefused,
    BrokerUnavailable,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)

__all__ = ["RedisBroker"]

logger = logging.getLogger("nexios_trio.redis")

IMPATIENT: Final = 1.0
"""Seconds that a call may take at most if the app does not want to wait for Redis: what is on its way when
the connection breaks is mostly answered over the next one by then."""
TOLD: Final = 1000
"""Messages delivered without Redis that are remembered, in case it has recorded them after all."""


class RedisBroker:
    """See `nexios_trio.brokers.base.Broker`.

    ``url``: ``redis://``, ``rediss://``, ``redis+unix://`` or ``redis+sentinel://``, see docs/scaling.md; its
    query holds settings, which keywords overrule. ``presence_grace`` is in seconds. ``tls`` is the context
    for ``rediss://``. ``clock`` gives POSIX time in place of Redis' own, for tests.

    Bounds: `HistoryLimits.messages`, ``bytes`` and ``age`` hold per group. ``groups`` does not: a group that
    is silent and unread for long goes by itself, and how many fit is a matter of Redis' memory.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1",
        limits: HistoryLimits | None = None,
        *,
        presence_grace: float = 2.0,
        prefix: str | None = None,
        on_outage: OnOutage | None = None,
        timeout: float | None = None,
        lease: float | None = None,
        check: float | None = None,
        once: float | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if isinstance(presence_grace, bool) or not isinstance(presence_grace, int | float):
            raise WrongTypeError(f"presence_grace is a number of seconds, not {presence_grace!r}")
        if not presence_grace >= 0:
            raise WrongValueError(f"presence_grace is 0 or more seconds, not {presence_grace!r}")
        self.address, query = Address.parse(url, tls=tls)
        self.settings = RedisSettings.of(
            query,
            prefix=prefix,
            on_outage=on_outage,
            timeout=timeout,
            lease=lease,
            check=check,
            once=once,
        )
        self.limits = limits or HistoryLimits()
        keys = Keys.of(self.settings.prefix, self.address.database)
        self.store = Store(keys, self.limits, self.settings.once, clock)
        self.link = Link(self.address, timeout=self.settings.timeout, setup=SETUP)
        self.feed = Feed(keys, self._read, check_every=self.settings.check)
        self.subscriber = Subscriber(
            self.address, self.feed, timeout=self.settings.timeout, probe=keys.channel("")
        )
        self.presences = Presences(self.link, self.store, grace=presence_grace, lease=self.settings.lease)
        self.quotas = RedisQuotas(self.link, self.store, lease=self.settings.lease)
        """See `Broker.quotas`."""
        self._serving = False
        wait = self.settings.on_outage == "wait"
        self._limit = self.settings.timeout if wait else min(self.settings.timeout, IMPATIENT)

    def __repr__(self) -> str:
        return f"<RedisBroker {self.address} prefix={self.settings.prefix!r}>"

    def attach(self, receiver: Receiver) -> None:
        """See `Broker.attach`."""
        self.feed.receiver = receiver

    @property
    def shared(self) -> bool:
        """See `Broker.shared`: always."""
        return True

    @property
    def available(self) -> bool:
        """See `Broker.available`."""
        return self.link.up and self.subscriber.up

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """See `Broker.serving`. Raises `BrokerRefused` at the start if trying again will not help. If Redis
        is away, the app starts without and this goes on trying."""
        if self._serving:
            raise WrongStateError("this RedisBroker serves an app already; make one for each app")
        self._serving = True
        self.store.node = secrets.token_urlsafe(6)  # two processes may be copies of one
        self.link.reset()
        self.subscriber.reset()
        self.quotas.reset()
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                for task in (
                    self.link.run,
                    self.subscriber.run,
                    self.feed.fill,
                    self.feed.check,
                    self._renew,
                    self.quotas.run,
                    self.quotas.tell_again,
                    self.presences.sweep,
                ):
                    nursery.start_soon(task)
                try:
                    await self._start()
                    yield
                except (Exception, KeyboardInterrupt, SystemExit) as error:  # goes on as it is, in no group
                    failure = error
                finally:
                    with trio.move_on_after(1.0, shield=True):
                        await self.presences.end()
                    nursery.cancel_scope.cancel()
        finally:
            self._serving = False
        if failure is not None:
            raise failure

    async def _start(self) -> None:
        with trio.move_on_after(self.settings.timeout):
            await self.link.wait_tried()
            await self.subscriber.wait_tried()
        if not self.available:
            logger.error(
                "Redis is not there: %s; the app starts without it (on_outage=%r) and goes on trying",
                self.link.problem,
                self.settings.on_outage,
            )

    async def _renew(self) -> None:
        """Renew the leases of what this node holds, until cancelled; what is missing there, is put there."""
        chance = random.Random()  # noqa: S311 - no secret
        while True:
            with trio.move_on_after(self.settings.lease * chance.uniform(0.3, 0.4)):
                await self.link.wait_up_again()  # what it knew of us may be gone
            await self.presences.renew_now()
            await self.quotas.renew_now()

    # Outages

    async def _call(self, *command: Any) -> Any:
        self._check_up()
        return await self.link.call(*command, timeout=self._limit)

    def _check_up(self) -> None:
        if self.settings.on_outage != "wait" and not self.link.up:
            raise BrokerUnavailable(
                str(self.address), f"is away: {self.link.problem.problem}"
            ) from self.link.problem

    @property
    def _alone(self) -> bool:
        """Whether to go on without Redis now."""
        return self.settings.on_outage == "local" and not self.link.up

    # Messages

    async def publish(self, group: str, draft: Draft, *, keep: bool) -> Message:
        """See `Broker.publish`. By ``on_outage="local"`` the message may have no position although it was to
        be kept: then only this node has it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not draft.id:
            draft = evolve(draft, id=secrets.token_hex(16))
        if self._alone:
            return await self._publish_alone(group, draft, "")
        publishing = self.store.publishing(group, draft, keep=keep)
        nonce = publishing.nonce
        handed_on: trio.Event | None = None
        if self.feed.matches(group) and (keep or self.subscriber.up):
            handed_on = trio.Event()
            self.feed.own[nonce] = (handed_on, keep, group)
        try:
            try:
                reply = await self._call(*publishing.command)
            except BrokerUnavailable as error:
                if self.settings.on_outage != "local":
                    raise
                return await self._publish_alone(group, draft, nonce if error.uncertain else "")
            message, fresh = self.store.published(group, publishing, reply)
            if handed_on is not None and fresh and message.nonce == nonce and not handed_on.is_set():
                with trio.move_on_after(self.settings.timeout):
                    await handed_on.wait()
            return message
        finally:
            self.feed.own.pop(nonce, None)

    async def _publish_alone(self, group: str, draft: Draft, nonce: str) -> Message:
        if nonce:
            self.feed.told[nonce] = None
            if len(self.feed.told) > TOLD:
                self.feed.told.popitem(last=False)
        now = time.time() if self.store.clock is None else self.store.clock()
        message = Message(group, "", None, draft.kind, draft.data, now, draft.sender, draft.id, draft.exclude)
        assert self.feed.receiver is not None
        await self.feed.receiver.deliver(message)
        return message

    async def subscribe(self, group: str, *, pattern: bool = False) -> None:
        """See `Broker.subscribe`. A pattern finds groups as they send: what a group never heard of sends
        while the connection is lost, is not found."""
        track: Track | None = None
        ready: Callable[[], Awaitable[None]]
        if pattern:
            key = self.feed.follow_pattern(group)
            self.subscriber.add(key)
            ready = partial(self._wait_live, key)
        else:
            track = self.feed.follow(group)
            self.subscriber.add((self.store.keys.channel(group), False))
            ready = track.ready.wait
            if self._alone:
                track.promised = not track.ready.is_set()
                await trio.lowlevel.checkpoint()
                return
        self._check_up()
        with trio.move_on_after(self._limit):
            await ready()
            return
        problem = f"no subscription within {self._limit:g} s"
        cause = track.problem if track is not None else None
        if not self.link.up:
            cause = self.link.problem
        elif not self.subscriber.up or isinstance(self.subscriber.problem, BrokerRefused):
            cause = self.subscriber.problem
        if cause is not None:
            problem += f": {cause.problem}"
        raise BrokerUnavailable(str(self.address), problem) from cause

    async def _wait_live(self, key: Key) -> None:
        await trio.lowlevel.checkpoint()
        while key not in self.subscriber.live:
            await self.feed.changed()

    def unsubscribe(self, group: str, *, pattern: bool = False) -> None:
        """See `Broker.unsubscribe`."""
        if pattern:
            key = self.feed.unfollow_pattern(group)
            if key is not None:
                self.subscriber.discard(key)
        else:
            self.feed.unfollow(group)
            self.subscriber.discard((self.store.keys.channel(group), False))

    async def _read(self, requests: Sequence[Request]) -> list[Page]:
        commands = [self.store.asked(request) for request in requests]
        replies = iter(await self.link.pipeline([command for some in commands for command in some]))
        return [
            self.store.page(request.group, *(next(replies) for _ in some))
            for request, some in zip(requests, commands, strict=True)
        ]

    async def history(
        self, group: str, *, since: Position | None = None, limit: int | None = None
    ) -> History:
        """See `Broker.history`. By ``on_outage="local"``, while Redis is away: nothing, and not complete."""
        if self._alone:
            await trio.lowlevel.checkpoint()
            return History((), Position("-", 0), complete=since is None)
        if since is None:
            last = None if limit is None else max(limit, 0)
            reply = await self._call(*self.store.reading(group, last=last))
            page = self.store.page(group, reply)
            return History(
                tuple(message for message, _ in page.messages), Position(page.epoch, page.offset, page.nonce)
            )
        messages, position, complete = await self._since(group, since)
        if limit is not None:
            messages = messages[-limit:] if limit > 0 else []
        return History(tuple(messages), position, complete)

    async def _since(self, group: str, since: Position) -> tuple[list[Message], Position, bool]:
        """All after a position if they are kept; else all that are."""
        messages: list[Message] = []
        at = since
        while True:
            page = self.store.page(group, await self._call(*self.store.reading(group, since=at.offset)))
            end = Position(page.epoch, page.offset, page.nonce)
            if page.epoch != since.epoch or page.offset < at.offset:
                break
            if page.offset == at.offset and not page.messages:
                if page.nonce != at.nonce:
                    break
                return messages, end, True
            if not page.messages:
                break
            first, before = page.messages[0]
            if first.offset != at.offset + 1 or before != at.nonce:
                break
            messages += [message for message, _ in page.messages]
            if not page.more:
                return messages, end, True
            last = messages[-1].position
            assert last is not None
            at = last
        page = self.store.page(group, await self._call(*self.store.reading(group)))
        return [message for message, _ in page.messages], Position(page.epoch, page.offset, page.nonce), False

    async def forget(self, group: str | None = None) -> None:
        """See `Broker.forget`; of all groups one after the other."""
        channel = self.store.keys.channel
        if group is not None:
            await self._call(*self.store.forgetting(f"{channel(group)}:s"))
            return
        cursor: Any = 0
        pattern = f"{escape(self.store.keys.prefix)}{{*}}:s"
        while True:
            cursor, names = await self._call("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
            for name in names:
                await self._call(*self.store.forgetting(name))
            if int(cursor) == 0:
                return

    # Presence

    async def enter(self, group: str, member: Member) -> None:
        """See `Broker.enter`."""
        version = await self.presences.enter(group, member, wait=self._call, alone=self._alone)
        with trio.move_on_after(self.settings.timeout):
            await self.feed.wait_told(group, version)

    def leave(self, group: str, member: Member) -> None:
        """See `Broker.leave`."""
        self.presences.leave(group, member)

    async def members(self, group: str) -> tuple[Member, ...]:
        """See `Broker.members`. By ``on_outage="local"``, while Redis is away: those of this node."""
        if self._alone:
            await trio.lowlevel.checkpoint()
            return self.presences.own(group)
        return await self.presences.members(group, self._call)
