"""Django Channels, on daphne, with its channel layer in memory."""

from __future__ import annotations

from typing import Any

from django.conf import settings

settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}})

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - needs the settings
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data)


class Listen(AsyncWebsocketConsumer):
    groups = ("all",)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("all", {"type": "broadcast", "text": text_data})

    async def broadcast(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter(
    {"websocket": URLRouter([path("echo", Echo.as_asgi()), path("listen", Listen.as_asgi())])}
)
