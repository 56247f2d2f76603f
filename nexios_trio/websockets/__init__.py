"""`WebSocket`, groups and consumers, and what a handler may catch or raise. The paths are those of Nexios."""

from nexios_trio.exceptions import WebSocketDisconnect, WebSocketException
from nexios_trio.websockets.base import WebSocket, WebSocketState
from nexios_trio.websockets.channels import Channel, ChannelBox, PayloadTypeEnum
from nexios_trio.websockets.consumers import WebSocketConsumer
from nexios_trio.websockets.groups import Group

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
