"""``nexios-trio`` as a process, beside a server in the test."""

from __future__ import annotations

import sys

import trio
from attrs import frozen

from nexios_trio import NexiosApp, WebSocket

COMMAND = [sys.executable, "-m", "nexios_trio.cli"]


@frozen
class Done:
    """How it ended."""

    code: int
    out: str
    err: str


async def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run it to its end."""
    done = await trio.run_process(
        [*COMMAND, *arguments],
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return Done(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode())


def an_app() -> NexiosApp:
    """Echoes, refuses, closes: what a client has to tell apart."""
    app = NexiosApp(allowed_origins="*")
    app.state.ends = []

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept(subprotocol=ws.subprotocols[-1] if ws.subprotocols else None)
        while (message := await ws.receive())["type"] == "websocket.receive":
            if message.get("text") is not None:
                await ws.send_text(message["text"])
            else:
                await ws.send_bytes(message["bytes"])
        app.state.ends.append(message["code"])

    @app.ws_route("/headers")
    async def headers(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(f"{ws.headers['x-name']} {ws.headers['authorization']} {ws.query_params['q']}")
        await ws.close()

    @app.ws_route("/coloured")
    async def coloured(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("red \x1b[31m title \x9d0;x\x07")
        await ws.send_text('{"name": "A\\u001b", "n": 1.00000000000000000001}')
        await ws.receive_text()

    @app.ws_route("/many")
    async def many(ws: WebSocket) -> None:
        await ws.accept()
        for number in range(3):
            await ws.send_text(str(number))
        await ws.close(4001, "enough \x1b[31m\nclosed: 1000")

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(403, "not \x1b[31m you")

    @app.ws_route("/deaf")
    async def deaf(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    return app
