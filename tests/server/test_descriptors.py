"""A process that has no file descriptor left for one more connection: it waits, and goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SERVER = textwrap.dedent("""
    import logging, os, resource, socket, sys
    import trio
    from nexios_trio import NexiosApp, WebSocket
    from nexios_trio.testing import serve
    from tests.lanes import SocketPeer

    class Accepts(logging.Handler):
        count = 0

        def emit(self, record):
            Accepts.count += "accept" in record.getMessage()

    for name in ("trio.serve_listeners", "nexios_trio.server"):
        logging.getLogger(name).addHandler(Accepts())
        logging.getLogger(name).propagate = False
    app = NexiosApp(heartbeat=None)

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    def fill() -> list[int]:
        # Whatever numbers are free below the limit are taken.
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            return taken

    async def main(fast_lane: bool) -> None:
        async with serve(app, fast_lane=fast_lane) as server:
            clients = [socket.socket() for _ in range(3)]
            early = SocketPeer(await trio.open_tcp_stream(server.host, server.port))
            await early.shake_hands("x", "/")
            await early.send("before")
            assert await early.receive() == "before"

            resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            taken = fill()
            for client in clients:  # into the backlog, where they wait
                client.connect((server.host, server.port))
            with trio.fail_after(60):
                while Accepts.count < 3:
                    await early.send("meanwhile")  # others go on
                    assert await early.receive() == "meanwhile"
                    await trio.sleep(0.01)
            tried, begun = Accepts.count, trio.current_time()
            with trio.fail_after(60):
                while Accepts.count < tried + 3:
                    await trio.sleep(0.01)
            pause = (trio.current_time() - begun) / 3
            for number in taken:
                os.close(number)
            for client in clients:
                client.setblocking(False)
                peer = SocketPeer(trio.SocketStream(trio.socket.from_stdlib_socket(client)))
                with trio.fail_after(60):
                    await peer.shake_hands("x", "/")
                    await peer.send("after")
                    assert await peer.receive() == "after"
                await peer.close()
            await early.close()
            print("recovered", pause > 0.05)

    trio.run(main, sys.argv[1] == "engine")
""")


@pytest.mark.parametrize("server", ["hypercorn", "engine"])
def test_accepting_backs_off_and_recovers_when_descriptors_run_out(server: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER, server], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout.split(), done.returncode) == (["recovered", "True"], 0), done.stderr
