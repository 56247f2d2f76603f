"""The devices, what they have said last, and the commands that are on their way to them. No I/O."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import define, field

from examples.iot.frames import Ack, Action, Frame, Heartbeat, Order, Result, Telemetry, pack
from examples.iot.protocol import CommandRow, DeviceRow, State
from nexios_trio import WebSocket, WebSocketException

MAX_DEVICES: Final = 1000  # that are remembered
MAX_WAITING: Final = 8  # commands of one device
KEPT: Final = 30  # commands that are over


@define(eq=False)
class Device:
    """One device, whether it is connected or not."""

    id: str
    ws: WebSocket | None = None
    """The connection, if it is online."""
    since: float = 0.0
    heard: float = 0.0
    telemetry: Telemetry | None = None
    uptime: int = 0
    lost: int = 0
    waiting: dict[int, Command] = field(factory=dict)

    def hear(self, frame: Frame, now: float) -> None:
        """Take note of what it says."""
        self.heard = now
        match frame:
            case Telemetry(sequence, uptime):
                if self.telemetry is not None and sequence > self.telemetry.sequence:
                    self.lost += sequence - self.telemetry.sequence - 1
                self.telemetry, self.uptime = frame, uptime
            case Heartbeat(uptime):
                self.uptime = uptime
            case Ack(command, result) if command in self.waiting:
                self.waiting[command].result = result
                self.waiting[command].acknowledged.set()

    def row(self) -> DeviceRow:
        said = self.telemetry
        return DeviceRow(
            id=self.id,
            online=self.ws is not None,
            since=self.since,
            heard=self.heard,
            uptime=self.uptime,
            lost=self.lost,
            temperature=None if said is None else said.temperature / 100,
            humidity=None if said is None else said.humidity / 100,
            battery=None if said is None else said.battery / 1000,
        )


@define(eq=False)
class Command:
    """An order that is being delivered, or was."""

    number: int
    device: str
    action: Action
    argument: int
    at: float
    attempts: int = 0
    state: State = "waiting"
    result: Result | None = None
    acknowledged: trio.Event = field(factory=trio.Event)

    def frame(self) -> bytes:
        return pack(Order(self.number, self.action, self.argument))

    def row(self) -> CommandRow:
        action = self.action.name.lower()
        return CommandRow(self.number, self.device, action, self.argument, self.state, self.attempts, self.at)


@define(eq=False)
class Fleet:
    """All devices of this process. Whoever changes something says so by `changed`."""

    now: Callable[[], float] = time.time
    devices: dict[str, Device] = field(factory=dict)
    over: deque[Command] = field(factory=lambda: deque(maxlen=KEPT))
    news: dict[Device | Command, None] = field(factory=dict)
    """What operators are to be told."""
    has_news: trio.Event = field(factory=trio.Event)
    # Not from 0: a device that outlives this process must not take a new command for an old one.
    _number: int = field(factory=lambda: secrets.randbits(31))

    def changed(self, what: Device | Command) -> None:
        self.news[what] = None
        self.has_news.set()

    def take_news(self) -> list[DeviceRow | CommandRow]:
        rows = [what.row() for what in self.news]
        self.news.clear()
        self.has_news = trio.Event()
        return rows

    def commands(self) -> list[Command]:
        """Those that are over, then those that wait."""
        return [*self.over, *(each for device in self.devices.values() for each in device.waiting.values())]

    @contextmanager
    def present(self, ws: WebSocket, name: str) -> Iterator[Device]:
        """The device is online for the length of the block, unless it comes by another connection meanwhile:
        then that one counts, and this one is closed."""
        device = self.devices.get(name)
        if device is None:
            self._make_room()
            device = self.devices[name] = Device(name)
        if device.ws is not None:
            ws.start_soon(device.ws.close, 4001, "replaced by a newer connection")
        else:
            device.since = self.now()
        device.ws, device.heard = ws, self.now()
        self.changed(device)
        try:
            yield device
        finally:
            if device.ws is ws:
                device.ws, device.since = None, self.now()
                self.changed(device)

    def _make_room(self) -> None:
        while len(self.devices) >= MAX_DEVICES:
            gone = [device for device in self.devices.values() if device.ws is None and not device.waiting]
            if not gone:
                raise WebSocketException(1013, "no place left, try again later")
            del self.devices[min(gone, key=lambda device: device.heard).id]

    def order(self, name: str, action: Action, argument: int) -> Command | str:
        """A command that waits to be delivered; or why there is none."""
        device = self.devices.get(name)
        if device is None:
            return f"there is no device {name!a}"
        if len(device.waiting) >= MAX_WAITING:
            return f"{MAX_WAITING} commands wait for {name} already"
        self._number = (self._number + 1) & 0xFFFFFFFF
        command = Command(self._number, name, action, argument, self.now())
        device.waiting[command.number] = command
        self.changed(command)
        return command

    def finish(self, command: Command) -> None:
        """It is over: by what the device said, or because it said nothing."""
        if command.result is None:
            command.state = "failed"
        else:
            command.state = "done" if command.result is Result.DONE else "refused"
        del self.devices[command.device].waiting[command.number]
        self.over.append(command)
        self.changed(command)
