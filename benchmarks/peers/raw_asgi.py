"""The least that an ASGI app can do."""

from __future__ import annotations

from nexios_trio.types import Receive, Scope, Send

members: set[Send] = set()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/echo":
        await echo(receive, send)
        return
    members.add(send)
    try:
        await listen(receive)
    finally:
        members.discard(send)


async def live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def echo(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})


async def listen(receive: Receive) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        for member in list(members):
            await member({"type": "websocket.send", "text": message["text"]})
