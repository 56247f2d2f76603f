"""When to send a Ping, and when to give the peer up: decisions only. Time is an argument, in seconds."""

from __future__ import annotations

import math
from enum import Enum

from nexios_trio.config import Heartbeat

__all__ = ["Pings", "PingsDue"]


class PingsDue(Enum):
    """What `Pings.check` says."""

    NOTHING = "nothing"
    PING = "ping"
    DEAD = "dead"
    """Nothing has come for `Heartbeat.timeout` since a Ping went out."""


class Pings:
    """The Pings of one connection (RFC 6455 §5.5.2): one every ``interval``, answered by whatever comes."""

    __slots__ = ("_heartbeat", "_next", "_number", "_sent", "_unanswered", "latency")

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self._heartbeat = heartbeat
        self._next = now + heartbeat.interval
        self._unanswered = math.inf
        """When the first Ping went out that nothing has come after."""
        self._number = 0
        self._sent = math.inf
        self.latency: float | None = None
        """Seconds from the last answered Ping to its Pong; None: none was answered yet."""

    @property
    def due(self) -> float:
        """When to `check` next."""
        return min(self._next, self._unanswered + self._heartbeat.timeout)

    def check(self, now: float, heard: float, *, listening: bool) -> PingsDue:
        """What is due, the last bytes having come at ``heard``. While nobody is ``listening``, a silence is
        not the peer's."""
        if heard >= self._unanswered or not listening:
            self._unanswered = math.inf
        if now >= self._unanswered + self._heartbeat.timeout:
            self._unanswered = self._next = math.inf
            return PingsDue.DEAD
        if now < self._next:
            return PingsDue.NOTHING
        self._next = now + self._heartbeat.interval
        if listening:
            self._unanswered = min(self._unanswered, now)
        return PingsDue.PING

    def payload(self, now: float) -> bytes:
        """That of a Ping which goes out now."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._sent = now
        return self._number.to_bytes(4)

    def answered(self, payload: bytes, now: float) -> None:
        """A Pong came."""
        if payload == self._number.to_bytes(4) and self._sent <= now:
            self.latency = now - self._sent
            self._sent = math.inf
