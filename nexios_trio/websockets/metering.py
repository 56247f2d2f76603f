"""How received messages are held back, dropped or punished: what a rate limit looks like from here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import trio
from attrs import define, evolve, field, frozen

from nexios_trio.brokers.base import Charge, Quotas
from nexios_trio.exceptions import BrokerError, ConcurrentReceiveError

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

    def charges(self, size: int, kind: str | None) -> Sequence[Charge]:
        """What the message costs in buckets that servers share; nothing, if this limit is not shared."""


class MeterFactory(Protocol):
    """A rate limit that has not met a connection yet."""

    def meter(self, websocket: object) -> Meter:
        """As it holds for this connection."""


@frozen
class _Held:
    data: str | bytes
    until: float = -math.inf
    """When to ask again."""
    kind: str | None = None


@define(eq=False)
class _Stage:
    """Limits, and the message that waits for them."""

    meters: list[Meter] = field(factory=list)
    held: _Held | None = None
    """A call that is cancelled leaves it here."""


class Intake:
    """The messages of one client, as fast as its rate limits let them through.

    Limits that need no type act where messages leave the inbox, so middleware sees what they let through;
    those that do act behind the middleware, where messages are read as JSON.
    """

    def __init__(self, connection: Connection, quotas: Quotas | None) -> None:
        """Puts itself in front of the connection's inbox. ``quotas``: who keeps the buckets of limits that
        servers share; while they cannot be asked, a limit holds for this server alone."""
        self._connection = connection
        self._quotas = quotas
        self._take = connection.transport.take
        connection.transport.take = self.next
        self._plain, self._typed = _Stage(), _Stage()
        self._judged = False
        """Whether the message given out last has waited because of its type."""
        self._busy = False
        """Whether somebody waits for a message that is held."""

    def add(self, meter: Meter) -> None:
        """Hold the client to one more limit."""
        (self._typed if meter.typed else self._plain).meters.append(meter)

    async def next(self) -> str | bytes:
        """The next message. Raises `WebSocketDisconnect` if a limit closes the connection."""
        while True:
            held = self._plain.held
            again = held is not None
            if held is None:
                held = _Held(await self._take())
            if await self._admit(self._plain, held, again=again):
                return held.data

    @property
    def holds(self) -> bool:
        """Whether `held` has a message."""
        return self._typed.held is not None

    async def held(self) -> str | bytes:
        """The message that `passes` has kept, when its time has come; the next one, if the connection ends
        before. Cancelled, it is still kept."""
        while (held := self._typed.held) is not None:
            if await self._admit(self._typed, held, again=True):
                self._judged = True
                return held.data
        return await self.next()

    async def passes(self, data: str | bytes, kind: str | None) -> bool:
        """Whether a message of this type may be handled now; if not, it was dropped, or is the next one that
        `held` gives. Cancelled, it is that as well."""
        judged, self._judged = self._judged, False
        return judged or await self._admit(self._typed, _Held(data, kind=kind), again=False)

    def taken(self) -> None:
        """A message was given out that nobody asks `passes` about."""
        self._judged = False

    async def _admit(self, stage: _Stage, held: _Held, *, again: bool) -> bool:
        if self._busy:
            raise ConcurrentReceiveError
        self._busy, stage.held = True, held
        try:
            wait = await self._judge(stage.meters, held, again=again)
        except Exception:
            stage.held = None
            raise
        finally:
            self._busy = False
        stage.held = evolve(held, until=trio.current_time() + wait) if wait else None
        return wait == 0

    async def _judge(self, meters: list[Meter], held: _Held, *, again: bool) -> float | None:
        """Seconds after which to ask ``again``, None for a message that is dropped. It counts in all meters
        when it passes, and in none before: who leaves while he waits has taken nothing from those who share a
        limit with him."""
        if held.until > -math.inf:
            await self._wait_until(held.until)
        if not meters:
            return 0.0
        data = held.data
        size = len(data)
        if isinstance(data, str) and not data.isascii():
            size = len(data.encode("utf-8", "replace"))
        now = trio.current_time()
        wait = self._decide([(meter, meter.wait(size, held.kind, now)) for meter in meters], again=again)
        if wait != 0:
            return wait
        charges = [(meter, charge) for meter in meters for charge in meter.charges(size, held.kind)]
        if charges and self._quotas is not None:
            try:
                waits = await self._quotas.take([charge for _, charge in charges])
            except BrokerError:
                pass
            else:
                wait = self._decide(zip([meter for meter, _ in charges], waits, strict=True), again=again)
                if wait != 0:
                    return wait
        now = trio.current_time()
        for meter in meters:
            meter.count(size, held.kind, now)
        return 0.0

    def _decide(self, waits: Iterable[tuple[Meter, float]], *, again: bool) -> float | None:
        """As `_judge`, of what each meter says."""
        counts, longest = self._connection.counts, 0.0
        for meter, wait in waits:
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
        if longest > 0 and not again:
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
