"""Metrics of ``nexios-trio run --workers 2``, whichever of the two is asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import trio
from trio_websocket import open_websocket_url

from tests.monitoring.test_metrics import Samples, samples

ROOT = Path(__file__).parents[2]
ROUTE = (("route", "/echo"),)


@asynccontextmanager
async def two_workers(directory: Path) -> AsyncIterator[int]:
    command = [
        *(sys.executable, "-m", "nexios_trio.cli", "run", "tests.monitoring.workers_app:app"),
        *("--bind", "127.0.0.1:0", "--workers", "2", "--drain-window", "0"),
    ]
    environment = {**os.environ, "METRICS": str(directory)}
    process = await trio.lowlevel.open_process(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    log = b""
    try:
        with trio.fail_after(60):
            while not (running := re.search(rb"Running on http://127\.0\.0\.1:(\d+)", log)):
                data = await process.stderr.receive_some()
                assert data, log.decode()
                log += data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, process.stderr)
            yield int(running[1])
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def drain(pipe: trio.abc.ReceiveStream) -> None:
    async for _ in pipe:
        pass


async def scraped(port: int, wanted: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> Samples:
    """What a scrape says once it says all that is ``wanted``: the other worker writes once a second."""
    seen: Samples = {}
    with trio.move_on_after(30):
        while True:
            async with httpx2.AsyncClient() as client:  # a connection of its own, to either worker
                seen = samples((await client.get(f"http://127.0.0.1:{port}/metrics")).text)
            if all(seen.get(key) == value for key, value in wanted.items()):
                return seen
            await trio.sleep(0.05)
    raise AssertionError({key: (value, seen.get(key)) for key, value in wanted.items()})


async def test_two_worker_processes_answer_as_one(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as port:
        async with AsyncExitStack() as stack:
            for number in range(20):
                ws = await stack.enter_async_context(open_websocket_url(f"ws://127.0.0.1:{port}/echo"))
                await ws.send_message(str(number))
                assert await ws.get_message() == str(number)
            wanted = {
                ("nexios_workers", ()): 2.0,
                ("nexios_connections", ROUTE): 20.0,
                ("nexios_messages_received_total", ROUTE): 20.0,
                ("nexios_messages_sent_total", ROUTE): 20.0,
            }
            for _ in range(4):
                await scraped(port, wanted)
        await scraped(port, {**wanted, ("nexios_connections", ROUTE): 0.0})
