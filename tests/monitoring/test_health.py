"""What a load balancer is told."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.brokers import MemoryBroker
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.monitoring.health import Health
from nexios_trio.testing import TestClient, WebSocketRejected, serve


async def ask(app: NexiosApp, path: str, method: str = "GET") -> httpx2.Response:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path)


def healthy(**options: Any) -> NexiosApp:
    app = NexiosApp(broker=options.pop("broker", "memory://"))
    app.mount("/health", Health(app, **options))
    return app


async def test_a_worker_is_alive_and_ready_until_it_drains() -> None:
    app = healthy()
    async with TestClient(app):
        assert (await ask(app, "/health/healthz")).text == "ok\n"
        answer = await ask(app, "/health/readyz")
        assert answer.status_code == 200
        assert answer.json() == {"ready": True, "checks": {"accepting": True, "broker": True}}
        assert answer.headers["cache-control"] == "no-store"
        await app.drain()
        answer = await ask(app, "/health/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "checks": {"accepting": False, "broker": True}}
        assert (await ask(app, "/health/healthz")).status_code == 200  # it lives, and ends by itself


async def test_routes_may_stand_at_the_root_beside_others() -> None:
    app = NexiosApp()
    health = Health(app)
    app.add_route("/healthz", health)
    app.add_route("/readyz", health)
    assert (await ask(app, "/healthz")).status_code == 200
    assert (await ask(app, "/readyz")).status_code == 200


async def test_a_broker_that_is_away_makes_it_unready() -> None:
    class Away(MemoryBroker):
        available = True

    broker = Away()
    app = healthy(broker=broker)
    async with TestClient(app):
        assert (await ask(app, "/health/readyz")).status_code == 200
        broker.available = False
        answer = await ask(app, "/health/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"accepting": True, "broker": False}
        broker.available = True
        assert (await ask(app, "/health/readyz")).status_code == 200


async def test_probes_of_your_own_are_asked_together_and_not_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow() -> bool:
        await trio.sleep(1.5)
        return True

    async def hangs() -> bool:
        await trio.sleep_forever()

    def fails() -> bool:
        raise OSError("the password is hunter2")

    app = healthy(probes={"slow": slow, "other": slow, "hangs": hangs, "fails": fails, "no": lambda: False})
    before = trio.current_time()
    answer = await ask(app, "/health/readyz")
    assert trio.current_time() - before == pytest.approx(2)
    assert answer.status_code == 503
    assert answer.json()["checks"] == {
        "accepting": True,
        "broker": True,
        "slow": True,
        "other": True,
        "hangs": False,
        "fails": False,
        "no": False,
    }
    assert "hunter2" not in answer.text  # but the log has it
    assert "hunter2" in caplog.text


async def test_it_answers_get_only_and_nothing_else() -> None:
    app = healthy()
    assert (await ask(app, "/health/readyz", "POST")).status_code == 405
    assert (await ask(app, "/health/nothing")).status_code == 404
    assert (await ask(app, "/health/readyz", "HEAD")).status_code == 200
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected):
            async with client.connect("/health/readyz"):
                pass


@pytest.mark.parametrize("fast_lane", [False, True], ids=["hypercorn", "engine"])
async def test_a_server_that_ends_is_not_ready_before_it_turns_anybody_away(fast_lane: bool) -> None:
    app = healthy()
    order: list[str] = []

    @app.ws_route("/stay")
    async def stay(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()

    async with serve(app, fast_lane=fast_lane, drain_notice=1.0) as server:
        async with httpx2.AsyncClient() as client:
            url = f"{server.http_url}/health/readyz"
            assert (await client.get(url)).status_code == 200
            server.stop()
            while (await client.get(url)).status_code == 200:
                await trio.lowlevel.checkpoint()
            order.append("not ready")
            # A client that was on its way is still served.
            async with await trio.open_tcp_stream(server.host, server.port) as stream:
                await stream.send_all(b"GET /health/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
            order.append("served")
            await server.wait_stopped()
            order.append("ended")
    assert order == ["not ready", "served", "ended"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"probes": {"db": True}}, WrongTypeError, "the probe 'db' is a function"),
        ({"probes": {"accepting": bool}}, WrongValueError, "'accepting' is a check that there is anyhow"),
        ({"probes": {"broker": bool}}, WrongValueError, "name the probe otherwise"),
        ({"timeout": 0}, WrongValueError, "more than 0"),
        ({"timeout": True}, WrongValueError, "more than 0"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Health(NexiosApp(), **options)


def test_health_is_that_of_an_app() -> None:
    with pytest.raises(WrongTypeError, match="takes a NexiosApp"):
        Health(object())  # type: ignore[arg-type]
