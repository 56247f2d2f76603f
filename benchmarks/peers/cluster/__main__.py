"""One node, told what to do by lines of JSON; its arguments are module, engine, role, URL and groups.

A sender does ``{"mode": "one" | "many" | "paced", "seconds": s, "tasks": n, "rate": per second}``. A receiver
does ``{"mode": "begin"}``, then ``{"mode": "end", "sent": n}``. Both answer with a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any, Final

import anyio
import anyio.to_thread

PADDING: Final = "x" * 64
QUIET: Final = 2.0
"""Seconds without a message after which those that are missing count as lost."""


async def commands() -> dict[str, Any] | None:
    line = await anyio.to_thread.run_sync(sys.stdin.readline)
    return json.loads(line) if line else None


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


class Sender:
    def __init__(self, send: Any, groups: list[str]) -> None:
        self.send = send
        self.groups = groups
        self.sent = 0

    async def one(self) -> None:
        group = self.groups[self.sent % len(self.groups)]
        self.sent += 1
        await self.send(group, {"at": time.perf_counter_ns(), "text": PADDING})

    async def steadily(self, until: float) -> None:
        while time.perf_counter() < until:
            await self.one()

    async def paced(self, until: float, first: float, every: float) -> None:
        due = time.perf_counter() + first
        while due < until:
            await anyio.sleep(max(0.0, due - time.perf_counter()))
            await self.one()
            due += every

    async def do(self, mode: str, seconds: float, tasks: int, rate: float) -> dict[str, Any]:
        self.sent = 0
        begun, cpu = time.perf_counter(), time.process_time()
        until = begun + seconds
        async with anyio.create_task_group() as group:
            for number in range(1 if mode == "one" else tasks):
                if mode == "paced":
                    group.start_soon(self.paced, until, number / rate, tasks / rate)
                else:
                    group.start_soon(self.steadily, until)
        return {
            "sent": self.sent,
            "seconds": time.perf_counter() - begun,
            "cpu": time.process_time() - cpu,
        }


class Receiver:
    def __init__(self) -> None:
        self.begin()

    def begin(self) -> dict[str, Any]:
        self.latencies: list[int] = []
        self.begun, self.cpu = time.perf_counter(), time.process_time()
        return {}

    def note(self, payload: Any) -> None:
        self.latencies.append(time.perf_counter_ns() - payload["at"])

    async def end(self, sent: int) -> dict[str, Any]:
        heard, count = time.perf_counter(), -1
        while len(self.latencies) < sent and time.perf_counter() - heard < QUIET:
            if len(self.latencies) != count:
                heard, count = time.perf_counter(), len(self.latencies)
            await anyio.sleep(0.002)
        seconds, cpu = time.perf_counter() - self.begun, time.process_time() - self.cpu
        found = sorted(self.latencies)
        at = {
            name: found[min(len(found) - 1, int(len(found) * share))] / 1e6 if found else None
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))
        }
        return {"received": len(found), "seconds": seconds, "cpu": cpu, **at}


async def main(module: Any, engine: str, role: str, url: str, count: int) -> None:
    sending, receiving = module.ENGINES[engine]
    groups = [f"room.{number}" for number in range(count)]
    receiver = Receiver()
    async with sending(url) if role == "send" else receiving(url, groups, receiver.note) as send:
        sender = Sender(send, groups)
        say({"ready": True})
        while (command := await commands()) is not None:
            mode = command.pop("mode")
            if mode == "begin":
                say(receiver.begin())
            elif mode == "end":
                say(await receiver.end(**command))
            else:
                say(await sender.do(mode, **command))


if __name__ == "__main__":
    name, engine, role, url, count = sys.argv[1:]
    module = importlib.import_module(f"{__package__}.{name}")
    options = {"use_uvloop": True} if module.LOOP == "asyncio" else {}
    anyio.run(main, module, engine, role, url, int(count), backend=module.LOOP, backend_options=options)
