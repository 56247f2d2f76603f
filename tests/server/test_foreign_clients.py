"""Clients that others wrote, against both of our servers: each has its own idea of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket
from websockets.asyncio.client import ClientConnection as AsyncioConnection
from websockets.asyncio.client import connect as asyncio_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection as SyncConnection
from websockets.sync.client import connect as sync_connect
from websockets.typing import Subprotocol

from nexios_trio import Deflate, Heartbeat, NexiosApp, WebSocket, WebSocketDisconnect
from tests.lanes import Serve

BIG = "x" * (1 << 20)
V1, V2 = Subprotocol("v1"), Subprotocol("v2")


class Told:
    """What the handler was told at the end of each echo connection."""

    def __init__(self) -> None:
        self.app = NexiosApp(heartbeat=Heartbeat(interval=0.2, timeout=60), deflate=Deflate())
        self.ends: list[WebSocketDisconnect] = []
        self.extensions: list[str | None] = []

        @self.app.ws_route("/echo")
        async def echo(ws: WebSocket) -> None:
            self.extensions.append(ws.headers.get("sec-websocket-extensions"))
            await ws.accept(subprotocol="v1" if "v1" in ws.subprotocols else None)
            try:
                while True:
                    message = await ws.receive()
                    if message["type"] == "websocket.disconnect":
                        raise WebSocketDisconnect(message["code"])
                    if message.get("text") is not None:
                        await ws.send_text(message["text"])
                    elif message.get("bytes") is not None:
                        await ws.send_bytes(message["bytes"])
            except WebSocketDisconnect as over:
                self.ends.append(over)
                raise

        @self.app.ws_route("/close")
        async def close(ws: WebSocket) -> None:
            await ws.accept()
            await ws.close(4002, "grüße")

        @self.app.ws_route("/reject")
        async def reject(ws: WebSocket) -> None:
            await ws.reject(418, "no coffee", headers={"x-why": "teapot"})


@pytest.fixture
def told() -> Told:
    return Told()


async def in_thread(work: Callable[[], Any]) -> None:
    await trio.to_thread.run_sync(work)


class Pings:
    """Whether a client of ``websockets`` has received a ping; it answers by itself."""

    @staticmethod
    def count(ws: AsyncioConnection | SyncConnection) -> list[bytes]:
        seen: list[bytes] = []
        receive = ws.protocol.recv_frame

        def recv_frame(frame: Any) -> None:
            if frame.opcode is Opcode.PING:
                seen.append(frame.data)
            receive(frame)

        ws.protocol.recv_frame = recv_frame  # type: ignore[method-assign]
        return seen


async def test_the_asyncio_client_of_websockets(serve: Serve, told: Told) -> None:
    async def client(url: str) -> None:
        for compression in ("deflate", None):
            async with asyncio_connect(
                url + "/echo", subprotocols=[V2, V1], compression=compression, max_size=None
            ) as ws:
                assert ws.subprotocol == "v1"
                assert bool(ws.protocol.extensions) is (compression == "deflate")
                await ws.send("grüße")
                assert await ws.recv() == "grüße"
                await ws.send(b"\x00\xff")
                assert await ws.recv() == b"\x00\xff"
                await ws.send(json.dumps({"n": [1, None]}))
                assert json.loads(await ws.recv()) == {"n": [1, None]}
                await ws.send(BIG)
                assert await ws.recv() == BIG
                await ws.send(["in ", "three ", "parts"])
                assert await ws.recv() == "in three parts"
                await (await ws.ping(b"are you there?"))
                await ws.close(4001, "moved")
                assert (ws.close_code, ws.close_reason) == (4001, "moved")
        async with asyncio_connect(url + "/close") as ws:
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert (ws.close_code, ws.close_reason) == (4002, "grüße")
        with pytest.raises(InvalidStatus) as rejected:
            await asyncio_connect(url + "/reject")
        response = rejected.value.response
        assert (response.status_code, response.headers["x-why"], response.body) == (
            418,
            "teapot",
            b"no coffee",
        )
        async with asyncio_connect(url + "/echo") as ws:
            pings = Pings.count(ws)
            while len(pings) < 2:
                await ws.send("x")
                await ws.recv()

    async with serve(told.app) as server:
        await in_thread(lambda: asyncio.run(client(server.url)))
    assert len(told.ends) == 3
    assert "permessage-deflate" in str(told.extensions[0])
    assert told.extensions[1] is None


async def test_the_blocking_client_of_websockets(serve: Serve, told: Told) -> None:
    def client(url: str) -> None:
        for compression in ("deflate", None):
            with sync_connect(
                url + "/echo", subprotocols=[V2, V1], compression=compression, max_size=None
            ) as ws:
                assert ws.subprotocol == "v1"
                ws.send("grüße")
                assert ws.recv() == "grüße"
                ws.send(b"\x00\xff")
                assert ws.recv() == b"\x00\xff"
                ws.send(json.dumps({"n": [1, None]}))
                assert json.loads(ws.recv()) == {"n": [1, None]}
                ws.send(BIG)
                assert ws.recv() == BIG
                assert ws.ping(b"are you there?").wait(60)
                ws.close(4001, "moved")
                assert (ws.close_code, ws.close_reason) == (4001, "moved")
        with sync_connect(url + "/close") as ws:
            with pytest.raises(ConnectionClosed):
                ws.recv()
            assert (ws.close_code, ws.close_reason) == (4002, "grüße")
        with pytest.raises(InvalidStatus) as rejected:
            sync_connect(url + "/reject")
        assert rejected.value.response.status_code == 418
        assert rejected.value.response.body == b"no coffee"
        with sync_connect(url + "/echo") as ws:
            pings = Pings.count(ws)
            while len(pings) < 2:
                ws.send("x")
                ws.recv()

    async with serve(told.app) as server:
        await in_thread(lambda: client(server.url))
    assert len(told.ends) == 3


async def test_trio_websocket(serve: Serve, told: Told) -> None:
    async with serve(told.app) as server:
        async with trio_websocket.open_websocket_url(
            server.url + "/echo", subprotocols=["v2", "v1"], max_message_size=2 << 20
        ) as ws:
            assert ws.subprotocol == "v1"
            await ws.send_message("grüße")
            assert await ws.get_message() == "grüße"
            await ws.send_message(b"\x00\xff")
            assert await ws.get_message() == b"\x00\xff"
            await ws.send_message(json.dumps({"n": [1, None]}))
            assert json.loads(await ws.get_message()) == {"n": [1, None]}
            await ws.send_message(BIG)
            assert await ws.get_message() == BIG
            await ws.ping(b"are you there?")
            await ws.aclose(4001, "moved")
            assert ws.closed is not None
            assert (ws.closed.code, ws.closed.reason) == (4001, "moved")
        async with trio_websocket.open_websocket_url(server.url + "/close") as ws:
            with pytest.raises(trio_websocket.ConnectionClosed) as over:
                await ws.get_message()
            assert over.value.reason is not None
            assert (over.value.reason.code, over.value.reason.reason) == (4002, "grüße")
        with pytest.raises(trio_websocket.ConnectionRejected) as rejected:
            async with trio_websocket.open_websocket_url(server.url + "/reject"):
                pass
        assert rejected.value.status_code == 418
        assert rejected.value.body == b"no coffee"
        assert (b"x-why", b"teapot") in tuple(rejected.value.headers or ())
    assert len(told.ends) == 1


@pytest.fixture
def node() -> dict[str, str]:
    """The environment in which node finds npm's ws."""
    modules = Path(__file__).parents[2] / ".cache" / "npm" / "node_modules"
    if shutil.which("node") is None:
        pytest.skip("node IS NOT INSTALLED: npm's ws stays untested")
    if not (modules / "ws").is_dir():
        pytest.skip("npm's ws IS NOT INSTALLED and stays untested: npm install --prefix .cache/npm ws@8")
    return {**os.environ, "NODE_PATH": str(modules)}


async def test_ws_of_npm(serve: Serve, told: Told, node: dict[str, str]) -> None:
    script = Path(__file__).with_name("foreign_client.js")
    async with serve(told.app) as server:
        done = await trio.run_process(
            ["node", str(script), server.url], env=node, capture_stdout=True, capture_stderr=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    echoed = [
        ["text", ["grüße", False]],
        ["binary", [[0, 255], True]],
        ["json", {"n": [1, None]}],
        ["big", len(BIG)],
        ["pong", "are you there?"],
        ["closed", [4001, "moved"]],
    ]
    assert lines == [
        ["subprotocol", "v1"],
        ["deflate", "permessage-deflate"],
        *echoed,
        ["subprotocol", "v1"],
        ["deflate", ""],
        *echoed,
        ["told", [4002, "grüße"]],
        ["rejected", [418, "teapot", "no coffee"]],
        ["pinged", True],
    ]
    assert len(told.ends) == 3
