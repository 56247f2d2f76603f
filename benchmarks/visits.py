"""The clients of a soak: each visit does one thing, well or badly, and checks what comes back."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from attrs import Factory, define, field

from benchmarks.apps.soak import ROOMS
from benchmarks.client import Client, Ended, Wrong, ask, dial, reset
from nexios_trio.wire import ClientHandshake, encode_text

__all__ = ["Told", "Visitor"]

PATIENCE: Final = 60.0
"""Seconds that a visit may take."""
BURST_ROOMS: Final = 4
BURST: Final = 240
"""Messages of `BURST_BYTES` characters each."""
BURST_BYTES: Final = 16 << 10
TALK: Final = 2.0
"""Seconds that it takes at most. Who is told to be too slow has to hear it within `close_timeout`."""


@define
class Told:
    """What one client knows of a room: nothing may be missing from it unless the server says so."""

    position: str | None = None
    tick: int | None = None
    greeted: bool = False
    hole: str | None = None
    """What is missing; that is allowed only if ``recovered=False`` follows."""

    def again(self) -> Told:
        """The same, on a new connection."""
        return Told(self.position, self.tick)

    def take(self, text: str | bytes) -> Any:
        """A message's payload; None for what the room itself says. Raises `Wrong`."""
        message = json.loads(text)
        if "recovered" in message:
            self._greet(message["recovered"], message["position"])
            return None
        payload = message["payload"]
        if message["position"] is None:
            if payload["type"] not in ("presence.join", "presence.leave"):
                raise Wrong(f"a message without a position: {text[:100]!r}")
            return None
        if self.position is not None:
            (epoch, offset), (was, before) = _parts(message["position"]), _parts(self.position)
            if (epoch, offset) != (was, before + 1):
                self._miss(f"{message['position']} came behind {self.position}")
                self.tick = None
        self.position = message["position"]
        if isinstance(payload, dict):
            if self.tick is not None and payload["tick"] != self.tick + 1:
                self._miss(f"tick {payload['tick']} came behind {self.tick}")
            self.tick = payload["tick"]
        return payload

    def _miss(self, problem: str) -> None:
        if self.greeted:
            raise Wrong(problem)
        self.hole = self.hole or problem

    def _greet(self, recovered: bool | None, position: str) -> None:
        self.greeted = True
        (epoch, offset) = _parts(position)
        was, before = (None, 0) if self.position is None else _parts(self.position)
        behind = was != epoch or before < offset
        if recovered and behind:
            self.hole = self.hole or f"nothing came behind {self.position}"
        if recovered is not False and self.hole:
            raise Wrong(f"recovered={recovered} at {position}, but {self.hole}")
        self.hole = None
        if behind:
            self.position, self.tick = position, None


def _parts(position: str) -> tuple[str, int]:
    epoch, offset, *_ = position.split(":")
    return epoch, int(offset)


@define(eq=False)
class Visitor:
    """One client that comes again and again."""

    port: int
    counts: Counter[str]
    """What was done, and what became of it; of all visitors together."""
    known: dict[str, Told] = field(default=Factory(dict))
    number: int = 0
    dice: random.Random = field(default=Factory(random.Random))

    async def visit(self, seed: int, number: int) -> None:
        """Raises `Wrong`."""
        self.number, self.dice = number, random.Random(f"{seed}/{number}")
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self.echo: 30,
            self.room: 30,
            self.http: 15,
            self.garbage: 12,
            self.large: 6,
            self.half: 4,
            self.stall: 3,
        }
        (kind,) = self.dice.choices([*kinds], [*kinds.values()])
        name = kind.__name__
        self.counts[name] += 1
        try:
            with trio.fail_after(PATIENCE):
                await kind()
        except trio.TooSlowError:
            raise Wrong(f"{name}: not done within {PATIENCE:g} s") from None
        except Exception as error:
            raise Wrong(f"{name}: {str(error) or type(error).__name__}") from error

    def connect(self, target: str, receive_buffer: int | None = None) -> Awaitable[Client]:
        return Client.connect(self.port, self.number, target, receive_buffer)

    async def leave(self, client: Client) -> None:
        """One in three just drops."""
        if self.dice.random() < 0.33:
            self.counts["dropped"] += 1
        else:
            await client.close()

    async def echo(self) -> None:
        async with await self.connect("/echo") as client:
            for _ in range(self.dice.randrange(6)):
                texts = [f"{self.number}/{self.dice.random()}" * self.dice.randint(1, 99) for _ in range(4)]
                for text in texts:
                    await client.send(text)
                for text in texts:
                    if await client.receive() != text:
                        raise Wrong("an echo was another text than was sent")
                await trio.sleep(self.dice.random() / 20)
            if self.dice.random() < 0.2:
                await client.send("nobody waits for this" * 1000)
                self.counts["dropped"] += 1
                return
            await self.leave(client)

    async def large(self) -> None:
        async with await self.connect("/bytes") as client:
            for _ in range(2):
                data = self.dice.randbytes(self.dice.randrange(1 << 16, 1 << 19))
                await client.send(data)
                if await client.receive() != data:
                    raise Wrong("an echo was other bytes than were sent")
            await self.leave(client)

    async def room(self) -> None:
        """With what it knows of the room, if it has been there; one room in nine is new."""
        name = str(self.dice.randrange(ROOMS + 1))
        if name == str(ROOMS):
            name = f"new.{self.number}"
        told = self.known[name].again() if name in self.known else Told()
        for _ in range(self.dice.randint(1, 3)):
            await self._follow(name, told)
            told = told.again()
            await trio.sleep(self.dice.random() / 2)
        if not name.startswith("new"):
            self.known[name] = told

    async def _follow(self, name: str, told: Told) -> None:
        device = f"&device={self.number}" if self.dice.random() < 0.5 else ""
        async with await self.connect(self._target(name, told) + device) as client:
            mine = [f"{self.number}/{self.dice.random()}" for _ in range(self.dice.randint(1, 10))]
            for text in mine:
                await client.send(text)
            while mine:
                if (payload := await self._take(client, told)) == mine[0]:
                    del mine[0]
                elif payload in mine:
                    raise Wrong("a room gave a client's messages in another order")
            await self.leave(client)

    def _target(self, name: str, told: Told) -> str:
        since = "" if told.position is None else f"&since={told.position}"
        return f"/rooms/{name}?user=u{self.number % 30}{since}"

    async def _take(self, client: Client, told: Told) -> Any:
        greeted = told.greeted
        resumed = told.position is not None
        payload = told.take(text := await client.receive())
        if resumed and told.greeted and not greeted:
            self.counts["resumed, all replayed" if json.loads(text)["recovered"] else "resumed, told no"] += 1
        return payload

    async def stall(self) -> None:
        """One talks and the other does not read for as long; what then comes has no hole."""
        name = f"burst.{self.dice.randrange(BURST_ROOMS)}"
        told, talking = Told(), Told()
        async with await self.connect(self._target(name, told), 4096) as silent:
            while not told.greeted:
                await self._take(silent, told)
            async with await self.connect(self._target(name, talking)) as talker:
                try:
                    last = await self._talk(talker, talking)
                    await talker.close()
                except Ended as end:
                    self._too_slow(end)
                    return
            self.counts["stalled"] += 1
            try:
                while await self._take(silent, told) != last:
                    pass
                return
            except Ended as end:
                self._too_slow(end)
        told = told.again()
        async with await self.connect(self._target(name, told)) as back:
            try:
                payload = None
                while not (payload == last or told.greeted):
                    payload = await self._take(back, told)
            except Ended as end:
                self._too_slow(end)

    async def _talk(self, talker: Client, told: Told) -> str:
        text, enough = "", trio.current_time() + TALK
        for number in range(BURST):
            if trio.current_time() > enough:
                break
            text = f"{self.number}/{number}/".ljust(BURST_BYTES, "-")
            await talker.send(text)
            while await self._take(talker, told) != text:
                pass
        return text

    def _too_slow(self, end: Ended) -> None:
        if end.code != 1013:
            raise end
        self.counts["closed with 1013"] += 1

    async def garbage(self) -> None:
        """What breaks the protocol is told so; what only may is at least no harm to others."""
        bad: dict[bytes, int] = {
            encode_text("not masked"): 1002,
            b"\xf1\x80\0\0\0\0": 1002,  # reserved bits
            b"\x83\x80\0\0\0\0": 1002,  # an opcode that is none
            b"\x80\x80\0\0\0\0": 1002,  # the rest of no message
            b"\x09\x80\0\0\0\0": 1002,  # a Ping in parts
            b"\x81\x82\0\0\0\0\xc3\x28": 1007,
            b"\x88\x82\0\0\0\0\x03\xed": 1002,  # a Close with 1005
            b"\x81\xff" + (2 << 20).to_bytes(8) + bytes(4): 1009,
        }
        if self.dice.random() < 0.8:
            data, code = self.dice.choice([*bad.items()])
            async with await self.connect("/echo") as client:
                await client.stream.send_all(data)
                if (found := await client.ended()) != code:
                    raise Wrong(f"{data[:16]!r} was answered with {found}, not {code}")
        else:
            async with await self.connect("/bytes") as client:
                await client.stream.send_all(self.dice.randbytes(self.dice.randrange(1, 5000)))
                await trio.sleep(self.dice.random() / 10)

    async def half(self) -> None:
        """A request that does not come whole, or is none."""
        stream = await dial(self.port, self.number)
        try:
            request = ClientHandshake("soak", "/echo", nonce=os.urandom(16)).request
            if self.dice.random() < 0.5:
                await stream.send_all(request[: self.dice.randrange(1, len(request))])
                await trio.sleep(self.dice.random() / 10)
            else:
                await stream.send_all(b"\x16\x03\x01 no HTTP\r\n\r\n")
                answer = bytes(await stream.receive_some(4096))
                if answer and not re.match(rb"HTTP/1.1 4\d\d ", answer):
                    raise Wrong(f"no HTTP was answered with {answer[:20]!r}")
        finally:
            reset(stream)

    async def http(self) -> None:
        async with await dial(self.port, self.number) as stream:
            size = self.dice.randrange(1, 1 << 17)
            if await ask(stream, "POST", "/upload", bytes(size)) != str(size).encode():
                raise Wrong("an upload arrived in another size")
