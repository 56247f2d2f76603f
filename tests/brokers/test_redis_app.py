"""Apps on a real Redis: by URL, by the environment, and as several processes behind one port."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from websockets.sync.client import ClientConnection, connect

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import MemoryBroker
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.cli import main
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import BrokerRefused, BrokerUnavailable, WrongStateError, WrongValueError
from nexios_trio.testing import TestClient, TestWebSocket, WebSocketRejected
from tests.brokers.redis_server import RedisServer
from tests.server.test_runner import running


def test_the_broker_is_named_by_argument_environment_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXIOS_BROKER", raising=False)
    assert isinstance(NexiosApp().broker, MemoryBroker)
    assert NexiosApp().broker.available
    monkeypatch.setenv("NEXIOS_BROKER", "redis://:s3cret@cache:7000/1?prefix=chat:&timeout=2&on_outage=local")
    broker = NexiosApp(history=HistoryLimits(messages=7), presence_grace=3).broker
    assert isinstance(broker, RedisBroker)
    assert repr(broker) == "<RedisBroker redis://cache:7000/1 prefix='chat:'>"
    assert (broker.settings.timeout, broker.settings.on_outage, broker.limits.messages) == (2, "local", 7)
    assert not broker.available
    assert isinstance(NexiosApp(broker="memory://").broker, MemoryBroker)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://guest:s3cret@host", "not 'amqp'"),
        ("redis://:s3cret@host?prefx=a", "unknown options: prefx"),
        ("redis://:s3cret@host?timeout=soon", "timeout in the URL is a number"),
        ("redis://:s3cret@host?timeout=0", "timeout is more than 0"),
        ("redis://:s3cret@host?on_outage=panic", 'on_outage is "wait", "fail" or "local"'),
        ("redis://:s3cret@host?prefix=a{", "prefix is printable"),
    ],
)
def test_a_broker_that_cannot_be_is_refused_at_once(url: str, why: str) -> None:
    with pytest.raises(WrongValueError, match=why) as caught:
        NexiosApp(broker=url)
    assert "s3cret" not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("hiredis", "nexios_trio.brokers.redis"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(WrongValueError, match=r"pip install 'nexios-trio\[redis\]'"):
        NexiosApp(broker="redis://")


def room(broker: RedisBroker) -> NexiosApp:
    app = NexiosApp(broker=broker)

    @app.ws_route("/{user}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify(ws.path_params["user"])
        since = ws.query_params.get("since")
        async with ws.join("room", since=since, envelope=True, presence={}) as group:
            await ws.send_json({"recovered": group.recovered})
            async for message in ws.iter_json():
                await group.send(message)

    return app


class Reader:
    """What a client of `room` gets: messages, and what joining said."""

    def __init__(self, ws: TestWebSocket) -> None:
        self.ws = ws
        self.payloads: list[object] = []
        self.position = ""
        self.told: list[bool | None] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            message = await self.ws.receive_json()
            if "recovered" in message:
                self.told.append(message["recovered"])
            elif message["position"] is not None:
                self.payloads.append(message["payload"])
                self.position = message["position"]


async def test_a_client_resumes_at_another_node(shared_redis: RedisServer) -> None:
    nodes = [room(RedisBroker(shared_redis.url, prefix="resume:")) for _ in range(2)]
    async with TestClient(nodes[0], timeout=20) as here, TestClient(nodes[1], timeout=20) as there:
        async with here.connect("/ann") as ws:
            ann = Reader(ws)
            await ann.until(lambda: ann.told == [None])
            async with there.connect("/bob") as other:
                bob = Reader(other)
                await bob.until(lambda: bob.told == [None])
                await ws.send_json("from ann")
                await bob.until(lambda: bob.payloads == ["from ann"])
            for n in range(3):
                await ws.send_json(n)
            await ann.until(lambda: ann.payloads == ["from ann", 0, 1, 2])
        async with here.connect(f"/bob?since={bob.position}") as other:
            again = Reader(other)
            await again.until(lambda: bool(again.told))
            assert (again.told, again.payloads) == ([True], [0, 1, 2])
        async with there.connect(f"/bob?since={bob.position}x") as other:  # a nonce that was never given
            again = Reader(other)
            await again.until(lambda: bool(again.told))
            assert (again.told, again.payloads) == ([False], [])


async def test_while_redis_is_away_clients_are_told_to_come_again(tmp_path: Path) -> None:
    app = NexiosApp(broker=f"redis+unix://{tmp_path}/nothing.sock?on_outage=fail")

    @app.ws_route("/late")
    async def late(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("room"):
            pass

    @app.ws_route("/early")
    async def early(ws: WebSocket) -> None:
        await app.channels.send("room", "hello")

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    async with TestClient(app) as client:
        assert not app.broker.available
        async with client.connect("/late") as ws:
            assert await ws.wait_closed() == (1013, "try again later")
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/early"):
                pass
        assert rejected.value.status == 503
        async with client.connect("/echo") as ws:
            await ws.send_text("untouched")
            assert await ws.receive_text() == "untouched"
        assert app.guard.counts["closed.BrokerUnavailable"] == 2


async def test_while_redis_is_full_clients_are_told_to_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path / "redis", "maxmemory 1").start()
    app = NexiosApp(broker=f"{server.url}?timeout=1")  # for which the start waits for orders

    @app.ws_route("/")
    async def send(ws: WebSocket) -> None:
        await ws.accept()
        await app.channels.send("room", "hello")

    try:
        async with TestClient(app) as client, client.connect("/") as ws:
            assert await ws.wait_closed() == (1013, "try again later")
    finally:
        server.kill()
    (line,) = [record for record in caplog.records if "the broker is not available" in record.message]
    assert (line.levelname, line.exc_info) == ("WARNING", None)
    assert "OOM" in line.message or "memory" in line.message


async def test_an_app_that_redis_refuses_does_not_start(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", "requirepass s3cret").start()
    try:
        app = NexiosApp(broker=server.url)
        with pytest.raises(BrokerRefused, match="wants a password"):
            async with app.running():
                raise AssertionError("it runs")
    finally:
        server.kill()


async def test_one_broker_serves_one_app(shared_redis: RedisServer) -> None:
    broker = RedisBroker(shared_redis.url)
    async with broker.serving():
        with pytest.raises(WrongStateError, match="make one for each app"):
            async with broker.serving():
                pass
    async with broker.serving():  # one after the other
        assert broker.available


async def test_what_the_app_raises_comes_out_as_it_was(shared_redis: RedisServer) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with RedisBroker(shared_redis.url).serving():
            raise KeyError("mine")
    with trio.move_on_after(0) as scope:
        async with RedisBroker(shared_redis.url).serving():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_outside_of_serving_calls_time_out(tmp_path: Path) -> None:
    broker = RedisBroker(f"redis+unix://{tmp_path}/nothing.sock", timeout=0.01)
    with pytest.raises(BrokerUnavailable, match="not connected yet"):
        await broker.history("g")


SERVED = """
import os
from nexios_trio import NexiosApp, WebSocket

app = NexiosApp(disconnect_grace=0)


@app.ws_route("/room")
async def room(ws: WebSocket) -> None:
    await ws.accept()
    async with ws.join("room") as group:
        await ws.send_json(os.getpid())
        async for message in ws.iter_json():
            await group.send(message)
"""


def test_workers_behind_one_port_share_their_groups(tmp_path: Path, shared_redis: RedisServer) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    url = f"{shared_redis.url}?prefix=workers:"
    arguments = ("served:app", "--bind", "127.0.0.1:0", "--workers", "2", "--broker", url)
    with running(tmp_path, *arguments) as runner:
        clients: dict[int, ClientConnection] = {}
        everybody: list[ClientConnection] = []
        address = f"{runner.url()}/room"
        with ExitStack() as stack:
            while len(clients) < 2 or len(everybody) < 6:
                assert len(everybody) < 200, "all connections went to one worker"
                client = stack.enter_context(connect(address, proxy=None, open_timeout=60))
                everybody.append(client)
                clients[json.loads(client.recv(timeout=60))] = client
            for n, client in enumerate(clients.values()):
                client.send(json.dumps(f"message {n}"))
                for member in everybody:
                    assert member.recv(timeout=60) == f"message {n}"


def test_the_command_tells_workers_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXIOS_BROKER", "memory://")
    result = CliRunner().invoke(main, ["run", "nothing:app", "--broker", "redis://nowhere"])
    assert result.exit_code == 2
    assert os.environ["NEXIOS_BROKER"] == "redis://nowhere"
