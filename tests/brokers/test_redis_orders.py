"""What holds for all servers: users sent to and disconnected, connections closed, members listed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import Draft
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.exceptions import BrokerUnavailable, GroupNameError, WrongValueError
from nexios_trio.testing import TestClient, TestWebSocket
from nexios_trio.websockets.orders import ORDERS
from tests.brokers.redis_server import RedisServer, needs_redis


def app_on(broker: RedisBroker) -> NexiosApp:
    app = NexiosApp(broker=broker)

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify(ws.path_params["user"])
        async with ws.join("room", presence={}):
            await ws.send_text("here")
            async for _ in ws.iter_text():
                pass

    return app


async def message_of(ws: TestWebSocket) -> str | bytes:
    event = await ws.receive()
    text: str | None = event.get("text")
    data: bytes = event.get("bytes") or b""
    return data if text is None else text


@asynccontextmanager
async def joined(client: TestClient, user: str) -> AsyncIterator[TestWebSocket]:
    async with client.connect(f"/{user}") as ws:
        while await message_of(ws) != "here":
            pass
        yield ws


async def payload(ws: TestWebSocket) -> str | bytes:
    while True:
        got = await message_of(ws)
        if not (isinstance(got, str) and "presence." in got):
            return got


@asynccontextmanager
async def two(redis: RedisServer) -> AsyncIterator[tuple[TestClient, TestClient]]:
    prefix = f"{secrets.token_hex(4)}:"
    apps = [app_on(RedisBroker(redis.url, prefix=prefix)) for _ in range(2)]
    async with TestClient(apps[0], timeout=20) as here, TestClient(apps[1], timeout=20) as there:
        yield here, there


async def test_a_user_is_reached_and_disconnected_on_all_servers(shared_redis: RedisServer) -> None:
    async with two(shared_redis) as (here, there):
        app = here.app
        assert isinstance(app, NexiosApp)
        async with joined(here, "ann") as one, joined(there, "ann") as two_, joined(there, "bob") as bob:
            for message in ({"a": 1}, "text", b"\0\xff"):
                assert await app.channels.send_to_user("ann", message) == 1
                assert await payload(one) == await payload(two_)
            assert await app.channels.send_to_user("bob", "for bob") == 0
            assert await payload(bob) == "for bob"
            assert await app.channels.disconnect_user("ann", 4003, "banned") == 1
            for ws in (one, two_):
                assert await ws.wait_closed() == (4003, "banned")
            assert await app.channels.send_to_user("bob", "still here") == 0
            assert await payload(bob) == "still here"
            assert await app.channels.close_all_connections(4000, "good night") == 0
            assert await bob.wait_closed() == (4000, "good night")
            with pytest.raises(WrongValueError):
                await app.channels.close_all_connections(1006)


async def test_members_are_those_of_all_servers(shared_redis: RedisServer) -> None:
    async with two(shared_redis) as (here, there):
        app = here.app
        assert isinstance(app, NexiosApp)
        async with joined(here, "ann"), joined(there, "bob"), joined(there, "ann"):
            found = await app.channels.members("room")
            assert [(user.user, len(user.devices)) for user in found] == [("ann", 2), ("bob", 1)]


async def test_nobody_gets_at_the_orders_by_a_group_or_a_pattern(shared_redis: RedisServer) -> None:
    async with two(shared_redis) as (here, _):
        app = here.app
        assert isinstance(app, NexiosApp)
        with pytest.raises(GroupNameError):
            await app.channels.send(ORDERS, {"do": "close"})
        async with app.channels.subscribe("*") as messages:
            await app.channels.send_to_user("nobody", "x")
            await app.channels.send("g", "end")
            assert (await anext(messages)).payload == "end"


async def test_an_order_that_is_not_understood_is_left_out(
    shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(shared_redis) as (here, there):
        app, other = here.app, there.app
        assert isinstance(app, NexiosApp)
        assert isinstance(other, NexiosApp)
        async with joined(there, "ann") as ann:
            deep = '{"do":"close","node":"x","why":' + "[" * 100_000 + "]" * 100_000 + "}"
            for text in ('{"do":"dance","node":"x"}', "[]", '{"do":"close","node":"x","code":1006}', deep):
                await app.broker.publish(ORDERS, Draft("json", text), keep=True)
            await app.channels.send_to_user("ann", "still here")
            assert await payload(ann) == "still here"
        assert len([r for r in caplog.records if "does not understand" in r.getMessage()]) == 2 * 4


@needs_redis
async def test_an_order_after_redis_has_lost_everything_is_obeyed_once(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis").start()
    try:
        async with two(redis) as (here, there):
            app = here.app
            assert isinstance(app, NexiosApp)
            async with joined(there, "ann") as ann, joined(there, "bob") as bob:
                for _ in range(3):
                    redis.ask("FLUSHALL")
                    await app.channels.send_to_user("ann", "again")
                    assert await payload(ann) == "again"
                redis.ask("FLUSHALL")
                await app.channels.disconnect_user("ann")
                assert (await ann.wait_closed())[0] == 1008
                await app.channels.send_to_user("bob", "here")
                assert await payload(bob) == "here"
    finally:
        redis.kill()


async def test_without_redis_this_server_is_closed_and_the_caller_told(tmp_path: Path) -> None:
    app = app_on(RedisBroker(f"redis+unix://{tmp_path}/nothing.sock", on_outage="fail"))

    @app.ws_route("/alone/{user}")
    async def alone(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify(ws.path_params["user"])
        await ws.send_text("here")
        await ws.receive_text()

    async with TestClient(app, timeout=20) as client:
        async with client.connect("/alone/ann") as ws:
            await ws.receive_text()
            with pytest.raises(BrokerUnavailable):
                await app.channels.disconnect_user("ann", 4003, "banned")
            assert await ws.wait_closed() == (4003, "banned")


async def test_an_order_of_an_outage_is_obeyed_afterwards(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis").start()
    try:
        async with two(redis) as (here, there):
            app = here.app
            assert isinstance(app, NexiosApp)
            async with joined(there, "ann") as ann:
                await trio.to_thread.run_sync(redis.ask, "CLIENT", "KILL", "TYPE", "pubsub")
                await app.channels.disconnect_user("ann", 4003, "banned")
                assert await ann.wait_closed() == (4003, "banned")
    finally:
        redis.kill()
