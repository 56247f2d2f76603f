"""The app under test: it sends back what it gets, text as text and binary as binary."""

from __future__ import annotations

from nexios_trio import Deflate, Heartbeat, Limits, NexiosApp, WebSocket, WebSocketDisconnect

LARGEST = 16 << 20
"""Bytes of the largest message in the suite (9.1.6, 9.2.6)."""

# The suite opens a connection for each of its cases, from one address, as fast as it can; and it stops
# reading on purpose, for longer than a heartbeat ought to allow.
app = NexiosApp(
    limits=Limits(message_bytes=LARGEST, outbox_bytes=2 * LARGEST, handshakes_per_address=None),
    heartbeat=Heartbeat(interval=60, timeout=60),
    deflate=Deflate(),
)


@app.ws_route("/")
async def echo(ws: WebSocket) -> None:
    await ws.accept()
    try:
        while True:
            message = await ws.receive()
            if (text := message.get("text")) is not None:
                await ws.send_text(text)
            elif (data := message.get("bytes")) is not None:
                await ws.send_bytes(data)
            else:
                break
    except WebSocketDisconnect:
        pass
