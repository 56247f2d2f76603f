"""pytest fixtures, on top of pytest-trio; found by pytest through the entry point ``pytest11``.

* ``nexios_client``: ``client = nexios_client(app)``, in memory, runs under ``autojump_clock``.
* ``nexios_server``: ``server = await nexios_server(app)``, a real hypercorn on a free port.
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

    @trio_fixture  # type: ignore[untyped-decorator]
    async def nexios_server() -> AsyncIterator[Callable[..., Any]]:
        """A function: ``await nexios_server(app, **options)`` gives a running `TestServer`.

        It ends with the test.
        """
        from nexios_trio.testing.server import serve

        async with trio.open_nursery() as nursery:
            release = trio.Event()

            async def make(app: Any, **options: Any) -> TestServer:
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
