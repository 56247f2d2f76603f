"""The subscriber connection: all channels and patterns of this node, subscribed anew after each loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

import hiredis
import trio

from nexios_trio.brokers.redis.address import Address
from nexios_trio.brokers.redis.connection import Command, Connection, judge, pack
from nexios_trio.brokers.redis.reconnect import Backoff, Kept
from nexios_trio.exceptions import BrokerError, BrokerUnavailable

__all__ = ["Key", "Listener", "Subscriber"]

CHUNK: Final = 512
"""Channels that one SUBSCRIBE takes."""
IDLE: Final = 5.0
"""Seconds of silence after which the server is asked whether it is there."""

Key: TypeAlias = tuple[str, bool]
"""A channel, or (True) a pattern of Redis."""


class Listener(Protocol):
    """Whom a subscriber tells what happens, in the order in which it happens on the connection."""

    async def came(self, key: Key, channel: str, data: bytes) -> None:
        """A message, by this subscription."""

    def subscribed(self, keys: Sequence[Key]) -> None:
        """From here on nothing of these is missed."""

    def lost(self) -> None:
        """From here on everything is missed, until `subscribed`."""


class Subscriber:
    """See the module. ``timeout`` in seconds: how long the server may be silent when it is asked.

    ``probe`` is a channel like those that will be subscribed to: if the user may not, it is found at once.
    """

    def __init__(
        self,
        address: Address,
        listener: Listener,
        *,
        timeout: float = 5.0,
        backoff: Backoff | None = None,
        probe: str = "nexios:{}",
    ) -> None:
        self.live: set[Key] = set()
        """What the server has acknowledged on this connection."""
        self._address = address
        self._listener = listener
        self._timeout = timeout
        self._probe: tuple[Command, ...] = (("SUBSCRIBE", probe), ("UNSUBSCRIBE", probe), ("PING",))
        self._wanted: dict[Key, None] = {}
        self._asked: dict[Key, int] = {}
        """SUBSCRIBEs, written or not, that are not acknowledged: only the last one counts."""
        self._commands: deque[tuple[bool, Key]] = deque()
        """(subscribe or not, what), to be written."""
        self._arrived = trio.Event()
        self._heard = -math.inf
        self._pinged_at: float | None = None
        """When the server was asked whether it is there; None: it is."""
        self._kept = Kept(address, "subscriber", self._serve, self._lost, timeout=timeout, backoff=backoff)

    @property
    def up(self) -> bool:
        """Whether there is a connection."""
        return self._kept.up

    @property
    def problem(self) -> BrokerError:
        """Why there was none the last time."""
        return self._kept.problem

    async def wait_tried(self) -> None:
        """See `Kept.wait_tried`."""
        await self._kept.wait_tried()

    def add(self, key: Key) -> None:
        """Subscribe, if it is not: `Listener.subscribed` follows, and again after each reconnect."""
        if key not in self._wanted:
            self._wanted[key] = None
            self._command(True, key)

    def discard(self, key: Key) -> None:
        """Take it back; harmless if it is not there."""
        if key in self._wanted:
            del self._wanted[key]
            self._command(False, key)

    def _command(self, wanted: bool, key: Key) -> None:
        if self.up:
            self._commands.append((wanted, key))
            if wanted:
                self._asked[key] = self._asked.get(key, 0) + 1
            self._arrived.set()

    def reset(self) -> None:
        """Forget a former `run`; what is wanted stays."""
        self._kept.reset()
        self.live.clear()
        self._asked.clear()
        self._commands.clear()
        self._listener.lost()

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        await self._kept.run()

    def _lost(self, _problem: BrokerError) -> None:
        self.live.clear()
        self._asked.clear()
        self._commands.clear()
        self._listener.lost()

    async def _serve(self, connection: Connection) -> None:
        # The first two are answered by pushes, or by an error, which then stands before the PONG.
        (reply, *_) = await connection.ask(self._probe, needed=1, timeout=self._timeout)
        if isinstance(reply, hiredis.ReplyError):
            raise judge(connection.where, reply)
        self._heard = trio.current_time()
        self._pinged_at = None
        self._kept.usable()
        for key in self._wanted:
            self._command(True, key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, connection)
            nursery.start_soon(self._watch)
            await self._read(connection)

    async def _write(self, connection: Connection) -> None:
        while True:
            if self._commands:
                await connection.send(self._next_command())
            elif self._pinged_at is None and trio.current_time() - self._heard > IDLE:
                self._pinged_at = trio.current_time()
                await connection.send(pack("PING"))
            else:
                self._arrived = trio.Event()
                await self._arrived.wait()

    def _next_command(self) -> bytes:
        wanted, (_, pattern) = self._commands[0]
        names: list[str] = []
        while self._commands and len(names) < CHUNK:
            also, key = self._commands[0]
            if also != wanted or key[1] != pattern:
                break
            self._commands.popleft()
            names.append(key[0])
        return pack(("P" if pattern else "") + ("SUBSCRIBE" if wanted else "UNSUBSCRIBE"), *names)

    async def _read(self, connection: Connection) -> None:
        while True:
            replies = await connection.receive()
            self._heard = trio.current_time()
            self._pinged_at = None
            acknowledged: list[Key] = []
            for reply in replies:
                if isinstance(reply, hiredis.PushNotification):
                    kind = reply[0]
                    if kind == b"subscribe" or kind == b"psubscribe":
                        self._acknowledge((reply[1].decode(), kind == b"psubscribe"), acknowledged)
                        continue
                    if acknowledged:
                        self._listener.subscribed(acknowledged)
                        acknowledged = []
                    if kind == b"message":
                        channel = reply[1].decode()
                        await self._listener.came((channel, False), channel, reply[2])
                    elif kind == b"pmessage":
                        # A pattern also finds what is no text, and no channel of ours.
                        channel = reply[2].decode("utf-8", "backslashreplace")
                        await self._listener.came((reply[1].decode(), True), channel, reply[3])
                    elif kind == b"unsubscribe" or kind == b"punsubscribe":
                        self.live.discard((reply[1].decode(), kind == b"punsubscribe"))
                elif isinstance(reply, hiredis.ReplyError):
                    raise judge(connection.where, reply)
            if acknowledged:
                self._listener.subscribed(acknowledged)

    def _acknowledge(self, key: Key, acknowledged: list[Key]) -> None:
        left = self._asked.get(key, 0) - 1
        if left > 0:
            self._asked[key] = left
            return
        self._asked.pop(key, None)
        self.live.add(key)
        acknowledged.append(key)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(min(self._timeout, IDLE) / 4)
            now = trio.current_time()
            if self._pinged_at is not None and now - self._pinged_at > self._timeout:
                raise BrokerUnavailable(str(self._address), f"no answer within {self._timeout:g} s")
            if now - self._heard > IDLE:
                self._arrived.set()  # the writer asks
