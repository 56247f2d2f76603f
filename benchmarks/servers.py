"""The servers that are compared, and how each is started."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from benchmarks.harness import Server, Tools, free_port, running

__all__ = ["OURS", "PEERS", "Command", "Peer", "ours", "serving"]

Command = Callable[[int, Tools], list[str]]


@frozen(kw_only=True)
class Peer:
    """A server program with an app."""

    title: str
    command: Command
    usual: bool = True
    """Whether it takes part when nobody names it."""
    socketio: bool = False
    """Whether its clients speak Socket.IO."""

    def path(self, path: str) -> str:
        """Where the app answers what others do on ``path``."""
        return f"{path}/?EIO=4&transport=websocket" if self.socketio else path


def _python(*arguments: str) -> Command:
    """``python -m ...``, with ``PORT`` for the port."""
    return lambda port, _: [sys.executable, "-m", *(part.replace("PORT", str(port)) for part in arguments)]


def _hypercorn(app: str) -> Command:
    bind = ("--bind", "127.0.0.1:PORT", "--workers", "0")
    return _python("hypercorn", "--worker-class", "trio", *bind, f"benchmarks.peers.{app}")


def ours(app: str, server: str) -> Command:
    """``nexios-trio run`` of this app (``module:app``), in one process."""
    bind = ("--bind", "127.0.0.1:PORT", "--workers", "0")
    return _python("nexios_trio.cli", "run", app, "--server", server, *bind)


def _uvicorn(app: str, ws: str) -> Command:
    quiet = ("--no-access-log", "--log-level", "warning")
    where = ("--host", "127.0.0.1", "--port", "PORT", "--loop", "uvloop", "--http", "httptools", "--ws", ws)
    return _python("uvicorn", f"benchmarks.peers.{app}", *where, *quiet)


OURS: Final = "nexios"
"""What all others are compared with."""

PEERS: Final = {
    "nexios": Peer(title="nexios_trio, engine", command=ours("benchmarks.peers.nexios_app:app", "engine")),
    "nexios-hypercorn": Peer(
        title="nexios_trio, hypercorn", command=ours("benchmarks.peers.nexios_app:app", "hypercorn")
    ),
    "nexios-unguarded": Peer(
        title="nexios_trio, engine, no limits",
        command=ours("benchmarks.peers.nexios_app:unguarded", "engine"),
        usual=False,
    ),
    "raw-engine": Peer(title="raw ASGI, our engine", command=ours("benchmarks.peers.raw_asgi:app", "engine")),
    "raw-hypercorn": Peer(title="raw ASGI, hypercorn trio", command=_hypercorn("raw_asgi:app")),
    "starlette-hypercorn": Peer(title="Starlette, hypercorn trio", command=_hypercorn("starlette_app:app")),
    "quart-trio": Peer(title="Quart-Trio, hypercorn", command=_hypercorn("quart_trio_app:app")),
    "trio-websocket": Peer(
        title="trio-websocket", command=_python("benchmarks.peers.trio_websocket_server", "PORT")
    ),
    "uvicorn": Peer(
        title="Starlette, uvicorn + uvloop", command=_uvicorn("starlette_app:app", "websockets-sansio")
    ),
    "uvicorn-auto": Peer(
        title="Starlette, uvicorn --ws auto", command=_uvicorn("starlette_app:app", "auto"), usual=False
    ),
    "uvicorn-wsproto": Peer(
        title="Starlette, uvicorn --ws wsproto", command=_uvicorn("starlette_app:app", "wsproto"), usual=False
    ),
    "granian": Peer(
        title="FastAPI, granian",
        # By default it serves 1,024 connections at a time.
        command=_python(
            *(
                "granian",
                "--interface",
                "asgi",
                "--host",
                "127.0.0.1",
                "--port",
                "PORT",
                "--backlog",
                "16384",
            ),
            *("--backpressure", "16384", "--log-level", "warning", "benchmarks.peers.fastapi_app:app"),
        ),
    ),
    "aiohttp": Peer(title="aiohttp + uvloop", command=_python("benchmarks.peers.aiohttp_server", "PORT")),
    "websockets": Peer(
        title="websockets + uvloop", command=_python("benchmarks.peers.websockets_server", "PORT")
    ),
    "picows": Peer(
        title="picows + uvloop (callbacks)", command=_python("benchmarks.peers.picows_server", "PORT")
    ),
    "channels": Peer(
        title="Django Channels, daphne",
        command=_python(
            "daphne", "-v", "0", "-b", "127.0.0.1", "-p", "PORT", "benchmarks.peers.channels_app:app"
        ),
    ),
    "socketio": Peer(
        title="python-socketio, uvicorn + uvloop",
        command=_uvicorn("socketio_app:app", "websockets-sansio"),
        socketio=True,
    ),
    "c": Peer(title="C, epoll (the limit)", command=lambda port, tools: [tools.epoll, str(port)]),
}


@contextlib.contextmanager
def serving(peer: Peer, tools: Tools) -> Iterator[Server]:
    """Run it on a free port; see `running`."""
    port = free_port()
    with running(peer.command(port, tools), port, peer.path("/echo")) as server:
        yield server
