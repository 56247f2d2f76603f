"""The binary messages between a device and the server: fixed layouts, big-endian, one frame per message.

=========  ====  =====================================================================================
frame      kind  fields after the kind byte
=========  ====  =====================================================================================
Telemetry  0x01  sequence u32 · uptime u32 (s) · temperature i16 (1/100 °C) · humidity u16 (1/100 %) ·
                 battery u16 (mV)
Heartbeat  0x02  uptime u32 (s)
Ack        0x03  command u32 · result u8 (0 done, 1 refused)
Order      0x10  command u32 · action u8 (1 blink, 2 interval, 3 restart) · argument i32
=========  ====  =====================================================================================

The first three go up, the last one goes down. A telemetry frame has 15 bytes; as JSON it would be about 90.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, TypeAlias

from attrs import astuple, frozen

from nexios_trio import PeerError

__all__ = [
    "Ack",
    "Action",
    "Frame",
    "FrameError",
    "Heartbeat",
    "Order",
    "Result",
    "Telemetry",
    "pack",
    "unpack",
]


class FrameError(PeerError):
    """Bytes that are no frame."""

    close_code = 1007


class Action(IntEnum):
    BLINK = 1
    """For ``argument`` seconds, 1 to 60."""
    INTERVAL = 2
    """Telemetry every ``argument`` milliseconds, 100 to 60000."""
    RESTART = 3


class Result(IntEnum):
    DONE = 0
    REFUSED = 1


@frozen
class Telemetry:
    sequence: int
    """Counts up by one; what is missing was lost."""
    uptime: int
    temperature: int
    humidity: int
    battery: int


@frozen
class Heartbeat:
    """Sent when there was nothing else to say for a while."""

    uptime: int


@frozen
class Ack:
    command: int
    result: Result


@frozen
class Order:
    command: int
    """Its number. A device that gets it twice carries it out once, and acknowledges it twice."""
    action: Action
    argument: int


Frame: TypeAlias = Telemetry | Heartbeat | Ack | Order

_LAYOUTS: Final[dict[int, tuple[type[Frame], struct.Struct]]] = {
    0x01: (Telemetry, struct.Struct("!BIIhHH")),
    0x02: (Heartbeat, struct.Struct("!BI")),
    0x03: (Ack, struct.Struct("!BIB")),
    0x10: (Order, struct.Struct("!BIBi")),
}
_KINDS: Final = {cls: (kind, layout) for kind, (cls, layout) in _LAYOUTS.items()}


def pack(frame: Frame) -> bytes:
    """The bytes of a frame. Raises `struct.error` for a number that does not fit its field."""
    kind, layout = _KINDS[type(frame)]
    return layout.pack(kind, *astuple(frame, recurse=False))


def unpack(data: bytes) -> Frame:
    """The frame in these bytes. Raises `FrameError`."""
    kind = data[0] if data else None
    found = _LAYOUTS.get(kind) if kind is not None else None
    if found is None:
        raise FrameError("no frame" if kind is None else f"unknown kind of frame 0x{kind:02x}")
    cls, layout = found
    if len(data) != layout.size:
        raise FrameError(f"expected {layout.size} bytes of {cls.__name__}, got {len(data)}")
    _, *fields = layout.unpack(data)
    try:
        match cls(*fields):
            case Ack(command, result):
                return Ack(command, Result(result))
            case Order(command, action, argument):
                return Order(command, Action(action), argument)
            case frame:
                return frame
    except ValueError as error:
        raise FrameError(f"{cls.__name__}: {error}") from None
