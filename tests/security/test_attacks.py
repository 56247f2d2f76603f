"""Attacks over both of our servers: each is refused as documented, and fifty other clients notice nothing."""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import msgspec
import pytest
import trio
from attrs import frozen
from wsproto.events import RejectConnection, RejectData, Request

from nexios_trio import (
    BearerToken,
    Limits,
    NexiosApp,
    Rate,
    RateLimit,
    WebSocket,
    WebSocketDisconnect,
)
from nexios_trio.security.jwt import JWT
from nexios_trio.testing import TestServer
from tests.lanes import Serve, SocketPeer

NEIGHBOURS = 50
HANDSHAKES = 400
"""In a storm: four times what an address may do at once."""
KEY = b"k" * 32
LIMIT = 64 << 10
"""Bytes of a message."""
ATTACKER = "127.0.0.2"
"""Where the attacker comes from, for limits per address."""
MASK = b"\0\0\0\0"
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Item(msgspec.Struct):
    name: str
    price: int


def make_app() -> NexiosApp:
    app = NexiosApp(
        limits=Limits(message_bytes=LIMIT, handshakes_per_address=Rate(10, burst=100), groups=100),
    )

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/json")
    async def read_json(ws: WebSocket) -> None:
        await ws.accept()
        async for item in ws.iter_json(dict[str, Item] | list[Any]):
            await ws.send_json(item)

    verify = JWT(KEY, algorithms=["HS256"], audience="chat")

    @app.ws_route("/secret", authenticate=BearerToken(verify))
    async def secret(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.user.id)

    @app.ws_route("/limited", rate_limit=RateLimit(Rate(100, burst=500), action="close"))
    async def limited(ws: WebSocket) -> None:
        await ws.accept()
        app.state.taken = 0
        async for _ in ws.iter_text():
            app.state.taken += 1

    @app.ws_route("/groups")
    async def groups(ws: WebSocket) -> None:
        await ws.accept()
        async for name in ws.iter_text():
            await ws.join(name).join()

    app.state.fed = trio.Event()

    @app.ws_route("/feed")
    async def feed(ws: WebSocket) -> None:
        await ws.accept()
        try:
            async with ws.join("feed") as group:
                for _ in range(1000):
                    await group.send("x" * 10_000, save_history=False)
        finally:
            app.state.fed.set()

    @app.ws_route("/headers")
    async def headers(ws: WebSocket) -> None:
        await ws.accept(headers={"x-colour": ws.query_params["colour"]})

    @app.ws_route("/close")
    async def close(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4000, await ws.receive_text())

    return app


@frozen
class Scene:
    app: NexiosApp
    server: TestServer

    @asynccontextmanager
    async def tcp(self) -> AsyncIterator[trio.SocketStream]:
        stream = await trio.open_tcp_stream(self.server.host, self.server.port, local_address=ATTACKER)
        async with stream:
            yield stream

    @asynccontextmanager
    async def connected(self, path: str) -> AsyncIterator[SocketPeer]:
        async with self.tcp() as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands("example.org", path)
            yield peer

    async def refused(self, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        """The status and the body that an opening handshake is answered with."""
        async with self.tcp() as stream:
            peer = SocketPeer(stream)
            request = Request(host="example.org", target=path, extra_headers=list(headers))
            await stream.send_all(peer.wire.send(request))
            event = await peer._event()
            if not isinstance(event, RejectConnection):
                return 101, b""
            body = b""
            while event.has_body:
                data = await peer._event()
                assert isinstance(data, RejectData)
                body += bytes(data.data)
                if data.body_finished:
                    break
            return event.status_code, body


def token(key: bytes = KEY, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "ada", "aud": "chat", "exp": time.time() + 600, **claims}, key, algorithm)


def bearer(text: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + text.encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A masked frame, the mask being zero."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + MASK + payload
    if len(payload) < 1 << 16:
        return head + b"\xfe" + len(payload).to_bytes(2) + MASK + payload
    return head + b"\xff" + len(payload).to_bytes(8) + MASK + payload


async def send_what_goes(stream: trio.SocketStream, data: bytes, seconds: float = 10.0) -> None:
    """Send until all has gone, the server has ended the connection, or it no longer reads."""
    with trio.move_on_after(seconds):
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass


# The attacks


async def foreign_origin(scene: Scene) -> None:
    status, body = await scene.refused("/echo", (b"origin", b"https://evil.example"))
    assert (status, msgspec.json.decode(body)) == (403, {"error": "origin not allowed"})


async def no_token(scene: Scene) -> None:
    assert await scene.refused("/secret") == (401, b'{"error":"authentication required"}')


async def bad_tokens(scene: Scene) -> None:
    none = b".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=")
        for part in (b'{"alg":"none"}', msgspec.json.encode({"sub": "ada", "aud": "chat", "exp": 9e9}), b"")
    ).decode()
    for bad in (
        token(exp=time.time() - 60),
        token(key=b"x" * 32),
        token(aud="else"),
        none,
        none.removesuffix(".") + ".AAAA",
        "garbage",
    ):
        assert await scene.refused("/secret", bearer(bad)) == (401, b'{"error":"authentication failed"}')
    assert (await scene.refused("/secret", bearer(token())))[0] == 101


async def a_storm_of_handshakes(scene: Scene) -> None:
    statuses: Counter[int] = Counter()
    began = trio.current_time()

    async def attacker() -> None:
        for _ in range(HANDSHAKES // 20):
            async with scene.tcp() as stream:
                await stream.send_all(HANDSHAKE % b"/echo")
                statuses[int((await stream.receive_some())[9:12])] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(attacker)
    most = 100 + 10 * (trio.current_time() - began) + 1
    assert set(statuses) == {101, 429}
    assert statuses[101] <= most
    assert statuses[429] == scene.app.guard.counts["handshakes_per_address"] == HANDSHAKES - statuses[101]


async def slow_handshake(scene: Scene) -> None:
    async with scene.tcp() as stream:
        ended = trio.Event()

        async def drip() -> None:
            try:
                for byte in b"GET /echo HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 100_000:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.01)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            with trio.fail_after(30):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            ended.set()
            nursery.cancel_scope.cancel()
        assert ended.is_set()


async def huge_header(scene: Scene) -> None:
    async with scene.tcp() as stream:
        request = b"GET /echo HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (1 << 20) + b"\r\n\r\n"
        await send_what_goes(stream, request)
        answer = b""
        with trio.fail_after(30):
            try:
                while data := await stream.receive_some():
                    answer += data
            except trio.BrokenResourceError:
                pass
    assert answer.startswith(b"HTTP/1.1 431")


async def one_byte_too_many(scene: Scene) -> None:
    async with scene.connected("/echo") as peer:
        await peer.send("é" * (LIMIT // 2))
        assert await peer.receive() == "é" * (LIMIT // 2)
        await peer.send("é" * (LIMIT // 2) + "x")
        code, _ = await peer.wait_closed()
    assert code == 1009


async def json_ten_thousand_deep(scene: Scene) -> None:
    async with scene.connected("/json") as peer:
        await peer.send("[" * 10_000 + "]" * 10_000)
        assert await peer.wait_closed() == (1007, "invalid JSON: it is nested deeper than 64")


async def json_bomb_of_keys(scene: Scene) -> None:
    async with scene.connected("/json") as peer:
        await peer.send("{" + ",".join(f'"{n:x}":0' for n in range(5_000)) + ',"a":[' + "0," * 5_000 + "0]}")
        code, reason = await peer.wait_closed()
    assert (code, reason) == (1007, "invalid JSON: it holds more than 10000 values")


async def json_of_the_wrong_type(scene: Scene) -> None:
    async with scene.connected("/json") as peer:
        await peer.send('{"secret-key": {"name": "x", "price": "secret-value"}}')
        code, reason = await peer.wait_closed()
    assert code == 1007
    assert "secret" not in reason


async def invalid_utf8(scene: Scene) -> None:
    async with scene.connected("/echo") as peer:
        await peer.stream.send_all(frame(1, b"\xff\xfe"))
        assert await peer.wait_closed() == (1007, "a text message is not valid UTF-8")


async def flood_of_tiny_messages(scene: Scene) -> None:
    async with scene.connected("/limited") as peer:
        await send_what_goes(peer.stream, frame(1, b"x") * 100_000)
        assert await peer.wait_closed() == (1008, "rate limit exceeded")
    assert scene.app.state.taken <= 500 + 100 * 60
    assert scene.app.guard.counts["rate_limit.close"] == 1


async def flood_of_pings(scene: Scene) -> None:
    async with scene.connected("/echo") as peer:
        await send_what_goes(peer.stream, frame(9, b"x" * 100) * 100_000)


async def never_reading(scene: Scene) -> None:
    async with scene.connected("/feed") as peer:
        await scene.app.state.fed.wait()
        assert await peer.wait_closed() == (1013, "too slow")


async def flood_of_groups(scene: Scene) -> None:
    async with scene.connected("/groups") as peer:
        await send_what_goes(peer.stream, b"".join(frame(1, b"group %d" % n) for n in range(20_000)))
        assert await peer.wait_closed() == (1008, "too many groups")
    async with scene.connected("/groups") as peer:
        await peer.send("g" * 201)
        assert await peer.wait_closed() == (1008, "the group name is too long")


async def line_breaks_in_everything(scene: Scene) -> None:
    evil = b"%0d%0aSet-Cookie:%20a=b%0d%0aERROR%20forged%1b%5b2J%e2%80%a8"
    for path in (b"/" + evil, b"/echo/" + evil, b"/echo?" + evil):
        await scene.refused(path.decode(), (b"user-agent", b"x\x85y"), (b"origin", b"https://ev\x85il\xff"))
    async with scene.tcp() as stream:
        await stream.send_all(HANDSHAKE % b"/headers?colour=red%0d%0aSet-Cookie:%20a=b")
        answer = bytes(await stream.receive_some())
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"a=b" not in answer
    async with scene.connected("/close") as peer:
        await peer.send("line\r\nbreak\x1b" + "é" * 200)
        code, reason = await peer.wait_closed()
    assert code == 4000
    assert len(reason.encode()) <= 123


async def token_in_the_query(scene: Scene) -> None:
    assert (await scene.refused("/secret?token=s3cr3t-in-the-query"))[0] == 401
    assert (await scene.refused("/nowhere?token=s3cr3t-in-the-query"))[0] == 404
    assert (await scene.refused("/echo?token=s3cr3t-in-the-query", (b"origin", b"https://evil.example")))[
        0
    ] == 403


ATTACKS: list[Callable[[Scene], Awaitable[None]]] = [
    foreign_origin,
    no_token,
    bad_tokens,
    token_in_the_query,
    a_storm_of_handshakes,
    slow_handshake,
    huge_header,
    one_byte_too_many,
    json_ten_thousand_deep,
    json_bomb_of_keys,
    json_of_the_wrong_type,
    invalid_utf8,
    flood_of_tiny_messages,
    flood_of_pings,
    never_reading,
    flood_of_groups,
    line_breaks_in_everything,
]


@pytest.mark.untraced
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_is_refused_and_fifty_other_clients_notice_nothing(
    serve: Serve, attack: Callable[[Scene], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    access = logging.getLogger("tests.access")
    app = make_app()
    over = trio.Event()
    echoed: Counter[int] = Counter()

    async with serve(
        app, accesslog=access, errorlog=access, keep_alive_timeout=2, handshake_timeout=2
    ) as server:
        scene = Scene(app, server)

        async def neighbour(number: int, *, task_status: trio.TaskStatus[None]) -> None:
            async with await trio.open_tcp_stream(server.host, server.port) as stream:
                peer = SocketPeer(stream)
                await peer.shake_hands("example.org", "/echo")
                task_status.started()
                while not over.is_set() or not echoed[number]:
                    await peer.send(f"{number}: {echoed[number]}")
                    assert await peer.receive() == f"{number}: {echoed[number]}"
                    echoed[number] += 1
                    await trio.sleep(0.05)
                await peer.close()

        async with trio.open_nursery() as nursery:
            for number in range(NEIGHBOURS):
                await nursery.start(neighbour, number)
            try:
                with trio.fail_after(120):
                    await attack(scene)
            finally:
                over.set()
    assert len(echoed) == NEIGHBOURS
    for record in caplog.records:
        line = record.getMessage()
        assert line.isprintable(), line
        assert "s3cr3t" not in line
        assert record.levelno < logging.ERROR or "/headers" in line, line


async def test_a_neighbour_of_the_attacks_can_fail(serve: Serve) -> None:
    """The harness itself: a server that closes its connections is noticed."""
    app = make_app()
    async with serve(app) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            peer = SocketPeer(stream)
            await peer.shake_hands("example.org", "/echo")
            await app.channels.close_all_connections()
            with pytest.raises(WebSocketDisconnect):
                await peer.receive()
