"""What travels between the server and an operator's page: JSON, told apart by the field ``type``.

What travels between the server and a device is in frames.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

State: TypeAlias = Literal["waiting", "done", "refused", "failed"]
ActionName: TypeAlias = Literal["blink", "interval", "restart"]


# From the operator


class Give(Struct, tag="give"):
    """Give a device a command."""

    device: Annotated[str, Meta(min_length=1, max_length=32)]
    action: ActionName
    argument: Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)] = 0


# To the operator


class DeviceRow(Struct, tag="device"):
    """What is known of a device. Times are Unix time in seconds; ``since`` is when it came or went."""

    id: str
    online: bool
    since: float
    heard: float
    uptime: int
    lost: int
    temperature: float | None
    humidity: float | None
    battery: float | None


class CommandRow(Struct, tag="command"):
    id: int
    device: str
    action: str
    argument: int
    state: State
    attempts: int
    at: float


class Snapshot(Struct, tag="fleet"):
    """First of all: everything. ``now`` is the server's clock."""

    now: float
    devices: list[DeviceRow]
    commands: list[CommandRow]


class Problem(Struct, tag="problem"):
    """A message of this operator was not taken, and why."""

    text: str


class Ping(Struct, tag="ping"):
    """The server is there, however quiet the devices are. Needs no answer."""
