"""What waits to be sent to one client: bounded, in order, emptied by one writer."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

import trio
from attrs import define
from trio.lowlevel import Abort, Task, current_task, reschedule

from nexios_trio.config import Overflow
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET
from nexios_trio.types import Message
from nexios_trio.wire.deflate import Deflate, encode_shared
from nexios_trio.wire.frames import encode_binary, encode_text

__all__ = ["Drops", "Entry", "Outbox"]


@define
class Drops:
    """What overflow rules have done, in messages."""

    dropped_oldest: int = 0
    """Taken out of an outbox again, for want of room."""
    dropped_newest: int = 0
    """Never put into an outbox, for want of room."""
    conflated: int = 0
    """Taken out of an outbox again, for a newer one of the same key."""


class Entry:
    """One message in an outbox. The owner is whose messages it competes with: the name of its group, or
    "" for direct sends. One without a key may be in many outboxes at once: it is never changed.
    """

    __slots__ = ("_compressed", "frame", "key", "made", "owner", "size")

    def __init__(self, frame: Message, size: int, owner: str = "", key: Hashable = None) -> None:
        self.frame = frame
        self.size = size
        self.owner = owner
        self.key = key
        self.made: bytes | None = None
        """What `wire` gives, once it was asked for."""
        self._compressed: dict[int, bytes] | None = None

    @property
    def data(self) -> str | bytes:
        """The message itself."""
        text = self.frame.get("text")
        data: str | bytes = self.frame["bytes"] if text is None else text
        return data

    def wire(self) -> bytes:
        """The frame as an uncompressed one of RFC 6455 from a server, the same for all who get it."""
        if self.made is None:
            text = self.frame.get("text")
            self.made = encode_binary(self.frame["bytes"]) if text is None else encode_text(text)
        return self.made

    def compressed(self, settings: Deflate, window_bits: int) -> bytes:
        """The same with permessage-deflate, for whose compression keeps no context (RFC 7692 §7.1.1.1)."""
        if self._compressed is None:
            self._compressed = {}
        frame = self._compressed.get(window_bits)
        if frame is None:
            text = self.frame.get("text")
            data = self.frame["bytes"] if text is None else text
            frame = self._compressed[window_bits] = encode_shared(data, settings, window_bits)
        return frame


class _Putter:
    """A task that waits for room."""

    __slots__ = ("entry", "taken", "task")

    def __init__(self, entry: Entry, task: Task) -> None:
        self.entry = entry
        self.task = task
        self.taken = False


class Outbox:
    """A bounded queue of frames (ASGI messages, shared between all members that get them).

    It has room while it holds less than ``max_messages`` and less than ``max_bytes`` (characters for
    text): as in the inbox, the message that crosses the bound in bytes is still taken. Direct sends wait
    for room; group sends never wait, a rule says what goes when there is none.
    """

    __slots__ = (
        "_bytes",
        "_entries",
        "_idle",
        "_keyed",
        "_max_bytes",
        "_max_messages",
        "_putters",
        "_streak",
        "_thrown_away",
        "_writer",
        "closed",
        "drops",
    )

    send_now: Callable[[Entry], bool] | None = None
    """Sends an entry past the outbox, if there is nothing to overtake; whether it did. None: no such way."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._keyed: dict[tuple[str, Hashable], Entry] = {}
        self._putters: OrderedDict[_Putter, None] = OrderedDict()
        """Never empty while there is room: whoever makes room lets them in."""
        self._writer: Task | None = None
        self._idle: trio.Event | None = None
        self._streak = 0
        self._thrown_away = False
        self.closed = False
        """Whether it takes nothing more."""
        self.drops = Drops()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes (characters for text) waiting."""
        return self._bytes

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self._entries) >= self._max_messages or self._bytes >= self._max_bytes

    # Putting in

    async def put(self, entry: Entry) -> bool:
        """Add an entry, waiting for room; waiting tasks go in the order in which they came.

        Returns False if it was not added, since the outbox is closed or was closed meanwhile. A checkpoint:
        checks for cancellation always, yields when it waits and at every 32nd call that did not. Cancelled,
        nothing was added.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.put_nowait(entry):
            self._streak += 1
            if self._streak >= CHECKPOINT_BUDGET:
                self._streak = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
            return True
        if self.closed:
            return False
        putter = _Putter(entry, current_task())
        self._putters[putter] = None

        def abort(_raise_cancel: Any) -> Abort:
            del self._putters[putter]
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return putter.taken

    def put_nowait(self, entry: Entry) -> bool:
        """Add an entry if there is room; returns whether there was."""
        if self.closed or self.full:
            return False
        self._append(entry)
        return True

    def offer(self, entry: Entry, overflow: Overflow, counters: Drops) -> bool:
        """Add an entry without waiting; returns whether it was taken.

        What the rule did is counted here and in ``counters``; nothing is, if it is to disconnect. An entry
        with a key replaces the waiting one of its owner and key, in its place if that is within the bounds.
        """
        if self.closed:
            return False
        entries = self._entries
        if entry.key is not None and self._conflate(entry, counters):
            return True
        if len(entries) >= self._max_messages or self._bytes >= self._max_bytes:
            if not self._make_room(entry, overflow, counters):
                return False
            self._append(entry)
            self._admit()
            return True
        entries.append(entry)
        self._bytes += entry.size
        if entry.key is not None:
            self._keyed[entry.owner, entry.key] = entry
        if self._writer is not None:
            writer, self._writer = self._writer, None
            reschedule(writer)
        return True

    def _conflate(self, entry: Entry, counters: Drops) -> bool:
        waiting = self._keyed.get((entry.owner, entry.key))
        if waiting is None:
            return False
        self.drops.conflated += 1
        counters.conflated += 1
        if self._bytes - waiting.size >= self._max_bytes:  # no room for what may be larger
            self._entries.remove(waiting)
            self._forget(waiting)
            return False
        self._bytes += entry.size - waiting.size
        waiting.frame, waiting.size = entry.frame, entry.size
        waiting.made, waiting._compressed = entry.made, entry._compressed
        self._admit()
        return True

    def _make_room(self, entry: Entry, overflow: Overflow, counters: Drops) -> bool:
        """Apply the rule of a full outbox; returns whether the entry has room now."""
        if overflow.rule not in ("drop_oldest", "drop_newest", "conflate"):
            return False
        entries = self._entries
        while self.full:
            oldest = None
            if overflow.rule != "drop_newest":
                oldest = next((i for i, waiting in enumerate(entries) if waiting.owner == entry.owner), None)
            if oldest is None:  # by the rule, or all that waits is direct sends and other groups'
                self.drops.dropped_newest += 1
                counters.dropped_newest += 1
                self._admit()
                return False
            self._forget(entries[oldest])
            del entries[oldest]
            self.drops.dropped_oldest += 1
            counters.dropped_oldest += 1
        return True

    def _append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += entry.size
        if entry.key is not None:
            self._keyed[entry.owner, entry.key] = entry
        if self._writer is not None:
            writer, self._writer = self._writer, None
            reschedule(writer)

    def _forget(self, entry: Entry) -> None:
        self._bytes -= entry.size
        if entry.key is not None and self._keyed.get((entry.owner, entry.key)) is entry:
            del self._keyed[entry.owner, entry.key]

    def _admit(self) -> None:
        """Let in those who wait, in their order, as far as there is room."""
        while self._putters and not self.full:
            putter, _ = self._putters.popitem(last=False)
            putter.taken = True
            self._append(putter.entry)
            reschedule(putter.task)

    # Taking out

    def take_nowait(self) -> Entry | None:
        """The next entry; None if there is none. For a writer that is no task."""
        if not self._entries:
            if self._idle is not None:
                self._idle.set()
                self._idle = None
            return None
        entry = self._entries.popleft()
        self._forget(entry)
        if self._putters:
            self._admit()
        return entry

    async def take(self) -> Message:
        """The next frame, for the writer; blocks while there is none. Cancelled, it has taken nothing."""
        while not self._entries:
            if self._idle is not None:
                self._idle.set()
                self._idle = None
            self._writer = current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        entry = self._entries.popleft()
        self._forget(entry)
        if self._putters:
            self._admit()
        return entry.frame

    def _abort(self, _raise_cancel: Any) -> Abort:
        self._writer = None
        return Abort.SUCCEEDED

    async def wait_sent(self) -> None:
        """Block until the writer has sent everything and waits for more, or until `throw_away`."""
        while not self._thrown_away and (self._entries or self._writer is None):
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    # The end

    def close(self) -> None:
        """Take nothing more, also of those who wait for room; what is here can still be sent."""
        self.closed = True
        putters, self._putters = self._putters, OrderedDict()
        for putter in putters:
            reschedule(putter.task)

    def throw_away(self) -> None:
        """Close, and forget what is here."""
        self.close()
        self._thrown_away = True
        self._entries.clear()
        self._keyed.clear()
        self._bytes = 0
        if self._idle is not None:
            self._idle.set()
            self._idle = None
