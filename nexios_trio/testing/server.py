"""The app on a real socket: hypercorn's own Trio worker, in a nursery of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from nexios_trio.server.hypercorn import hypercorn_config, serve_hypercorn
from nexios_trio.types import ASGIApp

__all__ = ["TestServer", "serve"]


class TestServer:
    """A running server: where it is, and how to end it."""

    __test__ = False

    def __init__(self, host: str, port: int, nursery: trio.Nursery) -> None:
        self.host = host
        self.port = port
        self.url = f"ws://{host}:{port}"
        """The base URL for WebSocket clients."""
        self.http_url = f"http://{host}:{port}"
        """The base URL for HTTP clients."""
        self._nursery = nursery
        self._stopping = trio.Event()
        self._stopped = trio.Event()

    def stop(self) -> None:
        """Shut down as at SIGTERM: close all connections with 1012. Returns at once."""
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Block until the server has ended."""
        await self._stopped.wait()

    def kill(self) -> None:
        """End the server by cancelling it, as plain hypercorn does when its patience is over."""
        self._nursery.cancel_scope.cancel()


@asynccontextmanager
async def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", drain_window: float = 0.0, runner: bool = True, **config: Any
) -> AsyncIterator[TestServer]:
    """Serve ``app`` on a free port by hypercorn's Trio worker for the length of the block.

    ``config`` are attributes of hypercorn's Config. ``runner=False`` serves as the bare ``hypercorn``
    command does: without our ping interval, ``TCP_USER_TIMEOUT`` and draining.
    """
    settings = hypercorn_config(bind=[f"{host}:0"], accesslog=None, errorlog=None, **config)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        server = TestServer(host, 0, nursery)

        async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
            try:
                await serve_hypercorn(
                    app,
                    settings,
                    shutdown=server._stopping.wait,
                    drain_window=drain_window,
                    tuned=runner,
                    task_status=task_status,
                )
            finally:
                server._stopped.set()

        (bound,) = await nursery.start(run)
        server.port = int(bound.rpartition(":")[2])
        server.url = f"ws://{host}:{server.port}"
        server.http_url = f"http://{host}:{server.port}"
        try:
            yield server
        except BaseException as error:  # raised below, outside the nursery's exception group
            failure = error
        server.stop()
        with trio.move_on_after(5, shield=True):
            await server.wait_stopped()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
