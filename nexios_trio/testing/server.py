"""The app on a real socket: hypercorn's own Trio worker, in a nursery of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from nexios_trio.server.hypercorn import hypercorn_config, serve_hypercorn
from nexios_trio.types import ASGIApp

__all__ = ["TestServer", "serve"]

PATIENCE: Final = 5.0
"""Seconds that a server has at the end of the block, before its clients are dropped."""


class TestServer:
    """A running server: where it is, and how to end it."""

    __test__ = False

    def __init__(self) -> None:
        self.host = ""
        self.port = 0
        self.url = ""
        """The base URL for WebSocket clients."""
        self.http_url = ""
        """The base URL for HTTP clients."""
        self._running = trio.Event()
        self._stopping = trio.Event()
        self._hurry = trio.Event()
        self._killed = trio.CancelScope()
        self._stopped = trio.Event()

    def started(self, value: list[str] | None = None) -> None:
        """Called by the server with its URLs (a `trio.TaskStatus`)."""
        self.http_url = (value or [""])[0]
        self.url = self.http_url.replace("http", "ws", 1)
        where = urlsplit(self.http_url)
        self.host, self.port = where.hostname or "", where.port or 0
        self._running.set()

    def stop(self) -> None:
        """Shut down as at SIGTERM: close all connections with 1012. Returns at once."""
        self._stopping.set()

    def hurry(self) -> None:
        """Cut the shutdown short, as a second Ctrl-C does. Returns at once."""
        self._stopping.set()
        self._hurry.set()

    async def wait_stopped(self) -> None:
        """Block until the server has ended."""
        await self._stopped.wait()

    def kill(self) -> None:
        """End the server by cancelling it, as plain hypercorn does when its patience is over. Returns at
        once."""
        self._killed.cancel()


@asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    drain_window: float = 0.0,
    drain_notice: float = 0.0,
    runner: bool = True,
    fast_lane: bool = False,
    **config: Any,
) -> AsyncIterator[TestServer]:
    """Serve ``app`` on a free port by hypercorn's Trio worker for the length of the block.

    ``config`` are attributes of hypercorn's Config. ``fast_lane=True`` serves plain WebSockets by our engine,
    as ``nexios-trio run`` does. ``runner=False`` serves as the bare ``hypercorn`` command does: without our
    ping interval, ``TCP_USER_TIMEOUT`` and draining.
    """
    name = f"[{host}]" if ":" in host else host
    settings = hypercorn_config(**{"bind": [f"{name}:0"], "accesslog": None, "errorlog": None, **config})
    server = TestServer()
    errors: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        body = trio.CancelScope()

        async def run() -> None:
            try:
                with server._killed:
                    await serve_hypercorn(
                        app,
                        settings,
                        shutdown=server._stopping.wait,
                        hurry=server._hurry.wait,
                        drain_window=drain_window,
                        drain_notice=drain_notice,
                        tuned=runner,
                        fast_lane=fast_lane,
                        task_status=server,
                    )
            except Exception as error:
                errors.append(_bare(error))
                body.cancel()
            finally:
                server._stopped.set()

        # Errors are raised below, outside the nursery's exception group.
        try:
            with body:
                nursery.start_soon(run)
                await server._running.wait()
                yield server
        except BaseException as error:
            errors.insert(0, error)
        server.stop()
        with trio.move_on_after(PATIENCE, shield=True):
            await server.wait_stopped()
        nursery.cancel_scope.cancel()
    if len(errors) > 1:
        raise BaseExceptionGroup("the test and its server failed", errors)
    if errors:
        raise errors[0]


def _bare(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
