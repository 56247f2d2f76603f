"""nexios_trio: the WebSocket half of Nexios, on Trio."""

from nexios_trio.application import NexiosApp
from nexios_trio.brokers import Message, Position
from nexios_trio.config import Deflate, Heartbeat, HistoryLimits, Limits, Overflow, Rate
from nexios_trio.exceptions import (
    AuthenticationError,
    BrokerError,
    BrokerUnavailable,
    ConcurrentReceiveError,
    InvalidJSON,
    LimitError,
    MessageTypeError,
    MessageValidationError,
    NexiosTrioError,
    PeerError,
    PermissionDenied,
    RoutingError,
    UsageError,
    WebSocketDisconnect,
    WebSocketException,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.routing.router import WebsocketRoutes, WSRouter
from nexios_trio.security.auth import AnyOf, BearerToken, FirstMessage, SessionUser, SubprotocolToken, nobody
from nexios_trio.security.identity import Auth, Identity, User
from nexios_trio.security.proxy import Proxy
from nexios_trio.security.ratelimit import RateLimit
from nexios_trio.security.rules import rate_limit, requires
from nexios_trio.status import CloseCode
from nexios_trio.websockets.base import WebSocket, WebSocketState
from nexios_trio.websockets.channels import Channel, ChannelBox, PayloadTypeEnum
from nexios_trio.websockets.consumers import WebSocketConsumer
from nexios_trio.websockets.groups import Group

__version__ = "0.1.0"

__all__ = [
    "AnyOf",
    "Auth",
    "AuthenticationError",
    "BearerToken",
    "BrokerError",
    "BrokerUnavailable",
    "Channel",
    "ChannelBox",
    "CloseCode",
    "ConcurrentReceiveError",
    "Deflate",
    "FirstMessage",
    "Group",
    "Heartbeat",
    "HistoryLimits",
    "Identity",
    "InvalidJSON",
    "LimitError",
    "Limits",
    "Message",
    "MessageTypeError",
    "MessageValidationError",
    "NexiosApp",
    "NexiosTrioError",
    "Overflow",
    "PayloadTypeEnum",
    "PeerError",
    "PermissionDenied",
    "Position",
    "Proxy",
    "Rate",
    "RateLimit",
    "RoutingError",
    "SessionUser",
    "SubprotocolToken",
    "UsageError",
    "User",
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
    "nobody",
    "rate_limit",
    "requires",
]
