"""Who is in a group: users, each with one or more connections."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import trio
from attrs import frozen

from nexios_trio.brokers.base import Broker, Member, Message, PresenceEvent
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.websockets import codec
from nexios_trio.websockets.lifetime import Connection

__all__ = ["Presence", "PresentUser", "presence_message"]


@frozen
class PresentUser:
    """A user in a group."""

    user: str
    devices: tuple[Member, ...]
    """The user's connections, in the order of coming."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the newest connection said of itself."""
        return self.devices[-1].metadata

    @property
    def joined_at(self) -> float:
        """When the first of the connections came, POSIX time in seconds."""
        return self.devices[0].joined_at


class Presence:
    """``group.presence``: this connection's own presence, and the list of all."""

    def __init__(
        self,
        broker: Broker,
        group: str,
        connection: Connection,
        metadata: Mapping[str, Any] | None,
        user_id: str | None,
    ) -> None:
        self._broker = broker
        self._group = group
        self._connection = connection
        self.watched = metadata is not None
        """Whether this member is listed, and is told who comes and goes."""
        self._member: Member | None = None
        if metadata is None:
            if user_id is not None:
                raise WrongValueError(
                    "user_id= goes with presence=; write ws.join(name, presence={}, user_id=...)"
                )
            return
        if not isinstance(metadata, Mapping):
            raise WrongTypeError(
                f'presence is a dict such as {{"name": "Ada"}}, not {type(metadata).__name__}'
            )
        codec.encode(dict(metadata))
        user = user_id or connection.user_id or connection.id
        self._member = Member(connection.id, user, dict(metadata), time.time())

    async def enter(self) -> None:
        """Called on joining."""
        if self._member is not None:
            await self._broker.enter(self._group, self._member)

    def leave_nowait(self) -> None:
        """Called on leaving."""
        if self._member is not None:
            member, self._member = self._member, None
            leave = getattr(self._broker, "leave_nowait", None)
            if leave is not None:
                leave(self._group, member)
            else:
                trio.lowlevel.spawn_system_task(self._broker.leave, self._group, member)

    async def list(self) -> tuple[PresentUser, ...]:
        """Who is present on all servers, in the order of coming. A checkpoint."""
        users: dict[str, list[Member]] = {}
        for member in await self._broker.members(self._group):
            users.setdefault(member.user, []).append(member)
        return tuple(PresentUser(user, tuple(devices)) for user, devices in users.items())


def presence_message(event: PresenceEvent) -> Message:
    """The typed message that members get."""
    member = event.member
    data = codec.encode(
        {
            "type": event.type,
            "group": event.group,
            "user": member.user,
            "metadata": member.metadata,
            "joined_at": member.joined_at,
        }
    ).decode()
    return Message(event.group, "", None, "json", data, time.time(), None, "")
