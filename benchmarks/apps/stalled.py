"""A group, and what becomes of those of its members who do not read.

``/listen``: what comes is sent to the group. ``/listen?overflow=drop_oldest`` keeps members that do not read.
``/statistics`` tells what became of them.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.config import Overflow
from nexios_trio.websockets.groups import Group

OVERFLOW = {"disconnect": Overflow.DISCONNECT, "drop_oldest": Overflow.DROP_OLDEST}

app = NexiosApp()
groups: list[Group] = []


@app.ws_route("/listen")
async def listen(ws: WebSocket) -> None:
    await ws.accept()
    overflow = OVERFLOW[ws.query_params.get("overflow", "disconnect")]
    async with ws.join("all", overflow=overflow) as group:
        groups.append(group)
        async for text in ws.iter_text():
            await group.send(text)


@app.get("/statistics")
async def tell(_request: Request) -> JSONResponse:
    statistics = groups[-1].statistics()
    return JSONResponse(
        {
            "connections": len(app.connections),
            "members": statistics.members,
            "sent": statistics.sent,
            "dropped": statistics.dropped_oldest,
            "disconnected": statistics.disconnected,
        }
    )
