"""Two server processes, clients that come back to either, and everything between them that breaks.

Bounded and seeded. ``NEXIOS_CHAOS_SEEDS`` runs more seeds than the one of the suite; ``NEXIOS_CHAOS_SIZE``
says how many clients, groups and messages, as in ``100,50,20000``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url

from nexios_trio.config import HistoryLimits
from nexios_trio.publishing import Publisher
from tests.brokers.redis_server import RedisServer, free_port, needs_redis

pytestmark = needs_redis

SEEDS = range(int(os.environ.get("NEXIOS_CHAOS_SEEDS", "1")))
CLIENTS, GROUPS, MESSAGES = map(int, os.environ.get("NEXIOS_CHAOS_SIZE", "30,10,3000").split(","))
LAST = MESSAGES // GROUPS
"""The number of the last message of each group; the first is 0."""
PATIENCE = 120.0 * max(1.0, MESSAGES / 3000)
LIMITS = HistoryLimits(messages=500)

MODULE = """
from nexios_trio import HistoryLimits, Limits, NexiosApp, WebSocket

app = NexiosApp(history=HistoryLimits(messages=500), disconnect_grace=0, limits=Limits(outbox_messages=2000))


@app.ws_route("/{group}")
async def follow(ws: WebSocket, group: str) -> None:
    await ws.accept()
    async with ws.join(group, since=ws.query_params.get("since"), envelope=True) as joined:
        await ws.send_json({"recovered": joined.recovered, "position": str(joined.position)})
        async for _ in ws.iter_text():
            pass
"""


class Server:
    """``nexios-trio run``, which may be killed and started again on its port."""

    def __init__(self, here: Path, broker: str) -> None:
        self.here = here
        self.port = free_port()
        self.broker = broker
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        script = Path(sysconfig.get_path("scripts")) / "nexios-trio"
        self.process = subprocess.Popen(
            [str(script), "run", "served:app", "--bind", f"127.0.0.1:{self.port}", "--broker", self.broker],
            cwd=self.here,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """As ``kill -9`` does, its worker process included."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    async def wait(self) -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                await trio.sleep(0.05)


class Client:
    """Follows one group, and comes back wherever it is let in."""

    def __init__(self, group: str, servers: list[Server], chance: random.Random) -> None:
        self.group = group
        self.servers = servers
        self.chance = chance
        self.seen: list[int] = []
        self.position: str | None = None
        self.joined = trio.Event()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.forgiven = True
        """Whether a hole may follow: it was told that it cannot get everything."""
        self.waiting: list[dict[str, object]] | None = None
        """What came on this connection before it was told how joining went."""

    async def run(self) -> None:
        while True:
            server = self.chance.choice(self.servers)
            query = "" if self.position is None else f"?since={self.position}"
            url = f"ws://127.0.0.1:{server.port}/{self.group}{query}"
            try:
                self.waiting = []
                async with open_websocket_url(url, connect_timeout=5, disconnect_timeout=0.1) as ws:
                    while True:
                        self.note(json.loads(await ws.get_message()))
            except* (OSError, HandshakeError, ConnectionClosed, trio.TooSlowError):
                self.counts["came back"] += 1
            await trio.sleep(self.chance.uniform(0.01, 0.1))

    def note(self, message: dict[str, object]) -> None:
        position = message["position"]
        assert isinstance(position, str)
        if "recovered" not in message and self.waiting is not None:
            self.waiting.append(message)
            return
        if "recovered" in message:
            recovered = message["recovered"]
            self.counts[f"recovered={recovered}"] += 1
            if recovered is False:
                self.forgiven = True
                self.position = position
            elif self.position is None:
                self.position = position
            self.joined.set()
            waiting, self.waiting = self.waiting or [], None
            for each in waiting:
                self.note(each)
            return
        number = message["payload"]
        assert isinstance(number, int)
        last = self.seen[-1] if self.seen else -1
        if number <= last:
            self.faults.append(f"{number} after {last}")
        elif number != last + 1 and not self.forgiven:
            self.faults.append(f"hole from {last} to {number}")
        self.forgiven = False
        self.seen.append(number)
        self.position = position


class Chaos:
    def __init__(self, here: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.redis = RedisServer(here / "redis", "appendonly yes", "appendfsync always", port=free_port())
        self.servers = [Server(here, self.redis.url) for _ in range(2)]

    async def kill_subscribers(self) -> None:
        await self._ask("CLIENT", "KILL", "TYPE", "pubsub")

    async def kill_all(self) -> None:
        await self._ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await self._ask("CLIENT", "KILL", "TYPE", "pubsub")

    async def pause(self) -> None:
        self.redis.pause()
        await trio.sleep(0.5)
        self.redis.go_on()

    async def restart(self) -> None:
        self.redis.kill()
        await trio.to_thread.run_sync(self.redis.start)

    async def restart_empty(self) -> None:
        self.redis.kill()
        shutil.rmtree(self.redis.here / "appendonlydir")
        await trio.to_thread.run_sync(self.redis.start)

    async def kill_server(self) -> None:
        server = self.chance.choice(self.servers)
        server.kill()
        server.start()

    async def _ask(self, *command: str) -> None:
        await trio.to_thread.run_sync(self.redis.ask, *command)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            self.redis.start()
            for server in self.servers:
                server.start()
            for server in self.servers:
                await server.wait()
            yield
        finally:
            for server in self.servers:
                server.kill()
            self.redis.kill()


HARMLESS = ["kill_subscribers", "kill_all", "pause", "restart", "kill_server"]


@pytest.mark.untraced
@pytest.mark.parametrize("lossy", [False, True], ids=["kept", "lossy"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_client_ends_with_all_messages_in_order_or_was_told(
    seed: int, lossy: bool, tmp_path: Path
) -> None:
    (tmp_path / "served.py").write_text(MODULE)
    chaos = Chaos(tmp_path, seed)
    groups = [f"g{n}" for n in range(GROUPS)]
    clients = [
        Client(groups[n % GROUPS], chaos.servers, random.Random(f"{seed}.{n}")) for n in range(CLIENTS)
    ]
    sent: Counter[str] = Counter()
    progress = trio.lowlevel.ParkingLot()
    with trio.fail_after(PATIENCE):
        async with chaos.running(), trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run)
            for client in clients:
                await client.joined.wait()
            async with Publisher(chaos.redis.url, LIMITS, timeout=60) as publisher:
                deeds = [*HARMLESS, *(["restart_empty"] if lossy else [])]
                chaos.chance.shuffle(deeds)
                every = MESSAGES // (len(deeds) + 1)

                async def publish(group: str) -> None:
                    for number in range(MESSAGES // GROUPS):
                        await publisher.send(group, number, message_id=f"{seed}.{group}.{number}")
                        sent[group] += 1
                        progress.unpark_all()
                        await trio.sleep(chaos.chance.uniform(0, 0.02))

                async with trio.open_nursery() as publishers:
                    for group in groups:
                        publishers.start_soon(publish, group)
                    for count, deed in enumerate(deeds, 1):
                        while sent.total() < every * count:
                            await progress.park()
                        await getattr(chaos, deed)()
                for group in groups:  # behind all others
                    await publisher.send(group, LAST, message_id=f"{seed}.{group}.end")
            for client in clients:
                while client.seen[-1:] != [LAST]:
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    counts: Counter[str] = sum((client.counts for client in clients), Counter())
    complete = sum(client.seen == [*range(LAST + 1)] for client in clients)
    print(f"seed {seed}, lossy {lossy}: {complete} of {CLIENTS} have everything; {dict(counts)}")
    assert {f"{client.group}: {client.faults}" for client in clients if client.faults} == set()
    assert counts["came back"]
    if lossy:
        assert counts["recovered=False"]
    else:
        assert (complete, counts["recovered=False"]) == (CLIENTS, 0)
