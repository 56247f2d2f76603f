"""Presence in Redis, as this node sees it: its own members and their leases, and sweeping up after others."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from nexios_trio.brokers.base import Member
from nexios_trio.brokers.redis.connection import Command
from nexios_trio.brokers.redis.link import Link
from nexios_trio.brokers.redis.parcels import MISFITS, decode_member, encode_member
from nexios_trio.brokers.redis.scripts import PRESENCE
from nexios_trio.brokers.redis.store import Store, milliseconds
from nexios_trio.exceptions import BrokerCommandError, BrokerError

__all__ = ["Presences"]

logger = logging.getLogger("nexios_trio.redis")

SWEEP: Final = 1.0
"""Seconds between sweeps, at most."""
AT_ONCE: Final = 200
"""Members renewed, or groups swept, by one command."""


class Presences:
    """``grace`` and ``lease`` are in seconds."""

    def __init__(self, link: Link, store: Store, *, grace: float, lease: float) -> None:
        self._link = link
        self._store = store
        self._grace = grace
        self._lease = lease
        self._own: dict[str, dict[str, Member]] = {}
        self._due = trio.Event()
        self._due_at = math.inf

    def own(self, group: str) -> tuple[Member, ...]:
        """The members of this node, in the order of coming."""
        return tuple(self._own.get(group, {}).values())

    def _command(self, deed: str, *arguments: Any) -> Command:
        return (
            "EVALSHA",
            PRESENCE.sha,
            0,
            deed,
            self._store.keys.prefix,
            self._store.now(),
            milliseconds(self._lease),
            *arguments,
        )

    def _entering(self, group: str, member: Member) -> Command:
        return self._command("enter", group, member.id, encode_member(member), secrets.token_urlsafe(9))

    async def enter(
        self, group: str, member: Member, *, wait: Callable[..., Awaitable[Any]], alone: bool
    ) -> int:
        """See `Broker.enter`; ``alone``: Redis learns of it when it is back. Returns the number of the newest
        event of the group."""
        await trio.lowlevel.checkpoint_if_cancelled()
        command = self._entering(group, member)  # raises for what cannot be written, so before it is noted
        self._own.setdefault(group, {}).setdefault(member.id, member)
        if alone:
            await trio.lowlevel.checkpoint()
            return 0
        return int(await wait(*command))

    def leave(self, group: str, member: Member) -> None:
        """See `Broker.leave`."""
        here = self._own.get(group)
        if here is not None:
            here.pop(member.id, None)
            if not here:
                del self._own[group]
        # Even if it is none of ours: whoever was cancelled in `enter` does not know, nor do we.
        self._link.post(self._leaving(group, member))
        self._sweep_within(self._grace)

    def _leaving(self, group: str, member: Member) -> Command:
        grace = round(self._grace * 1000)
        return self._command("leave", group, member.id, grace)

    async def members(self, group: str, wait: Callable[..., Awaitable[Any]]) -> tuple[Member, ...]:
        """See `Broker.members`."""
        found: list[tuple[int, Member]] = []
        for entry in await wait(*self._store.reading_members(group)):
            order, _, text = entry.partition(b" ")
            with contextlib.suppress(*MISFITS):  # what others have put there is left out
                found.append((int(order), decode_member(text)))
        found.sort(key=lambda entry: entry[0])
        return tuple(member for _, member in found)

    async def end(self) -> None:
        """Take back all presences of this node, if Redis is there."""
        commands = [
            self._leaving(group, member) for group, here in self._own.items() for member in here.values()
        ]
        self._own.clear()
        if self._link.up and (commands or self._link.waiting):
            try:
                await self._link.pipeline([*commands, ("PING",)], timeout=1.0)
            except BrokerError:
                pass  # the leases end by themselves

    async def renew_now(self) -> None:
        """Renew the leases of this node's members once; who is missing there, enters again."""
        for group in [*self._own]:
            try:
                await self._renew_group(group)
            except BrokerCommandError as error:  # something is wrong with this one: the others go on
                logger.warning("presences in group %r could not be renewed: %s", group, error)
            except BrokerError as error:
                logger.warning("presences could not be renewed: %s", error)
                return

    async def _renew_group(self, group: str) -> None:
        ids = [*self._own.get(group, {})]
        for start in range(0, len(ids), AT_ONCE):
            missing = await self._link.call(*self._command("refresh", group, *ids[start : start + AT_ONCE]))
            gone = {name.decode() for name in missing}
            here = self._own.get(group, {})
            entering = [self._entering(group, member) for name, member in here.items() if name in gone]
            if entering:
                await self._link.pipeline(entering)

    # Sweeping

    def _sweep_within(self, seconds: float) -> None:
        at = trio.current_time() + seconds
        if at < self._due_at:
            self._due_at = at
            self._due.set()

    async def sweep(self) -> None:
        """Tell of leaves when their grace has ended, and of members whose nodes have died; until cancelled.

        Every node does it. The one that comes first tells; to the others nothing is due any more.
        """
        chance = random.Random()  # noqa: S311 - no secret
        while True:
            pause = min(SWEEP, self._lease / 5) * chance.uniform(0.5, 1.0)
            self._due = trio.Event()
            with trio.move_on_at(min(self._due_at, trio.current_time() + pause)):
                await self._due.wait()
                continue
            self._due_at = math.inf
            try:
                wait = int(await self._link.call(*self._command("sweep", AT_ONCE))) / 1000
            except BrokerError:
                continue  # the link says so itself
            if wait >= 0:
                # Graces of clients that left here end on the dot; others' not at all nodes at the same time.
                self._sweep_within(wait + 0.002 + chance.uniform(0, wait / 10))
