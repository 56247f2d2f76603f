"""What a user's module may look like; type-checked by test_typing.py, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, assert_type

import msgspec
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from nexios_trio import (
    Channel,
    ChannelBox,
    Group,
    Heartbeat,
    HistoryLimits,
    Limits,
    Message,
    NexiosApp,
    Overflow,
    PayloadTypeEnum,
    WebSocket,
    WebSocketConsumer,
    WebSocketDisconnect,
    WebsocketRoutes,
    WSRouter,
)
from nexios_trio.routing import Convertor
from nexios_trio.testing import TestClient, TestServer
from nexios_trio.websockets.base import WebSocket as NexiosWebSocket
from nexios_trio.websockets.channels import ChannelAddStatusEnum, ChannelMessageDC, GroupSendStatusEnum


class Hex(Convertor[int]):
    regex = "[0-9a-f]+"

    def convert(self, value: str) -> int:
        return int(value, 16)

    def to_string(self, value: int) -> str:
        return f"{value:x}"


class Chat(msgspec.Struct):
    text: str


@asynccontextmanager
async def lifespan(app: NexiosApp) -> AsyncIterator[dict[str, Any]]:
    yield {"db": app.state}


async def log(ws: WebSocket, call_next: Callable[..., Any]) -> None:
    await call_next(ws)


app = NexiosApp(
    lifespan=lifespan,
    middleware=[Middleware(SessionMiddleware, secret_key="s"), log],
    limits=Limits(inbox_messages=8),
    heartbeat=Heartbeat(interval=10, timeout=5, message="ping"),
    convertors={"hex": Hex()},
    history=HistoryLimits(messages=10),
)


async def tick(ws: WebSocket, every: float) -> None:
    await ws.send_text(str(every))


@app.ws_route("/rooms/{room:hex}", name="room", middleware=[log])
async def room(ws: WebSocket, room: int) -> None:
    await ws.accept(subprotocol="v1", headers={"x-a": "b"})
    ws.start_soon(tick, ws, 0.5)
    try:
        assert_type(await ws.receive_text(), str)
        assert_type(await ws.receive_bytes(), bytes)
        assert_type(await ws.receive_json(type=Chat), Chat)
        async for chat in ws.iter_json(Chat):
            assert_type(chat, Chat)
        async for text in ws.iter_text():
            assert_type(text, str)
        async for value in ws.iter_json():
            await ws.send_json(value)
    except WebSocketDisconnect as gone:
        assert_type(gone.code, int)
    finally:
        await ws.close()


async def other(ws: NexiosWebSocket) -> None:
    await ws.reject(401, {"error": "no"})


app.add_ws_route("/a", other)
app.add_ws_route(path="/b", handler=other)
app.add_ws_route(WebsocketRoutes("/c", other, name="c"))
router = WSRouter([WebsocketRoutes("/d", other)], prefix="/r")
app.mount_ws_router(router, "/over")


@app.get("/page")
async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(app.url_path_for("room", room=1)))


@app.on_startup
async def start() -> None:
    app.start_soon(poll, 1.0, on_crash="stop")


@app.on_shutdown()
def stop() -> None:
    pass


async def poll(every: float) -> None:
    await app.events.emit("polled", every)


@app.events.on("polled")
async def listener(every: float) -> None:
    pass


@app.ws_route("/groups")
async def groups(ws: WebSocket) -> None:
    await ws.accept()
    ws.identify("ada")
    channel = Channel(websocket=ws, payload_type=PayloadTypeEnum.JSON, expires=1800, metadata={"a": 1})
    assert_type(await ChannelBox.add_channel_to_group(channel, group_name="g"), ChannelAddStatusEnum)
    assert_type(await app.channels.add_channel_to_group(channel, "g"), ChannelAddStatusEnum)
    status = await ChannelBox.group_send(group_name="g", payload={"a": 1}, save_history=True)
    assert_type(status, GroupSendStatusEnum)
    assert_type(await app.channels.group_send("g", "text", exclude=[ws.id]), GroupSendStatusEnum)
    assert_type(await ChannelBox.send_to(channel_id=channel.uuid, payload=b""), GroupSendStatusEnum)
    assert_type(await ChannelBox.show_history("g"), list[ChannelMessageDC])
    assert_type(await ChannelBox.close_all_connections(code=1001), int)
    async with ws.join("g", since=None, presence={"a": 1}, overflow=Overflow.CONFLATE("id")) as group:
        assert_type(group, Group)
        assert_type(await group.send({"a": 1}, exclude_self=True), Message)
        for user in await group.presence.list():
            assert_type(user.user, str)
    async with app.channels.subscribe("chat.*") as messages:
        async for message in messages:
            assert_type(message, Message)
    async with ChannelBox.subscribe("chat.*", size=10) as messages:
        pass


class ChatConsumer(WebSocketConsumer):
    encoding = "json"
    message_type = Chat
    concurrency = 4

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def ordering_key(self, data: Chat) -> str:
        return data.text

    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await self.join_group("chat")

    async def on_receive(self, websocket: WebSocket, data: Chat) -> None:
        await self.broadcast(payload=data, group_name="chat", save_history=True)
        assert_type(await self.group("chat"), list[Channel])
        await self.channel.send({"hi": self.greeting})

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await self.leave_group("chat")


app.add_ws_route(ChatConsumer.as_route("/consumer", greeting="hi"))
router.add_ws_route(ChatConsumer.as_route("/consumer", greeting="hi", middleware=[log]))
WSRouter([ChatConsumer.as_route("/other", greeting="hi")])


async def test_room(nexios_client: Callable[..., TestClient], nexios_server: Callable[..., Any]) -> None:
    async with nexios_client(app).connect("/rooms/1f") as ws:
        assert_type(await ws.receive_text(), str)
        await ws.drop()
    server: TestServer = await nexios_server(app)
    assert server.url.startswith("ws://")
