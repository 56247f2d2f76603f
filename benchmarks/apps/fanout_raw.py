"""The yardstick of a fan-out: a loop over the ASGI sends of all members.

``/?members=N&size=BYTES``: with the Nth member the rounds begin, each as soon as the one before was sent.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from benchmarks.apps.raw_asgi import app as echo
from benchmarks.apps.rounds import stamped
from nexios_trio.types import Receive, Scope, Send

members: list[Send] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await echo(scope, receive, send)
        return
    options = parse_qs(scope["query_string"].decode())
    await receive()
    await send({"type": "websocket.accept"})
    members.append(send)
    while len(members) == int(options["members"][0]):
        message = {"type": "websocket.send", "text": stamped(int(options["size"][0]))}
        for member in members:
            await member(message)
    while (await receive())["type"] != "websocket.disconnect":
        pass
