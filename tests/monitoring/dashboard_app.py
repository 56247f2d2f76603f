"""What the dashboard's browser tests look at."""

import os

import trio

from nexios_trio import Heartbeat, Identity, Limits, NexiosApp, Overflow, SubprotocolToken, WebSocket
from nexios_trio.monitoring.dashboard import Dashboard

app = NexiosApp(limits=Limits(outbox_messages=20), heartbeat=Heartbeat(interval=60, timeout=600))


async def verify(token: str) -> Identity | None:
    return Identity("operator", scopes=["ops"]) if token == "let-me-in" else None


async def anybody(ws: WebSocket) -> Identity:
    return Identity("tester", scopes=["ops"])


@app.ws_route("/rooms/{room}")
async def room(ws: WebSocket, room: str) -> None:
    await ws.accept()
    ws.identify(ws.query_params.get("user", "ann"))
    ws.start_soon(tick)
    async with ws.join(room, overflow=Overflow.DROP_OLDEST) as group:
        async for text in ws.iter_text():
            await (group.send("x" * 20_000) if text == "flood" else ws.send_text(text))


async def tick() -> None:
    await trio.sleep_forever()


app.mount(
    "/ops",
    Dashboard(
        app,
        authenticate=SubprotocolToken(verify) if os.environ.get("TOKEN") else anybody,
        requires="ops",
        trace=True,
        payloads=bool(os.environ.get("PAYLOADS")),
    ),
)
app.mount("/watch", Dashboard(app, authenticate=anybody, control=False))
