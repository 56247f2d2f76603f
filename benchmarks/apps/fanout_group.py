"""The same with a group; see fanout_raw.py.

Further options: ``rate=N`` sends N rounds a second, come what may; otherwise a round begins when all of the
one before has left the outboxes of those who read. ``overflow=drop_oldest`` keeps members that do not read,
who say of themselves that they are ``stalled=1``. ``/statistics`` tells what became of them.
"""

from __future__ import annotations

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.apps.rounds import stamped
from nexios_trio import Limits, NexiosApp, WebSocket
from nexios_trio.config import Overflow
from nexios_trio.websockets.groups import Group

OVERFLOW = {"disconnect": Overflow.DISCONNECT, "drop_oldest": Overflow.DROP_OLDEST}

app = NexiosApp(heartbeat=None, limits=Limits.none())
readers: list[WebSocket] = []
groups: list[Group] = []


@app.ws_route("/")
async def listen(ws: WebSocket) -> None:
    options = ws.query_params
    await ws.accept()
    async with ws.join("all", overflow=OVERFLOW[options.get("overflow", "disconnect")]) as group:
        groups.append(group)
        if "stalled" not in options:
            readers.append(ws)
        if len(group) == int(options["members"]):
            ws.start_soon(send_rounds, group, int(options["size"]), float(options.get("rate", 0)))
        async for _ in ws.iter_text():
            pass


async def send_rounds(group: Group, size: int, rate: float) -> None:
    next_at = trio.current_time()
    while True:
        await group.send(stamped(size))
        if rate:
            next_at += 1 / rate
            await trio.sleep_until(next_at)
            continue
        for ws in readers:
            while ws.statistics().waiting_messages:
                await trio.lowlevel.checkpoint()


@app.get("/statistics")
async def tell(_request: Request) -> JSONResponse:
    statistics = groups[0].statistics()
    return JSONResponse(
        {
            "connections": len(app.connections),
            "members": statistics.members,
            "sent": statistics.sent,
            "dropped": statistics.dropped_oldest,
            "disconnected": statistics.disconnected,
        }
    )
