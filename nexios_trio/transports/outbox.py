"""What waits to be sent to one client: bounded, in order, emptied by one writer."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

import trio
from attrs import define
from trio.lowlevel import Abort, Task, current_task, reschedule

from nexios_trio.config import Overflow
from nexios_trio.types import Message

__all__ = ["Drops", "Entry", "Outbox"]


@define
class Drops:
    """What overflow rules have done, in messages."""

    dropped_oldest: int = 0
    dropped_newest: int = 0
    conflated: int = 0


class Entry:
    """One message in an outbox. The owner is whose messages it competes with: the name of its group."""

    __slots__ = ("frame", "key", "owner", "size")

    def __init__(self, frame: Message, size: int, owner: str = "", key: Hashable = None) -> None:
        self.frame = frame
        self.size = size
        self.owner = owner
        self.key = key


class Outbox:
    """A bounded queue of frames (ASGI messages, shared between all members that get them).

    Direct sends wait for room; group sends never wait, a rule says what goes when there is none.
    """

    __slots__ = (
        "_bytes",
        "_entries",
        "_idle",
        "_keyed",
        "_max_bytes",
        "_max_messages",
        "_room",
        "_turn",
        "_waiting",
        "_writer",
        "closed",
        "drops",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._keyed: dict[tuple[str, Hashable], Entry] = {}
        self._writer: Task | None = None
        self._room: trio.Event | None = None
        self._turn = trio.Lock()
        self._waiting = 0
        self._idle: trio.Event | None = None
        self.closed = False
        self.drops = Drops()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes (characters for text) waiting."""
        return self._bytes

    def _has_room(self, size: int) -> bool:
        return not self._entries or (
            len(self._entries) < self._max_messages and self._bytes + size <= self._max_bytes
        )

    async def put(self, entry: Entry) -> None:
        """Add an entry, waiting for room; waiting tasks go in the order in which they came.

        A checkpoint. Cancelled, nothing was added.
        """
        if not self._waiting and self._has_room(entry.size):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._append(entry)
            return
        self._waiting += 1
        try:
            async with self._turn:
                while not self.closed and not self._has_room(entry.size):
                    self._room = trio.Event()
                    await self._room.wait()
                self._append(entry)
        finally:
            self._waiting -= 1

    def offer(self, entry: Entry, overflow: Overflow, counters: Drops | None = None) -> bool:
        """Add an entry without waiting; returns False if the rule is to disconnect this client.

        What the rule does is counted here and in ``counters``. A conflated entry replaces the waiting one
        of its owner and key in its place.
        """
        entries = self._entries
        if self.closed:
            return True
        if entry.key is not None and (waiting := self._keyed.get((entry.owner, entry.key))) is not None:
            self._bytes += entry.size - waiting.size
            waiting.frame, waiting.size = entry.frame, entry.size
            self._count("conflated", counters)
            return True
        if entries and (len(entries) >= self._max_messages or self._bytes + entry.size > self._max_bytes):
            rule = overflow.rule
            if rule == "drop_newest":
                self._count("dropped_newest", counters)
                return True
            if rule not in ("drop_oldest", "conflate"):
                return False
            while not self._has_room(entry.size):
                oldest = next((waiting for waiting in entries if waiting.owner == entry.owner), None)
                if oldest is None:  # all that waits is not the group's own: direct sends, other groups
                    self._count("dropped_newest", counters)
                    return True
                entries.remove(oldest)
                self._forget(oldest)
                self._count("dropped_oldest", counters)
        self._append(entry)
        return True

    def _count(self, what: str, counters: Drops | None) -> None:
        setattr(self.drops, what, getattr(self.drops, what) + 1)
        if counters is not None:
            setattr(counters, what, getattr(counters, what) + 1)

    def _append(self, entry: Entry) -> None:
        if self.closed:
            return
        self._entries.append(entry)
        self._bytes += entry.size
        if entry.key is not None:
            self._keyed[entry.owner, entry.key] = entry
        if self._writer is not None:
            writer, self._writer = self._writer, None
            reschedule(writer)

    def _forget(self, entry: Entry) -> None:
        self._bytes -= entry.size
        if entry.key is not None:
            self._keyed.pop((entry.owner, entry.key), None)

    async def take(self) -> Message:
        """The next frame, for the writer; blocks while there is none."""
        while not self._entries:
            if self._idle is not None:
                self._idle.set()
                self._idle = None
            self._writer = current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        entry = self._entries.popleft()
        self._forget(entry)
        self._make_room()
        return entry.frame

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def _abort(self, _raise_cancel: Any) -> Abort:
        self._writer = None
        return Abort.SUCCEEDED

    async def wait_sent(self) -> None:
        """Block until the writer has sent everything and waits for more."""
        while not self.closed and (self._entries or self._writer is None):
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def close(self) -> None:
        """Throw everything away and take nothing more."""
        self.closed = True
        self._entries.clear()
        self._keyed.clear()
        self._bytes = 0
        self._make_room()
        if self._idle is not None:
            self._idle.set()
            self._idle = None
