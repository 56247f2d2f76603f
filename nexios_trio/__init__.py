"""nexios_trio: the WebSocket half of Nexios, on Trio."""

from nexios_trio.application import NexiosApp
from nexios_trio.brokers import Message, Position
from nexios_trio.config import Heartbeat, HistoryLimits, Limits, Overflow
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
from nexios_trio.websockets.channels import Channel, ChannelBox, PayloadTypeEnum
from nexios_trio.websockets.consumers import WebSocketConsumer
from nexios_trio.websockets.groups import Group

__version__ = "0.1.0"

__all__ = [
    "Channel",
    "ChannelBox",
    "CloseCode",
    "ConcurrentReceiveError",
    "Group",
    "Heartbeat",
    "HistoryLimits",
    "InvalidJSON",
    "Limits",
    "Message",
    "MessageTypeError",
    "MessageValidationError",
    "NexiosApp",
    "NexiosTrioError",
    "Overflow",
    "PayloadTypeEnum",
    "PeerError",
    "Position",
    "RoutingError",
    "UsageError",
    "WSRouter",
    "WebSocket",
    "WebSocketConsumer",
    "WebSocketDisconnect",
    "WebSocketException",
    "WebSocketState",
    "WebsocketRoutes",
    "WrongStateError",
    "WrongTypeError",
    "WrongValueError",
    "__version__",
]
