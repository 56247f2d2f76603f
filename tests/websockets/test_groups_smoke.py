import pytest, trio
from nexios_trio import NexiosApp, WebSocket
from nexios_trio.testing import TestClient
from nexios_trio.websockets import Channel, ChannelBox, WebSocketConsumer
from tests.lanes import Lane

async def test_join_send_history(lane, lane_clock):
    app = NexiosApp()
    @app.ws_route("/")
    async def h(ws):
        await ws.accept()
        async with ws.join("room", since=ws.query_params.get("since"), presence={"a": 1}) as g:
            await ws.send_json({"pos": str(g.position), "rec": g.recovered, "n": len(g)})
            async for m in ws.iter_json():
                msg = await g.send(m, exclude_self=True)
    async with lane.serving(app), lane.connect("/") as a, lane.connect("/") as b:
        print(await a.receive(), await a.receive(), await a.receive())
        print(await b.receive(), await b.receive())
        await a.send('{"x": 1}')
        print(await b.receive())

async def test_consumer(autojump_clock):
    app = NexiosApp()
    closed = []
    class Chat(WebSocketConsumer):
        encoding = "json"
        async def on_connect(self, websocket):
            await websocket.accept(); await self.join_group("chat")
        async def on_receive(self, websocket, data):
            await self.broadcast(payload=data, group_name="chat", save_history=True)
        async def on_disconnect(self, websocket, close_code):
            closed.append(close_code); await self.leave_group("chat")
    app.add_ws_route(Chat.as_route("/chat"))
    @app.events.on("n")
    async def push(p): await ChannelBox.group_send(group_name="chat", payload=p)
    async with TestClient(app) as c:
        async with c.connect("/chat") as a, c.connect("/chat") as b:
            await a.send_json({"m": 1})
            assert await a.receive_json() == {"m": 1} == await b.receive_json()
            print(await app.channels.show_groups(), await app.channels.show_history("chat"))
        await trio.testing.wait_all_tasks_blocked()
        assert closed == [1000, 1000]
        assert not app.channels.hub.groups and not app.channels.hub.channels
