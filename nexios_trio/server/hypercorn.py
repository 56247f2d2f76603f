"""hypercorn's Trio worker, with what it lacks. Its internals are named in one file, `internals`, from which
`hold`, `tcp` and `wire` have their grips.

hypercorn serves; these files add what its Trio worker lacks for WebSockets, each thing by the smallest
grip that holds. Here: draining with 1012, a ping interval from the app's heartbeat, ``TCP_USER_TIMEOUT`` so
that a dead or stalled peer ends, bounds from the app's `Limits`, and an end of the worker as soon as there
is nothing left to wait for. In the others: what a hostile client would harm.
With a version of hypercorn that nobody has tried, the grips on internals are left out, with a warning.
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
import socket
import sys
import types
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets
from hypercorn.utils import LifespanFailureError

from nexios_trio.config import ConnectionSettings, Heartbeat
from nexios_trio.exceptions import WrongValueError
from nexios_trio.server.engine import Access, Engine
from nexios_trio.server.log import SafeLogger, SafeStatsdLogger
from nexios_trio.server.versions import plain_worker_serve, tried, version
from nexios_trio.transports.connections import SERVER_CONNECTIONS, Connections
from nexios_trio.transports.engine import TRANSPORT
from nexios_trio.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from nexios_trio.server.hold import Hold
    from nexios_trio.server.tcp import Lobby

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["DRAIN_WINDOW", "hypercorn_config", "serve_hypercorn"]

logger = logging.getLogger("nexios_trio.server")

DRAIN_WINDOW: Final = 5.0
"""Seconds over which connections are closed at shutdown, unless ``drain_window`` says otherwise."""

LONGEST_GRACE: Final = 30.0
"""The most that a shutdown waits for a handler whose grace has no end."""

LAST_WORDS: Final = 1.0
"""Seconds that hypercorn has to end by itself what is over, or to send what it owes once cancelled."""

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds from a TCP connection to its first request's head, the TLS handshake included, unless
``handshake_timeout`` of the configuration says otherwise. As long as a handler has to accept."""

WAITING_CONNECTIONS: Final = 1000
"""TCP connections without a request under way, unless ``waiting_connections`` says otherwise; half of the
file descriptors that the process may have, if that is less."""

HEAD_REST: Final = 4 << 10
"""Bytes of a request's head that are neither headers nor query: the path, and what stands between."""

LARGEST_HEAD: Final = 1 << 20
"""Bytes of headers, and of a query, where the app has no bound: a head is read before the app sees it."""

QUEUE: Final = 3
"""Messages between hypercorn and the app's inbox, unless ``max_app_queue_size`` says otherwise. hypercorn's
10 would be ten of the largest, for a client whose messages nobody reads."""

OWN_SETTINGS: Final = ("handshake_timeout", "waiting_connections")
"""What a hypercorn Config may hold for us."""


def _internals_known() -> bool:
    if tried():
        return True
    logger.warning(
        "hypercorn %s has not been tried; serving without early ping and shutdown ends and some bounds",
        version(),
    )
    return False


# What reaches into hypercorn's internals is imported only where these are known: with another version the
# import itself might fail.


def _hold(scope: Scope, receive: Receive, send: Send) -> Hold:
    from nexios_trio.server.hold import Hold

    return Hold(scope, receive, send)


def _gripped(serve: Any, engine: Engine | None, config: Config) -> Any:
    """Hypercorn's ``worker_serve`` with our TCP connections instead of its own."""
    from nexios_trio.server.handoff import Handoff
    from nexios_trio.server.listener import serve_listeners
    from nexios_trio.server.tcp import TCPConnection
    from nexios_trio.server.wire import with_globals

    lobby = _lobby(config)
    if engine is None:
        return with_globals(serve, TCPServer=partial(TCPConnection, lobby))
    seen = types.SimpleNamespace(**vars(trio))
    seen.serve_listeners = partial(serve_listeners, engine, lobby)
    return with_globals(serve, TCPServer=partial(Handoff, engine, lobby), trio=seen)


def hypercorn_config(**attributes: Any) -> Config:
    """A hypercorn Config for the Trio worker with these attributes. Raises `WrongValueError` for one that
    hypercorn does not know."""
    for name in attributes:
        if not hasattr(Config, name) and name not in OWN_SETTINGS:
            close = difflib.get_close_matches(name, [*dir(Config), *OWN_SETTINGS], n=1)
            cure = f"; did you mean {close[0]!r}?" if close else ""
            raise WrongValueError(f"hypercorn's Config has no {name!r}{cure}")
    config = Config.from_mapping(attributes)
    config.worker_class = "trio"
    return config


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
            scope["extensions"] = {**(scope.get("extensions") or {}), SERVER_CONNECTIONS: self.connections}
            await self._live(scope, receive, send)
            return
        extensions = scope.get("extensions") or {}
        fast = TRANSPORT in extensions
        if fast:
            extensions[SERVER_CONNECTIONS] = self.connections  # the dict is this connection's own
        else:
            scope["extensions"] = {**extensions, SERVER_CONNECTIONS: self.connections}
        hold = _hold(scope, receive, send) if self.internals and not fast else None
        if fast:
            self._handlers = trio.lowlevel.current_task().parent_nursery or self._handlers
        if hold is not None:
            receive = hold.receive
            self._handlers = hold.handlers or self._handlers
            if hold.tcp_stream is not None:
                self._streams.add(hold.tcp_stream)
        self._calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            if hold is not None:
                hold.let_go()
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


async def serve_hypercorn(
    app: ASGIApp,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown: Callable[[], Awaitable[object]] | None = None,
    hurry: Callable[[], Awaitable[object]] | None = None,
    drain_window: float = DRAIN_WINDOW,
    drain_notice: float = 0.0,
    tuned: bool = True,
    fast_lane: bool = False,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` by hypercorn's Trio worker until ``shutdown()`` returns, then drain.

    For ``drain_notice`` seconds before that, everything is served as ever, but `Connections.leaving` is set:
    who asks whether this server is ready can stop sending clients before it stops accepting them.

    ``sockets`` listen already; without them ``config.bind`` is bound. When ``hurry()`` returns, draining
    is cut short. ``tuned=False`` is hypercorn as it is. With ``fast_lane`` plain WebSockets are served by the
    engine. Reports the bound URLs to ``task_status``.
    """
    if sockets is None:
        sockets = config.create_sockets()
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets):
            listener.listen(config.backlog)
    serve = plain_worker_serve()

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
    most = config.websocket_max_message_size if _is_set(config, "websocket_max_message_size") else None
    _tune(config, sockets, settings)
    host = _Host(app)
    engine = None
    if host.internals and fast_lane:
        engine = Engine(
            host,
            settings,
            root_path=config.root_path,
            access=_access(config),
            message_bytes=most,
            head_bytes=config.h11_max_incomplete_size,
        )
    if host.internals:
        serve = _gripped(serve, engine, config)
    grace = min(settings.disconnect_grace, LONGEST_GRACE) + min(settings.close_timeout, LONGEST_GRACE)
    patience = max(config.graceful_timeout, grace)
    config.graceful_timeout = drain_window + patience + 2 * LAST_WORDS
    stopping = trio.Event()
    ended = trio.Event()

    async def trigger() -> None:
        await wait_shutdown()
        host.connections.leaving = True
        with trio.move_on_after(drain_notice):
            await (hurry or trio.sleep_forever)()
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
                if engine is not None:
                    engine.drop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_for_sure)
        if engine is not None:
            nursery.start_soon(engine.run)
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


def _access(config: Config) -> Access:
    async def access(scope: Scope, status: int, seconds: float) -> None:
        summary: Any = {"type": "http.response.start", "status": status, "headers": []}
        await config.log.access(scope, summary, seconds)  # type: ignore[arg-type]

    return access


async def _then_cancel(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


def _lobby(config: Config) -> Lobby:
    from nexios_trio.server.tcp import Lobby

    first = getattr(config, "handshake_timeout", HANDSHAKE_TIMEOUT)
    most = getattr(config, "waiting_connections", None)
    if most is None:
        most = WAITING_CONNECTIONS
        if resource is not None and (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) > 0:
            most = min(most, max(1, files // 2))
    return Lobby(first, max(first, config.keep_alive_timeout), most)


def _is_set(config: Config, name: str) -> bool:
    return name in vars(config) or getattr(config, name) != getattr(Config, name)


def _tune(config: Config, sockets: Sockets, settings: ConnectionSettings) -> None:
    limits = settings.limits
    if not _is_set(config, "websocket_max_message_size"):
        config.websocket_max_message_size = limits.message_bytes or sys.maxsize
    if not _is_set(config, "max_app_queue_size"):
        config.max_app_queue_size = QUEUE
    # The app refuses what is over its bounds, and says of which; here is what it must get to see.
    bounds = (limits.header_bytes, limits.query_bytes)
    head = sum(LARGEST_HEAD if bound is None else bound for bound in bounds) + HEAD_REST
    for name in ("h11_max_incomplete_size", "h2_max_header_list_size"):
        if not _is_set(config, name):
            setattr(config, name, max(head, getattr(config, name)))
    if not _is_set(config, "logger_class"):
        config.logger_class = SafeLogger if config.statsd_host is None else SafeStatsdLogger
        config._log = None
    config.deflate = settings.deflate  # type: ignore[attr-defined]
    _tune_heartbeat(config, sockets, settings.heartbeat)


def _tune_heartbeat(config: Config, sockets: Sockets, heartbeat: Heartbeat | None) -> None:
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
