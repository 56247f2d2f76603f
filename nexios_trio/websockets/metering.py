"""How received messages are held back, dropped or punished: what a rate limit looks like from here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import trio
from attrs import frozen

if TYPE_CHECKING:
    from nexios_trio.websockets.lifetime import Connection

__all__ = ["Action", "Intake", "Meter", "MeterFactory"]

Action: TypeAlias = Literal["delay", "drop", "close"]


class Meter(Protocol):
    """One rate limit as it holds for one connection."""

    action: Action
    typed: bool
    """Whether it has to know a message's type, and so looks at JSON messages once they are read."""

    def wait(self, size: int, kind: str | None, now: float) -> float:
        """Seconds until a message of ``size`` bytes and of this type may pass; `math.inf`: never."""

    def count(self, size: int, kind: str | None, now: float) -> None:
        """The message passes, and counts from now on."""


class MeterFactory(Protocol):
    """A rate limit that has not met a connection yet."""

    def meter(self, websocket: object) -> Meter:
        """As it holds for this connection."""


@frozen
class _Held:
    data: str | bytes
    until: float
    """When to ask again."""
    kind: str | None = None


class Intake:
    """The messages of one client, as fast as its rate limits let them through.

    Limits that need no type act where messages leave the inbox, so middleware sees what they let through;
    those that do act behind the middleware, where messages are read as JSON.
    """

    def __init__(self, connection: Connection) -> None:
        """Puts itself in front of the connection's inbox."""
        self._connection = connection
        self._take = connection.transport.take
        connection.transport.take = self.next
        self._plain: list[Meter] = []
        self._typed: list[Meter] = []
        self._held: _Held | None = None
        """Taken, and waiting; a cancelled `next` leaves it here."""
        self._held_for_type: _Held | None = None
        self._judged = False
        """Whether the message given out last has waited because of its type."""

    def add(self, meter: Meter) -> None:
        """Hold the client to one more limit."""
        (self._typed if meter.typed else self._plain).append(meter)

    async def next(self) -> str | bytes:
        """The next message. Raises `WebSocketDisconnect` if a limit closes the connection."""
        while True:
            held = self._held
            if held is not None:
                await self._wait_until(held.until)
                if self._held is not held:
                    continue
                self._held = None
            data = await self._take() if held is None else held.data
            wait = self._judge(self._plain, data, None, again=held is not None)
            if wait == 0:
                return data
            if wait is not None:
                self._held = _Held(data, trio.current_time() + wait)

    @property
    def holds(self) -> bool:
        """Whether `held` has a message."""
        return self._held_for_type is not None

    async def held(self) -> str | bytes:
        """The message that `passes` has kept, when its time has come; the next one, if the connection ends
        before. Cancelled, it is still kept."""
        while (held := self._held_for_type) is not None:
            await self._wait_until(held.until)
            wait = self._judge(self._typed, held.data, held.kind, again=True)
            self._held_for_type = None
            if wait == 0:
                self._judged = True
                return held.data
            if wait is not None:
                self._held_for_type = _Held(held.data, trio.current_time() + wait, held.kind)
        return await self.next()

    def passes(self, data: str | bytes, kind: str | None) -> bool:
        """Whether a message of this type may be handled now; if not, it was dropped, or is the next one that
        `held` gives."""
        judged, self._judged = self._judged, False
        if judged:
            return True
        wait = self._judge(self._typed, data, kind, again=False)
        if wait is not None and wait > 0:
            self._held_for_type = _Held(data, trio.current_time() + wait, kind)
        return wait == 0

    def taken(self) -> None:
        """A message was given out that nobody asks `passes` about."""
        self._judged = False

    def _judge(
        self, meters: list[Meter], data: str | bytes, kind: str | None, *, again: bool
    ) -> float | None:
        """Seconds after which to ask ``again``, None for a message that is dropped. It counts in all meters
        when it passes, and in none before: who leaves while he waits has taken nothing from those who share a
        limit with him."""
        if not meters:
            return 0.0
        size = len(data)
        if isinstance(data, str) and not data.isascii():
            size = len(data.encode("utf-8", "replace"))
        now, counts, longest = trio.current_time(), self._connection.counts, 0.0
        for meter in meters:
            wait = meter.wait(size, kind, now)
            if wait == math.inf or (wait > 0 and meter.action != "delay"):
                if meter.action != "drop":
                    counts["rate_limit.close"] += 1
                    self._close()
                longest = math.inf
                break
            longest = max(longest, wait)
        if longest == math.inf or (longest > 0 and self._over):
            # Once the connection is over nobody waits: or who leaves and comes back would be held to no rate.
            counts["rate_limit.drop"] += 1
            return None
        if longest == 0:
            for meter in meters:
                meter.count(size, kind, now)
        elif not again:
            counts["rate_limit.delay"] += 1
        return longest

    @property
    def _over(self) -> bool:
        return self._connection.transport.closure is not None

    def _close(self) -> None:
        self._connection.close_soon(1008, "rate limit exceeded")
        self._connection.transport.inbox.discard()
        closure = self._connection.transport.closure
        assert closure is not None
        raise closure.error()

    async def _wait_until(self, deadline: float) -> None:
        connection = self._connection
        connection.delayed = True
        with trio.CancelScope(deadline=deadline) as over:
            connection.at_end(over.cancel)
            try:
                await trio.sleep_forever()
            finally:
                connection.not_at_end(over.cancel)
                connection.delayed = False
