"""The app: a page, its files, and one WebSocket per member. A room is a group."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from examples.chat.protocol import FromMember, Join, Ping, Problem, Said, Say, Typing, TypingBy, Welcome
from examples.common.pages import serve_page
from nexios_trio import (
    Group,
    Heartbeat,
    HistoryLimits,
    Limits,
    NexiosApp,
    PeerError,
    WebSocket,
    WebSocketException,
)

ROOM_NAME = re.compile(r"[\w-]{1,32}")
JOIN_WITHIN = 10.0  # seconds
SHOWN = 50  # messages that who comes gets to see
KEPT = 200  # messages of a room that who comes back can have missed
MAX_ROOMS = 1000  # that are remembered
MAX_MEMBERS = 50  # in one room
BURST = 5.0  # messages that a member may send at once
RATE = 5.0  # and a second, in the long run
OUTBOX = 400  # messages that may wait for one member: room for the bursts of all the others at once


@asynccontextmanager
async def lifespan(_app: NexiosApp) -> AsyncIterator[dict[str, trio.Lock]]:
    yield {"door": trio.Lock()}  # found again as ws.state.door


app = NexiosApp(
    lifespan=lifespan,
    limits=Limits(message_bytes=8192, outbox_messages=OUTBOX),
    history=HistoryLimits(messages=KEPT, age=math.inf, groups=MAX_ROOMS),
    # A phone that has lost its network says nothing: without an answer to the ping its connection ends.
    heartbeat=Heartbeat(interval=20, timeout=20, message=msgspec.json.encode(Ping()).decode()),
)
serve_page(app, Path(__file__).parent / "static")


@app.ws_route("/rooms/{room}/ws")
async def chat(ws: WebSocket) -> None:
    if not ROOM_NAME.fullmatch(ws.path_params["room"]):
        await ws.reject(404, "a room has a name of 1 to 32 letters, digits, - and _")
        return
    await ws.accept()
    with trio.move_on_after(JOIN_WITHIN) as patience:
        join = await ws.receive_json(type=Join)  # anything else closes with 1007 and says what is wrong
    if patience.cancelled_caught:
        raise WebSocketException(1008, "the first message is a join")
    if not join.name:
        raise WebSocketException(1007, "a name needs a visible character")
    room = f"chat.{ws.path_params['room']}"
    user = hashlib.sha256(f"{room} {join.key}".encode()).hexdigest()[:16]  # others see this, not the key
    async with AsyncExitStack() as stack:
        async with ws.state.door:  # one by one, so that no two take the same name
            name, group = await find_place(ws, room, user, join)
            await stack.enter_async_context(group)
        await ws.send_json(await welcome(group, user, name))
        await talk(ws, group, user, name)


async def find_place(ws: WebSocket, room: str, user: str, join: Join) -> tuple[str, Group]:
    await app.channels.disconnect_user(user, 4001, "replaced by a newer connection")
    ws.identify(user)
    others = [other for other in await ws.join(room).presence.list() if other.user != user]
    if len(others) >= MAX_MEMBERS:
        raise WebSocketException(1013, "no place left, try again later")
    name = free_name(join.name, {other.metadata["name"].casefold() for other in others})
    return name, ws.join(room, since=join.since, presence={"name": name}, envelope=True)


def free_name(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name[:21]} {number}"
    return free


async def welcome(group: Group, user: str, name: str) -> Welcome:
    people = {user.user: user.metadata["name"] for user in await group.presence.list()}
    history = [] if group.recovered else [message.payload for message in await group.history(SHOWN)]
    return Welcome(user, name, str(group.position), bool(group.recovered), history, people)


async def talk(ws: WebSocket, group: Group, user: str, name: str) -> None:
    next_turn = 0.0
    while True:  # until receive_json raises WebSocketDisconnect
        # Who sends too much waits: the messages stay in the sender's own socket.
        next_turn = max(next_turn, trio.current_time() - BURST / RATE) + 1 / RATE
        await trio.sleep_until(next_turn)
        try:
            message = await ws.receive_json(type=FromMember)
        except PeerError as mistake:
            await ws.send_json(Problem(mistake.public_reason))
            continue
        match message:
            case Say():
                await group.send(Said(message.id, user, name, message.text, datetime.now(UTC)))
            case Typing():
                await group.send(TypingBy(name), exclude_self=True, save_history=False)
