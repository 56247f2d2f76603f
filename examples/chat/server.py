"""The app: a page, its files, and one WebSocket per member."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from examples.chat.protocol import FromMember, Join, Ping, Problem, Say, Typing, TypingBy, encode
from examples.chat.rooms import Lobby, Pace
from nexios_trio import Heartbeat, NexiosApp, WebSocket
from nexios_trio.exceptions import PeerError

STATIC = Path(__file__).parent / "static"
ROOM_NAME = re.compile(r"[\w-]{1,32}")
JOIN_WITHIN = 10.0  # seconds
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@asynccontextmanager
async def lifespan(_app: NexiosApp) -> AsyncIterator[dict[str, Lobby]]:
    yield {"lobby": Lobby()}  # found again as ws.state.lobby


# A phone that has lost its network says nothing: without an answer to the ping its connection ends.
app = NexiosApp(lifespan=lifespan, heartbeat=Heartbeat(interval=20, timeout=20, message=encode(Ping())))
app.mount("/static", StaticFiles(directory=STATIC))


@app.get("/")
async def page(_request: Request) -> FileResponse:
    return FileResponse(STATIC / "index.html", headers=SECURITY)


@app.ws_route("/rooms/{room}/ws")
async def chat(ws: WebSocket) -> None:
    if not ROOM_NAME.fullmatch(ws.path_params["room"]):
        await ws.reject(404, "a room has a name of 1 to 32 letters, digits, - and _")
        return
    await ws.accept()
    with trio.move_on_after(JOIN_WITHIN) as patience:
        join = await ws.receive_json(type=Join)  # anything else closes with 1007 and says what is wrong
    if patience.cancelled_caught:
        await ws.close(1008, "the first message is a join")
        return

    lobby: Lobby = ws.state.lobby
    room = lobby.enter(ws.path_params["room"])
    if room is None or room.is_full_for(join):
        await ws.close(1013, "no place left, try again later")
        return
    pace = Pace()
    member = room.join(ws, join)
    try:
        while True:  # until receive_json raises WebSocketDisconnect
            await pace.wait()
            try:
                message = await ws.receive_json(type=FromMember)
            except PeerError as mistake:
                member.put(encode(Problem(mistake.public_reason)))
                continue
            match message:
                case Say():
                    room.say(member, message)
                case Typing():
                    room.broadcast(TypingBy(member.name))
    finally:
        room.leave(member)
