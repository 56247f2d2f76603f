"""The command connection: many tasks share it, replies are matched in the order of the commands.

What was lost with a connection is sent again over the next one, in the same order and within its deadline.
So every command given to it has to be one that may be done twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import hiredis
import trio
from trio.lowlevel import ParkingLot

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.connection import Command, Connection, judge, pack
from nexios_trio.brokers.redis.deadlines import Call, Deadlines
from nexios_trio.brokers.redis.reconnect import Backoff, Kept
from nexios_trio.exceptions import BrokerError, BrokerUnavailable

__all__ = ["Link"]

WRITE: Final = 1 << 16
"""Bytes that one write takes together, about."""
MOST_CALLS: Final = 100_000
MOST_BYTES: Final = 1 << 26
"""Bounds on what waits, in calls and bytes; beyond them calls fail."""
IDLE: Final = 10.0
"""Seconds of silence after which the server is asked whether it is there."""


class Link:
    """See the module. ``timeout`` in seconds: what a command may take, waiting for a connection included.

    ``setup`` commands are done on each new connection before anything else. At most ``most_calls`` wait.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float = 5.0,
        setup: Iterable[Command] = (),
        backoff: Backoff | None = None,
        most_calls: int = MOST_CALLS,
    ) -> None:
        self.address = address
        self.most_calls = most_calls
        self.timeout = timeout
        self._setup = tuple(setup)
        self._queue: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        self._size = 0
        self._let_gone = 0
        """Calls that were let go since the queue was last looked through."""
        self.calls = 0
        """How many there were."""
        self._arrived = trio.Event()
        self._deadlines = Deadlines()
        self._came_up = ParkingLot()
        self._heard = -math.inf
        self._asked = math.inf
        """When the oldest command without a reply was sent; inf: there is none."""
        self._kept = Kept(address, "command", self._serve, self._lost, timeout=timeout, backoff=backoff)

    @property
    def up(self) -> bool:
        """Whether there is a connection that answers."""
        return self._kept.up

    @property
    def problem(self) -> BrokerError:
        """Why there was none the last time."""
        return self._kept.problem

    @property
    def waiting(self) -> int:
        """Calls that are not answered."""
        return len(self._queue) + len(self._sent)

    async def wait_tried(self) -> None:
        """See `Kept.wait_tried`."""
        await self._kept.wait_tried()

    async def wait_up_again(self) -> None:
        """Block until the next connection is made."""
        await self._came_up.park()

    # For callers

    async def call(self, *command: Any, timeout: float | None = None) -> Any:
        """Do one command; its reply. Raises as `pipeline`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        (reply,) = await self._replies(self._enqueue((command,)), timeout)
        return reply

    async def pipeline(self, commands: Iterable[Command], *, timeout: float | None = None) -> list[Any]:
        """Do commands one after the other, without waiting in between; their replies, in order.

        Takes effect in the order of the calls. A checkpoint; cancelled, they are done or not, and the link
        goes on. Raises `BrokerUnavailable` after ``timeout`` seconds (default: the link's), and
        `BrokerCommandError` or `BrokerRefused` for the first error among the replies.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        chosen = tuple(commands)
        if not chosen:
            await trio.lowlevel.checkpoint()
            return []
        return await self._replies(self._enqueue(chosen), timeout)

    def post(self, *commands: Command) -> None:
        """Do commands without waiting for them: as soon as there is a connection. Never blocks, never
        raises; if too much waits already, they are left out."""
        try:
            self._enqueue(commands)
        except BrokerUnavailable:
            pass

    def _enqueue(self, commands: tuple[Command, ...]) -> Call:
        data = pack(*commands[0]) if len(commands) == 1 else b"".join(pack(*each) for each in commands)
        if self.waiting >= self.most_calls or self._size + len(data) > MOST_BYTES:
            raise BrokerUnavailable(str(self.address), f"{self.waiting} commands wait for an answer already")
        call = Call(data, len(commands))
        self._size += len(data)
        self.calls += 1
        self._queue.append(call)
        self._arrived.set()
        return call

    def _let_go(self, call: Call) -> None:
        """Nobody waits for it any more. It keeps its place, for its replies if it was sent, but no room;
        and while nothing is sent, half of the places at most are kept so."""
        self._size -= len(call.data)
        call.data = b""
        self._let_gone += 1
        if self._let_gone > len(self._queue) // 2:
            self._let_gone = 0
            live = [waiting for waiting in self._queue if not waiting.dropped]
            self._queue.clear()  # the same one: `_write` holds on to it
            self._queue.extend(live)

    async def _replies(self, call: Call, timeout: float | None) -> list[Any]:
        limit = self.timeout if timeout is None else timeout
        try:
            await self._deadlines.wait(call, limit)
        finally:
            if call.dropped:
                self._let_go(call)
        if call.dropped:
            cause: BrokerError | None = None
            if trio.current_time() < call.deadline:
                problem = "the app, or the publisher, has ended"
            elif self.up:
                problem = f"no answer within {limit:g} s"
            else:
                problem, cause = f"down for {limit:g} s: {self.problem.problem}", self.problem
            raise BrokerUnavailable(str(self.address), problem, uncertain=call.sent) from cause
        for reply in call.replies:
            if isinstance(reply, hiredis.ReplyError):
                raise judge(str(self.address), reply)
        return call.replies

    # The connection

    def reset(self) -> None:
        """Forget a former `run`, and what it left undone."""
        self._kept.reset()
        self._queue.clear()
        self._sent.clear()
        self._size = 0

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deadlines.run)
            await self._kept.run()

    def _lost(self, _problem: BrokerError) -> None:
        again = [call for call in self._sent if not call.dropped]
        self._sent.clear()
        self._asked = math.inf
        for call in again:
            call.replies.clear()
        self._queue.extendleft(reversed(again))

    async def _serve(self, connection: Connection) -> None:
        for reply in await connection.ask(self._setup, timeout=self.timeout) if self._setup else ():
            if isinstance(reply, hiredis.ReplyError):
                raise judge(connection.where, reply)
        self._heard = trio.current_time()
        self._kept.usable()
        self._came_up.unpark_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, connection)
            nursery.start_soon(self._watch)
            await self._read(connection)

    async def _write(self, connection: Connection) -> None:
        queue, sent = self._queue, self._sent
        while True:
            batch: list[bytes] = []
            size = 0
            while queue and size < WRITE:
                call = queue.popleft()
                if call.dropped:
                    continue
                call.sent = True
                batch.append(call.data)
                size += len(call.data)
                if not sent:
                    self._asked = trio.current_time()
                sent.append(call)
            if batch:
                await connection.send(batch[0] if len(batch) == 1 else b"".join(batch))
            else:
                self._arrived = trio.Event()
                await self._arrived.wait()

    async def _read(self, connection: Connection) -> None:
        sent = self._sent
        while True:
            for reply in await connection.receive():
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if not sent:
                    raise BrokerUnavailable(connection.where, "answered what was not asked")
                call = sent[0]
                if isinstance(reply, hiredis.ReplyError):
                    self._look_at(connection, reply)
                call.replies.append(reply)
                if len(call.replies) == call.needed:
                    sent.popleft()
                    self._size -= len(call.data)
                    call.wake()
            self._heard = trio.current_time()
            self._asked = self._heard if sent else math.inf

    def _look_at(self, connection: Connection, reply: hiredis.ReplyError) -> None:
        """Some errors are about the server, not about the command: then all is done again, in order, over
        the next connection, which brings the scripts along."""
        if str(reply).startswith("NOSCRIPT"):
            raise BrokerUnavailable(connection.where, "has lost our scripts", uncertain=True)
        error = judge(connection.where, reply)
        if isinstance(error, BrokerUnavailable):
            raise error

    async def _watch(self) -> None:
        while True:
            await trio.sleep(min(self.timeout, IDLE) / 4)
            now = trio.current_time()
            if now - max(self._heard, self._asked) > self.timeout and self._sent:
                raise BrokerUnavailable(
                    str(self.address), f"no answer within {self.timeout:g} s", uncertain=True
                )
            if not self.waiting and now - self._heard > IDLE:
                self.post(("PING",))
