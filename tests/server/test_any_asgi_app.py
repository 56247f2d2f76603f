"""Apps without our app object: Starlette, Quart-Trio and a bare callable, on both servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from wsproto.events import AcceptConnection, Request

from nexios_trio.testing import serve
from nexios_trio.types import ASGIApp, Receive, Scope, Send
from tests.lanes import SocketPeer
from tests.server.clients import read_to_end

HEAD = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: v1, v2\r\n\r\n"
)

Told = list[object]
"""What an app saw of the end of its connections."""


def starlette_app(told: Told) -> ASGIApp:
    async def echo(ws: WebSocket) -> None:
        assert ws.scope["subprotocols"] == ["v1", "v2"]
        await ws.accept(subprotocol="v2", headers=[(b"x-room", b"7")])
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect as over:
            told.append((over.code, over.reason))

    async def close(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4002, "grüße")

    async def reject(ws: WebSocket) -> None:
        await ws.send_denial_response(PlainTextResponse("no coffee", 418, {"x-why": "teapot"}))

    async def refuse(ws: WebSocket) -> None:
        await ws.close()

    async def fail(ws: WebSocket) -> None:
        await ws.accept()
        raise RuntimeError("a bug of the app")

    async def fail_early(_ws: WebSocket) -> None:
        raise RuntimeError("a bug of the app")

    async def sender(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text("tick")
                await trio.sleep(0.01)
        except WebSocketDisconnect as over:  # Starlette makes it of the server's OSError
            told.append(over.code)

    handlers = {
        "/echo": echo,
        "/close": close,
        "/reject": reject,
        "/refuse": refuse,
        "/fail": fail,
        "/fail-early": fail_early,
        "/sender": sender,
    }
    return Starlette(routes=[WebSocketRoute(path, handler) for path, handler in handlers.items()])


def quart_app(told: Told) -> QuartTrio:
    app = QuartTrio("tests")

    @app.websocket("/echo")
    async def echo() -> None:
        assert quart_websocket.requested_subprotocols == ["v1", "v2"]
        await quart_websocket.accept(headers={"x-room": "7"}, subprotocol="v2")
        try:
            while True:
                await quart_websocket.send(await quart_websocket.receive())
        finally:
            told.append("ended")  # Quart cancels a handler whose client has left

    @app.websocket("/close")
    async def close() -> None:
        await quart_websocket.accept()
        await quart_websocket.close(4002, "grüße")

    @app.websocket("/reject")
    async def reject() -> tuple[str, int, dict[str, str]]:
        return "no coffee", 418, {"x-why": "teapot"}

    @app.websocket("/refuse")
    async def refuse() -> tuple[str, int]:
        return "", 403

    @app.websocket("/fail")
    async def fail() -> None:
        await quart_websocket.accept()
        raise RuntimeError("a bug of the app")

    @app.websocket("/fail-early")
    async def fail_early() -> None:
        raise RuntimeError("a bug of the app")

    return app


class Raw:
    """A bare ASGI callable."""

    def __init__(self, told: Told) -> None:
        self.told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        assert await receive() == {"type": "websocket.connect"}
        path = scope["path"]
        if path == "/fail-early":
            raise RuntimeError("a bug of the app")
        if path == "/refuse":
            await send({"type": "websocket.close"})
            return
        if path == "/reject":
            headers = [(b"x-why", b"teapot"), (b"content-length", b"9")]
            await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
            await send({"type": "websocket.http.response.body", "body": b"coffee"})
            return
        assert scope["subprotocols"] == ["v1", "v2"]
        await send({"type": "websocket.accept", "subprotocol": "v2", "headers": [(b"x-room", b"7")]})
        if path == "/close":
            await send({"type": "websocket.close", "code": 4002, "reason": "grüße"})
        elif path == "/fail":
            raise RuntimeError("a bug of the app")
        elif path == "/sender":
            await self.send_on(send)
        else:
            await self.echo(receive, send)

    async def send_on(self, send: Send) -> None:
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await trio.sleep(0.01)
        except OSError as over:  # ASGI: what a server raises once the client has left
            self.told.append(type(over).__name__)

    async def echo(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.told.append((message["code"], message.get("reason") or ""))
                assert (await receive())["type"] == "websocket.disconnect"  # as often as it asks
                return
            await send({"type": "websocket.send", "text": message["text"]})


APPS = {"starlette": starlette_app, "quart": quart_app, "raw": Raw}
SERVERS = ("hypercorn", "engine")


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture(params=APPS)
def app(request: pytest.FixtureRequest, told: Told) -> ASGIApp:
    make: Any = APPS[request.param]
    return make(told)  # type: ignore[no-any-return]


@pytest.fixture(params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def connected(
    app: ASGIApp, server_name: str, path: str
) -> AsyncIterator[tuple[SocketPeer, AcceptConnection]]:
    """A client, and the answer that it got."""
    async with serve(app, fast_lane=server_name == "engine") as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            peer = SocketPeer(stream)
            request = Request(host="x", target=path, subprotocols=["v1", "v2"])
            await stream.send_all(peer.wire.send(request))
            answer = await peer._event()
            assert isinstance(answer, AcceptConnection), answer
            yield peer, answer


async def until_told(told: Told) -> None:
    with trio.fail_after(60):
        while not told:
            await trio.sleep(0.01)


async def answered(app: ASGIApp, server_name: str, path: str) -> bytes:
    """The whole HTTP answer to an upgrade that is not granted."""
    async with serve(app, fast_lane=server_name == "engine") as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(HEAD % path.encode())
            with trio.fail_after(60):
                return await read_to_end(stream)


async def test_subprotocol_and_headers_of_accept_arrive_and_messages_echo(
    app: ASGIApp, server_name: str, told: Told
) -> None:
    async with connected(app, server_name, "/echo") as (peer, answer):
        assert answer.subprotocol == "v2"
        assert (b"x-room", b"7") in answer.extra_headers
        for message in ("one", "grüße", "x" * 100_000):
            await peer.send(message)
            assert await peer.receive() == message
        await peer.close()
        await until_told(told)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "leaving"), (4321, "lunch")])
async def test_the_app_receives_the_code_and_reason_of_the_client(
    code: int, reason: str, app: ASGIApp, server_name: str, told: Told
) -> None:
    async with connected(app, server_name, "/echo") as (peer, _):
        await peer.close(code, reason)
        await until_told(told)
    if told != ["ended"]:
        assert told == [
            (code, reason) if server_name == "engine" else (1006, "")
        ]  # which hypercorn says always


async def test_the_client_receives_the_code_and_reason_of_the_app(app: ASGIApp, server_name: str) -> None:
    async with connected(app, server_name, "/close") as (peer, _):
        assert await peer.wait_closed() == (4002, "grüße")


async def test_an_http_answer_to_the_handshake_arrives(app: ASGIApp, server_name: str) -> None:
    head, _, body = (await answered(app, server_name, "/reject")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 418")
    assert b"x-why: teapot" in head.lower()
    assert body.endswith(b"no coffee") or b"no coffee" in body.replace(b"\r\n", b"")


async def test_a_close_before_accept_is_403(app: ASGIApp, server_name: str) -> None:
    assert (await answered(app, server_name, "/refuse")).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("make", [starlette_app, Raw])  # Quart catches it, and closes with 1000
async def test_an_error_after_accept_closes_with_1011(
    make: Any, server_name: str, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(make(told), server_name, "/fail") as (peer, _):
        code, reason = await peer.wait_closed()
        assert code == 1011
        assert "bug" not in reason
    assert ("a bug of the app" in caplog.text) is (server_name == "engine")  # hypercorn's log is its own


async def test_an_error_before_accept_is_500(app: ASGIApp, server_name: str) -> None:
    answer = await answered(app, server_name, "/fail-early")
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"bug" not in answer


async def test_a_connection_that_breaks_is_1006(app: ASGIApp, server_name: str, told: Told) -> None:
    async with connected(app, server_name, "/echo") as (peer, _):
        await peer.send("hello")
        assert await peer.receive() == "hello"
        await peer.drop()
        await until_told(told)
    assert told in (["ended"], [(1006, "")])


@pytest.mark.parametrize("ends", ["close", "drop", "eof"])
@pytest.mark.parametrize("make", [starlette_app, Raw])
async def test_an_app_that_only_sends_is_told_by_an_os_error(make: Any, ends: str, told: Told) -> None:
    """On the engine; hypercorn raises nothing there."""
    async with connected(make(told), "engine", "/sender") as (peer, _):
        assert await peer.receive() == "tick"
        if ends == "close":
            await peer.close()
        elif ends == "drop":
            await peer.drop()
        else:
            await trio.aclose_forcefully(peer.stream)
        await until_told(told)
    assert told == ["ClientGone" if make is Raw else 1006]


async def test_what_is_no_message_of_asgi_closes_with_1011(server_name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.sent", "text": "x"})

    async with connected(app, server_name, "/") as (peer, _):
        assert (await peer.wait_closed())[0] == 1011
