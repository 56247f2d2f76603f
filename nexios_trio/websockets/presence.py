"""Who is in a group: users, each with one or more connections."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from nexios_trio.brokers.base import Broker, Member, Message, PresenceEvent
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.websockets import codec
from nexios_trio.websockets.lifetime import Connection

__all__ = ["Presence", "PresentUser", "by_user", "presence_message"]


METADATA_BYTES: Final = 4096
"""Bound of a connection's metadata, as JSON."""


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
        self._user_id = user_id
        self._metadata: dict[str, Any] | None = None
        self._member: Member | None = None
        self._left = False
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
        if user_id is not None and (not isinstance(user_id, str) or not user_id):
            raise WrongTypeError(f"a user id is a str that is not empty, not {user_id!r}")
        encoded = codec.encode(dict(metadata))
        if len(encoded) > METADATA_BYTES:
            raise WrongValueError(
                f"presence is at most {METADATA_BYTES} bytes as JSON, not {len(encoded)}: every member gets "
                "it; put an id there and the rest elsewhere"
            )
        self._metadata = codec.decode(encoded)

    @property
    def watched(self) -> bool:
        """Whether this member is listed, and is told who comes and goes."""
        return self._metadata is not None

    async def enter(self) -> None:
        """Called on joining."""
        if self._metadata is None or self._left:
            return
        connection = self._connection
        user = self._user_id or connection.user_id or connection.id
        self._member = Member(
            connection.id, user, self._metadata, time.time(), f"{connection.id}.{secrets.token_hex(4)}"
        )
        try:
            await self._broker.enter(self._group, self._member)
        finally:
            # The connection may have ended on the way, or the task was cancelled and nobody knows on which
            # side of the engine's work: leaving once more does no harm, a ghost would.
            if self._left:
                self._broker.leave(self._group, self._member)

    def leave_nowait(self) -> None:
        """Called on leaving, and when `enter` failed."""
        self._left = True
        if self._member is not None:
            self._broker.leave(self._group, self._member)

    async def list(self) -> tuple[PresentUser, ...]:
        """Who is present on all servers, in the order of coming. A checkpoint."""
        return by_user(await self._broker.members(self._group))


def by_user(members: Iterable[Member]) -> tuple[PresentUser, ...]:
    """The users of memberships, in the order of coming."""
    users: dict[str, list[Member]] = {}
    for member in members:
        users.setdefault(member.user, []).append(member)
    return tuple(PresentUser(user, tuple(devices)) for user, devices in users.items())


def presence_message(event: PresenceEvent) -> Message:
    """What members get, always as JSON in a text message, in the envelope if they have asked for it.

    ``{"type": "presence.join", "group": "room.1", "user": "ada", "metadata": {}, "joined_at": 1764000000.5}``
    with a ``type`` of ``presence.join`` or ``presence.leave``. ``metadata`` and ``joined_at`` (POSIX time in
    seconds) are those of the connection with which the user came, or of the last one that has left.
    """
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
