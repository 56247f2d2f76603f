"""An echo that nobody watches, and the same one with metrics, logs, traces, or a dashboard."""

from __future__ import annotations

from nexios_trio import Identity, NexiosApp, WebSocket
from nexios_trio.monitoring import AccessLog
from nexios_trio.monitoring.dashboard import Dashboard
from nexios_trio.monitoring.metrics import Metrics
from nexios_trio.monitoring.tracing import Tracing


def _echo() -> NexiosApp:
    app = NexiosApp()

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    return app


async def _anybody(_ws: WebSocket) -> Identity:
    return Identity("benchmark")


plain = _echo()

metrics = _echo()
metrics.mount("/metrics", Metrics(metrics))

dashboard = _echo()
dashboard.mount("/ops", Dashboard(dashboard, authenticate=_anybody))

traced = _echo()
traced.add_instrument(AccessLog(counts=False))
traced.add_instrument(Tracing())
