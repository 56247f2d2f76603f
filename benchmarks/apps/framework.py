"""The same echo as a handler of ours, with the default limits and without any."""

from __future__ import annotations

from nexios_trio import Limits, NexiosApp, WebSocket


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


app = NexiosApp()
unguarded = NexiosApp(limits=Limits.none(), allowed_origins="*")
for each in (app, unguarded):
    each.add_ws_route("/", echo)
