"""aiohttp, on uvloop."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import WSMsgType, web

members: set[web.WebSocketResponse] = set()


async def echo(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
    return ws


async def listen(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    members.add(ws)
    try:
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                for member in list(members):
                    await member.send_str(message.data)
    finally:
        members.discard(ws)
    return ws


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/echo", echo), web.get("/listen", listen)])
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
    )
