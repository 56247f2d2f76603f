"""The outbox of the fast lane: it only fills while the socket takes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from nexios_trio.config import Limits, Overflow
from nexios_trio.transports.outbox import Drops, Entry, Outbox

__all__ = ["DirectOutbox"]


class Sender(Protocol):
    """Who owns the socket."""

    unsent: int

    def send_now(self, entry: Entry) -> bool:
        """Send an entry at once, if nothing waits, here or in the outbox, and the connection is open; whether
        that was so. Never raises."""


class DirectOutbox(Outbox):
    """See the module. What it holds is taken out by `take_nowait` when the socket has room."""

    __slots__ = ("_sender", "send_now")

    send_now: Callable[[Entry], bool]

    def __init__(self, limits: Limits, sender: Sender) -> None:
        super().__init__(limits.outbox_messages, limits.outbox_bytes)
        self._sender = sender
        self.send_now = sender.send_now

    def offer(self, entry: Entry, overflow: Overflow, counters: Drops) -> bool:
        if self.send_now(entry):
            return True
        return super().offer(entry, overflow, counters)

    def put_nowait(self, entry: Entry) -> bool:
        if self.send_now(entry):
            return True
        return super().put_nowait(entry)

    async def wait_sent(self) -> None:
        while not self._thrown_away and (self._entries or self._sender.unsent):
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
