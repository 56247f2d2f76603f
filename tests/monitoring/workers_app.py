"""What ``test_metrics_workers`` serves."""

import os

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.monitoring.metrics import Metrics

app = NexiosApp()
app.add_route("/metrics", Metrics(app, directory=os.environ["METRICS"]))


@app.ws_route("/echo")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)
