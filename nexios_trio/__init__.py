"""nexios_trio: the WebSocket half of Nexios, on Trio."""

from nexios_trio.application import NexiosApp
from nexios_trio.config import Heartbeat, Limits
from nexios_trio.exceptions import (
    ConcurrentReceiveError,
    InvalidJSON,
    MessageTypeError,
    MessageValidationError,
    NexiosTrioError,
    PeerError,
    RoutingError,
    UsageError,
    WebSocketDisconnect,
    WebSocketException,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.routing.router import WebsocketRoutes, WSRouter
from nexios_trio.status import CloseCode
from nexios_trio.websockets.base import WebSocket, WebSocketState

__version__ = "0.1.0"

__all__ = [
    "CloseCode",
    "ConcurrentReceiveError",
    "Heartbeat",
    "InvalidJSON",
    "Limits",
    "MessageTypeError",
    "MessageValidationError",
    "NexiosApp",
    "NexiosTrioError",
    "PeerError",
    "RoutingError",
    "UsageError",
    "WSRouter",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketException",
    "WebSocketState",
    "WebsocketRoutes",
    "WrongStateError",
    "WrongTypeError",
    "WrongValueError",
    "__version__",
]
