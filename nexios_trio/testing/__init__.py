"""Tools for the tests of a nexios_trio app; the pytest fixtures are in `nexios_trio.testing.plugin`."""

from nexios_trio.testing.checkpoints import cancel_at_each_step
from nexios_trio.testing.client import TestClient, TestWebSocket, WebSocketRejected
from nexios_trio.testing.server import TestServer, serve

__all__ = [
    "TestClient",
    "TestServer",
    "TestWebSocket",
    "WebSocketRejected",
    "cancel_at_each_step",
    "serve",
]
