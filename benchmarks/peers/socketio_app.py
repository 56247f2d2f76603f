"""python-socketio, on uvicorn. Its clients speak Socket.IO, a protocol in WebSocket messages, and so does the
load: a message is the event ``message``, which is some bytes longer than its text."""

from __future__ import annotations

from typing import Any

import socketio

# 1 MiB and the event's name do not fit into the default of 1 MB.
echo = socketio.AsyncServer(async_mode="asgi", max_http_buffer_size=2**21)
listen = socketio.AsyncServer(async_mode="asgi", max_http_buffer_size=2**21)


@echo.on("message")
async def send_back(sid: str, text: str) -> None:
    await echo.emit("message", text, to=sid)


@listen.on("connect")
async def join(sid: str, environ: dict[str, Any], auth: object = None) -> None:
    await listen.enter_room(sid, "all")


@listen.on("message")
async def send_to_all(sid: str, text: str) -> None:
    await listen.emit("message", text, room="all")


app = socketio.ASGIApp(echo, socketio.ASGIApp(listen, socketio_path="listen"), socketio_path="echo")
