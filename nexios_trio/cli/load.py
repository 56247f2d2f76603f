"""The clients of ``nexios-trio bench``: `nexios_trio.wire` over Trio's streams."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from nexios_trio.cli.histogram import Histogram
from nexios_trio.cli.target import ConnectError, Target, open_stream, status_line
from nexios_trio.wire import ClientHandshake, Close, Connection, Event, Failure, HandshakeError, State

if TYPE_CHECKING:
    import ssl

    from nexios_trio.cli.target import Stream

__all__ = ["Load", "Plan", "run_load"]

DIALING: Final = 64
"""Handshakes under way at a time."""
CLOSING: Final = 2.0
"""Seconds that a server has to answer a Close frame."""
TICK: Final = 0.02
"""Seconds between two looks at how late a timer is."""
_CHUNK: Final = 1 << 16


@frozen
class Plan:
    """What is to be done."""

    target: Target
    context: ssl.SSLContext | None
    headers: list[tuple[bytes, bytes]]
    subprotocols: tuple[str, ...]
    timeout: float
    clients: int
    seconds: float
    message: str | bytes
    rate: float | None
    """Messages per second of all clients together; None: each sends when its answer has come."""


@define
class Load:
    """What has happened so far; changes while the load runs."""

    latencies: Histogram = field(factory=Histogram)
    connected: int = 0
    dialed: int = 0
    sent: int = 0
    others: int = 0
    """Answers that were not what had been sent."""
    unasked: int = 0
    """Messages that came while nothing was waited for."""
    problems: Counter[str] = field(factory=Counter)
    """Why clients could not connect, or lost their connection."""
    started: float = math.nan
    """When all were connected, on Trio's clock."""
    elapsed: float = 0.0
    """Seconds of sending."""
    cpu: float = 0.0
    """Seconds of CPU time of this process meanwhile."""
    lateness: Histogram = field(factory=Histogram)
    """By how much timers of this process ran late meanwhile: so much of a latency may be our own."""
    unanswered: list[float] = field(factory=list)
    """How long, in seconds, each message had been under way that had no answer at the end."""

    @property
    def answered(self) -> int:
        return self.latencies.count


@define(eq=False)
class _Client:
    """One connection."""

    plan: Plan
    load: Load
    stream: Stream
    connection: Connection
    trailing: bytes
    """What the server sent behind its answer to the handshake."""
    _asked: float | None = None
    """When the message that has no answer yet was due, on Trio's clock."""
    _whole: bool = True
    """No frame has been sent in part."""

    async def send(self, data: bytes) -> None:
        self._whole = False
        await self.stream.send_all(data)
        self._whole = True

    async def receive(self) -> None:
        """Wait for bytes of the server, and account for what they complete. Raises `_Lost`."""
        try:
            await self._digest(bytes(await self.stream.receive_some(_CHUNK)))
            if pongs := self.connection.data_to_send():
                await self.send(pongs)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise _Lost("the connection broke") from None

    async def _digest(self, data: bytes) -> None:
        # This may be thousands of Pings, and as many for each client: Trio itself looks at the clock after
        # the last of them.
        if trio.current_time() >= self.load.started + self.plan.seconds:
            await trio.sleep_forever()
        self.take(self.connection.receive_data(data) if data else self.connection.receive_eof())

    def take(self, events: list[Event]) -> None:
        """Messages are answers, one to one; those of them that nobody has asked for are counted."""
        for event in events:
            if isinstance(event, str | bytes):
                if self._asked is None:
                    self.load.unasked += 1
                    continue
                self.load.latencies.add(trio.current_time() - self._asked)
                self._asked = None
                if event != self.plan.message:
                    self.load.others += 1
            elif isinstance(event, Close):
                raise _Lost(f"closed by the server: {event.code} {event.reason}".rstrip())
            elif isinstance(event, Failure):
                raise _Lost(f"the server broke the protocol: {event.reason}")

    async def work(self, first: float) -> None:
        """Send and wait for the answer, from ``first`` on (Trio's clock), until cancelled or lost."""
        plan, load, connection = self.plan, self.load, self.connection
        period = None if plan.rate is None else load.connected / plan.rate
        encode = connection.encode_text if isinstance(plan.message, str) else connection.encode_binary
        due = first
        try:
            if self.trailing:
                await self._digest(self.trailing)
            await self._listen_until(first)
            while True:
                # With a rate, a message counts from when it was due: a server that stalls does not make the
                # measurement wait for it, and so look better.
                self._asked = due if period is not None else trio.current_time()
                load.sent += 1
                await self.send(encode(plan.message))  # type: ignore[arg-type]
                while self._asked is not None:
                    await self.receive()
                if period is not None:
                    due += period
                    await self._listen_until(due)
        except trio.BrokenResourceError:
            load.problems["the connection broke"] += 1
        except _Lost as lost:
            load.problems[str(lost)] += 1
        finally:
            if self._asked is not None:
                load.unanswered.append(trio.current_time() - self._asked)
                self._asked = None

    async def _listen_until(self, due: float) -> None:
        """Pings are answered meanwhile, and nothing piles up."""
        while trio.current_time() < due:
            with trio.move_on_at(due):
                await self.receive()

    async def close(self) -> None:
        """With 1000, if the stream is between two frames."""
        with trio.move_on_after(CLOSING, shield=True) as scope:
            try:
                if self._whole and (frame := self.connection.encode_close()):
                    await self.send(frame)
                    while data := await self.stream.receive_some(_CHUNK):
                        if trio.current_time() >= scope.deadline:  # as in `_digest`
                            break
                        self.connection.receive_data(bytes(data))  # answers that come now are not counted
                        if self.connection.state is State.CLOSED:
                            break
            except (_Lost, trio.BrokenResourceError):
                pass
        await trio.aclose_forcefully(self.stream)


class _Lost(Exception):
    """The server has ended the connection."""


async def run_load(plan: Plan, load: Load, stop: trio.Event) -> None:
    """Connect, send for ``plan.seconds`` or until ``stop``, close; what happens is in ``load``.

    Raises `ConnectError` if no client could connect.
    """
    clients: list[_Client] = []
    try:
        await _dial_all(plan, load, clients, stop)
        if not clients and load.problems:
            ((problem, _),) = load.problems.most_common(1)
            raise ConnectError(problem)
        load.started = trio.current_time()
        cpu = time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_at, load.started + plan.seconds, stop, nursery.cancel_scope)
            nursery.start_soon(_watch_timers, load.lateness)
            async with trio.open_nursery() as workers:
                for index, client in enumerate(clients):
                    # With a rate, one after the other and not all at once.
                    wait = 0.0 if plan.rate is None else index / plan.rate
                    workers.start_soon(client.work, load.started + wait)
            nursery.cancel_scope.cancel()  # all of them have been lost
        load.elapsed = trio.current_time() - load.started
        load.cpu = time.process_time() - cpu
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.close)


async def _end_at(deadline: float, stop: trio.Event, scope: trio.CancelScope) -> None:
    with trio.move_on_at(deadline):
        await stop.wait()
    scope.cancel()


async def _watch_timers(lateness: Histogram) -> None:
    while True:
        due = trio.current_time() + TICK
        await trio.sleep_until(due)
        lateness.add(max(trio.current_time() - due, 0.0))


async def _dial_all(plan: Plan, load: Load, clients: list[_Client], stop: trio.Event) -> None:
    limiter = trio.CapacityLimiter(DIALING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_at, math.inf, stop, nursery.cancel_scope)
        async with trio.open_nursery() as dialing:
            for _ in range(plan.clients):
                dialing.start_soon(_dial, plan, load, clients, limiter)
        nursery.cancel_scope.cancel()


async def _dial(plan: Plan, load: Load, clients: list[_Client], limiter: trio.CapacityLimiter) -> None:
    async with limiter:
        try:
            with trio.fail_after(plan.timeout):
                client = await _connect(plan, load)
        except ConnectError as error:
            load.problems[error.message] += 1
        except trio.TooSlowError:
            load.problems[f"no answer to the handshake within {plan.timeout:g} seconds"] += 1
        else:
            clients.append(client)
            load.connected += 1
        load.dialed += 1


async def _connect(plan: Plan, load: Load) -> _Client:
    stream = await open_stream(plan.target, plan.context)
    handshake = ClientHandshake(
        plan.target.authority,
        plan.target.resource,
        nonce=os.urandom(16),
        subprotocols=plan.subprotocols,
        headers=plan.headers,
    )
    try:
        await stream.send_all(handshake.request)
        response = None
        while response is None:
            data = bytes(await stream.receive_some(_CHUNK))
            if not data:
                raise ConnectError("the server closed the connection without an answer to the handshake")
            response = handshake.receive_data(data)
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, HandshakeError):
            raise ConnectError(_refusal(error)) from None
        if isinstance(error, trio.BrokenResourceError):
            raise ConnectError(f"the connection broke in the handshake: {error}") from None
        raise
    return _Client(plan, load, stream, Connection.client(lambda: os.urandom(4)), handshake.trailing)


def _refusal(error: HandshakeError) -> str:
    return error.reason if error.status in (0, 101) else f"refused: {status_line(error.status)}"
