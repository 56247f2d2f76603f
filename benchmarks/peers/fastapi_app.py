"""FastAPI, on granian."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

app = FastAPI()
members: set[WebSocket] = set()


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket("/listen")
async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    members.add(websocket)
    try:
        async for text in websocket.iter_text():
            for member in list(members):
                await member.send_text(text)
    finally:
        members.discard(websocket)
