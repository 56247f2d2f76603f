"""Log records about connections: what they say, what they keep to themselves, and what machines read."""

from __future__ import annotations

import json
import logging
import re

import pytest

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.instrument import LOG_FIELDS
from nexios_trio.monitoring.logs import AccessLog, JSONFormatter
from nexios_trio.testing import TestClient, WebSocketRejected

SECRET = "do-not-log-me"


def app_with(log: AccessLog | None) -> NexiosApp:
    app = NexiosApp()
    if log is not None:
        app.add_instrument(log)

    @app.ws_route("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        ws.identify("ann")
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/fails")
    async def fails(ws: WebSocket) -> None:
        await ws.accept()
        raise RuntimeError("a mistake")

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(401)

    return app


def access(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "nexios_trio.access"]


async def chat(app: NexiosApp) -> None:
    async with TestClient(app) as client:
        async with client.connect(f"/rooms/7?token={SECRET}") as ws:
            await ws.send_text(SECRET)
            await ws.receive_text()
            await ws.close(4000, "bye")


async def test_a_connection_is_one_line_with_fields_and_without_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "nexios_trio.access")
    await chat(app_with(AccessLog()))
    (record,) = access(caplog)
    assert re.fullmatch(
        r"[0-9a-f]{12} '/rooms/7' from \S+, user 'ann': 4000 by peer after \d+\.\d{3} s, 1 in, 1 out",
        record.getMessage(),
    )
    fields = vars(record)
    assert fields["path"] == "/rooms/7"
    assert fields["route"] == "/rooms/{room}"
    assert fields["user"] == "ann"
    assert fields["code"] == 4000
    assert fields["duration"] >= 0
    assert fields["bytes_in"] == fields["bytes_out"] == len(SECRET)
    assert SECRET not in JSONFormatter().format(record)


async def test_without_counts_the_line_has_no_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nexios_trio.access")
    await chat(app_with(AccessLog(counts=False)))
    (record,) = access(caplog)
    assert record.getMessage().endswith(" s")
    assert "messages_in" not in vars(record)


async def test_a_client_that_was_turned_away_has_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nexios_trio.access")
    async with TestClient(app_with(AccessLog())) as client:
        with pytest.raises(WebSocketRejected):
            async with client.connect("/no"):
                pass
    (record,) = access(caplog)
    assert "not accepted" in record.getMessage()
    assert vars(record)["code"] is None


@pytest.mark.parametrize("log", [None, AccessLog()], ids=["not-installed", "level-too-high"])
async def test_it_is_quiet_by_default(caplog: pytest.LogCaptureFixture, log: AccessLog | None) -> None:
    caplog.set_level(logging.INFO if log is None else logging.WARNING, "nexios_trio")
    await chat(app_with(log))
    assert not access(caplog)


async def test_a_path_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nexios_trio.access")
    async with TestClient(app_with(AccessLog())) as client:
        async with client.connect("/rooms/a%0aforged"):
            pass
    (record,) = access(caplog)
    assert "\n" not in record.getMessage()
    assert "\n" not in JSONFormatter().format(record)


async def test_other_records_about_a_connection_have_the_same_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with TestClient(app_with(None)) as client:
        async with client.connect("/fails") as ws:
            assert (await ws.wait_closed())[0] == 1011
    (record,) = [record for record in caplog.records if record.name == "nexios_trio.connection"]
    entry = json.loads(JSONFormatter().format(record))
    assert entry.keys() >= set(LOG_FIELDS)
    assert entry["level"] == "ERROR"
    assert entry["path"] == "/fails"
    assert "RuntimeError: a mistake" in entry["exception"]
    assert entry["message"].endswith("the handler failed")


def test_a_record_of_somebody_else_is_json_as_well() -> None:
    record = logging.LogRecord("other", logging.INFO, "", 0, "hello %s", ("you",), None)
    entry = json.loads(JSONFormatter().format(record))
    assert entry == {"time": entry["time"], "level": "INFO", "logger": "other", "message": "hello you"}
    assert entry["time"].endswith("+00:00")
