"""hypercorn's Trio worker, and the whole of our reach into hypercorn's internals.

hypercorn serves; this file adds what its Trio worker lacks for WebSockets, each thing by the smallest
grip that holds: draining with 1012, a ping interval from the app's heartbeat, ``TCP_USER_TIMEOUT`` so
that a dead or stalled peer ends, and an end of the worker as soon as there is nothing left to wait for.
With a version of hypercorn that nobody has tried, the grips on internals are left out, with a warning.
"""

from __future__ import annotations

import copy
import difflib
import errno
import importlib.metadata
import logging
import math
import socket
import types
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import h11
import hypercorn.trio.run
import trio
from h2.exceptions import H2Error
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.utils import LifespanFailureError
from hyperframe.exceptions import HyperframeError
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import RemoteProtocolError

from nexios_trio.config import ConnectionSettings
from nexios_trio.exceptions import WrongValueError
from nexios_trio.transports.asgi import ON_LOST
from nexios_trio.transports.connections import SERVER_CONNECTIONS, Connections
from nexios_trio.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["DRAIN_WINDOW", "hypercorn_config", "serve_hypercorn"]

logger = logging.getLogger("nexios_trio.server")

DRAIN_WINDOW: Final = 5.0
"""Seconds over which connections are closed at shutdown, unless ``drain_window`` says otherwise."""

LONGEST_GRACE: Final = 30.0
"""The most that a shutdown waits for a handler whose grace has no end."""

LAST_WORDS: Final = 1.0
"""Seconds that hypercorn has to end by itself what is over, or to send what it owes once cancelled."""

_TRIED: Final = ("0.18.",)


def _internals_known() -> bool:
    version = importlib.metadata.version("hypercorn")
    if version.startswith(_TRIED):
        return True
    logger.warning("hypercorn %s has not been tried; serving without early ping and shutdown ends", version)
    return False


def hypercorn_config(**attributes: Any) -> Config:
    """A hypercorn Config for the Trio worker with these attributes. Raises `WrongValueError` for one that
    hypercorn does not know."""
    for name in attributes:
        if not hasattr(Config, name):
            close = difflib.get_close_matches(name, dir(Config), n=1)
            cure = f"; did you mean {close[0]!r}?" if close else ""
            raise WrongValueError(f"hypercorn's Config has no {name!r}{cure}")
    config = Config.from_mapping(attributes)
    config.worker_class = "trio"
    return config


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


_GARBAGE: Final = (h11.ProtocolError, H2Error, HyperframeError, ValueError)
"""What a client's bytes can make hypercorn raise; UnicodeError is a ValueError."""


class _TCPServer(TCPServer):
    """hypercorn's task for one TCP connection, with two mends.

    An error in answering one client's garbage (h11 refuses to send a 400 once it has seen data behind an
    upgrade request) ends that connection; hypercorn would end the worker, and every connection with it.
    And it notes whether TCP has given the peer up, which is how a dead peer is told from one that left.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.timed_out = False
        self.when_lost: dict[Callable[[str], None], None] = {}
        stream: Any = getattr(self.stream, "transport_stream", self.stream)
        stream.receive_some = self._noting(stream.receive_some)
        stream.send_all = self._noting(stream.send_all)

    def _noting(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noting(*args: Any) -> Any:
            try:
                return await method(*args)
            except trio.BrokenResourceError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ETIMEDOUT:
                    self.timed_out = True
                # hypercorn may be unable to tell the app: its queue is full while nobody receives.
                for tell in tuple(self.when_lost):
                    tell("heartbeat timeout" if self.timed_out else "")
                raise

        return noting

    async def run(self) -> None:
        """See hypercorn."""
        try:
            await super().run()
        except* _GARBAGE as group:
            logger.info("ended a connection that broke the protocol: %a", group.exceptions[0])
        except* Exception as group:
            logger.error("a connection failed in hypercorn", exc_info=group)


def _with_globals(function: Any, **replaced: object) -> Any:
    """``function`` as it would be if its module had these names; the module itself stays as it is."""
    copied = types.FunctionType(
        function.__code__, {**function.__globals__, **replaced}, function.__name__, function.__defaults__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class _Started:
    """Passes on that the server runs, unless its app has failed to start: hypercorn listens for a moment."""

    def __init__(self, host: _Host, task_status: trio.TaskStatus[list[str]]) -> None:
        self._host = host
        self._task_status = task_status

    def started(self, value: list[str] | None = None) -> None:
        if self._host.failure is None:
            self._task_status.started(value or [])


class _Host:
    """An ASGI app around the user's: knows what is under way and can end it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.connections: Connections[Any] = Connections()
        self.internals = _internals_known()
        self.failure: LifespanFailureError | None = None
        """What the app said of its startup or shutdown, should it have failed."""
        self._calls = 0
        self._quiet = trio.Event()
        self._handlers: trio.Nursery | None = None
        self._streams: weakref.WeakSet[trio.abc.AsyncResource] = weakref.WeakSet()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        ended = trio.Event()
        tcp_server = self._take_hold(send, ended) if self.internals else None
        told: list[Callable[[str], None]] = []
        if scope["type"] == "websocket":
            if isinstance(tcp_server, _TCPServer):
                receive = _telling(receive, tcp_server)
                tell_lost = partial(_tell_when_lost, tcp_server, told)
                scope["extensions"] = {**(scope.get("extensions") or {}), ON_LOST: tell_lost}
            scope["extensions"] = {**(scope.get("extensions") or {}), SERVER_CONNECTIONS: self.connections}
        self._calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            ended.set()
            for tell in told:
                cast("_TCPServer", tcp_server).when_lost.pop(tell, None)
            self._calls -= 1
            if not self._calls:
                self._quiet.set()
                self._quiet = trio.Event()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = False

        async def ask() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async def answer(message: Message) -> None:
            if message["type"].endswith(".failed"):
                self.failure = LifespanFailureError(message["type"].split(".")[1], message.get("message", ""))
            await send(message)

        await self.app(scope, ask, answer)
        if not asked:  # an app that returns at once would end hypercorn's worker: answer in its place
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})

    def _take_hold(self, send: Send, ended: trio.Event) -> object:
        # server nursery > TCPServer.run > its task group's nursery > this task
        tcp_task = _parent(trio.lowlevel.current_task())
        if tcp_task is not None and tcp_task.parent_nursery is not None:
            self._handlers = tcp_task.parent_nursery
        stream = getattr(send, "__self__", None)  # WSStream or HTTPStream
        if isinstance(stream, WSStream):
            stream.context = _StreamContext(stream.context, ended)  # type: ignore[assignment]
            _decline_bad_extensions(stream)
        protocol = getattr(getattr(stream, "send", None), "__self__", None)  # H11Protocol or H2Protocol
        tcp_server = getattr(getattr(protocol, "send", None), "__self__", None)
        tcp_stream = getattr(tcp_server, "stream", None)
        if isinstance(tcp_stream, trio.abc.AsyncResource):
            self._streams.add(tcp_stream)
        return tcp_server

    async def wait_quiet(self) -> None:
        """Block until no call of the app is under way."""
        while self._calls:
            await self._quiet.wait()

    def cancel(self) -> None:
        """Cancel what hypercorn still does; a WebSocket's client is told 1012 even so."""
        if self._handlers is not None:
            self._handlers.cancel_scope.cancel()

    async def drop(self) -> None:
        """Drop all TCP connections: hypercorn's sends to a client that does not read cannot be cancelled."""
        for stream in list(self._streams):
            await trio.aclose_forcefully(stream)


def _tell_when_lost(
    tcp_server: _TCPServer, told: list[Callable[[str], None]], tell: Callable[[str], None]
) -> None:
    tcp_server.when_lost[tell] = None
    told.append(tell)


def _decline_bad_extensions(stream: WSStream) -> None:
    """An offer that wsproto cannot read would fail in the app's accept(); go on without extensions."""
    offered = stream.handshake.extensions
    if offered is not None:
        try:
            server_extensions_handshake(list(offered), [PerMessageDeflate()])
        except (ValueError, RemoteProtocolError) as error:
            logger.info("declined a bad Sec-WebSocket-Extensions: %a", error)
            stream.handshake.extensions = None


def _telling(receive: Receive, tcp_server: _TCPServer) -> Receive:
    async def telling() -> Message:
        message = await receive()
        if message["type"] == "websocket.disconnect" and tcp_server.timed_out:
            return {**message, "reason": "heartbeat timeout"}
        return message

    return telling


def _parent(task: trio.lowlevel.Task) -> trio.lowlevel.Task | None:
    return task.parent_nursery.parent_task if task.parent_nursery is not None else None


async def serve_hypercorn(
    app: ASGIApp,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown: Callable[[], Awaitable[object]] | None = None,
    hurry: Callable[[], Awaitable[object]] | None = None,
    drain_window: float = DRAIN_WINDOW,
    tuned: bool = True,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` by hypercorn's Trio worker until ``shutdown()`` returns, then drain.

    ``sockets`` listen already; without them ``config.bind`` is bound. When ``hurry()`` returns, draining
    is cut short. ``tuned=False`` is hypercorn as it is. Reports the bound URLs to ``task_status``.
    """
    if sockets is None:
        sockets = config.create_sockets()
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets):
            listener.listen(config.backlog)
    serve = hypercorn.trio.run.worker_serve

    async def wait_shutdown() -> None:
        await (shutdown or trio.sleep_forever)()

    if not tuned:
        await serve(
            _wrapped(app), config, sockets=sockets, shutdown_trigger=wait_shutdown, task_status=task_status
        )
        return
    settings = getattr(app, "settings", None)
    if not isinstance(settings, ConnectionSettings):
        settings = ConnectionSettings()
    config = copy.copy(config)
    _tune(config, sockets, settings)
    host = _Host(app)
    if host.internals:
        serve = _with_globals(serve, TCPServer=_TCPServer)
    grace = min(settings.disconnect_grace, LONGEST_GRACE) + min(settings.close_timeout, LONGEST_GRACE)
    patience = max(config.graceful_timeout, grace)
    config.graceful_timeout = drain_window + patience + 2 * LAST_WORDS
    stopping = trio.Event()
    ended = trio.Event()

    async def trigger() -> None:
        await wait_shutdown()
        stopping.set()

    async def end_gently(hurried: trio.CancelScope) -> None:
        with hurried, trio.move_on_after(drain_window + patience):
            await host.connections.drain(drain_window)
            with trio.move_on_after(patience):
                await host.wait_quiet()
                await trio.sleep(LAST_WORDS)
        host.cancel()

    async def end() -> None:
        await stopping.wait()
        hurried = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            if hurry is not None:
                nursery.start_soon(_then_cancel, hurry, hurried)
            await end_gently(hurried)
            nursery.cancel_scope.cancel()

    async def end_for_sure() -> None:
        try:
            await end()
        finally:  # also where we are cancelled ourselves
            with trio.CancelScope(shield=True):
                with trio.move_on_after(LAST_WORDS):
                    await ended.wait()
                await host.drop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_for_sure)
        try:
            await serve(
                _wrapped(host),
                config,
                sockets=sockets,
                shutdown_trigger=trigger,
                task_status=_Started(host, task_status),
            )
        finally:
            ended.set()
        nursery.cancel_scope.cancel()
    if host.failure is not None:  # hypercorn loses the failure of a shutdown
        raise host.failure


def _wrapped(app: ASGIApp) -> ASGIWrapper:
    return ASGIWrapper(cast("Any", app))


async def _then_cancel(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


def _tune(config: Config, sockets: Sockets, settings: ConnectionSettings) -> None:
    heartbeat = settings.heartbeat
    if heartbeat is None:
        return
    if config.websocket_ping_interval is None and heartbeat.interval != math.inf:
        config.websocket_ping_interval = heartbeat.interval
    if hasattr(socket, "TCP_USER_TIMEOUT") and heartbeat.timeout != math.inf:
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets):
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                # Linux hands it on to the sockets that are accepted.
                listener.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(heartbeat.timeout * 1000))
                )
