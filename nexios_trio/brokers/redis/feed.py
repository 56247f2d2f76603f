"""What comes by the subscriber connection, made gapless: positions, holes, and how they are filled.

A group that this node follows has a `Track`: how far the receiver was told. A message with the next number
and the right predecessor goes on at once. Anything else puts the track *behind*: what comes is held back, the
history since the track's position is read, and either all of it is handed on, or the members are told to
resume. A reconnect puts all tracks behind.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import trio
from trio.lowlevel import ParkingLot

from nexios_trio.brokers.base import Receiver
from nexios_trio.brokers.redis.parcels import MISFITS, Event, decode_event, decode_message
from nexios_trio.brokers.redis.reconnect import Backoff
from nexios_trio.brokers.redis.scripts import Keys
from nexios_trio.brokers.redis.subscriber import Key
from nexios_trio.brokers.redis.tracks import Item, Page, Request, Track, follows, start_before
from nexios_trio.exceptions import BrokerCommandError, BrokerError

__all__ = ["Feed"]

logger = logging.getLogger("nexios_trio.redis")

FILL_AT_ONCE: Final = 64
"""Groups whose histories are read in one go."""
HELD: Final = 1000
"""Messages that a track holds back; beyond them the history is read once more."""
BY_PATTERN: Final = 10_000
"""Tracks of groups that came by a pattern only; the one heard of least recently goes."""
AGAIN: Final = 0.5
"""Seconds after which a history that Redis would not read is asked for again."""
REMEMBERED: Final = 10_000
"""Unkept messages that are known again if they come twice."""


class Feed:
    """The listener of a `Subscriber`; ``read`` gets pages of history and may raise `BrokerError`."""

    def __init__(
        self,
        keys: Keys,
        read: Callable[[Sequence[Request]], Awaitable[list[Page]]],
        *,
        check_every: float,
    ) -> None:
        self._keys = keys
        self._read = read
        self._check_every = check_every
        self.receiver: Receiver | None = None
        self.tracks: dict[str, Track] = {}
        self.patterns: dict[str, set[str]] = {}
        """Pattern of Redis: those of ours that it stands for."""
        self.live_patterns: dict[str, None] = {}
        self._by_pattern: OrderedDict[str, Track] = OrderedDict()
        self._behind: OrderedDict[str, Track] = OrderedDict()
        self._fell_behind = trio.Event()
        self._spoilt: list[Track] = []
        """Behind, and Redis will not read their histories now."""
        self._connection = 0
        """Counts subscriber connections that were lost."""
        self.own: dict[str, tuple[trio.Event, bool, str]] = {}
        """By nonce: a publish of this node that waits until it is handed on here; whether it is kept, and the
        group."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.told: OrderedDict[str, None] = OrderedDict()
        """Nonces of messages that this node got without Redis, and that may have been recorded after all."""
        self.gaps = 0
        """Tracks that fell behind while connected."""
        self.resyncs = 0
        self.garbage = 0
        self._changes = ParkingLot()

    async def wait_told(self, group: str, version: int) -> None:
        """Block until the receiver has the presence events up to this one, or will not get them for now."""
        while (track := self.tracks.get(group)) is not None:
            if not track.acknowledged or track.version >= version:
                return
            await track.changes.park()  # of its own: with one for all, ten thousand would wake each other

    async def changed(self) -> None:
        """Block until a subscription is acknowledged, or all are lost."""
        await self._changes.park()

    # Tracks

    def follow(self, group: str) -> Track:
        """A track of a group that is being subscribed to by its name."""
        track = self.tracks.get(group)
        if track is None:
            track = self._by_pattern.pop(group, None) or Track(group, exact=True)
            track.exact = True
            track.ready = trio.Event()
            self.tracks[group] = track
        return track

    def unfollow(self, group: str) -> None:
        """No longer by its name."""
        track = self.tracks.pop(group, None)
        if track is None:
            return
        track.changes.unpark_all()
        if self._first_match(group) is not None:
            track.exact = track.named = False
            self._by_pattern[group] = track
            if not track.acknowledged:
                track.acknowledged = True
                self._fall_behind(track)
            return
        self._behind.pop(group, None)
        self._settle_unheard()

    def follow_pattern(self, pattern: str) -> Key:
        """Whatever matches is handed on; returns what is to be subscribed to."""
        name = self._keys.pattern(pattern)
        self.patterns.setdefault(name, set()).add(pattern)
        return name, True

    def unfollow_pattern(self, pattern: str) -> Key | None:
        """The other way round; None if others still need it."""
        name = self._keys.pattern(pattern)
        ours = self.patterns.get(name, set())
        ours.discard(pattern)
        if not ours:
            self.patterns.pop(name, None)
            self.live_patterns.pop(name, None)
        for group in [group for group in self._by_pattern if self._first_match(group) is None]:
            del self._by_pattern[group]
        self._settle_unheard()
        return None if ours else (name, True)

    # Listener

    def subscribed(self, keys: Sequence[Key]) -> None:
        """See `Listener.subscribed`."""
        for name, pattern in keys:
            if pattern:
                self.live_patterns[name] = None
                continue
            track = self.tracks.get(self._keys.group(name))
            if track is not None:
                track.acknowledged = track.named = True
                self._fall_behind(track)
        if self.live_patterns:
            for track in self._by_pattern.values():
                if not track.acknowledged:
                    track.acknowledged = True
                    self._fall_behind(track)
        self._changes.unpark_all()

    def lost(self) -> None:
        """See `Listener.lost`."""
        self._connection += 1
        self.live_patterns.clear()
        for track in (*self.tracks.values(), *self._by_pattern.values()):
            track.acknowledged = track.named = False
            track.behind = True
            track.changes.unpark_all()
        self._behind.clear()
        self._changes.unpark_all()
        for nonce, (event, kept, _) in list(self.own.items()):
            if not kept:
                event.set()
                del self.own[nonce]

    async def came(self, key: Key, channel: str, data: bytes) -> None:
        """See `Listener.came`."""
        group = self._keys.group(channel)
        track = self.tracks.get(group)
        if key[1]:
            if track is not None and track.named:
                return  # it comes by its name as well
            if self._first_match(group) != key[0]:
                return
        try:
            item: Item = decode_event(group, data) if data[:1] == b"{" else decode_message(group, data)
        except MISFITS:
            if not self.garbage:
                logger.warning("what came on channel %r is no message of ours; said once", channel)
            self.garbage += 1
            return
        if track is None:
            if not key[1] and self._first_match(group) is None:
                return  # the subscription was just taken back
            track = self._pattern_track(group, item)
        elif not track.acknowledged and not track.epoch and not isinstance(item, Event):
            start_before(track, item)  # for whoever follows the pattern: nothing is skipped
        await self._take(track, item)

    def matches(self, group: str) -> bool:
        """Whether messages of this group come, and are handed on."""
        track = self.tracks.get(group)
        if track is not None:
            return track.ready.is_set()
        return self._first_match(group) is not None

    def _first_match(self, group: str) -> str | None:
        for name in self.live_patterns:
            if any(fnmatch.fnmatchcase(group, ours) for ours in self.patterns.get(name, ())):
                return name
        return None

    def _pattern_track(self, group: str, item: Item) -> Track:
        track = self._by_pattern.get(group)
        if track is None:
            track = Track(group, exact=False, acknowledged=True, behind=False)
            if not isinstance(item, Event):
                start_before(track, item)
            self._by_pattern[group] = track
            while len(self._by_pattern) > BY_PATTERN:
                gone, _ = self._by_pattern.popitem(last=False)
                self._behind.pop(gone, None)
        else:
            self._by_pattern.move_to_end(group)
        return track

    # One message or event

    async def _take(self, track: Track, item: Item) -> None:
        if track.behind:
            self._hold(track, item)
        elif self._fits(track, item):
            await self._hand_on(track, item)
        else:
            self.gaps += 1
            self._fall_behind(track)
            self._hold(track, item)

    def _hold(self, track: Track, item: Item) -> None:
        if len(track.held) < HELD:
            track.held.append(item)
        else:
            track.spilled = True

    def _fits(self, track: Track, item: Item) -> bool:
        """Whether it is the next one, or an old one, which `_hand_on` drops."""
        if isinstance(item, Event):
            if item.epoch != track.event_epoch:
                return not track.exact or (not track.event_epoch and item.version == 1)
            return item.version <= track.version + 1 or not track.exact
        message, before = item
        if message.offset is None:
            return True
        if message.epoch != track.epoch:
            return not track.epoch and not track.exact
        if message.offset == track.offset + 1:
            return before == track.nonce
        return message.offset < track.offset or (
            message.offset == track.offset and message.nonce == track.nonce
        )

    async def _hand_on(self, track: Track, item: Item) -> None:
        receiver = self.receiver
        assert receiver is not None
        if isinstance(item, Event):
            if item.epoch != track.event_epoch or item.version > track.version:
                track.event_epoch, track.version = item.epoch, item.version
                await receiver.deliver_presence(item.event)
                track.changes.unpark_all()
            return
        message = item[0]
        if message.offset is None:
            if message.nonce in self._seen:
                return
            self._seen[message.nonce] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        elif message.epoch == track.epoch and message.offset <= track.offset:
            self._settle_own(item)
            return
        else:
            track.epoch, track.offset, track.nonce = message.epoch, message.offset, message.nonce
        if message.nonce in self.told:
            del self.told[message.nonce]
        else:
            await receiver.deliver(message)
        self._settle_own(item)

    def _settle_own(self, item: Item) -> None:
        if self.own and not isinstance(item, Event):
            waiting = self.own.pop(item[0].nonce, None)
            if waiting is not None:
                waiting[0].set()

    def _settle_unheard(self) -> None:
        """What was sent to a group that is not followed any more does not come."""
        for nonce, (event, _, group) in list(self.own.items()):
            if group not in self.tracks and self._first_match(group) is None:
                event.set()
                del self.own[nonce]

    # Holes

    def _fall_behind(self, track: Track) -> None:
        track.behind = True
        self._behind[track.group] = track
        self._fell_behind.set()

    async def fill(self) -> None:
        """Fill holes as they are found, until cancelled."""
        backoff = Backoff()
        again = math.inf
        while True:
            if not self._behind:
                self._fell_behind = trio.Event()
                with trio.move_on_at(again):
                    await self._fell_behind.wait()
            if trio.current_time() >= again:
                again = math.inf
                for track in self._spoilt:
                    if track.behind and track.acknowledged and self._knows(track):
                        self._fall_behind(track)
                self._spoilt.clear()
            tracks = [*islice(self._behind.values(), FILL_AT_ONCE)]
            try:
                await self._fill_some(tracks)
            except BrokerError as error:
                logger.warning("the history of %d groups could not be read: %s", len(tracks), error)
                await trio.sleep(backoff.pause())
            else:
                backoff.reset()
            if self._spoilt and again == math.inf:
                again = trio.current_time() + AGAIN

    async def _fill_some(self, tracks: Sequence[Track]) -> None:
        """Read the histories of these; one that Redis will not read is put aside."""
        connection = self._connection
        requests = [
            Request(
                track.group,
                track.offset if track.epoch else None,
                track.version,
                track.event_epoch if track.exact else "",
            )
            for track in tracks
        ]
        try:
            pages = await self._read(requests)
        except BrokerCommandError as error:
            if len(tracks) > 1:  # find the one with which something is wrong
                for track in tracks:
                    await self._fill_some([track])
                return
            (track,) = tracks
            if track.problem is None:
                logger.warning("the history of group %r could not be read: %s", track.group, error)
            track.problem = error
            if self._behind.get(track.group) is track:
                del self._behind[track.group]
                self._spoilt.append(track)
            return
        if connection != self._connection:
            return  # it was read before the new subscription, so something may be missing in between
        for track, page in zip(tracks, pages, strict=True):
            track.problem = None
            if self._behind.get(track.group) is track and track.acknowledged:
                await self._catch_up(track, page)

    def _knows(self, track: Track) -> bool:
        return track in (self.tracks.get(track.group), self._by_pattern.get(track.group))

    async def _catch_up(self, track: Track, page: Page) -> None:
        track.spilled = False
        if not track.epoch:
            self._move_to_end(track, page)
            if track.promised:
                await self._resync(track)
        elif not follows(track, page):
            self._move_to_end(track, page)
            await self._resync(track)
        else:
            for message in page.messages:
                await self._hand_on(track, message)
            if not page.more and track.exact and not await self._catch_up_events(track, page):
                await self._resync(track)
        # Nobody else hands on messages of this track while it is behind.
        while track.held and not page.more:
            item = track.held.popleft()
            if not self._fits(track, item):
                if self._is_older(item, page):
                    self._settle_own(item)
                    continue
                track.held.appendleft(item)
                return  # still behind: the next look at the history finds what is missing
            await self._hand_on(track, item)
        if page.more or track.spilled:
            return
        if not track.acknowledged:
            return  # the connection was lost meanwhile
        track.behind = False
        if self._behind.get(track.group) is track:
            del self._behind[track.group]
        if track.named:
            track.promised = False
            track.ready.set()

    def _is_older(self, item: Item, page: Page) -> bool:
        """Whether something that was held back is of a numbering that has ended."""
        if isinstance(item, Event):
            return item.epoch != page.event_epoch
        return item[0].epoch != page.epoch

    def _move_to_end(self, track: Track, page: Page) -> None:
        track.epoch, track.offset, track.nonce = page.epoch, page.offset, page.nonce
        track.event_epoch, track.version = page.event_epoch, page.version
        track.changes.unpark_all()

    async def _catch_up_events(self, track: Track, page: Page) -> bool:
        if page.event_epoch != track.event_epoch:
            known = bool(track.event_epoch)
            complete = not known and len(page.events) == page.version
        else:
            missed = page.version - track.version
            complete = missed <= 0 or (
                len(page.events) >= missed and page.events[0].version <= track.version + 1
            )
        if complete:
            for event in page.events:
                await self._hand_on(track, event)
        track.event_epoch, track.version = page.event_epoch, page.version
        track.changes.unpark_all()
        return complete

    async def _resync(self, track: Track) -> None:
        self.resyncs += 1
        logger.warning("messages of group %r were lost; its members have to resume", track.group)
        for nonce, (event, _, group) in list(self.own.items()):
            if group == track.group:
                event.set()
                del self.own[nonce]
        assert self.receiver is not None
        await self.receiver.resync(track.group)

    # A lost last message shows no hole

    async def check(self) -> None:
        """Compare with the ends of all groups now and then, until cancelled."""
        chance = random.Random()  # noqa: S311 - no secret
        while True:
            await trio.sleep(self._check_every * chance.uniform(0.8, 1.2))
            tracks = [track for track in self.tracks.values() if not track.behind]
            for start in range(0, len(tracks), FILL_AT_ONCE):
                await self.check_now(tracks[start : start + FILL_AT_ONCE])

    async def check_now(self, tracks: Iterable[Track]) -> None:
        """Compare these; those that are not at the end fall behind."""
        chosen = list(tracks)
        before = [(track.epoch, track.offset, track.version) for track in chosen]
        try:
            pages = await self._read([Request(track.group, None, 0, "") for track in chosen])
        except BrokerCommandError:
            for track in chosen if len(chosen) > 1 else ():  # one of them is spoilt
                await self.check_now([track])
            return
        except BrokerError:
            return  # the links say so themselves
        for track, page, then in zip(chosen, pages, before, strict=True):
            if track.behind or then != (track.epoch, track.offset, track.version):
                continue
            if (page.epoch, page.offset, page.nonce) != (track.epoch, track.offset, track.nonce) or (
                (page.event_epoch, page.version) != (track.event_epoch, track.version)
            ):
                self._fall_behind(track)
