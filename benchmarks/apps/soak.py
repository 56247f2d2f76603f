"""What a soak visits: echoes, rooms that tick, presence, HTTP. ``/state`` says what is alive."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nexios_trio import Heartbeat, HistoryLimits, Limits, NexiosApp, WebSocket

ROOMS = 8
"""``/rooms/0`` and so on tick by themselves."""
TICK = 0.05
"""Seconds."""

app = NexiosApp(
    limits=Limits(outbox_messages=64, outbox_bytes=512 << 10),
    history=HistoryLimits(messages=200, bytes=768 << 10, groups=400),
    heartbeat=Heartbeat(interval=3),  # timers of connections that are over stay until they are due
    presence_grace=0.2,
    disconnect_grace=2,
)


async def tick() -> None:
    number = 0
    while True:
        number += 1
        for room in range(ROOMS):
            await app.channels.send(f"room.{room}", {"tick": number})
        await trio.sleep(TICK)


async def listen() -> None:
    """Subscriptions come and go, too."""
    while True:
        async with app.channels.subscribe("room.*") as messages:
            for _ in range(100):
                await anext(messages)


app.start_soon(tick)
app.start_soon(listen)


@app.ws_route("/echo")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    ws.start_soon(trio.sleep_forever)
    async for text in ws.iter_text():
        await ws.send_text(text)


@app.ws_route("/bytes")
async def echo_bytes(ws: WebSocket) -> None:
    await ws.accept()
    async for data in ws.iter_bytes():
        await ws.send_bytes(data)


@app.ws_route("/rooms/{name}")
async def room(ws: WebSocket, name: str) -> None:
    await ws.accept()
    query = ws.query_params
    ws.identify(query["user"])
    presence = {"device": query["device"]} if "device" in query else None
    async with ws.join(f"room.{name}", since=query.get("since"), envelope=True, presence=presence) as group:
        if presence is not None:
            assert query["user"] in {each.user for each in await group.presence.list()}
        await ws.send_json({"recovered": group.recovered, "position": str(group.position)})
        async for text in ws.iter_text():
            await group.send(text)


@app.post("/upload")
async def upload(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@app.get("/state")
async def state(_request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "tasks": Counter(_names(trio.lowlevel.current_root_task())),
            "objects": len(gc.get_objects()),
            "connections": len(app.connections),
            "groups": len(app.channels.hub.groups),
        }
    )


@app.post("/tidy")
async def tidy(_request: Request) -> Response:
    """Forget what is kept on purpose, and what only waits for the collector."""
    await app.channels.flush_history()
    gc.collect()
    return PlainTextResponse("")


def _names(task: trio.lowlevel.Task | None) -> Iterator[str]:
    """Of a task and all below it."""
    if task is not None:
        yield task.name
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from _names(child)
