"""Who is where. A room never waits: it hands a message on, and each member's own task sends it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from datetime import UTC, datetime

import trio

from examples.chat.protocol import Join, People, Said, Say, ToClient, Welcome, encode
from nexios_trio import WebSocket, WebSocketDisconnect

HISTORY = 50  # messages that a room remembers
MAX_ROOMS = 1000
MAX_MEMBERS = 50  # in one room
BURST = 5.0  # messages that a member may send at once
RATE = 5.0  # and a second, in the long run
OUTBOX = 400  # messages that may wait for one member: room for the bursts of all the others at once


class Pace:
    """Makes one member wait who sends too much: its messages then stay in its own socket."""

    def __init__(self) -> None:
        self._next = 0.0

    async def wait(self) -> None:
        self._next = max(self._next, trio.current_time() - BURST / RATE) + 1 / RATE
        await trio.sleep_until(self._next)


class Member:
    """One connection in one room: a bounded outbox, and the task that empties it."""

    def __init__(self, ws: WebSocket, name: str, key: str) -> None:
        self.ws = ws
        self.name = name
        self.key = key
        self._outbox, outgoing = trio.open_memory_channel[str](OUTBOX)
        ws.start_soon(self._pump, outgoing)  # ends with the connection

    async def _pump(self, outgoing: trio.MemoryReceiveChannel[str]) -> None:
        async for text in outgoing:
            await self.ws.send_text(text)

    def put(self, text: str) -> None:
        """Never waits: a member that does not read is closed rather than allowed to hold up the others."""
        try:
            self._outbox.send_nowait(text)
        except trio.WouldBlock:
            self.close(1013, "too slow")

    def close(self, code: int, reason: str) -> None:
        """Closing may wait for the client, so it is left to a task of that client's own connection."""
        with suppress(WebSocketDisconnect):  # it has gone by itself
            self.ws.start_soon(self.ws.close, code, reason)


class Room:
    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.history: deque[Said] = deque(maxlen=HISTORY)

    def is_full_for(self, join: Join) -> bool:
        return len(self.members) >= MAX_MEMBERS and join.key not in self.members

    def join(self, ws: WebSocket, join: Join) -> Member:
        """Take in a member, or one that comes back before we have noticed that it was gone."""
        if before := self.members.pop(join.key, None):
            before.close(4001, "replaced by a newer connection")
        member = self.members[join.key] = Member(ws, self._free_name(join.name), join.key)
        member.put(encode(Welcome(member.name, list(self.history))))
        self._tell_who_is_here()
        return member

    def leave(self, member: Member) -> None:
        if self.members.get(member.key) is member:
            del self.members[member.key]
        self._tell_who_is_here()

    def say(self, member: Member, say: Say) -> None:
        said = Said(say.id, member.name, say.text, datetime.now(UTC))
        self.history.append(said)
        self.broadcast(said)

    def broadcast(self, event: ToClient) -> None:
        text = encode(event)  # once, for everybody
        for member in self.members.values():
            member.put(text)

    def _tell_who_is_here(self) -> None:
        self.broadcast(People([member.name for member in self.members.values()]))

    def _free_name(self, name: str) -> str:
        taken = {member.name.casefold() for member in self.members.values()}
        free, number = name, 1
        while free.casefold() in taken:
            number += 1
            free = f"{name} {number}"
        return free


class Lobby:
    """The rooms by name, the one used last at the end. An empty room keeps its history until the lobby is
    full and it is the one that has been left alone for longest."""

    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}

    def enter(self, name: str) -> Room | None:
        """The room ``name``, made if need be; None if there is no place for another one."""
        if name not in self.rooms and len(self.rooms) >= MAX_ROOMS:
            empty = next((name for name, room in self.rooms.items() if not room.members), None)
            if empty is None:
                return None
            del self.rooms[empty]
        room = self.rooms[name] = self.rooms.pop(name, Room())
        return room
