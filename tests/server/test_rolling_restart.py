"""One server process after the other is replaced under 500 clients: none sees anything but 1012."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from nexios_trio import WebSocketDisconnect
from tests.lanes import SocketPeer

ROOT = Path(__file__).parents[2]
CLIENTS = 500


class Server:
    """``nexios-trio run`` in a process of its own."""

    def __init__(self, process: trio.Process, lane: str) -> None:
        self.process = process
        self.lane = lane
        self.port = 0
        self.log = b""

    @classmethod
    async def start(cls, nursery: trio.Nursery, lane: str) -> Server:
        command = [
            *(sys.executable, "-m", "nexios_trio.cli", "run", "tests.server.rolling_app:app"),
            *("--bind", "127.0.0.1:0", "--workers", "0", "--server", lane),
            *("--drain-notice", "1", "--drain-window", "2"),
        ]
        process = await trio.lowlevel.open_process(command, cwd=ROOT, stderr=subprocess.PIPE)
        server = cls(process, lane)
        try:
            await server._wait_running()
        except BaseException:  # nobody knows of it yet
            process.kill()
            raise
        nursery.start_soon(server._read)
        return server

    async def _wait_running(self) -> None:
        assert self.process.stderr is not None
        while not (running := re.search(rb"Running on http://127\.0\.0\.1:(\d+)", self.log)):
            data = await self.process.stderr.receive_some()
            assert data, self.log.decode()
            self.log += data
        self.port = int(running[1])

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            self.log += data

    async def ready(self) -> bool:
        """What a load balancer learns from ``/readyz``."""
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(b"GET /health/readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        except (OSError, trio.BrokenResourceError):
            return False


class Balancer:
    """Hands each TCP connection to a server that says it is ready, in turn."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.port = 0
        self._turn = 0
        self._ready: list[Server] = []

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.port = listeners[0].socket.getsockname()[1]
            started = False
            while True:
                self._ready = [server for server in self.servers if await server.ready()]
                if self._ready and not started:
                    started = True
                    task_status.started()
                await trio.sleep(0.1)

    async def _serve(self, client: trio.SocketStream) -> None:
        self._turn += 1
        server = self._ready[self._turn % len(self._ready)]
        async with client, await trio.open_tcp_stream("127.0.0.1", server.port) as behind:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, behind)
                await self._pump(behind, client)
                nursery.cancel_scope.cancel()

    async def _pump(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


class Crowd:
    """Clients that talk, and come back when they are told of a restart."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ends: Counter[tuple[int, str]] = Counter()
        self.times: list[float] = []
        self.here = 0
        self.failed: list[BaseException] = []

    async def client(self) -> None:
        while True:
            try:
                await self._visit()
            except (OSError, AssertionError, trio.BrokenResourceError) as error:
                self.failed.append(error)
                return
            await trio.sleep(random.uniform(0, 0.5))

    async def _visit(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands("server", "/echo")
            self.here += 1
            try:
                await peer.send("hello")
                assert await peer.receive() == "hello"
                await peer.receive()
            except WebSocketDisconnect as end:
                self.ends[end.code, end.reason or ""] += 1
                self.times.append(trio.current_time())
            finally:
                self.here -= 1


@asynccontextmanager
async def two_servers(lane: str) -> AsyncIterator[tuple[Balancer, trio.Nursery]]:
    balancer = Balancer()
    async with trio.open_nursery() as nursery:
        try:
            for _ in range(2):
                balancer.servers.append(await Server.start(nursery, lane))
            await nursery.start(balancer.run)
            yield balancer, nursery
        finally:
            for server in balancer.servers:
                server.process.kill()
                with trio.CancelScope(shield=True):
                    await server.process.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.untraced
@pytest.mark.parametrize("lane_of_servers", ["engine", "hypercorn"])
async def test_a_rolling_restart_is_1012_for_everybody_and_nothing_else(lane_of_servers: str) -> None:
    async with two_servers(lane_of_servers) as (balancer, nursery):
        crowd = Crowd(balancer.port)
        for _ in range(CLIENTS):
            nursery.start_soon(crowd.client)
        await settled(crowd)
        for old in tuple(balancer.servers):
            before, first = crowd.ends.total(), len(crowd.times)
            assert await old.ready()
            old.process.send_signal(signal.SIGTERM)
            while await old.ready():
                await trio.sleep(0.02)
            balancer.servers.append(await Server.start(nursery, lane_of_servers))
            assert await old.process.wait() == 0, old.log.decode()
            balancer.servers.remove(old)
            assert b"Traceback" not in old.log, old.log.decode()
            assert crowd.ends.total() > before
            sent_away = crowd.times[first:]
            assert max(sent_away) - min(sent_away) > 1  # spread over the window
            await settled(crowd)
        assert not crowd.failed
        assert set(crowd.ends) == {(1012, "service restart")}
        assert crowd.here == CLIENTS


async def settled(crowd: Crowd) -> None:
    with trio.move_on_after(60):
        while crowd.here < CLIENTS and not crowd.failed:
            await trio.sleep(0.05)
    assert not crowd.failed, crowd.failed
    assert crowd.here == CLIENTS
