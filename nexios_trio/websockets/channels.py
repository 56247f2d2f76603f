"""`Channel` and `ChannelBox`: the names of Nexios for connections and groups."""

from __future__ import annotations

import contextvars
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import trio
from attrs import frozen

from nexios_trio.brokers.base import Broker, Kind, Message
from nexios_trio.exceptions import WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.status import check_close
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.groups import Group, Hub, Subscription, check_group_name, draft_of
from nexios_trio.websockets.lifetime import Connection

__all__ = [
    "Channel",
    "ChannelAddStatusEnum",
    "ChannelBox",
    "ChannelMessageDC",
    "ChannelRemoveStatusEnum",
    "GroupSendStatusEnum",
    "PayloadTypeEnum",
    "current_box",
]

P = ParamSpec("P")
R = TypeVar("R")

current_box: contextvars.ContextVar[ChannelBox] = contextvars.ContextVar("nexios_trio.current_box")
"""The box of the app that this task runs in; set by the app for its lifespan and each connection."""


class ChannelAddStatusEnum(Enum):
    """What `ChannelBox.add_channel_to_group` did."""

    CHANNEL_ADDED = "CHANNEL_ADDED"
    CHANNEL_EXIST = "CHANNEL_EXIST"


class ChannelRemoveStatusEnum(Enum):
    """What `ChannelBox.remove_channel_from_group` did."""

    CHANNEL_REMOVED = "CHANNEL_REMOVED"
    CHANNEL_DOES_NOT_EXIST = "CHANNEL_DOES_NOT_EXIST"
    GROUP_REMOVED = "GROUP_REMOVED"
    GROUP_DOES_NOT_EXIST = "GROUP_DOES_NOT_EXIST"


class GroupSendStatusEnum(Enum):
    """What `ChannelBox.group_send` and `ChannelBox.send_to` did."""

    GROUP_SEND = "GROUP_SEND"
    NO_SUCH_GROUP = "NO_SUCH_GROUP"


class PayloadTypeEnum(Enum):
    """How a channel sends and receives."""

    JSON = "json"
    TEXT = "text"
    BYTES = "bytes"


@frozen
class ChannelMessageDC:
    """A message of a group's history: what was sent, its own id, and when."""

    payload: Any
    uuid: uuid.UUID
    created: datetime
    offset: int | None = None
    """Its number in the group's history."""

    @classmethod
    def of(cls, message: Message) -> ChannelMessageDC:
        """The same message in Nexios' form."""
        created = datetime.fromtimestamp(message.sent_at, UTC)
        return cls(message.payload, uuid.UUID(message.id), created, message.offset)


class Channel:
    """A connection with a kind of payload, an id, metadata and, if asked for, an expiry.

    ``expires`` is in seconds from now, or from the last `touch`; then the channel closes with 1001
    ("expired"). None: never. Make it in the handler, after ``accept()``.
    """

    def __init__(
        self,
        websocket: WebSocket,
        payload_type: PayloadTypeEnum | str = PayloadTypeEnum.JSON,
        expires: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(websocket, WebSocket):
            raise WrongTypeError(f"a Channel is made of a WebSocket, not {type(websocket).__name__}")
        try:
            self.payload_type = PayloadTypeEnum(payload_type)
        except ValueError:
            raise WrongValueError(
                f'payload_type is "json", "text" or "bytes", not {payload_type!r}'
            ) from None
        if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int | float)):
            raise WrongTypeError(f"expires is a number of seconds or None, not {expires!r}")
        if expires is not None and not expires > 0:
            raise WrongValueError(f"expires is more than 0 seconds, not {expires!r}")
        self.websocket = websocket
        self.expires = expires
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.uuid = uuid.uuid4()
        self.created = time.time()
        """POSIX time in seconds."""
        self.groups: dict[str, Group] = {}
        self._deadline = trio.CancelScope()
        if expires is not None:
            self._deadline.deadline = trio.current_time() + expires
            websocket.start_soon(self._expire)
        websocket._hub().add_channel(self, websocket._connection)

    @property
    def id(self) -> str:
        """The uuid as a str."""
        return str(self.uuid)

    @property
    def is_active(self) -> bool:
        """Whether the connection is open."""
        return self.websocket.is_connected()

    def __repr__(self) -> str:
        return f"<Channel {self.uuid} of {self.websocket!r}>"

    async def _expire(self) -> None:
        with self._deadline:
            await trio.sleep_forever()
        await self.websocket.close(1001, "expired")

    def touch(self) -> None:
        """Start the time to expiry anew."""
        if self.expires is not None:
            self._deadline.deadline = trio.current_time() + self.expires

    async def send(self, payload: Any) -> None:
        """Send by the channel's payload type."""
        match self.payload_type:
            case PayloadTypeEnum.JSON:
                await self.send_json(payload)
            case PayloadTypeEnum.TEXT:
                await self.send_text(payload)
            case PayloadTypeEnum.BYTES:
                await self.send_bytes(payload)

    async def send_text(self, data: str) -> None:
        """See `WebSocket.send_text`."""
        await self.websocket.send_text(data)

    async def send_bytes(self, data: bytes) -> None:
        """See `WebSocket.send_bytes`."""
        await self.websocket.send_bytes(data)

    async def send_json(self, data: Any) -> None:
        """See `WebSocket.send_json`."""
        await self.websocket.send_json(data)

    async def receive(self) -> Any:
        """The next message by the channel's payload type; a message counts as a `touch`."""
        data: Any
        match self.payload_type:
            case PayloadTypeEnum.JSON:
                data = await self.websocket.receive_json()
            case PayloadTypeEnum.TEXT:
                data = await self.websocket.receive_text()
            case PayloadTypeEnum.BYTES:
                data = await self.websocket.receive_bytes()
        self.touch()
        return data

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection; idempotent."""
        await self.websocket.close(code, reason)


class _OnBoxOrClass(Generic[P, R]):
    """A method that, called on the class, means the box of the app that this task runs in."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        self._function = function
        functools.update_wrapper(cast("Any", self), function)

    def __get__(self, box: ChannelBox | None, owner: type) -> Callable[P, Coroutine[Any, Any, R]]:
        return functools.partial(self._function, box if box is not None else _running_box())


def _running_box() -> ChannelBox:
    box = current_box.get(None)
    if box is None:
        raise WrongStateError(
            "ChannelBox on the class means the box of the running app, and this task runs in none; call the "
            "method on app.channels instead, or from a handler, a hook or a task started with app.start_soon"
        )
    return box


class ChannelBox:
    """The groups of one app: ``app.channels``. Its methods work on the class too, for Nexios' sake."""

    def __init__(self, broker: Broker, connections: Iterable[Connection]) -> None:
        self.hub = Hub(broker, connections)

    # Nexios

    @_OnBoxOrClass
    async def add_channel_to_group(
        self, channel: Channel, group_name: str = "default"
    ) -> ChannelAddStatusEnum:
        """Make a channel a member of a group until it is removed or its connection ends."""
        if group_name in channel.groups:
            await trio.lowlevel.checkpoint()
            return ChannelAddStatusEnum.CHANNEL_EXIST
        group = Group(self.hub, channel.websocket._connection, group_name)
        channel.groups[group_name] = group
        try:
            await group.join()
        except BaseException:
            del channel.groups[group_name]
            raise
        return ChannelAddStatusEnum.CHANNEL_ADDED

    @_OnBoxOrClass
    async def remove_channel_from_group(
        self, channel: Channel, group_name: str = "default"
    ) -> ChannelRemoveStatusEnum:
        """Undo `add_channel_to_group`; legal after the connection has ended."""
        known = group_name in self.hub.groups
        group = channel.groups.pop(group_name, None)
        if group is not None:
            group.leave_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        if group is None:
            return (
                ChannelRemoveStatusEnum.CHANNEL_DOES_NOT_EXIST
                if known
                else ChannelRemoveStatusEnum.GROUP_DOES_NOT_EXIST
            )
        if group_name not in self.hub.groups:
            return ChannelRemoveStatusEnum.GROUP_REMOVED
        return ChannelRemoveStatusEnum.CHANNEL_REMOVED

    @_OnBoxOrClass
    async def group_send(
        self,
        group_name: str = "default",
        payload: Any = None,
        save_history: bool = False,
        *,
        exclude: tuple[str, ...] = (),
    ) -> GroupSendStatusEnum:
        """Send to all members of a group; with ``save_history`` it is kept and can be resumed from."""
        known = group_name in self.hub.groups
        draft = draft_of(payload, exclude=exclude)
        await self.hub.broker.publish(check_group_name(group_name), draft, keep=save_history)
        return GroupSendStatusEnum.GROUP_SEND if known else GroupSendStatusEnum.NO_SUCH_GROUP

    @_OnBoxOrClass
    async def send_to(self, channel_id: uuid.UUID | str, payload: Any) -> GroupSendStatusEnum:
        """Send to one channel by its id."""
        channel = self.hub.channels.get(str(channel_id))
        if channel is None:
            await trio.lowlevel.checkpoint()
            return GroupSendStatusEnum.NO_SUCH_GROUP
        await channel.send(payload)
        return GroupSendStatusEnum.GROUP_SEND

    @_OnBoxOrClass
    async def show_groups(self) -> dict[str, dict[Channel, None]]:
        """The groups with members on this server, and the channels in each."""
        await trio.lowlevel.checkpoint()
        shown: dict[str, dict[Channel, None]] = {name: {} for name in self.hub.groups}
        for channel in self.hub.channels.values():
            for name in channel.groups:
                if name in shown:
                    shown[name][channel] = None
        return shown

    @_OnBoxOrClass
    async def show_history(self, group_name: str = "default") -> list[ChannelMessageDC]:
        """The kept messages of a group, oldest first."""
        history = await self.hub.broker.history(check_group_name(group_name))
        return [ChannelMessageDC.of(message) for message in history.messages]

    @_OnBoxOrClass
    async def flush_history(self, group_name: str | None = None) -> None:
        """Throw away the history of a group, or of all groups."""
        await self.hub.broker.forget(group_name)

    @_OnBoxOrClass
    async def close_all_connections(self, code: int = 1000, reason: str | None = None) -> int:
        """Close every connection of the app; returns how many."""
        text = check_close(code, reason)
        connections = list(self.hub.connections)
        for connection in connections:
            connection.kick(code, text)
        await trio.lowlevel.checkpoint()
        return len(connections)

    # Ours

    async def send(self, group: str, payload: Any, *, save_history: bool = True) -> Message:
        """Send to a group from outside of any connection; see `Group.send`."""
        return await self.hub.broker.publish(check_group_name(group), draft_of(payload), keep=save_history)

    @asynccontextmanager
    async def subscribe(self, pattern: str, *, size: int = 1000) -> AsyncIterator[Subscription]:
        """Messages of all groups whose names match ``pattern`` (``*``, ``?``, ``[…]``), to iterate over.

        At most ``size`` wait; then the oldest goes and is counted in ``dropped``.
        """
        subscription = Subscription(check_group_name(pattern), size)
        self.hub.subscriptions[subscription] = None
        await self.hub.broker.subscribe(pattern)
        try:
            yield subscription
        finally:
            del self.hub.subscriptions[subscription]
            with trio.CancelScope(shield=True):
                await self.hub.broker.unsubscribe(pattern)

    async def send_to_user(self, user_id: str, payload: Any) -> int:
        """Send to every connection of a user (see `WebSocket.identify`); returns how many got it.

        Never waits for a client: one whose outbox is full is closed with 1013.
        """
        message = Message(
            "", "", None, *_encoded(payload), sent_at=time.time(), sender=None, id=uuid.uuid4().hex
        )
        reached = 0
        for connection in tuple(self.hub.users.get(user_id, ())):
            reached += self.hub.push(connection, message)
        await trio.lowlevel.checkpoint()
        return reached

    async def disconnect_user(self, user_id: str, code: int = 1008, reason: str | None = None) -> int:
        """Close every connection of a user; returns how many."""
        text = check_close(code, reason)
        connections = tuple(self.hub.users.get(user_id, ()))
        for connection in connections:
            connection.kick(code, text)
        await trio.lowlevel.checkpoint()
        return len(connections)


def _encoded(payload: Any) -> tuple[Kind, str | bytes]:
    draft = draft_of(payload)
    return draft.kind, draft.data
