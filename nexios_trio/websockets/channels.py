"""`Channel` and `ChannelBox`: the names of Nexios for connections and groups."""

from __future__ import annotations

import contextvars
import functools
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import trio

from nexios_trio.brokers.base import Broker, Kind, Message
from nexios_trio.config import Limits
from nexios_trio.exceptions import WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.websockets import orders
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.groups import Group
from nexios_trio.websockets.hub import Hub, Subscription
from nexios_trio.websockets.lifetime import Connection
from nexios_trio.websockets.payloads import draft_of, in_form
from nexios_trio.websockets.presence import PresentUser, by_user
from nexios_trio.websockets.utils import (
    ChannelAddStatusEnum,
    ChannelMessageDC,
    ChannelRemoveStatusEnum,
    GroupSendStatusEnum,
    PayloadTypeEnum,
)

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
"""The box of the app that this task runs in; set by `ChannelBox.current`."""


class Channel:
    """A connection with a kind of payload, an id, metadata and, if asked for, an expiry.

    ``expires`` is in seconds from now, or from the last `touch`; then the channel closes with 1001
    ("expired"). None: never. Make it in the handler. Raises `WrongTypeError` and `WrongValueError` for
    arguments that it does not take, `WebSocketDisconnect` if it is to expire and the connection is over.
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
            raise WrongValueError(f"expires is more than 0 seconds, or None for never, not {expires!r}")
        self.websocket = websocket
        self.expires = expires
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.uuid = uuid.uuid4()
        self.created = time.time()
        """POSIX time in seconds."""
        self.groups: dict[str, Group] = {}
        self._hub = websocket._hub()
        self._deadline = trio.CancelScope()
        if expires is not None:
            self._deadline.deadline = trio.current_time() + expires
            websocket.start_soon(self._expire)
        self._hub.add_channel(self, websocket._connection)

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
        """Start the time to expiry anew; `send`, its relatives and `receive` do it too."""
        if self.expires is not None:
            self._deadline.deadline = trio.current_time() + self.expires

    async def send(self, payload: Any) -> None:
        """Send by the channel's payload type; raises as `WebSocket.send_text` and its relatives."""
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
        self.touch()

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """See `WebSocket.send_bytes`."""
        await self.websocket.send_bytes(data)
        self.touch()

    async def send_json(self, data: Any) -> None:
        """See `WebSocket.send_json`."""
        await self.websocket.send_json(data)
        self.touch()

    async def receive(self) -> Any:
        """The next message by the channel's payload type; raises as `WebSocket.receive_text` and its
        relatives."""
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
        """Close the connection; idempotent, see `WebSocket.close`."""
        await self.websocket.close(code, reason)


class _OnBoxOrClass(Generic[P, R]):
    """A method that, called on the class, means the box of the app that the calling task runs in."""

    def __init__(self, function: Callable[Concatenate[Any, P], R]) -> None:
        self._function = function
        functools.update_wrapper(cast("Any", self), function)
        self._on_class = self._make_for_class()

    def _make_for_class(self) -> Callable[P, R]:
        # The box is looked up when it is called: ChannelBox.group_send can be handed on before the app runs.
        function = self._function
        call: Any

        if inspect.iscoroutinefunction(function):

            async def call(*args: Any, **kwargs: Any) -> Any:
                return await function(_running_box(function.__name__), *args, **kwargs)
        else:

            def call(*args: Any, **kwargs: Any) -> Any:
                return function(cast("Any", _running_box(function.__name__)), *args, **kwargs)

        functools.update_wrapper(call, function)
        signature = inspect.signature(function)
        call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        return cast("Callable[P, R]", call)

    def __get__(self, box: ChannelBox | None, owner: type) -> Callable[P, R]:
        if box is None:
            return self._on_class
        return cast("Callable[P, R]", cast("Any", self._function).__get__(box, owner))


def _running_box(method: str) -> ChannelBox:
    box = current_box.get(None)
    if box is None:
        raise WrongStateError(
            f"ChannelBox.{method}() on the class means the box of the running app, and this task runs in "
            f"none; write app.channels.{method}(...), or call it from a handler, a hook, a listener of "
            "app.events or a task of app.start_soon()"
        )
    return box


class ChannelBox:
    """The groups of one app: ``app.channels``.

    Every method can be called on the class too, for Nexios' sake: that means the box of the app that the
    task runs in, and outside of any app raises `WrongStateError`. Two apps have two boxes.
    All ``async`` methods are checkpoints.
    """

    def __init__(
        self, broker: Broker, connections: Iterable[Connection], limits: Limits | None = None
    ) -> None:
        self.hub = Hub(broker, connections, limits or Limits())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside it, `ChannelBox` on the class means this box; for the app."""
        token = current_box.set(self)
        try:
            yield
        finally:
            current_box.reset(token)

    # Nexios

    @_OnBoxOrClass
    async def add_channel_to_group(
        self, channel: Channel, group_name: str = "default"
    ) -> ChannelAddStatusEnum:
        """Make a channel a member of a group until it is removed or its connection ends.

        Messages of the group come in the channel's payload type. Raises `WebSocketDisconnect` if the
        connection is over, `WrongStateError` before ``accept()``. Cancelled, it is no member.
        """
        self.hub.checked(group_name)
        if not isinstance(channel, Channel):
            raise WrongTypeError(f"a member is a Channel, not {type(channel).__name__}; write Channel(ws)")
        if channel._hub is not self.hub:
            raise WrongValueError(f"{channel!r} belongs to another app; its groups are in that app's box")
        if group_name in channel.groups and channel.is_active:
            await trio.lowlevel.checkpoint()
            return ChannelAddStatusEnum.CHANNEL_EXIST
        form: Kind = channel.payload_type.value
        group = Group(self.hub, channel.websocket._connection, group_name, form=form)
        channel.groups[group_name] = group
        try:
            await group.join()
        except BaseException:
            if channel.groups.get(group_name) is group:
                del channel.groups[group_name]
            raise
        return ChannelAddStatusEnum.CHANNEL_ADDED

    @_OnBoxOrClass
    async def remove_channel_from_group(
        self, channel: Channel, group_name: str = "default"
    ) -> ChannelRemoveStatusEnum:
        """Undo `add_channel_to_group`; legal after the connection has ended. Cancelled, it is done."""
        self.hub.checked(group_name)
        known = group_name in self.hub.groups
        group = channel.groups.pop(group_name, None) if channel._hub is self.hub else None
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
        exclude: Collection[str] = (),
        message_id: str | None = None,
    ) -> GroupSendStatusEnum:
        """Send to all members of a group; with ``save_history`` it is kept and can be resumed from.

        Sent again with the same ``message_id`` within some minutes, it is not delivered again. Never waits
        for a member. ``exclude`` are ids of connections (``ws.id``). Cancelled, it was sent to all or none.
        """
        known = self.hub.checked(group_name) in self.hub.groups
        draft = draft_of(payload, exclude=exclude, message_id=message_id)
        await self.hub.broker.publish(group_name, draft, keep=save_history)
        return GroupSendStatusEnum.GROUP_SEND if known else GroupSendStatusEnum.NO_SUCH_GROUP

    @_OnBoxOrClass
    async def send_to(self, channel_id: uuid.UUID | str, payload: Any) -> GroupSendStatusEnum:
        """Send to one channel of this server by its id, in its payload type.

        Never waits for its client: one whose outbox is full is closed with 1013.
        """
        channel = self.hub.channels.get(str(channel_id))
        sent = False
        message = _message(payload, None if channel is None else channel.payload_type)
        if channel is not None:
            sent = self.hub.push(channel.websocket._connection, message)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return GroupSendStatusEnum.GROUP_SEND if sent else GroupSendStatusEnum.NO_SUCH_GROUP

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
    async def flush_groups(self) -> None:
        """Take every channel of this server out of every group; the connections stay open."""
        for channel in tuple(self.hub.channels.values()):
            for name in tuple(channel.groups):
                channel.groups.pop(name).leave_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    @_OnBoxOrClass
    async def show_history(self, group_name: str = "default") -> list[ChannelMessageDC]:
        """The kept messages of a group, oldest first."""
        history = await self.hub.broker.history(self.hub.checked(group_name))
        return [ChannelMessageDC.of(message) for message in history.messages]

    @_OnBoxOrClass
    async def flush_history(self, group_name: str | None = None) -> None:
        """Throw away the history of a group, or of all groups."""
        await self.hub.broker.forget(None if group_name is None else self.hub.checked(group_name))

    @_OnBoxOrClass
    async def close_all_connections(self, code: int = 1000, reason: str | None = None) -> int:
        """Close every connection of the app, on all servers; returns how many on this one.

        Raises `BrokerUnavailable` if the others cannot be told; those of this server are closed then.
        """
        return await self._close(None, code, reason)

    # Ours

    @_OnBoxOrClass
    async def send(
        self, group: str, payload: Any, *, save_history: bool = True, message_id: str | None = None
    ) -> Message:
        """Send to a group from outside of any connection; see `Group.send`."""
        draft = draft_of(payload, message_id=message_id)
        return await self.hub.broker.publish(self.hub.checked(group), draft, keep=save_history)

    @_OnBoxOrClass
    @asynccontextmanager
    async def subscribe(self, pattern: str, *, size: int = 1000) -> AsyncIterator[Subscription]:
        """Messages of all groups whose names match ``pattern`` (``*``, ``?``, ``[…]``), to iterate over.

        At most ``size`` wait; then the oldest goes and is counted in ``dropped``.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise WrongValueError(f"size is a number of messages, 1 or more, not {size!r}")
        subscription = Subscription(self.hub.checked(pattern), size)
        async with self.hub.subscribed(subscription):
            yield subscription

    @_OnBoxOrClass
    async def send_to_user(self, user_id: str, payload: Any) -> int:
        """Send to every connection of a user (see `WebSocket.identify`), on all servers; returns how many
        got it on this one.

        Never waits for a client: one whose outbox is full is closed with 1013. Raises `BrokerUnavailable` if
        the other servers cannot be told.
        """
        draft = draft_of(payload)
        reached = orders.direct(self.hub, user_id, draft)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self.hub.order(orders.order_send(self.hub.node, user_id, draft))
        return reached

    @_OnBoxOrClass
    async def disconnect_user(self, user_id: str, code: int = 1008, reason: str | None = None) -> int:
        """Close every connection of a user, on all servers; returns how many on this one.

        Raises `BrokerUnavailable` if the others cannot be told; those of this server are closed then.
        """
        return await self._close(user_id, code, reason)

    async def _close(self, user: str | None, code: int, reason: str | None) -> int:
        closed = orders.close(self.hub, user, code, reason)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self.hub.order(orders.Order("close", self.hub.node, user, code, reason))
        return closed

    @_OnBoxOrClass
    async def members(self, group: str) -> tuple[PresentUser, ...]:
        """Who is present in a group on all servers, in the order of coming; see `Presence`."""
        return by_user(await self.hub.broker.members(self.hub.checked(group)))


def _message(payload: Any, payload_type: PayloadTypeEnum | None) -> Message:
    """A message of no group, in the form that a channel of this type sends it in."""
    draft = draft_of(payload)
    data = in_form(draft.kind, draft.data, payload_type and payload_type.value)
    return Message("", "", None, draft.kind, data, time.time(), None, draft.id)
