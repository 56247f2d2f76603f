"""hypercorn's Trio worker, and the whole of our reach into hypercorn's internals.

hypercorn serves; this file adds what its Trio worker lacks for WebSockets, each thing by the smallest
grip that holds: draining with 1012, a ping interval from the app's heartbeat, ``TCP_USER_TIMEOUT`` so
that a dead or stalled peer ends, and an end of the worker as soon as there is nothing left to wait for.
With a version of hypercorn that nobody has tried, the grips on internals are left out, with a warning.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.synchronize import Event as ProcessEvent
from typing import Any, Final, cast

import hypercorn.__main__
import hypercorn.run
import hypercorn.trio.run
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets
from hypercorn.protocol.ws_stream import WSStream

from nexios_trio.config import ConnectionSettings
from nexios_trio.server.loading import AppLoadError, load_app
from nexios_trio.transports.connections import SERVER_CONNECTIONS, Connections
from nexios_trio.types import ASGIApp, Receive, Scope, Send

__all__ = ["DRAIN_WINDOW", "hypercorn_config", "run", "serve_hypercorn", "worker"]

logger = logging.getLogger("nexios_trio.server")

DRAIN_WINDOW: Final = 5.0
"""Seconds over which connections are closed at shutdown, unless ``drain_window`` says otherwise."""

_TRIED: Final = ((0, 18),)


def _internals_known() -> bool:
    version = importlib.metadata.version("hypercorn")
    if tuple(int(part) for part in version.split(".")[:2]) in _TRIED:
        return True
    logger.warning("hypercorn %s has not been tried; serving without early ping and shutdown ends", version)
    return False


def hypercorn_config(**attributes: Any) -> Config:
    """A hypercorn Config for the Trio worker with these attributes."""
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


class _Host:
    """An ASGI app around the user's: knows what is under way and can end it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.connections: Connections[Any] = Connections()
        self._internals = _internals_known()
        self._active: dict[object, trio.abc.AsyncResource | None] = {}
        self._handlers: trio.Nursery | None = None
        self._quiet = trio.Event()
        self._quiet.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        call = object()
        ended = trio.Event()
        self._active[call] = self._take_hold(send, ended) if self._internals else None
        if self._quiet.is_set():
            self._quiet = trio.Event()
        if scope["type"] == "websocket":
            scope["extensions"] = {**(scope.get("extensions") or {}), SERVER_CONNECTIONS: self.connections}
        try:
            await self.app(scope, receive, send)
        finally:
            ended.set()
            del self._active[call]
            if not self._active:
                self._quiet.set()

    def _take_hold(self, send: Send, ended: trio.Event) -> trio.abc.AsyncResource | None:
        # server nursery > TCPServer.run > its task group's nursery > this task
        tcp_task = _parent(trio.lowlevel.current_task())
        if tcp_task is not None and tcp_task.parent_nursery is not None:
            self._handlers = tcp_task.parent_nursery
        stream = getattr(send, "__self__", None)
        if not isinstance(stream, WSStream):
            return None
        stream.context = _StreamContext(stream.context, ended)  # type: ignore[assignment]
        protocol = getattr(stream.send, "__self__", None)  # H11Protocol or, with HTTP/2, H2Protocol
        tcp_server = getattr(getattr(protocol, "send", None), "__self__", None)
        if stream.scope["http_version"] != "1.1":
            return None
        tcp_stream = getattr(tcp_server, "stream", None)
        return tcp_stream if isinstance(tcp_stream, trio.abc.AsyncResource) else None

    async def wait_quiet(self) -> None:
        """Block until no call of the app is under way."""
        while self._active:
            await self._quiet.wait()

    async def finish(self, patience: float) -> None:
        """End what is left: after ``patience`` seconds, drop the TCP connections of calls still under
        way (hypercorn's sends to a client that does not read cannot be cancelled otherwise)."""
        with trio.move_on_after(patience):
            await self.wait_quiet()
        for stream in list(self._active.values()):
            if stream is not None:
                await trio.aclose_forcefully(stream)
        if self._handlers is not None:
            self._handlers.cancel_scope.cancel()


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
    _tune(config, sockets, settings)
    host = _Host(app)
    grace = min(settings.disconnect_grace, 3600.0) + min(settings.close_timeout, 3600.0)
    patience = max(config.graceful_timeout, grace)
    config.graceful_timeout = drain_window + patience + 5.0
    stopping = trio.Event()

    async def trigger() -> None:
        await wait_shutdown()
        stopping.set()

    async def drain() -> None:
        await stopping.wait()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if hurry is not None:
                    nursery.start_soon(_then_cancel, hurry, scope)
                with trio.move_on_after(drain_window + patience):
                    await host.connections.drain(drain_window)
                await host.finish(patience)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            await host.finish(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await serve(
            _wrapped(host), config, sockets=sockets, shutdown_trigger=trigger, task_status=task_status
        )
        nursery.cancel_scope.cancel()


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


# The command


def run(application: str, arguments: list[str], drain_window: float | None = None) -> int:
    """Serve ``application`` (``module:app``) with hypercorn's own command line ``arguments`` and process
    management; returns the exit code. Blocks.
    """
    parsed: list[Config] = []

    def take(config: Config) -> int:
        parsed.append(config)
        return 0

    with _replaced(hypercorn.__main__, "run", take):
        hypercorn.__main__.main([application, *arguments])
    (config,) = parsed
    config.worker_class = "trio"
    if drain_window is not None:
        config.drain_window = drain_window  # type: ignore[attr-defined]
    with _replaced(hypercorn.trio.run, "trio_worker", worker):
        return hypercorn.run.run(config)


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def worker(
    config: Config, sockets: Sockets | None = None, shutdown_event: ProcessEvent | None = None
) -> None:
    """One server process: what hypercorn's ``trio_worker`` does, by `serve_hypercorn`.

    SIGTERM and the first SIGINT drain; a second SIGINT cuts it short.
    """
    if not logging.getLogger().hasHandlers():
        logging.basicConfig(
            level=config.loglevel.upper(),
            format="[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s",
        )
    if sockets is not None:
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets):
            listener.listen(config.backlog)
    try:
        app = load_app(config.application_path)
    except AppLoadError as error:
        print(f"nexios-trio: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    trio.run(partial(_work, app, config, sockets, shutdown_event))


async def _work(
    app: ASGIApp, config: Config, sockets: Sockets | None, shutdown_event: ProcessEvent | None
) -> None:
    drain_window = float(getattr(config, "drain_window", DRAIN_WINDOW))
    async with _signals() as (stop, hurry):

        async def wait_shutdown() -> None:
            async with trio.open_nursery() as nursery:
                if shutdown_event is not None:
                    nursery.start_soon(_poll, shutdown_event, stop)
                await stop.wait()
                nursery.cancel_scope.cancel()

        await serve_hypercorn(
            app,
            config,
            sockets=sockets,
            shutdown=wait_shutdown,
            hurry=hurry.wait,
            drain_window=drain_window,
        )


async def _poll(shutdown_event: ProcessEvent, stop: trio.Event) -> None:
    while not shutdown_event.is_set():  # noqa: ASYNC110 - a multiprocessing Event can only be polled
        await trio.sleep(0.1)
    stop.set()


@asynccontextmanager
async def _signals() -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    stop, hurry = trio.Event(), trio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop, hurry
        return
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrivals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                interrupts = 0
                async for number in arrivals:
                    interrupts += number == signal.SIGINT
                    if interrupts > 1:
                        hurry.set()
                    stop.set()

            nursery.start_soon(watch)
            yield stop, hurry
            nursery.cancel_scope.cancel()
