"""A real Redis of our own: on free ports and a Unix socket, killed at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hiredis
import pytest

REDIS = shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")

needs_redis = pytest.mark.skipif(
    REDIS is None, reason="needs Debian's redis-server; scripts/test installs it"
)

PATIENCE = 20.0
"""Seconds that anything here may take."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Plain:
    """A blocking client for the test's own questions."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self.reader = hiredis.Reader()

    def __call__(self, *command: Any) -> Any:
        self.socket.sendall(hiredis.pack_command(command))
        while (reply := self.reader.gets()) is False:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("Redis closed the connection")
            self.reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self.socket.close()


class RedisServer:
    """``port`` is 0 for a server with a Unix socket only. ``options`` are lines of its configuration."""

    def __init__(self, here: Path, *options: str, port: int = 0, command: Sequence[str] = ()) -> None:
        here.mkdir(parents=True, exist_ok=True)
        self.here = here
        self.port = port
        self.path = str(here / "redis.sock")
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        (here / "redis.conf").write_text(
            "\n".join(
                (
                    f"dir {here}",
                    "bind 127.0.0.1",
                    *(() if any(option.startswith("port ") for option in options) else (f"port {port}",)),
                    f"unixsocket {self.path}",
                    "save ''",
                    "loglevel warning",
                    f"logfile {here}/redis.log",
                    *options,
                    "",
                )
            ).replace("''", '""')
        )

    @property
    def url(self) -> str:
        return f"redis+unix://{self.path}" if not self.port else f"redis://127.0.0.1:{self.port}"

    def start(self) -> RedisServer:
        assert REDIS is not None
        self.process = subprocess.Popen(
            [REDIS, str(self.here / "redis.conf"), *self.command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.wait(self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.here / "redis.log").read_text()
        try:
            client = Plain(self.path)
        except OSError:
            return False
        try:
            client("PING")
        except hiredis.ReplyError as error:
            return not str(error).startswith("LOADING")  # NOAUTH is an answer as well
        except OSError:
            return False
        finally:
            client.close()
        return True

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "Redis does not do what it should"
            time.sleep(0.01)

    def ask(self, *command: Any) -> Any:
        client = Plain(self.path)
        try:
            return client(*command)
        finally:
            client.close()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
