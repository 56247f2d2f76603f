"""Channels, groups, consumers and events as Nexios' guide writes them, but for `nexios` → `nexios_trio`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio.testing import wait_all_tasks_blocked

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.testing import TestClient

Clients = Callable[..., TestClient]


def test_the_names_are_found_where_nexios_has_them() -> None:
    from nexios_trio.websockets import Channel, ChannelBox, WebSocketConsumer, channels, consumers, utils

    assert channels.Channel is Channel
    assert channels.ChannelBox is ChannelBox
    assert consumers.WebSocketConsumer is WebSocketConsumer
    assert channels.PayloadTypeEnum is utils.PayloadTypeEnum
    for enum in (utils.ChannelAddStatusEnum, utils.ChannelRemoveStatusEnum, utils.GroupSendStatusEnum):
        assert all(member.name == member.value for member in enum)


async def test_a_channel_of_the_guide(nexios_client: Clients) -> None:
    from nexios_trio.websockets.channels import Channel, PayloadTypeEnum

    app = NexiosApp()

    @app.ws_route("/chat")
    async def chat_handler(ws: WebSocket):  # type: ignore[no-untyped-def]
        await ws.accept()
        channel = Channel(
            websocket=ws, payload_type=PayloadTypeEnum.JSON, expires=1800, metadata={"username": "anonymous"}
        )
        assert channel.id == str(channel.uuid)
        assert channel.created > 0
        assert channel.expires == 1800
        assert channel.is_active
        try:
            while True:
                data = await channel.receive()
                channel.touch()
                await channel.send({"type": "message", "data": data, "user": channel.metadata["username"]})
                await channel.send_text("hi")
                await channel.send_bytes(b"..")
        except WebSocketDisconnect:
            pass
        finally:
            await channel.close(code=1000, reason="bye")

    async with nexios_client(app).connect("/chat") as ws:
        await ws.send_json("hello")
        assert await ws.receive_json() == {"type": "message", "data": "hello", "user": "anonymous"}
        assert await ws.receive_text() == "hi"
        assert await ws.receive_bytes() == b".."


async def test_a_chat_room_of_the_guide(nexios_client: Clients) -> None:
    from nexios_trio.websockets.channels import Channel, ChannelBox

    app = NexiosApp()
    statuses: list[str] = []

    @app.websocket("/chat/{room_id}")
    async def chat_room(ws: WebSocket):  # type: ignore[no-untyped-def]
        await ws.accept()
        room_id = ws.path_params["room_id"]
        channel = Channel(websocket=ws, payload_type="json")
        await ChannelBox.add_channel_to_group(channel, group_name=f"chat_{room_id}")
        try:
            while True:
                data = await ws.receive_json()
                await ChannelBox.group_send(
                    group_name=f"chat_{room_id}",
                    payload={"user": data["user"], "text": data["text"]},
                    save_history=True,
                )
        except WebSocketDisconnect:
            print("left")
        finally:
            status = await ChannelBox.remove_channel_from_group(channel, group_name=f"chat_{room_id}")
            statuses.append(status.name)

    @app.websocket("/look")
    async def look(ws: WebSocket):  # type: ignore[no-untyped-def]
        await ws.accept()
        groups = await ChannelBox.show_groups()
        history = await ChannelBox.show_history("chat_42")
        await ws.send_json(
            {
                "groups": {name: len(channels) for name, channels in groups.items()},
                "history": [message.payload for message in history],
                "ids": len({message.uuid for message in history}),
            }
        )
        await ChannelBox.flush_history()
        assert await ChannelBox.show_history("chat_42") == []

    client = nexios_client(app)
    async with client.connect("/chat/42") as ada, client.connect("/chat/42") as bob:
        await wait_all_tasks_blocked()
        for text in ("hi", "anybody?"):
            await ada.send_json({"user": "ada", "text": text})
            assert await bob.receive_json() == {"user": "ada", "text": text}
            assert await ada.receive_json() == {"user": "ada", "text": text}
        async with client.connect("/look") as ws:
            assert await ws.receive_json() == {
                "groups": {"chat_42": 2},
                "history": [{"user": "ada", "text": "hi"}, {"user": "ada", "text": "anybody?"}],
                "ids": 2,
            }
    await wait_all_tasks_blocked()
    assert sorted(statuses) == ["CHANNEL_REMOVED", "GROUP_REMOVED"]


async def test_a_private_message_and_an_end_for_all(nexios_client: Clients) -> None:
    from nexios_trio.websockets.channels import Channel, ChannelBox

    app = NexiosApp()

    @app.ws_route("/{name}")
    async def handler(ws: WebSocket, name: str):  # type: ignore[no-untyped-def]
        await ws.accept()
        channel = Channel(websocket=ws, payload_type="json")
        await ChannelBox.add_channel_to_group(channel)
        await ws.send_json(channel.id)
        async for message in ws.iter_json():
            if message == "close all":
                await ChannelBox.close_all_connections()
            else:
                await ChannelBox.send_to(channel_id=message, payload={"private": f"from {name}"})

    client = nexios_client(app)
    async with client.connect("/ada") as ada, client.connect("/bob") as bob:
        await ada.receive_json()
        await ada.send_json(await bob.receive_json())
        assert await bob.receive_json() == {"private": "from ada"}
        await bob.send_json("close all")
        assert await ada.wait_closed() == (1000, "")
        assert await bob.wait_closed() == (1000, "")


async def test_a_consumer_of_the_guide(nexios_client: Clients) -> None:
    from nexios_trio.websockets import WebSocketConsumer

    app = NexiosApp()
    codes: list[int] = []

    class Chat(WebSocketConsumer):
        encoding = "json"

        async def on_connect(self, websocket: Any) -> None:
            await websocket.accept()
            await self.join_group("chat")

        async def on_receive(self, websocket: Any, data: Any) -> None:
            await self.broadcast(payload=data, group_name="chat", save_history=True)

        async def on_disconnect(self, websocket: Any, close_code: int) -> None:
            codes.append(close_code)
            await self.leave_group("chat")

    app.add_ws_route(Chat.as_route("/chat"))
    client = nexios_client(app)
    async with client.connect("/chat") as ada, client.connect("/chat") as bob:
        await wait_all_tasks_blocked()
        await ada.send_json({"text": "hi"})
        assert await ada.receive_json() == await bob.receive_json() == {"text": "hi"}
        await ada.close(4000)
    await wait_all_tasks_blocked()
    assert sorted(codes) == [1000, 4000]
    assert await app.channels.show_groups() == {}


async def test_an_event_is_pushed_to_a_group(nexios_client: Clients) -> None:
    from nexios_trio.websockets.channels import Channel, ChannelBox

    app = NexiosApp()

    @app.events.on("notification.created")
    async def push(notification):  # type: ignore[no-untyped-def]
        await ChannelBox.group_send(group_name="notifications", payload=notification)

    @app.ws_route("/notifications")
    async def notifications(ws: WebSocket):  # type: ignore[no-untyped-def]
        await ws.accept()
        await ChannelBox.add_channel_to_group(Channel(ws, "json"), "notifications")
        async for _ in ws.iter_text():
            pass

    async with nexios_client(app).connect("/notifications") as ws:
        await wait_all_tasks_blocked()
        assert await app.events.emit("notification.created", {"id": 1}) == 1  # from outside of the app
        assert await ws.receive_json() == {"id": 1}
