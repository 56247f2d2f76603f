"""Nodes for tests: in this process, in another one, and a network between them that can break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.config import HistoryLimits
from nexios_trio.testing.broker_contract import ROOMY, Recorder

PATIENCE = 30.0
"""Seconds that anything may take before it counts as broken."""


@asynccontextmanager
async def node(
    url: str, receiver: Recorder, limits: HistoryLimits = ROOMY, **options: Any
) -> AsyncIterator[RedisBroker]:
    """A running node. Its times are short."""
    options = {"presence_grace": 0.05, "timeout": PATIENCE, **options}
    broker = RedisBroker(url, limits, **options)
    broker.attach(receiver)
    async with broker.serving():
        yield broker


class Wire:
    """A TCP port in front of a Redis, which can be cut and made deaf."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.port = 0
        self.deaf = False
        """Swallow what Redis says, then cut: it has done what nobody learns of."""
        self.open = True
        """Whether new connections get through."""
        self.connections = 0
        self.swallowed = 0
        self._streams: set[trio.abc.Stream] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Wire]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            yield self
            nursery.cancel_scope.cancel()

    async def cut(self) -> None:
        for stream in [*self._streams]:
            await trio.aclose_forcefully(stream)

    async def _serve(self, client: trio.SocketStream) -> None:
        if not self.open:
            await trio.aclose_forcefully(client)
            return
        server = await trio.open_unix_socket(self.target)
        self.connections += 1
        self._streams |= {client, server}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, client, server, False)
                await self._copy(server, client, True)
                nursery.cancel_scope.cancel()
        finally:
            self._streams -= {client, server}
            await trio.aclose_forcefully(client)
            await trio.aclose_forcefully(server)

    async def _copy(self, source: trio.abc.Stream, target: trio.abc.Stream, answers: bool) -> None:
        try:
            while data := await source.receive_some():
                if answers and self.deaf:
                    self.swallowed += len(data)
                    return
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


PROGRAM = """
import sys
import trio
from nexios_trio.brokers import Member
from nexios_trio.brokers.redis import RedisBroker
from nexios_trio.config import HistoryLimits

class Printer:
    async def deliver(self, message):
        print("message", message.group, message.offset, message.data[:20], flush=True)
    async def deliver_presence(self, event):
        print(event.type, event.group, event.member.user, flush=True)
    async def resync(self, group):
        print("resync", group, flush=True)

async def main(url, prefix, lease, *users):
    limits = HistoryLimits(messages=100)
    broker = RedisBroker(url, limits, prefix=prefix, lease=float(lease), presence_grace=0)
    broker.attach(Printer())
    async with broker.serving():
        await broker.subscribe("g")
        for user in users:
            await broker.enter("g", Member(f"connection of {user}", user))
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main, *sys.argv[1:])
"""


class Process:
    """A node in a process of its own."""

    def __init__(self, url: str, prefix: str, lease: float, *users: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, prefix, str(lease), *users],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.lines: list[str] = []
        self._rest = b""

    async def until(self, line: str) -> list[str]:
        """Read lines until this one has come; all so far."""
        with trio.fail_after(PATIENCE):
            while line not in self.lines:
                await trio.lowlevel.wait_readable(self.output)
                data = os.read(self.output.fileno(), 65536)
                assert data, f"it ended: {self.lines[-3:]}"
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.lines += [each.decode() for each in lines]
        return self.lines

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self.process.kill()
        self.process.wait()
        self.output.close()
