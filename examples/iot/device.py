"""A device, or many of them, on trio-websocket: ``python -m examples.iot.device --devices 20``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Final

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, open_websocket_url

from examples.iot.frames import Ack, Action, FrameError, Heartbeat, Order, Result, Telemetry, pack, unpack
from examples.iot.tokens import Keys

BEAT: Final = 5.0  # seconds without telemetry, then a heartbeat
REMEMBERED: Final = 32  # commands, so that none is carried out twice
BOUNDS: Final = {Action.BLINK: (1, 60), Action.INTERVAL: (100, 60_000), Action.RESTART: (0, 0)}
logger = logging.getLogger("examples.iot.device")


@define
class Thermometer:
    """What a device does, without the network. ``clock`` gives seconds."""

    random: Random
    clock: Callable[[], float]
    interval: float = 1.0
    started: float = 0.0
    sequence: int = 0
    blinking_until: float = 0.0
    restarts: int = 0
    _base: float = 0.0
    _acks: OrderedDict[int, Ack] = field(factory=OrderedDict)

    def __attrs_post_init__(self) -> None:
        self.started = self.clock()
        self._base = self.random.uniform(17, 26)

    def measure(self) -> Telemetry:
        uptime = self.clock() - self.started
        wave = math.sin(uptime / 20 + self._base)
        frame = Telemetry(
            self.sequence,
            int(uptime),
            round(100 * (self._base + wave + self.random.gauss(0, 0.05))),
            round(100 * (50 - 8 * wave + self.random.gauss(0, 0.3))),
            max(2900, round(4150 - uptime / 10 + self.random.gauss(0, 4))),
        )
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF
        return frame

    def obey(self, order: Order) -> Ack:
        """Carry out a command once; what was carried out before is acknowledged again."""
        if (known := self._acks.get(order.command)) is not None:
            return known
        least, most = BOUNDS[order.action]
        result = Result.DONE if least <= order.argument <= most else Result.REFUSED
        if result is Result.DONE:
            match order.action:
                case Action.BLINK:
                    self.blinking_until = self.clock() + order.argument
                case Action.INTERVAL:
                    self.interval = order.argument / 1000
                case Action.RESTART:
                    self.restarts += 1
                    self.started, self.sequence, self.interval = self.clock(), 0, 1.0
        ack = self._acks[order.command] = Ack(order.command, result)
        if len(self._acks) > REMEMBERED:
            self._acks.popitem(last=False)
        return ack


class Restart(Exception):
    """The device goes away, and comes back."""


async def talk(ws: WebSocketConnection, thing: Thermometer, loss: float) -> None:
    """One connection: telemetry goes up, commands come down."""
    last_said = trio.current_time()
    told = trio.Event()

    async def measure() -> None:
        nonlocal last_said, told
        while True:
            told = trio.Event()
            await ws.send_message(pack(thing.measure()))
            last_said = trio.current_time()
            with trio.move_on_after(thing.interval):
                await told.wait()

    async def beat() -> None:
        nonlocal last_said
        while True:
            await trio.sleep_until(last_said + BEAT)
            if trio.current_time() >= last_said + BEAT:
                await ws.send_message(pack(Heartbeat(int(thing.clock() - thing.started))))
                last_said = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        nursery.start_soon(beat)
        while True:
            data = await ws.get_message()
            order = unpack(data.encode() if isinstance(data, str) else data)
            if not isinstance(order, Order):
                raise FrameError("a device takes orders only")
            if thing.random.random() < loss:
                continue  # as if the network had lost it
            restarts = thing.restarts
            await ws.send_message(pack(thing.obey(order)))
            told.set()
            if thing.restarts > restarts:
                raise Restart


async def live(name: str, token: str, url: str, thing: Thermometer, loss: float = 0.0) -> None:
    """Runs for good: connects, talks, and comes back after a pause that grows while it fails."""
    failures = 0
    headers = [(b"Authorization", b"Bearer " + token.encode())]
    while True:
        started = trio.current_time()
        try:
            async with open_websocket_url(url, extra_headers=headers, connect_timeout=10) as ws:
                await talk(ws, thing, loss)
        except* Restart:
            logger.info("%s restarts", name)
        except* (ConnectionClosed, HandshakeError, OSError, trio.TooSlowError) as problems:
            logger.info("%s: %r", name, problems.exceptions[0])
        failures = 0 if trio.current_time() - started > 10 else failures + 1
        await trio.sleep(min(30.0, 0.5 * 2.0**failures) * thing.random.uniform(0.5, 1))


async def run(options: argparse.Namespace) -> None:
    keys = Keys.from_environment()
    async with trio.open_nursery() as nursery:
        for number in range(1, options.devices + 1):
            name = f"{options.prefix}-{number:03}"
            random = Random(f"{options.seed} {name}")
            thing = Thermometer(random, trio.current_time, options.interval)
            nursery.start_soon(live, name, keys.token(name), options.url, thing, options.loss)
            await trio.sleep(0.01)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.iot.device", description="Simulated devices.")
    add = parser.add_argument
    add("--devices", type=int, default=1, help="how many (default: 1)")
    add("--url", default="ws://127.0.0.1:8000/devices", help="of the server's /devices")
    add("--prefix", default="d", help="of their names (default: d, as in d-001)")
    add("--interval", type=float, default=1.0, help="seconds between measurements (default: 1)")
    add("--loss", type=float, default=0.0, help="share of commands that get lost (default: 0)")
    add("--seed", default="", help="for the same figures each time")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("%d devices for %s; Ctrl-C ends them", options.devices, options.url)
    try:
        trio.run(run, options)
    except* KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
