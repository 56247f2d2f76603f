"""Quart-Trio, on hypercorn."""

from __future__ import annotations

from typing import Any, cast

from quart import websocket
from quart_trio import QuartTrio

app = QuartTrio(__name__)
members: set[Any] = set()


@app.websocket("/echo")
async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())


@app.websocket("/listen")
async def listen() -> None:
    connection = cast(Any, websocket)._get_current_object()
    members.add(connection)
    try:
        while True:
            text = await websocket.receive()
            for member in list(members):
                await member.send(text)
    finally:
        members.discard(connection)
