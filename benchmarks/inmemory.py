"""The fan-out of a group without sockets, in one process: what the framework itself costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import click
import trio
import trio.testing

from benchmarks.harness import pinned, record, spread, versions
from nexios_trio import NexiosApp, WebSocket
from nexios_trio.types import Message
from nexios_trio.websockets.groups import Group

BURST = 200  # messages that an outbox (256 messages) is given while its writer is held up
TEXT = "x" * 32


class Server:
    """The ASGI server of all members; its sends do nothing, or wait while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate: trio.Event | None = None
        self.sent = 0

    async def send(self, _message: Message) -> None:
        self.sent += 1
        if self.gate is not None:
            await self.gate.wait()

    async def connect(self, app: NexiosApp) -> None:
        told = False

        async def receive() -> Message:
            nonlocal told
            if told:
                await trio.sleep_forever()
            told = True
            return {"type": "websocket.connect"}

        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await app(scope, receive, self.send)


async def measure(count: int, seconds: float) -> dict[str, float]:
    """Members per second, into the outboxes and through the writers."""
    app = NexiosApp(heartbeat=None)
    groups: list[Group] = []

    @app.ws_route("/")
    async def member(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("all") as group:
            groups.append(group)
            await trio.sleep_forever()

    server = Server()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(server.connect, app)
        while len(groups) < count:
            await trio.lowlevel.checkpoint()
        into = [await _into_outboxes(server, groups[0], count) for _ in _for(seconds)]
        through = [await _through_writers(server, groups[0], count) for _ in _for(seconds)]
        nursery.cancel_scope.cancel()
    return {"into_outboxes": _rate(into), "through_writers": _rate(through)}


def _for(seconds: float) -> Any:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield None


def _rate(samples: list[tuple[int, float]]) -> float:
    return sum(members for members, _ in samples) / sum(taken for _, taken in samples)


async def _into_outboxes(server: Server, group: Group, count: int) -> tuple[int, float]:
    """Every writer stands in a send, so that all of the time is the group's."""
    server.gate = trio.Event()
    await group.send(TEXT)
    await trio.testing.wait_all_tasks_blocked()
    sent = server.sent
    start = time.perf_counter()
    for _ in range(BURST):
        await group.send(TEXT)
    taken = time.perf_counter() - start
    assert server.sent == sent
    server.gate.set()
    server.gate = None
    while server.sent < sent + BURST * count:
        await trio.lowlevel.checkpoint()
    return BURST * count, taken


async def _through_writers(server: Server, group: Group, count: int) -> tuple[int, float]:
    """From the group's send to the ASGI send of every member, a round after the other."""
    start = time.perf_counter()
    for _ in range(BURST):
        sent = server.sent
        await group.send(TEXT)
        while server.sent < sent + count:
            await trio.lowlevel.checkpoint()
    return BURST * count, time.perf_counter() - start


@click.command()
@click.option("--members", default=[100, 1000], show_default=True, multiple=True)
@click.option("--seconds", default=4.0, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def inmemory(members: tuple[int, ...], seconds: float, rounds: int) -> None:
    """Members per second of a group send, without sockets: what the framework itself costs over ASGI."""
    click.echo(versions())
    for count in members:
        rates: dict[str, list[float]] = {}
        command = pinned(0, [sys.executable, "-m", "benchmarks.inmemory", str(count), str(seconds / 2)])
        for _ in range(rounds):
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, rate in json.loads(output).items():
                rates.setdefault(name, []).append(rate)
        click.echo(f"{count} members, no sockets:")
        click.echo(f"into the outboxes, writers held up:      {spread(rates['into_outboxes'])} members/s")
        click.echo(f"through the writers to a no-op ASGI send: {spread(rates['through_writers'])} members/s")
        record("inmemory", {"versions": versions(), "members": count, "seconds": seconds, "rates": rates})


if __name__ == "__main__":
    print(json.dumps(trio.run(measure, int(sys.argv[1]), float(sys.argv[2]))))
