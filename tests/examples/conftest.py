"""Servers and browsers for the examples. A test module says in ``APP`` which one it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.examples.servers import Server

if TYPE_CHECKING:
    from tests.examples.browsers import Browser, Visitors


@pytest.fixture
def make_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(command: str = "hypercorn") -> Server:
        server = Server(request.module.APP, command)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()
        assert "Traceback" not in "".join(server.log), "".join(server.log)


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


# Not for the session: while Playwright's sync interface is open, an asyncio loop runs in this thread, and no
# test of another module could call asyncio.run().
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.examples.browsers import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def visitors(browser: Browser, server: Server) -> Iterator[Visitors]:
    from tests.examples.browsers import Visitors

    visitors = Visitors(browser, server.url)
    yield visitors
    visitors.leave()
    assert visitors.complaints == []
