"""The configurations of docs/scaling.md, tried: a real nginx and a real Caddy before two servers."""

from __future__ import annotations

import json
import re
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from nexios_trio import NexiosApp, Proxy, WebSocket
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.testing import TestServer, serve
from tests.brokers.redis_server import RedisServer
from tests.server.test_behind_proxies import NAME, PATIENCE, PROXIES, Client, Start

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def block(language: str) -> str:
    """The one block of this language in docs/scaling.md."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert isinstance(found, str)
    assert {"10.0.0.11:8000", "10.0.0.12:8000"} <= set(re.findall(r"[\d.]+:\d+", found))
    return found


def node(redis: RedisServer, prefix: str) -> NexiosApp:
    broker = RedisBroker(redis.url, prefix=prefix)
    app = NexiosApp(broker=broker, proxy=Proxy(["127.0.0.1"]), trusted_hosts=[NAME], disconnect_grace=0)

    @app.ws_route("/room")
    async def room(ws: WebSocket) -> None:
        await ws.accept()
        since = ws.query_params.get("since")
        async with ws.join("room", since=since, envelope=True) as group:
            await ws.send_json({"recovered": group.recovered})
            async for message in ws.iter_json():
                await group.send(message)

    return app


async def payload(client: Client) -> tuple[Any, str]:
    """The payload of the next message of the group, and its position."""
    while True:
        message = json.loads(await client.receive())
        if "payload" in message:
            return message["payload"], message["position"]


@pytest.mark.parametrize("name", PROXIES)
async def test_clients_of_two_servers_meet_and_resume_when_one_goes(
    name: str, shared_redis: RedisServer, tmp_path: Path
) -> None:
    start = Start(name, tmp_path)
    prefix = f"{secrets.token_hex(4)}:"
    apps = [node(shared_redis, prefix) for _ in range(2)]
    stop, stopped = trio.Event(), trio.Event()

    async def doomed(task_status: trio.TaskStatus[TestServer]) -> None:
        async with serve(apps[1]) as server:
            task_status.started(server)
            await stop.wait()
        stopped.set()

    async with trio.open_nursery() as nursery, AsyncExitStack() as rest:
        second: TestServer = await nursery.start(doomed)
        first = await rest.enter_async_context(serve(apps[0]))
        servers = block(name)
        for old, server in (("10.0.0.11:8000", first), ("10.0.0.12:8000", second)):
            servers = servers.replace(old, f"{server.host}:{server.port}")
        if name == "nginx":
            head = "# Only a WebSocket's handshake asks for an upgrade.\n"
            front = await rest.enter_async_context(start(None, (head, servers + head), upstream="chat"))
        else:
            upstream = servers.strip().removeprefix("reverse_proxy ")
            front = await rest.enter_async_context(start(None, upstream=upstream))
        clients = [await rest.enter_async_context(front.connect("/room")) for _ in range(6)]
        with trio.fail_after(PATIENCE):
            for client in clients:
                assert json.loads(await client.receive()) == {"recovered": None}
            assert [len(app.connections) for app in apps] == [3, 3]  # the fewest connections
            positions = set()
            for n, client in enumerate(clients):
                await client.send(json.dumps(n))
                for member in clients:
                    got, position = await payload(member)
                    assert got == n
                    positions.add(position)
            assert len(positions) == 6
            stop.set()  # as a deployment does
            await stopped.wait()
            await apps[0].channels.send("room", "missed")
            async with front.connect(f"/room?since={position}") as back:
                assert (await payload(back))[0] == "missed"
                assert json.loads(await back.receive()) == {"recovered": True}
            assert len(apps[1].connections) == 0
