"""The same echo as a handler of ours."""

from __future__ import annotations

from nexios_trio import NexiosApp, WebSocket

app = NexiosApp()


@app.ws_route("/")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)
