"""The types hold for a user who checks strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

WRONG = """
from nexios_trio import ChannelBox, NexiosApp, WebSocket

app = NexiosApp(disconnect_grace="5")

async def child(n: int) -> None: ...

@app.ws_route("/")
async def handler(ws: WebSocket) -> None:
    await ws.send_text(b"bytes")
    ws.start_soon(child, "not an int")
    ws.close()
    app.start_soon(child, 1, on_crash="explode")
    await ChannelBox.group_send(group="g", payload=1)
    await app.channels.group_send(1, {})
    ChannelBox.group_send("g", {})
"""


def mypy(*files: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cwd / "cache")]
    return subprocess.run([*command, *files], capture_output=True, text=True, cwd=cwd)


@pytest.mark.untraced
def test_a_user_s_module_passes_mypy_strict(tmp_path: Path) -> None:
    result = mypy(str(HERE / "sample_user.py"), cwd=tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.untraced
def test_mistakes_of_type_are_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    result = mypy("wrong.py", cwd=tmp_path)
    lines = {int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error:" in line}
    assert lines == {4, 10, 11, 12, 13, 14, 15, 16}, result.stdout
