"""What an attack on the first version found: each of these once failed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pydantic
import pytest
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.exceptions import WebSocketException as StarletteException
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import (
    Limits,
    MessageValidationError,
    NexiosApp,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import Receive, Scope, Send
from nexios_trio.websockets import codec
from tests.lanes import Lane, Serve, SocketPeer


async def starlette_echo(ws: StarletteWebSocket) -> None:
    await ws.accept()
    while True:
        await ws.send_text(await ws.receive_text())


def mounting() -> NexiosApp:
    app = NexiosApp(limits=Limits(accept_timeout=2))
    app.mount("/s", Starlette(routes=[WebSocketRoute("/echo", starlette_echo)]))
    return app


async def test_an_app_mounted_in_ours_may_stay_beyond_the_accept_timeout(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with lane.serving(mounting()), lane.connect("/s/echo") as peer:
        await trio.sleep(10)
        await peer.send("still here")
        assert await peer.receive() == "still here"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_middleware_that_accepts_by_itself_ends_the_accept_timeout(autojump_clock: MockClock) -> None:
    def accepting(app: Any) -> Any:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept", "subprotocol": "v1"})
            await app(scope, receive, send)

        return middleware

    app = NexiosApp(middleware=[accepting], limits=Limits(accept_timeout=2))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep(50)
        await ws.send_text(str(ws.accepted_subprotocol))

    async with TestClient(app, timeout=100) as client, client.connect("/", subprotocols=["v1"]) as ws:
        assert await ws.receive_text() == "v1"


async def test_a_client_whose_messages_nobody_reads_does_not_stay_for_ever(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, ended = NexiosApp(limits=Limits(inbox_messages=4), unread_timeout=30), trio.Event()
    sent = 0

    @app.ws_route("/")
    async def push(ws: WebSocket) -> None:
        nonlocal sent
        await ws.accept()
        try:
            while True:
                await ws.send_text("tick")
                sent += 1
                await trio.sleep(1)
        except WebSocketDisconnect as over:
            assert (over.code, over.by) in ((1008, "local"), (1006, "network"))
            ended.set()

    async with lane.serving(app):
        async with lane.connect() as peer:
            for _ in range(13):
                await peer.send("unread")
            await peer.drop()
            await ended.wait()
    assert sent < 100
    assert len(app.connections) == 0


async def test_a_slow_handler_that_reads_now_and_then_keeps_its_connection(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=2), unread_timeout=30)

    @app.ws_route("/")
    async def slow(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await trio.sleep(20)
            await ws.send_text(text)

    async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:
        for number in range(12):
            await ws.send_text(str(number))
        assert [await ws.receive_text() for _ in range(12)] == list(map(str, range(12)))


async def test_under_our_runner_a_broken_network_is_seen_behind_a_full_inbox(serve: Serve) -> None:
    app, told = NexiosApp(limits=Limits(inbox_messages=1)), trio.Event()

    @app.ws_route("/")
    async def push(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect) as over:
            while True:
                await ws.send_text("tick")
                await trio.sleep(0.01)
        assert over.value.by == "network"
        told.set()

    async with serve(app) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands(server.host, "/")
            for _ in range(50):
                await peer.send("unread")
            await peer.drop()
            await told.wait()


async def test_a_child_that_meets_the_end_in_a_send_leaves_the_handler_its_grace(
    lane: Lane, lane_clock: MockClock
) -> None:
    app, saved = NexiosApp(disconnect_grace=8), trio.Event()

    async def tick(ws: WebSocket) -> None:
        while True:
            await ws.send_text("tick")
            await trio.sleep(0.1)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(tick, ws)
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        await trio.sleep(4)
        saved.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.drain)
            assert (await peer.wait_closed())[0] == 1012
    assert saved.is_set()


async def test_two_who_drain_at_once_both_return(autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    async with TestClient(app) as client, client.connect("/") as ws:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(app.drain)
            assert (await ws.wait_closed())[0] == 1012


async def test_idleness_counts_from_the_accept(autojump_clock: MockClock) -> None:
    app = NexiosApp(idle_timeout=5)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep(4.9)
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    async with TestClient(app) as client, client.connect("/") as ws:
        accepted = trio.current_time()
        assert (await ws.wait_closed())[0] == 1001
        assert trio.current_time() - accepted == pytest.approx(5)


@pytest.mark.parametrize(
    ("error", "code"),
    [(StarletteException(4002, "theirs"), 4002), (WebSocketException(4003, "\ud800"), 4003)],
    ids=["Starlette's", "surrogate"],
)
async def test_a_close_asked_for_by_an_exception_is_done(
    error: Exception, code: int, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise error

    async with lane.serving(app), lane.connect() as peer:
        assert (await peer.wait_closed())[0] == code


async def test_lone_surrogates_break_nothing(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        if lane.name == "hypercorn":
            with pytest.raises(WrongValueError, match="lone surrogate"):
                await ws.send_text("\ud800")
        await ws.close(4000, "bad \ud800 reason")

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (4000, "bad ? reason")


@pytest.mark.parametrize(
    ("error", "status", "body", "logged"),
    [
        (HTTPException(402, {"pay": 1}), 402, b'{"pay":1}', False),  # type: ignore[arg-type]
        (HTTPException(402, "no", headers={"x": "a\r\nb"}), 500, b"", True),
        (ExceptionGroup("", [HTTPException(402, "no"), KeyError("bug")]), 402, b"no", True),
    ],
    ids=["json", "forged header", "with a bug"],
)
async def test_http_exceptions_of_all_kinds_are_answered(
    error: Exception,
    status: int,
    body: bytes,
    logged: bool,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        raise error

    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert (rejected.value.status, rejected.value.body) == (status, body)
    assert bool([record for record in caplog.records if record.levelno >= logging.ERROR]) is logged


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    known: int


class StrictModel(pydantic.BaseModel, extra="forbid"):
    known: int
    scores: dict[str, int] = {}


@pytest.mark.parametrize("type_", [Strict, StrictModel])
@pytest.mark.parametrize(
    "document", [b'{"known": 1, "SECRET\\nforged": 2}', b'{"known": 1, "scores": {"SECRET\\nforged": "x"}}']
)
def test_the_names_of_unknown_fields_and_keys_are_not_repeated(type_: Any, document: bytes) -> None:
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, type_)
    assert "SECRET" not in caught.value.public_reason
    assert "\n" not in caught.value.public_reason


Wrong = Callable[[Any], Awaitable[Any] | None]


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (
            lambda ws: ws.start_soon(ws.send_text("x")),
            r"write ws\.start_soon\(fn, arg\) instead of ws\.start",
        ),
        (lambda ws: ws.send("x"), r"takes an ASGI message, not str; use send_text\(\)"),
        (lambda ws: ws.send({"type": "websocket.send"}), "this one has neither"),
        (lambda ws: ws.send({"type": "websocket.send", "text": None, "bytes": None}), "has neither"),
    ],
)
async def test_more_mistakes_are_named_with_their_cure(
    call: Wrong, cure: str, autojump_clock: MockClock
) -> None:
    app = NexiosApp()
    done = trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises((WrongTypeError, WrongValueError), match=cure):
            awaitable = call(ws)
            assert awaitable is not None
            await awaitable
        done.set()

    async with TestClient(app) as client, client.connect("/"):
        await done.wait()


@pytest.mark.parametrize("headers", ["abc", b"abc", 5, [("a", "b", "c")], ["ab c"]])
async def test_headers_of_no_form_are_named(headers: Any, autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        with pytest.raises(WrongTypeError, match="headers are a dict or a list of pairs"):
            await ws.accept(headers=headers)
        await ws.accept()

    async with TestClient(app) as client, client.connect("/"):
        await wait_all_tasks_blocked()


async def test_a_child_that_is_no_coroutine_function_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(repr, "x")  # type: ignore[arg-type]
        await ws.receive_text()

    async with TestClient(app) as client, client.connect("/") as ws:
        assert (await ws.wait_closed())[0] == 1011
    assert "repr is not async; write `async def repr(...)`" in caplog.text
