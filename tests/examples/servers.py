"""An example under a command of the reader's, in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Final

import pytest

__all__ = ["COMMANDS", "ROOT", "Server"]

ROOT: Final = Path(__file__).parents[2]
COMMANDS: Final = {
    "hypercorn": ["-m", "hypercorn", "--worker-class", "trio"],
    "nexios-trio": ["-m", "nexios_trio.cli", "run"],
}


class Server:
    """``app``, such as ``examples.chat:app``, on a free port; started again, on the same one."""

    def __init__(self, app: str, command: str = "hypercorn") -> None:
        self.port = 0
        self.log: list[str] = []
        self._command = [*COMMANDS[command], app]
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Returns when it takes connections."""
        process = self._process = subprocess.Popen(
            [sys.executable, *self._command, "--bind", f"127.0.0.1:{self.port}"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if running := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(running[1])
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(self.log))
        self._drain = threading.Thread(target=self._read, args=(process.stderr,))
        self._drain.start()

    def _read(self, stderr: IO[str]) -> None:
        self.log += stderr

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code; 0 if it does not run."""
        if self._process is None or self._drain is None:
            return 0
        process, drain = self._process, self._drain
        self._process = self._drain = None
        if how is signal.SIGTERM:
            process.terminate()  # hypercorn passes it on to its worker
        else:
            os.killpg(process.pid, how)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            drain.join()
            assert process.stderr is not None
            process.stderr.close()
        return process.returncode
