"""When to ping, and when to give up: decisions only. Time is an argument, in seconds."""

from __future__ import annotations

import math
from enum import Enum

from attrs import define, field

from nexios_trio.config import ConnectionSettings

__all__ = ["Beat", "Pulse"]


class Beat(Enum):
    """What is due."""

    NOTHING = "nothing"
    PING = "ping"
    """Send the application ping now."""
    DEAD = "dead"
    """The peer did not answer in time."""
    IDLE = "idle"
    """The peer has been silent for ``idle_timeout`` although it may be alive."""


@define
class Pulse:
    """The silence of one peer. Ask `check` whenever ``due`` has come."""

    interval: float
    timeout: float
    idle_timeout: float
    heard: float
    """When the last message came (or the connection opened)."""
    pinged: float | None = field(default=None, init=False)
    """When the unanswered ping went out."""

    @classmethod
    def of(cls, settings: ConnectionSettings, now: float) -> Pulse | None:
        """The pulse that these settings ask for; None if they ask for no timer."""
        heartbeat = settings.heartbeat
        interval = timeout = math.inf
        if heartbeat is not None and heartbeat.message is not None:
            interval, timeout = heartbeat.interval, heartbeat.timeout
        if interval == math.inf and settings.idle_timeout == math.inf:
            return None
        return cls(interval, timeout, settings.idle_timeout, now)

    @property
    def due(self) -> float:
        """When to call `check` next."""
        next_beat = self.heard + self.interval if self.pinged is None else self.pinged + self.timeout
        return min(next_beat, self.heard + self.idle_timeout)

    def check(self, now: float, heard: float) -> Beat:
        """What is due at ``now``, the last message having come at ``heard``."""
        if heard > self.heard:
            self.heard = heard
            self.pinged = None
        if now >= self.heard + self.idle_timeout:
            return Beat.IDLE
        if self.pinged is not None:
            return Beat.DEAD if now >= self.pinged + self.timeout else Beat.NOTHING
        if now >= self.heard + self.interval:
            self.pinged = now
            return Beat.PING
        return Beat.NOTHING
