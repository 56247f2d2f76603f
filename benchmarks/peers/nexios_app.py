"""Ours, on the engine and on hypercorn."""

from __future__ import annotations

from typing import Any

from nexios_trio import Deflate, Limits, NexiosApp, WebSocket


def make_app(**options: Any) -> NexiosApp:
    app = NexiosApp(**options)

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/listen")
    async def listen(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("all") as group:
            async for text in ws.iter_text():
                await group.send(text)

    @app.ws_route("/crowd")
    async def crowd(ws: WebSocket) -> None:
        await ws.accept()
        async with ws.join("all") as group:
            async for text in ws.iter_text():
                await (group.send(text) if text.startswith("!") else ws.send_text(text))

    return app


app = make_app(deflate=Deflate())  # granted to those who offer it: the loads with deflate
unguarded = make_app(limits=Limits.none(), allowed_origins="*")
