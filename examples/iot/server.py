"""The app: devices on one route, operators and their page on another."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from examples.common.pages import serve_page
from examples.iot.fleet import MAX_DEVICES, Command, Fleet
from examples.iot.frames import Action, FrameError, Order, unpack
from examples.iot.protocol import Give, Ping, Problem, Snapshot
from examples.iot.tokens import Keys
from nexios_trio import (
    BearerToken,
    FirstMessage,
    Heartbeat,
    Limits,
    NexiosApp,
    Overflow,
    PeerError,
    WebSocket,
    WebSocketException,
    rate_limit,
)

SILENCE: Final = 15.0  # seconds; a device says something every 5 s
ACK_WITHIN: Final = 2.0  # seconds
ATTEMPTS: Final = 3
NEWS_EVERY: Final = 0.2  # seconds: a device that talks fast is told of no faster
OPERATORS: Final = "operators"
keys: Final = Keys.from_environment()
logger = logging.getLogger("examples.iot")


@asynccontextmanager
async def lifespan(_app: NexiosApp) -> AsyncIterator[dict[str, Fleet]]:
    app.state.fleet = Fleet()
    if keys.known_to_all:
        logger.warning("IOT_SECRET is not set: everybody knows the tokens of this server")
    yield {"fleet": app.state.fleet}


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=4096, outbox_messages=2 * MAX_DEVICES),
    heartbeat=Heartbeat(interval=20, timeout=20),
)
serve_page(app, Path(__file__).parent / "static")


# Devices


@app.ws_route("/devices", authenticate=BearerToken(keys.device))
@rate_limit("50/s")
async def device(ws: WebSocket) -> None:
    await ws.accept()
    name: str = ws.user
    fleet: Fleet = ws.state.fleet
    async with ws.join(f"device.{name}", overflow=Overflow.DROP_OLDEST):
        with fleet.present(ws, name) as here:
            while True:
                with trio.move_on_after(SILENCE) as patience:
                    data = await ws.receive_bytes()
                if patience.cancelled_caught:
                    raise WebSocketException(4408, "no heartbeat")
                frame = unpack(data)
                if isinstance(frame, Order):
                    raise FrameError("only the server gives orders")
                here.hear(frame, fleet.now())
                fleet.changed(here)


async def deliver(fleet: Fleet, command: Command) -> None:
    """Until the device has acknowledged it, or the attempts are used up. A device that is away, and back in
    time, gets it."""
    group = f"device.{command.device}"
    while command.attempts < ATTEMPTS:
        command.attempts += 1
        fleet.changed(command)
        await app.channels.send(group, command.frame(), save_history=False)
        with trio.move_on_after(ACK_WITHIN):
            await command.acknowledged.wait()
            break
    fleet.finish(command)


# Operators


async def tell_operators() -> None:
    """News of a device or a command are sent once for all; who reads slowly gets the last of each."""
    fleet: Fleet = app.state.fleet
    while True:
        await fleet.has_news.wait()
        for row in fleet.take_news():
            await app.channels.send(OPERATORS, row, save_history=False)
        await trio.sleep(NEWS_EVERY)


app.start_soon(tell_operators)


def which(row: dict[str, Any]) -> tuple[str, object]:
    return row["type"], row["id"]


async def answer(ws: WebSocket, error: PeerError) -> None:
    await ws.send_json(Problem(error.public_reason))


@app.ws_route("/operators", authenticate=FirstMessage(keys.operator), on_invalid=answer)
@rate_limit("20/s")
async def operator(ws: WebSocket) -> None:
    fleet: Fleet = ws.state.fleet
    async with ws.join(OPERATORS, overflow=Overflow.CONFLATE(which)):
        devices = [each.row() for each in fleet.devices.values()]
        commands = [each.row() for each in fleet.commands()]
        await ws.send_json(Snapshot(fleet.now(), devices, commands))
        ws.start_soon(ping, ws)
        async for give in ws.iter_json(Give):
            command = fleet.order(give.device, Action[give.action.upper()], give.argument)
            if isinstance(command, str):
                await ws.send_json(Problem(command))
            else:
                app.start_soon(deliver, fleet, command)


async def ping(ws: WebSocket) -> None:
    while True:
        await trio.sleep(10)
        await ws.send_json(Ping())
