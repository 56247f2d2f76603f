"""trio-websocket."""

from __future__ import annotations

import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

members: set[WebSocketConnection] = set()


async def handle(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        if request.path == "/echo":
            while True:
                await connection.send_message(await connection.get_message())
        members.add(connection)
        while True:
            text = await connection.get_message()
            for member in list(members):
                await member.send_message(text)
    except ConnectionClosed:
        members.discard(connection)


if __name__ == "__main__":
    trio.run(serve_websocket, handle, "127.0.0.1", int(sys.argv[1]), None)
