"""`WebSocket`: handshake, messages, JSON, attributes, and the errors that name the cure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
import trio
from starlette.websockets import WebSocketState
from trio.testing import MockClock

from nexios_trio import (
    InvalidJSON,
    Limits,
    MessageTypeError,
    MessageValidationError,
    NexiosApp,
    WebSocket,
    WebSocketDisconnect,
)
from nexios_trio.exceptions import (
    ConcurrentReceiveError,
    PeerError,
    UsageError,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.testing import TestClient, WebSocketRejected
from tests.lanes import Lane

Handler = Callable[[WebSocket], Awaitable[None]]


async def ask(handler: Handler, *, accept: bool = True, **options: Any) -> Any:
    """Run ``handler`` on one connection; give the `UsageError` that it raises."""
    app = NexiosApp(close_timeout=1)
    outcome: list[Any] = []

    @app.ws_route("/{rest:path}")
    async def route(ws: WebSocket) -> None:
        if accept:
            await ws.accept()
        try:
            await handler(ws)
        except UsageError as error:
            outcome.append(error)

    try:
        async with TestClient(app) as client, client.connect("/", **options) as ws:
            await ws.wait_closed()
    except WebSocketRejected:
        pass
    return outcome[0]


# Messages


async def test_text_bytes_and_json_go_both_ways(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.send_bytes(await ws.receive_bytes())
        await ws.send_json(await ws.receive_json())
        await ws.send_json(await ws.receive_json(mode="binary"), mode="binary")
        await ws.send_bytes(bytearray(b"array"))
        await ws.send_bytes(memoryview(b"view"))

    async with lane.serving(app), lane.connect() as peer:
        pairs: list[tuple[str | bytes, str | bytes]] = [
            ("text ☃", "text ☃"),
            (b"\x00\xff", b"\x00\xff"),
            ('{"a": [1, 2.5, null, "ü"]}', '{"a":[1,2.5,null,"ü"]}'),
            (b'{"b": true}', b'{"b":true}'),
        ]
        for sent, answer in pairs:
            await peer.send(sent)
            assert await peer.receive() == answer
        assert await peer.receive() == b"array"
        assert await peer.receive() == b"view"
        assert (await peer.wait_closed())[0] == 1000


async def test_empty_and_big_messages(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(message_bytes=3_000_000))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for data in ws.iter_bytes():
            await ws.send_bytes(data)

    async with lane.serving(app), lane.connect() as peer:
        for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
            await peer.send(b"x" * size)
            assert await peer.receive() == b"x" * size


async def test_the_iterators_end_with_the_connection_and_can_be_left_early(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    got: list[Any] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            got.append(text)
            break
        async for data in ws.iter_bytes():
            got.append(data)
            break
        async for value in ws.iter_json():
            got.append(value)
            break
        async for value in ws.iter_json(mode="binary"):
            got.append(value)

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("t")
        await ws.send_bytes(b"b")
        await ws.send_json({"j": 1})
        await ws.send_json([2], mode="binary")
        await ws.close()
    assert got == ["t", b"b", {"j": 1}, [2]]


async def test_raw_messages_have_asgi_s_form() -> None:
    app = NexiosApp()
    got: list[Any] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        got.append(await ws.receive())
        await ws.send({"type": "websocket.accept", "subprotocol": "v1"})
        got.append(await ws.receive())
        got.append(await ws.receive())
        await ws.send({"type": "websocket.send", "text": "t"})
        await ws.send({"type": "websocket.send", "bytes": b"b"})
        got.append(await ws.receive())
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive()
        assert (over.value.code, over.value.reason, over.value.by) == (4000, "bye", "peer")
        await ws.send({"type": "websocket.close", "code": 4001})

    async with TestClient(app) as client, client.connect("/", subprotocols=["v1"]) as ws:
        assert ws.subprotocol == "v1"
        await ws.send_text("x")
        await ws.send_bytes(b"y")
        assert await ws.receive_text() == "t"
        assert await ws.receive_bytes() == b"b"
        await ws.close(4000, "bye")
    assert got == [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "x", "bytes": None},
        {"type": "websocket.receive", "text": None, "bytes": b"y"},
        {"type": "websocket.disconnect", "code": 4000, "reason": "bye"},
    ]


async def test_who_ended_it_is_known_to_the_raw_receive_too(autojump_clock: MockClock) -> None:
    app, told = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        assert (await ws.receive())["code"] == 1006
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive()
        assert over.value.by == "network"
        told.set()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.drop()
        await told.wait()


async def test_a_raw_close_ends_the_connection() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send({"type": "websocket.close", "code": 4001, "reason": "raw"})

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.wait_closed() == (4001, "raw")


# Mistakes of the program


@pytest.mark.parametrize(
    ("call", "kind", "cure"),
    [
        (
            lambda ws: ws.send_text(b"x"),
            WrongTypeError,
            r"takes a str, not bytes; use send_bytes\(\) for bytes",
        ),
        (lambda ws: ws.send_text({"a": 1}), WrongTypeError, r"send_json\(\) for anything else"),
        (lambda ws: ws.send_bytes("x"), WrongTypeError, r"not str; use send_text\(\) for str"),
        (lambda ws: ws.send_json(object()), WrongTypeError, "cannot send a object as JSON; send dicts"),
        (lambda ws: ws.send_json("\ud800"), WrongTypeError, "cannot send this as JSON"),
        (
            lambda ws: ws.send_json(1, mode="json"),
            WrongValueError,
            'mode is "text" or "binary", not \'json\'',
        ),
        (lambda ws: ws.receive_json(mode="json"), WrongValueError, 'mode is "text" or "binary"'),
        (lambda ws: ws.send({"type": "chat"}), WrongValueError, r"send_json\(\) sends any dict as JSON"),
        (lambda ws: ws.accept(), WrongStateError, r"call accept\(\) once"),
        (lambda ws: ws.reject(403), WrongStateError, r"end it with `await ws.close\(code, reason\)` instead"),
        (lambda ws: ws.close(1006), WrongValueError, "close code 1006 cannot be sent; use 1000"),
        (lambda ws: ws.close(999), WrongValueError, "4000-4999 for codes of your own"),
        (lambda ws: ws.close("1000"), WrongTypeError, "a close code is an int"),
        (lambda ws: ws.close(1000, b"bye"), WrongTypeError, "a close reason is a str, not bytes"),
    ],
)
async def test_a_mistake_is_named_together_with_its_cure(
    call: Callable[[Any], Awaitable[None]], kind: type[Exception], cure: str
) -> None:
    error = await ask(call)
    assert isinstance(error, kind)
    with pytest.raises(kind, match=cure):
        raise error


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (
            lambda ws: ws.send_text("x"),
            r"cannot send before the handshake is done; call `await ws\.accept\(\)`",
        ),
        (lambda ws: ws.send_json({}), r"call `await ws\.accept\(\)` first"),
        (
            lambda ws: ws.receive_text(),
            r"cannot receive before the handshake is done; call `await ws\.accept",
        ),
        (
            lambda ws: ws.accept(subprotocol="v2"),
            r"the client does not offer the subprotocol 'v2'; it offers 1 \(see ws\.subprotocols\)",
        ),
        (lambda ws: ws.accept(headers={"sec-websocket-protocol": "v1"}), r"accept\(subprotocol=\.\.\.\)"),
        (lambda ws: ws.accept(headers={"X-A": "1\r\nSet-Cookie: b=c"}), "control character or a line break"),
        (lambda ws: ws.accept(headers={"bad name": "1"}), "'bad name' is not a header name"),
        (lambda ws: ws.accept(headers={"x-a": "☃"}), "characters outside Latin-1; percent-encode them"),
        (lambda ws: ws.accept(headers={"x-a": 1}), "header names and values are str or bytes, not str: int"),
        (lambda ws: ws.reject(200), "an HTTP status from 300 to 599, such as 401, not 200"),
        (lambda ws: ws.reject(401, body=1), "a body is str, bytes, dict or list, not int"),
    ],
)
async def test_a_mistake_before_accept_is_named_together_with_its_cure(
    call: Callable[[Any], Awaitable[None]], cure: str
) -> None:
    error = await ask(call, accept=False, subprotocols=["v1"])
    assert isinstance(error, UsageError)
    with pytest.raises(UsageError, match=cure):
        raise error


async def test_a_rejected_connection_takes_nothing_more() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.reject(404)
        await ws.close()
        await ws.accept()

    error = await ask(handler, accept=False)
    assert isinstance(error, WrongStateError)
    assert "was rejected with an HTTP answer" in str(error)


async def test_a_mistake_with_one_message_leaves_the_connection_usable() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for wrong in (b"x", None, 1):
            with pytest.raises(WrongTypeError):
                await ws.send_text(wrong)  # type: ignore[arg-type]
        await ws.send_text("right")

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "right"


async def test_two_tasks_that_receive_are_told_to_use_one() -> None:
    async def handler(ws: WebSocket) -> None:
        ws.start_soon(ws.receive_text)
        await trio.testing.wait_all_tasks_blocked()
        await ws.receive_text()

    assert isinstance(await ask(handler), ConcurrentReceiveError)


# Mistakes of the client


async def test_a_message_of_the_wrong_kind_is_named_and_not_lost() -> None:
    app = NexiosApp()
    errors: list[MessageTypeError] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for receive in (ws.receive_text, ws.receive_bytes):
            try:
                await receive()
            except MessageTypeError as error:
                errors.append(error)

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_bytes(b"binary")
        await ws.send_text("text")
        assert (await ws.wait_closed())[0] == 1000
    first, second = errors
    assert (first.expected, first.found, first.message) == ("text", "binary", b"binary")
    assert "call receive_bytes(), or receive() for either kind" in str(first)
    assert (second.expected, second.found, second.message) == ("binary", "text", "text")
    assert "call receive_text()" in str(second)


class Item(msgspec.Struct):
    price: float
    tags: list[str] = []


class Order(msgspec.Struct):
    items: list[Item]


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (b"bytes", 1003, "expected a text message, got a binary one"),
        ("{not json", 1007, "invalid JSON: object keys must be strings"),
        ('{"items": [', 1007, "invalid JSON: the document is cut short or malformed"),
        ('{"items": [{"price": "secret"}]}', 1007, "expected float, got str at $.items[0].price"),
        ("{}", 1007, "object missing required field items at $"),
    ],
)
async def test_unhandled_a_bad_message_closes_with_its_own_code_and_a_reason_without_the_payload(
    message: str | bytes,
    code: int,
    reason: str,
    lane: Lane,
    lane_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_json(type=Order)

    async with lane.serving(app), lane.connect() as peer:
        await peer.send(message)
        assert await peer.wait_closed() == (code, reason)
    assert "secret" not in caplog.text


async def test_a_handler_may_catch_bad_json_as_the_standard_library_s_error() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            try:
                await ws.send_json(await ws.receive_json())
            except json.JSONDecodeError as error:
                await ws.send_json({"bad at": error.pos, "it was": error.doc})

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text('{"a": tru}')
        answer = await ws.receive_json()
        assert answer["it was"] == '{"a": tru}'
        assert answer["bad at"] > 0
        await ws.send_text("[1]")
        assert await ws.receive_json() == [1]


async def test_binary_json_that_is_not_utf_8_is_refused() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.receive_json(mode="binary")

    app = NexiosApp()
    errors: list[Exception] = []

    @app.ws_route("/")
    async def route(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await handler(ws)
        except InvalidJSON as error:
            errors.append(error)
            raise

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_bytes(b'"\xff\xfe"')
        assert (await ws.wait_closed())[0] == 1007
    assert isinstance(errors[0], PeerError)


# JSON of types


class Move(msgspec.Struct, tag="move"):
    x: int


class Say(msgspec.Struct, tag="say"):
    text: str


@dataclass
class Point:
    x: int
    y: int


@attrs.frozen
class Size:
    width: int


class Model(pydantic.BaseModel):
    count: int
    names: list[str] = []


async def test_messages_are_read_as_the_type_asked_for() -> None:
    app = NexiosApp()
    got: list[Any] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for type_ in (Move | Say, Move | Say, Point, Size, Model, list[int]):
            got.append(await ws.receive_json(type=type_))
        async for say in ws.iter_json(Say):
            got.append(say.text)

    async with TestClient(app) as client, client.connect("/") as ws:
        for message in (
            {"type": "move", "x": 1},
            {"type": "say", "text": "hi"},
            {"x": 1, "y": 2},
            {"width": 3},
            {"count": 4},
            [5],
            {"type": "say", "text": "iterated"},
        ):
            await ws.send_json(message)
        await ws.close()
    assert got == [Move(1), Say("hi"), Point(1, 2), Size(3), Model(count=4), [5], "iterated"]


async def test_what_has_a_json_form_is_sent() -> None:
    app = NexiosApp()
    identity = uuid.UUID(int=1)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(
            [
                Say("hi"),
                Point(1, 2),
                Size(3),
                Model(count=4),
                identity,
                (5,),
                {6},
                app.url_path_for("handler"),
            ]
        )

    async with TestClient(app) as client, client.connect("/") as ws:
        assert await ws.receive_json() == [
            {"type": "say", "text": "hi"},
            {"x": 1, "y": 2},
            {"width": 3},
            {"count": 4, "names": []},
            str(identity),
            [5],
            [6],
            "/",
        ]


async def test_a_pydantic_error_names_the_place_and_never_the_value() -> None:
    app = NexiosApp()
    errors: list[MessageValidationError] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        for _ in range(2):
            try:
                await ws.receive_json(type=Model)
            except MessageValidationError as error:
                errors.append(error)
        with pytest.raises(InvalidJSON):
            await ws.receive_json(type=Model)

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_json({"count": "secret"})
        await ws.send_json({"count": 1, "names": ["ok", 5]})
        await ws.send_text("{")
        await ws.wait_closed()
    assert (errors[0].path, errors[0].expected, errors[0].found) == ("$.count", "int", "str")
    assert errors[1].path == "$.names[1]"
    assert "secret" not in str(errors[0])


# Facts


async def test_the_attributes_are_those_of_starlette_s_connection() -> None:
    app = NexiosApp()
    facts: dict[str, Any] = {}

    @app.ws_route("/rooms/{room}")
    async def handler(ws: WebSocket) -> None:
        facts.update(
            url=str(ws.url),
            header=ws.headers["x-token"],
            cookie=ws.cookies["a"],
            query=ws.query_params["q"],
            path=ws.path_params,
            host=ws.client.host if ws.client else None,
            subprotocols=ws.subprotocols,
            app=ws.app is app,
            item=ws["type"],
        )
        ws.state.mine = 1
        await ws.accept("v2", headers=[("X-Answer", "yes"), (b"x-bytes", b"too")])
        facts["accepted"] = ws.accepted_subprotocol
        await ws.send_text(ws.id)

    async with (
        TestClient(app) as client,
        client.connect(
            "/rooms/a%20b?q=1", headers={"x-token": "t", "cookie": "a=b"}, subprotocols=["v1", "v2"]
        ) as ws,
    ):
        assert ws.subprotocol == "v2"
        assert ws.headers == [("x-answer", "yes"), ("x-bytes", "too")]
        assert len(await ws.receive_text()) == 12
    assert facts == {
        "url": "ws://testserver/rooms/a b?q=1",
        "header": "t",
        "cookie": "b",
        "query": "1",
        "path": {"room": "a b"},
        "host": "testclient",
        "subprotocols": ["v1", "v2"],
        "app": True,
        "item": "websocket",
        "accepted": "v2",
    }


async def test_states_can_be_asked_for_in_starlette_s_and_nexios_words() -> None:
    app = NexiosApp()
    seen: list[tuple[WebSocketState, WebSocketState, bool]] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        def look() -> None:
            seen.append((ws.client_state, ws.application_state, ws.is_connected()))

        look()
        assert "connecting" in repr(ws)
        await ws.accept()
        look()
        await ws.close()
        look()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.wait_closed()
    connecting, connected, gone = (
        WebSocketState.CONNECTING,
        WebSocketState.CONNECTED,
        WebSocketState.DISCONNECTED,
    )
    assert seen == [(connecting, connecting, False), (connected, connected, True), (connected, gone, False)]


@pytest.mark.parametrize("what", ["session", "user", "auth"])
async def test_what_middleware_would_fill_in_is_asked_for_in_vain_with_a_hint(what: str) -> None:
    async def handler(ws: WebSocket) -> None:
        getattr(ws, what)

    error = await ask(handler)
    assert isinstance(error, WrongStateError)
    assert "Middleware, which is not installed; write NexiosApp(middleware=[Middleware(" in str(error)


# Rejection


@pytest.mark.parametrize(
    ("body", "content_type", "raw"),
    [
        ("no entry", "text/plain; charset=utf-8", b"no entry"),
        ({"error": "no"}, "application/json", b'{"error":"no"}'),
        (["no"], "application/json", b'["no"]'),
        (b"\x00", "application/octet-stream", b"\x00"),
        (b"", None, b""),
    ],
)
async def test_a_rejection_carries_status_headers_and_body(
    body: Any, content_type: str | None, raw: bytes
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.reject(429, body, headers={"Retry-After": "3"})

    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
        headers = dict(rejected.value.headers)
        assert (rejected.value.status, rejected.value.body) == (429, raw)
        assert headers.get("content-type") == content_type
        assert headers["content-length"] == str(len(raw))
        assert headers["retry-after"] == "3"
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/", http_response=False):
                pass
        assert rejected.value.status == 403


async def test_a_close_before_accept_is_http_403() -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.close(4000, "not you")

    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert rejected.value.status == 403


async def test_a_long_reason_is_cut_on_a_character_border(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4000, "☃" * 100)

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (4000, "☃" * 41)
