"""The guard's account of connections and addresses, and what it answers."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import trio

from nexios_trio import Limits, NexiosApp, Proxy, Rate, WebSocket
from nexios_trio.security.guard import Guard, Refusal
from nexios_trio.testing import TestClient
from nexios_trio.testing.websocket import WebSocketRejected
from nexios_trio.websockets.headers import encode_headers


def scope_of(*, host: str = "203.0.113.7", query: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    return {
        "type": "websocket",
        "path": "/ws",
        "scheme": "ws",
        "client": (host, 1000),
        "query_string": query,
        "headers": [(b"host", b"example.org"), *encode_headers(headers)],
        "extensions": {"websocket.http.response": {}},
    }


def cause(answer: Refusal | str) -> str | None:
    return answer.cause if isinstance(answer, Refusal) else None


def test_a_client_within_all_bounds_comes_in() -> None:
    guard = Guard(Limits())
    assert guard.admit(scope_of(), 0.0) == "203.0.113.7"
    assert not guard.counts


def test_connections_of_one_address_are_bounded_and_counted_back() -> None:
    guard = Guard(Limits(connections_per_address=2))
    first, second = guard.admit(scope_of(), 0.0), guard.admit(scope_of(), 0.0)
    assert isinstance(first, str)
    assert isinstance(second, str)
    refusal = guard.admit(scope_of(), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.cause, refusal.status) == ("connections_per_address", 429)
    assert cause(guard.admit(scope_of(host="198.51.100.1"), 0.0)) is None
    guard.leave(first)
    assert cause(guard.admit(scope_of(), 0.0)) is None
    assert guard.counts == {"connections_per_address": 1}


def test_the_connections_of_the_app_are_bounded() -> None:
    guard = Guard(Limits(connections=1))
    assert cause(guard.admit(scope_of(host="192.0.2.1"), 0.0)) is None
    refusal = guard.admit(scope_of(host="192.0.2.2"), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.cause, refusal.status, refusal.retry_after) == ("connections", 503, 5)


def test_addresses_that_have_left_are_forgotten() -> None:
    guard = Guard(Limits())
    for number in range(500):
        address = guard.admit(scope_of(host=f"10.0.{number // 250}.{number % 250}"), 1.0 + number)
        assert isinstance(address, str)
        guard.leave(address)
    assert not guard._by_address
    assert guard._connections == 0


def test_all_of_an_ipv6_network_count_as_one_address() -> None:
    guard = Guard(Limits(connections_per_address=1))
    assert cause(guard.admit(scope_of(host="2001:db8::1"), 0.0)) is None
    assert cause(guard.admit(scope_of(host="2001:db8::2"), 0.0)) == "connections_per_address"
    assert cause(guard.admit(scope_of(host="2001:db8:0:1::2"), 0.0)) is None


def test_handshakes_of_one_address_have_a_rate_and_are_told_when_to_come_back() -> None:
    guard = Guard(Limits(handshakes_per_address=Rate(1, per=10, burst=3)))
    answers = [guard.admit(scope_of(), 0.0) for _ in range(5)]
    assert [cause(answer) for answer in answers] == [None] * 3 + ["handshakes_per_address"] * 2
    refusal = answers[-1]
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after) == (429, 10)
    assert cause(guard.admit(scope_of(), 10.0)) is None


@pytest.mark.parametrize(
    ("limits", "scope", "expected"),
    [
        (Limits(query_bytes=10), scope_of(query=b"a" * 10), None),
        (Limits(query_bytes=10), scope_of(query=b"a" * 11), ("query_bytes", 414)),
        (Limits(header_bytes=30), scope_of(headers={"x-a": "b" * 12}), None),
        (Limits(header_bytes=30), scope_of(headers={"x-a": "b" * 13}), ("header_bytes", 431)),
        (Limits(), scope_of(headers={"origin": "https://evil.example"}), ("allowed_origins", 403)),
        (Limits.none(), scope_of(query=b"a" * 100_000, headers={"x": "y" * 100_000}), None),
    ],
)
def test_sizes_and_origins_are_judged(limits: Limits, scope: Any, expected: tuple[str, int] | None) -> None:
    answer = Guard(limits).admit(scope, 0.0)
    found = (answer.cause, answer.status) if isinstance(answer, Refusal) else None
    assert found == expected


def test_behind_a_trusted_proxy_the_client_counts_and_not_the_proxy() -> None:
    guard = Guard(Limits(connections_per_address=1), proxy=Proxy(["10.0.0.1"]))
    scopes = [
        scope_of(host="10.0.0.1", headers={"x-forwarded-for": f"198.51.100.{number}"}) for number in (1, 2, 1)
    ]
    assert [cause(guard.admit(scope, 0.0)) for scope in scopes] == [None, None, "connections_per_address"]
    assert scopes[0]["client"][0] == "198.51.100.1"


def test_forwarded_headers_that_nobody_trusts_are_pointed_out_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(Limits())
    for _ in range(3):
        guard.admit(scope_of(headers={"x-forwarded-for": "198.51.100.1"}), 0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "NexiosApp(proxy=Proxy([its address]))" in lines[0]


def test_a_flood_of_refusals_is_counted_whole_and_logged_in_part(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(Limits(handshakes_per_address=None))
    for _ in range(1000):
        guard.admit(scope_of(headers={"origin": "https://evil.example"}), 0.0)
    guard.admit(scope_of(headers={"origin": "https://evil.example"}), 60.0)
    assert guard.counts == {"allowed_origins": 1001}
    assert len(caplog.records) == 51
    assert "(950 more since were not logged)" in caplog.records[-1].getMessage()


def test_a_refusal_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    scope = scope_of(headers={"origin": "https://evil.example"})
    scope["path"] = "/ws\nERROR: all is lost\x1b[2J\u2028"
    scope["headers"].append((b"origin", b"\xff\x85"))
    Guard(Limits()).admit(scope, 0.0)
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert record.levelno == logging.WARNING


# In the app


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text)


def app_with(**options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    app.add_ws_route("/ws", echo)
    return app


async def test_a_refused_client_gets_the_status_a_body_and_when_to_come_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    app = app_with(limits=Limits(connections_per_address=1))
    async with TestClient(app) as client, client.connect("/ws") as ws:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/ws"):
                pass
        assert rejected.value.status == 429
        assert dict(rejected.value.headers)["retry-after"] == "5"
        assert msgspec.json.decode(rejected.value.body) == {"error": "too many connections"}
        await ws.send_text("still here")
        assert await ws.receive_text() == "still here"
    async with TestClient(app) as client, client.connect("/ws"):
        pass  # the place is free again


async def test_a_server_without_http_answers_gets_a_bare_refusal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with TestClient(app_with(allowed_origins=["https://example.org"])) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/ws", headers={"origin": "https://evil.example"}, http_response=False):
                pass
    assert rejected.value.status == 403


async def test_middleware_that_moves_the_client_does_not_lose_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def mover(ws: WebSocket, call_next: Any) -> None:
        ws.scope["client"] = ("192.0.2.99", 1)
        await call_next()

    app = app_with(middleware=[mover])
    async with TestClient(app) as client:
        for _ in range(3):
            async with client.connect("/ws"):
                pass
    assert not app.guard._by_address


async def test_an_app_mounted_inside_another_keeps_its_own_origins(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    inner = app_with(allowed_origins=["https://inner.example"], limits=Limits(connections=1))
    outer = NexiosApp(allowed_origins="*")
    outer.mount("/in", inner)
    async with TestClient(outer) as client:
        async with client.connect("/in/ws", headers={"origin": "https://inner.example"}):
            pass
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/in/ws", headers={"origin": "https://else.example"}):
                pass
    assert rejected.value.status == 403
    assert inner.guard.counts == {"allowed_origins": 1}
    assert sum("limits of its own" in record.getMessage() for record in caplog.records) == 1


def test_an_app_that_is_run_again_does_not_hold_its_clients_to_the_clock_of_the_run_before() -> None:
    app = app_with(limits=Limits(handshakes_per_address=Rate(1, per=3600)))

    async def once() -> None:
        async with TestClient(app) as client, client.connect("/ws"):
            pass

    for _ in range(12):
        trio.run(once)
