"""`WebSocketConsumer`: a connection as a class, with the names of Nexios."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from typing import Any, ClassVar, Literal

import trio

from nexios_trio.exceptions import WebSocketDisconnect, WrongTypeError, WrongValueError
from nexios_trio.types import RouteSpec
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.channels import (
    Channel,
    ChannelAddStatusEnum,
    ChannelBox,
    ChannelRemoveStatusEnum,
    GroupSendStatusEnum,
    current_box,
)

__all__ = ["WebSocketConsumer"]


class WebSocketConsumer:
    """Subclass it, and register ``Chat.as_route("/chat")``; there is one instance per connection.

    ``encoding`` is what `on_receive` gets: ``"json"`` (the value; with ``message_type`` checked against
    it), ``"text"``, ``"bytes"``, or None for either kind of message. ``concurrency`` is how many messages
    of one connection may be handled at a time; messages of one `ordering_key` stay in order.
    """

    encoding: ClassVar[Literal["json", "text", "bytes"] | None] = None
    message_type: ClassVar[Any] = Any
    concurrency: ClassVar[int] = 1
    disconnect_timeout: ClassVar[float] = 5.0
    """Seconds that `on_disconnect` has when the connection was cancelled."""

    def __init__(self) -> None:
        self.channel: Channel
        self.websocket: WebSocket
        self._box: ChannelBox

    # For subclasses

    async def on_connect(self, websocket: WebSocket) -> None:
        """Accept the connection, or reject it. By default: accept."""
        await websocket.accept()

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        """Handle one message."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Clean up. Always called once `on_connect` has begun: also after an error and under cancellation."""

    def ordering_key(self, data: Any) -> Hashable:
        """Messages with the same key are handled one after the other, in order."""
        return None

    # What a subclass may call

    async def join_group(self, group_name: str) -> ChannelAddStatusEnum:
        """Become a member of a group until the connection ends or `leave_group`."""
        return await self._box.add_channel_to_group(self.channel, group_name)

    async def leave_group(self, group_name: str) -> ChannelRemoveStatusEnum:
        """Leave a group; legal when the connection is over."""
        return await self._box.remove_channel_from_group(self.channel, group_name)

    async def broadcast(
        self, payload: Any, group_name: str = "default", save_history: bool = False
    ) -> GroupSendStatusEnum:
        """Send to all members of a group."""
        return await self._box.group_send(group_name, payload, save_history)

    async def send_to(self, channel_id: Any, payload: Any) -> GroupSendStatusEnum:
        """Send to one channel by its id."""
        return await self._box.send_to(channel_id, payload)

    async def group(self, group_name: str) -> list[Channel]:
        """The channels of a group on this server."""
        return list((await self._box.show_groups()).get(group_name, {}))

    # The route

    @classmethod
    def as_route(
        cls,
        path: str,
        *,
        name: str | None = None,
        middleware: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> RouteSpec:
        """A route for ``app.add_ws_route``; ``kwargs`` go to the constructor of each instance."""
        _check_class(cls)

        async def consumer(ws: WebSocket) -> None:
            await cls(**kwargs)._serve(ws)

        consumer.__name__ = cls.__name__
        consumer.__qualname__ = cls.__qualname__
        consumer.__module__ = cls.__module__
        return RouteSpec(path, consumer, name or cls.__name__, tuple(middleware or ()))

    async def _serve(self, ws: WebSocket) -> None:
        self.websocket = ws
        self._box = current_box.get()
        code = 1006
        try:
            self.channel = Channel(ws, self.encoding or "json")
            await self.on_connect(ws)
            if ws.is_connected():
                code = await self._receive(ws)
        except WebSocketDisconnect as over:
            code = over.code
        except Exception:
            code = 1011
            raise
        finally:
            await self._disconnected(ws, code)

    async def _disconnected(self, ws: WebSocket, code: int) -> None:
        if trio.current_effective_deadline() == -float("inf"):
            with trio.move_on_after(self.disconnect_timeout, shield=True):
                await self.on_disconnect(ws, code)
        else:
            await self.on_disconnect(ws, code)

    async def _receive(self, ws: WebSocket) -> int:
        if self.concurrency == 1:
            try:
                while True:
                    await self.on_receive(ws, await self._next(ws))
            except WebSocketDisconnect as over:
                return over.code
        return await self._receive_concurrently(ws)

    async def _receive_concurrently(self, ws: WebSocket) -> int:
        free = trio.CapacityLimiter(self.concurrency)
        tails: dict[Hashable, trio.Event] = {}
        code = 1006

        async def handle(
            data: Any, key: Hashable, before: trio.Event | None, done: trio.Event, slot: object
        ) -> None:
            try:
                if before is not None:
                    await before.wait()
                await self.on_receive(ws, data)
            finally:
                free.release_on_behalf_of(slot)
                done.set()
                if tails.get(key) is done:
                    del tails[key]

        async with trio.open_nursery() as nursery:
            try:
                while True:
                    slot = object()
                    await free.acquire_on_behalf_of(slot)
                    data = await self._next(ws)
                    key = self.ordering_key(data)
                    before, done = tails.get(key), trio.Event()
                    tails[key] = done
                    nursery.start_soon(handle, data, key, before, done, slot)
            except WebSocketDisconnect as over:
                code = over.code
        return code

    async def _next(self, ws: WebSocket) -> Any:
        match self.encoding:
            case "json":
                return await ws.receive_json(type=self.message_type)
            case "text":
                return await ws.receive_text()
            case "bytes":
                return await ws.receive_bytes()
        message = await ws.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message["reason"])
        return message["text"] if message.get("text") is not None else message["bytes"]


def _check_class(cls: type[WebSocketConsumer]) -> None:
    if cls.encoding not in ("json", "text", "bytes", None):
        raise WrongValueError(
            f'{cls.__name__}.encoding is "json", "text", "bytes" or None, not {cls.encoding!r}'
        )
    if isinstance(cls.concurrency, bool) or not isinstance(cls.concurrency, int) or cls.concurrency < 1:
        raise WrongValueError(f"{cls.__name__}.concurrency is 1 or more, not {cls.concurrency!r}")
    for name in ("on_connect", "on_receive", "on_disconnect"):
        if not inspect.iscoroutinefunction(getattr(cls, name)):
            raise WrongTypeError(f"{cls.__name__}.{name} is not async; write `async def {name}(...)`")
