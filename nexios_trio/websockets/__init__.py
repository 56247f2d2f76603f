"""`WebSocket` and what a handler may catch or raise. The paths are those of Nexios."""

from nexios_trio.exceptions import WebSocketDisconnect, WebSocketException
from nexios_trio.websockets.base import WebSocket, WebSocketState

__all__ = [
    "Channel",
    "ChannelBox",
    "Group",
    "PayloadTypeEnum",
    "WebSocket",
    "WebSocketConsumer",
    "WebSocketDisconnect",
    "WebSocketException",
    "WebSocketState",
]
