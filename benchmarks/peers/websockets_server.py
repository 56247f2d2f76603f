"""websockets, on uvloop; `broadcast` is its own way to send to many."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: set[ServerConnection] = set()


async def handle(websocket: ServerConnection) -> None:
    assert websocket.request is not None
    if websocket.request.path == "/echo":
        async for message in websocket:
            await websocket.send(message)
        return
    members.add(websocket)
    try:
        async for message in websocket:
            broadcast(members, message)
    finally:
        members.discard(websocket)


async def main(port: int) -> None:
    async with serve(handle, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
