"""What belongs to one call of the app in hypercorn: its stream, its protocol, its TCP connection."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import trio
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import RemoteProtocolError

from nexios_trio.server import wire
from nexios_trio.server.internals import H11Protocol, HTTPStream, WSStream
from nexios_trio.server.tcp import TCPConnection, keep_other_streams
from nexios_trio.transports.asgi import ENDED_BY, ON_LOST
from nexios_trio.types import Message, Receive, Scope, Send

__all__ = ["Hold"]

logger = logging.getLogger("nexios_trio.server")


class Hold:
    """Made when a call of the app begins. Whatever has not the shape that we know is left alone."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._queue: _Queue | None = None
        self._ended = trio.Event()
        self._told: list[Callable[[str], None]] = []
        stream = getattr(send, "__self__", None)  # WSStream or HTTPStream
        self._stream = stream if isinstance(stream, WSStream | HTTPStream) else None
        protocol = getattr(getattr(stream, "send", None), "__self__", None)  # H11Protocol or H2Protocol
        tcp = getattr(getattr(protocol, "send", None), "__self__", None)
        self._tcp = tcp if isinstance(tcp, TCPConnection) else None
        tcp_stream = getattr(tcp, "stream", None)
        self.tcp_stream = tcp_stream if isinstance(tcp_stream, trio.abc.AsyncResource) else None
        # server nursery > TCPServer.run > its task group's nursery > this task
        tcp_task = _parent(trio.lowlevel.current_task())
        self.handlers = tcp_task.parent_nursery if tcp_task is not None else None
        """Where hypercorn's TCP tasks run."""
        if self._tcp is not None:
            self._tcp.call_begins()
            keep_other_streams(protocol)
            if scope["type"] == "websocket":
                tell_lost = partial(_tell_when_lost, self._tcp, self._told)
                scope["extensions"] = {**(scope.get("extensions") or {}), ON_LOST: tell_lost}
        put: Any = getattr(self._stream, "app_put", None)
        if self._stream is not None and isinstance(getattr(put, "__self__", None), trio.MemorySendChannel):
            self._queue = _Queue(put, {"type": f"{scope['type']}.disconnect", "code": 1006})
            self._stream.app_put = self._queue.put
        if isinstance(self._stream, WSStream):
            self._stream.context = cast("Any", _StreamContext(self._stream.context, self._ended))
            _choose_extensions(self._stream)
            over_http1 = isinstance(protocol, H11Protocol)  # over HTTP/2 other streams go on
            when_closed = self._tcp.client_closed if self._tcp is not None and over_http1 else None
            wire.take_hold(self._stream, when_closed)

    async def receive(self) -> Message:
        """ASGI's receive(), with what hypercorn does not know of the end."""
        try:
            message = await self._receive()
        except trio.EndOfChannel:
            assert self._queue is not None
            message = self._queue.disconnect
        if message["type"] == "websocket.disconnect":
            if (fault := wire.fault(self._stream)) is not None:
                return {**message, "code": int(fault.code), "reason": fault.reason, ENDED_BY: "local"}
            if self._tcp is not None and self._tcp.timed_out:
                return {**message, "reason": "heartbeat timeout"}
        return message

    def let_go(self) -> None:
        """The call has ended."""
        self._ended.set()
        if isinstance(self._stream, WSStream):
            wire.let_go(self._stream)
        if self._queue is not None:
            self._queue.end()
        if self._tcp is not None:
            for tell in self._told:
                self._tcp.when_lost.pop(tell, None)
            self._tcp.call_ends()


class _StreamContext:
    """hypercorn's worker context as one WebSocket stream sees it.

    Its pinger sleeps a whole interval before it looks whether the stream is closed, and its TCP task
    waits for the pinger; here the sleep ends with the app's call.
    """

    def __init__(self, context: Any, ended: trio.Event) -> None:
        self._context = context
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def sleep(self, wait: float) -> None:
        if self._ended.is_set():
            await trio.sleep(0.05)
        else:
            with trio.move_on_after(wait):
                await self._ended.wait()


class _Queue:
    """hypercorn's end of the channel to the app, which is bounded: whoever puts into it waits.

    With what nobody will receive any more, hypercorn would wait for good. And its disconnect may be put by
    the very call that ought to receive it, when that sends the end of a response without having read the
    request: here it needs no room, for it is the end of the channel.
    """

    def __init__(self, put: Callable[[Any], Awaitable[None]], disconnect: Message) -> None:
        self._put = put
        self.disconnect = disconnect
        """What the app receives when there is nothing more."""

    async def put(self, event: Any) -> None:
        """In the place of the channel's ``send``."""
        if event["type"].endswith(".disconnect"):
            self.disconnect = event
            # No checkpoint: hypercorn is making the connection ready for its next request, and would lose one
            # that is read meanwhile.
            self.end()
            return
        try:
            await self._put(event)
        except trio.ClosedResourceError:
            pass

    def end(self) -> None:
        """Nothing more will be put, nor does anybody wait."""
        channel: trio.MemorySendChannel[Any] = self._put.__self__  # type: ignore[attr-defined]
        channel.close()


def _tell_when_lost(
    tcp: TCPConnection, told: list[Callable[[str], None]], tell: Callable[[str], None]
) -> None:
    tcp.when_lost[tell] = None
    told.append(tell)


def _choose_extensions(stream: WSStream) -> None:
    """Decline permessage-deflate where the app does not want it, and an offer that wsproto cannot read: that
    would fail in the app's accept()."""
    offered = stream.handshake.extensions
    if getattr(stream.config, "deflate", None) is None:
        stream.handshake.extensions = None
    elif offered is not None:
        try:
            server_extensions_handshake(list(offered), [PerMessageDeflate()])
        except (ValueError, RemoteProtocolError) as error:
            logger.info("declined a bad Sec-WebSocket-Extensions: %a", error)
            stream.handshake.extensions = None


def _parent(task: trio.lowlevel.Task) -> trio.lowlevel.Task | None:
    return task.parent_nursery.parent_task if task.parent_nursery is not None else None
