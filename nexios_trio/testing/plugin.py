"""pytest fixtures, on top of pytest-trio; found by pytest through the entry point ``pytest11``.

* ``nexios_client``: ``client = nexios_client(app)``, in memory, runs under ``autojump_clock``.
* ``nexios_server``: ``server = await nexios_server(app)``, on a real socket and a free port; the test runs
  twice, on our engine and on hypercorn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from nexios_trio.testing.client import TestClient
    from nexios_trio.testing.server import TestServer

try:
    from pytest_trio import trio_fixture
except ImportError:  # the fixtures then say what is missing, only to those who ask for them
    trio_fixture = None


if trio_fixture is None:

    @pytest.fixture
    def nexios_client() -> None:
        """Say what is missing."""
        pytest.fail("nexios_client needs pytest-trio; install it with: pip install 'nexios-trio[test]'")

    @pytest.fixture
    def nexios_server() -> None:
        """Say what is missing."""
        pytest.fail("nexios_server needs pytest-trio; install it with: pip install 'nexios-trio[test]'")

else:

    @trio_fixture  # type: ignore[untyped-decorator]
    async def nexios_client() -> AsyncIterator[Callable[..., TestClient]]:
        """``nexios_client(app, **options)`` gives a `TestClient`; it starts with its first connection,
        lifespan included, and ends with the test.
        """
        from nexios_trio.testing.client import TestClient

        async with trio.open_nursery() as nursery:
            release = trio.Event()

            def make(app: Any, **options: Any) -> TestClient:
                client = TestClient(app, **options)
                client.open_with(lambda: nursery.start(_hold, client, release))
                return client

            yield make
            release.set()

    @pytest.fixture(params=["engine", "hypercorn"])
    def nexios_server_name(request: pytest.FixtureRequest) -> str:
        """Who serves plain WebSockets for ``nexios_server``: ``"engine"``, then ``"hypercorn"``. Parametrise
        it indirectly, or override it, to run on one of them only."""
        name: str = request.param
        return name

    @trio_fixture  # type: ignore[untyped-decorator]
    async def nexios_server(nexios_server_name: str) -> AsyncIterator[Callable[..., Any]]:
        """A function: ``await nexios_server(app, **options)`` gives a running `TestServer`, which ends with
        the test; for the options see `nexios_trio.testing.serve`.
        """
        from nexios_trio.testing.server import serve

        async with trio.open_nursery() as nursery:
            release = trio.Event()

            async def make(app: Any, **options: Any) -> TestServer:
                fast_lane = nexios_server_name == "engine" and options.get("runner", True)
                options = {"fast_lane": fast_lane, **options}
                server: TestServer = await nursery.start(_hold, serve(app, **options), release)
                return server

            yield make
            release.set()

    async def _hold(
        manager: AbstractAsyncContextManager[Any], release: trio.Event, *, task_status: trio.TaskStatus[Any]
    ) -> None:
        async with manager as value:
            task_status.started(value)
            await release.wait()
