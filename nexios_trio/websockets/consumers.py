"""`WebSocketConsumer`: a connection as a class, with the names of Nexios."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Hashable, Iterable
from typing import Any, ClassVar, Final, Literal
from uuid import UUID

import trio

from nexios_trio.exceptions import WebSocketDisconnect, WrongTypeError, WrongValueError
from nexios_trio.types import RULES_MARK, RouteSpec
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

_METHODS: Final = {
    "on_connect": ("self", "websocket"),
    "on_receive": ("self", "websocket", "data"),
    "on_disconnect": ("self", "websocket", "close_code"),
}


class WebSocketConsumer:
    """Subclass it, and register ``Chat.as_route("/chat")``; there is one instance per connection.

    `on_connect`, `on_receive` and `on_disconnect` run in the connection's handler: what holds for handlers
    (grace, errors, ``ws.start_soon``) holds for them.
    """

    encoding: ClassVar[Literal["json", "text", "bytes"] | None] = None
    """What `on_receive` gets: ``"json"``, the value read from a message of either kind; ``"text"``;
    ``"bytes"``; None, the str or bytes that came. A message that does not fit closes with 1007 or 1003."""
    message_type: ClassVar[Any] = Any
    """With ``encoding = "json"``: what messages are checked against; see `WebSocket.receive_json`."""
    concurrency: ClassVar[int] = 1
    """How many messages of one connection may be handled at a time; the next one is not taken before."""
    middleware: ClassVar[Iterable[Any]] = ()
    """Runs around the consumer, outside of that of `as_route`."""
    disconnect_timeout: ClassVar[float] = 5.0
    """Seconds that `on_disconnect` has, whatever else is cancelled; `math.inf`: no end."""
    logger: ClassVar[logging.Logger] = logging.getLogger("nexios_trio.consumer")

    websocket: WebSocket
    channel: Channel
    """This connection's, by `encoding`; it does not expire."""
    _box: ChannelBox

    # For subclasses

    async def on_connect(self, websocket: WebSocket) -> None:
        """Accept the connection, or reject it. By default: accept."""
        await websocket.accept()

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        """Handle one message."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Clean up. Called exactly once if `on_connect` has begun: also after a rejection, an error or a
        cancellation, which does not reach in here for `disconnect_timeout` seconds.

        ``close_code`` is what ended the connection; where nothing did so far, what it is going to be closed
        with. 1006: it broke, or was never accepted.
        """

    def ordering_key(self, data: Any) -> Hashable:
        """With ``concurrency`` above 1: messages with the same key are handled one after the other, in order.
        None: this message waits for no other."""
        return None

    # What a subclass may call

    async def join_group(self, group_name: str) -> ChannelAddStatusEnum:
        """Become a member of a group until the connection ends or `leave_group`; after ``accept()``."""
        return await self._box.add_channel_to_group(self.channel, group_name)

    async def leave_group(self, group_name: str) -> ChannelRemoveStatusEnum:
        """Leave a group; legal when the connection is over."""
        return await self._box.remove_channel_from_group(self.channel, group_name)

    async def broadcast(
        self, payload: Any, group_name: str = "default", save_history: bool = False
    ) -> GroupSendStatusEnum:
        """Send to all members of a group; see `ChannelBox.group_send`."""
        return await self._box.group_send(group_name, payload, save_history)

    async def send_to(self, channel_id: UUID | str, payload: Any) -> GroupSendStatusEnum:
        """Send to one channel by its id; see `ChannelBox.send_to`."""
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
        authenticate: Any = None,
        requires: Iterable[str] | str = (),
        rate_limit: Any = None,
        on_invalid: Any = None,
        **kwargs: Any,
    ) -> RouteSpec:
        """A route for ``app.add_ws_route``; ``kwargs`` go to the constructor of each instance, the rest as
        in `WSRouter.add_ws_route`.

        Raises `WrongTypeError` or `WrongValueError` for a consumer that could not work.
        """
        _check_class(cls, kwargs)
        if (on_invalid == "reply" or callable(on_invalid)) and cls.encoding != "json":
            raise WrongValueError(f'on_invalid goes with JSON; write `encoding = "json"` in {cls.__name__}')

        async def consumer(ws: WebSocket) -> None:
            await cls(**kwargs)._serve(ws)

        consumer.__name__ = cls.__name__
        consumer.__qualname__ = cls.__qualname__
        consumer.__module__ = cls.__module__
        marks = [vars(base)[RULES_MARK] for base in cls.__mro__ if RULES_MARK in vars(base)]
        if marks:  # those of the bases hold as well, and first
            setattr(consumer, RULES_MARK, functools.reduce(lambda inner, outer: outer.around(inner), marks))
        rules = {
            "authenticate": authenticate,
            "requires": requires,
            "rate_limit": rate_limit,
            "on_invalid": on_invalid,
        }
        return RouteSpec(path, consumer, name or cls.__name__, (*cls.middleware, *(middleware or ())), rules)

    async def _serve(self, ws: WebSocket) -> None:
        self.websocket = ws
        self._box = current_box.get()
        self.channel = Channel(ws, self.encoding or "json")
        error: BaseException | None = None
        try:
            await self.on_connect(ws)
            if ws.is_connected():
                await self._receive(ws)
        except BaseException as caught:
            error = caught
            raise
        finally:
            await self._disconnected(ws, ws._connection.close_code(error))

    async def _disconnected(self, ws: WebSocket, code: int) -> None:
        with trio.move_on_after(self.disconnect_timeout, shield=True) as box:
            try:
                await self.on_disconnect(ws, code)
            except (
                WebSocketDisconnect
            ):  # it tried to send; nothing is lost, and an error behind us shall be seen
                pass
        if box.cancelled_caught:
            self.logger.warning(
                "%s.on_disconnect was cancelled after %g s; give it more time with disconnect_timeout",
                type(self).__name__,
                self.disconnect_timeout,
            )

    async def _receive(self, ws: WebSocket) -> None:
        try:
            if self.concurrency > 1:
                await self._receive_concurrently(ws)
            while True:
                await self.on_receive(ws, await self._next(ws))
        except WebSocketDisconnect:
            pass

    async def _receive_concurrently(self, ws: WebSocket) -> None:
        free = trio.Semaphore(self.concurrency)
        tails: dict[Hashable, trio.Event] = {}

        async def handle(data: Any, key: Hashable, before: trio.Event | None, done: trio.Event) -> None:
            if before is not None:
                await before.wait()
            try:
                await self.on_receive(ws, data)
            except WebSocketDisconnect:
                if ws._connection.transport.closure is None:
                    raise
                # Ours is over: the others may finish what they do.
            # After an error nobody goes on: the nursery is being cancelled.
            if tails.get(key) is done:
                del tails[key]
            done.set()
            free.release()

        async with trio.open_nursery() as nursery:
            while True:
                await free.acquire()
                try:
                    data = await self._next(ws)
                except WebSocketDisconnect:
                    return
                key = self.ordering_key(data)
                done = trio.Event()
                before = None if key is None else tails.get(key)
                if key is not None:
                    tails[key] = done
                nursery.start_soon(handle, data, key, before, done)

    async def _next(self, ws: WebSocket) -> Any:
        if self.encoding == "text":
            return await ws.receive_text()
        if self.encoding == "bytes":
            return await ws.receive_bytes()
        if self.encoding == "json":
            return await ws._receive_json(ws._next, self.message_type)
        return await ws._next()


def _check_class(cls: type[WebSocketConsumer], kwargs: dict[str, Any]) -> None:
    name = cls.__name__
    if cls.encoding not in ("json", "text", "bytes", None):
        raise WrongValueError(f'{name}.encoding is "json", "text", "bytes" or None, not {cls.encoding!r}')
    if cls.message_type is not Any and cls.encoding != "json":
        raise WrongValueError(f'{name}.message_type goes with JSON; write `encoding = "json"` beside it')
    if isinstance(cls.concurrency, bool) or not isinstance(cls.concurrency, int) or cls.concurrency < 1:
        raise WrongValueError(
            f"{name}.concurrency is a whole number of messages, 1 or more, not {cls.concurrency!r}"
        )
    timeout = cls.disconnect_timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise WrongValueError(
            f"{name}.disconnect_timeout is more than 0 seconds (math.inf: no end), not {timeout!r}"
        )
    for method in dir(cls):
        if method in _METHODS and hasattr(getattr(cls, method), RULES_MARK):
            raise WrongTypeError(
                f"@requires and @rate_limit stand above a consumer's class, not above {name}.{method}; or "
                "give them to as_route()"
            )
    for method, arguments in _METHODS.items():
        if not inspect.iscoroutinefunction(getattr(cls, method)):
            raise WrongTypeError(
                f"{name}.{method} is not async; write `async def {method}({', '.join(arguments)})`"
            )
        _check_call(getattr(cls, method), f"{name}.{method}", f"async def {method}", arguments)
    if inspect.iscoroutinefunction(cls.ordering_key):
        raise WrongTypeError(f"{name}.ordering_key is async; write `def ordering_key(self, data)`")
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        raise WrongTypeError(
            f"as_route() hands its keyword arguments to {name}(...), which does not take them: {error}"
        ) from None


def _check_call(function: Any, name: str, definition: str, arguments: tuple[str, ...]) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise WrongTypeError(
            f"{name} does not take its arguments; write `{definition}({', '.join(arguments)})`"
        ) from None
