"""What the servers of ``test_rolling_restart`` serve."""

from nexios_trio import NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.monitoring import Health

app = NexiosApp(disconnect_grace=5.0)
app.mount("/health", Health(app))


@app.ws_route("/echo")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    try:
        while True:
            await ws.send_text(await ws.receive_text())
    except WebSocketDisconnect:
        return
