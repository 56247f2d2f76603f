"""The client in memory: what passes between it and the app, and how the app's answers look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import open_websocket_url

from nexios_trio import Heartbeat, NexiosApp, WebSocket, WebSocketDisconnect
from nexios_trio.exceptions import WrongStateError, WrongValueError
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import Message, Receive, Scope, Send

Client = Callable[..., TestClient]
Handler = Callable[[WebSocket], Awaitable[None]]


def serving(handler: Handler, path: str = "/", **options: Any) -> NexiosApp:
    app = NexiosApp(**options)
    app.add_ws_route(path, handler)
    return app


async def echo(ws: WebSocket) -> None:
    await ws.accept()
    while True:
        message = await ws.receive()
        if message.get("text") is not None:
            await ws.send_text(message["text"])
        elif message.get("bytes") is not None:
            await ws.send_bytes(message["bytes"])


async def test_text_bytes_and_json_travel_both_ways(nexios_client: Client) -> None:
    async with nexios_client(serving(echo)).connect("/") as ws:
        await ws.send_text("grüße")
        assert await ws.receive_text() == "grüße"
        await ws.send_text("")
        assert await ws.receive_text() == ""
        await ws.send_bytes(b"\x00\xff")
        assert await ws.receive_bytes() == b"\x00\xff"
        await ws.send_bytes(b"")
        assert await ws.receive_bytes() == b""
        await ws.send_json({"n": [1, None]})
        assert await ws.receive_json() == {"n": [1, None]}
        await ws.send_json({"n": 2}, mode="binary")
        assert await ws.receive_json(mode="binary") == {"n": 2}


async def test_a_message_of_the_other_kind_is_an_assertion_that_shows_it(nexios_client: Client) -> None:
    async with nexios_client(serving(echo)).connect("/") as ws:
        await ws.send_text("words")
        with pytest.raises(AssertionError, match="expected a binary message, the app sent text: 'words'"):
            await ws.receive_bytes()
        await ws.send_bytes(b"octets")
        with pytest.raises(AssertionError, match="expected a text message, the app sent bytes: b'octets'"):
            await ws.receive_text()


async def test_the_scope_is_what_hypercorn_gives_for_the_same_handshake(
    nexios_client: Client, nexios_server: Any
) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        scopes.append(scope)
        await send({"type": "websocket.accept", "subprotocol": "b"})
        await receive()
        await receive()

    path, headers = "/caf%C3%A9/x%2Fy?a=1&b=%20", [("X-Thing", "one"), ("x-thing", "two")]
    async with nexios_client(app).connect(path, headers=headers, subprotocols=["a", "b"]) as ws:
        assert ws.subprotocol == "b"
    server = await nexios_server(app, runner=False)
    async with open_websocket_url(
        server.url + path, extra_headers=[(b"x-thing", b"one"), (b"x-thing", b"two")], subprotocols=["a", "b"]
    ):
        pass
    memory, real = scopes
    assert memory["path"] == "/café/x/y"
    assert memory["query_string"] == b"a=1&b=%20"
    for key in ("type", "scheme", "http_version", "path", "raw_path", "query_string", "root_path"):
        assert memory[key] == real[key], key
    assert list(memory["subprotocols"]) == list(real["subprotocols"]) == ["a", "b"]
    assert memory["extensions"] == real["extensions"]
    assert memory.keys() == real.keys()
    names = {name for name, _ in real["headers"]} - {b"user-agent"}
    assert {name for name, _ in memory["headers"]} == names
    assert [value for name, value in memory["headers"] if name == b"x-thing"] == [b"one", b"two"]


async def test_paths_and_parameters_may_be_written_as_people_read_them(nexios_client: Client) -> None:
    seen: list[WebSocket] = []

    async def handler(ws: WebSocket) -> None:
        seen.append(ws)
        await ws.accept()

    client = nexios_client(serving(handler, "/räume/{name}"))
    async with client.connect("/räume/grün & blau?von=köln", params={"q": "ä b"}):
        pass
    (ws,) = seen
    assert ws.path_params == {"name": "grün & blau"}
    assert dict(ws.query_params) == {"von": "köln", "q": "ä b"}
    assert ws.scope["query_string"].isascii()
    async with client.connect("/räume/x", params={"a": "1"}):
        pass
    assert seen[1].scope["query_string"] == b"a=1"


@pytest.mark.parametrize("path", ["rooms/1", "ws://testserver/rooms/1", ""])
async def test_a_path_without_its_slash_is_refused_with_the_right_one(
    path: str, nexios_client: Client
) -> None:
    right = "/" if not path else "/rooms/1"
    with pytest.raises(WrongValueError, match=f'write "{right}"'):
        async with nexios_client(serving(echo)).connect(path):
            pass


async def test_headers_subprotocol_and_state_reach_the_other_side(nexios_client: Client) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept(subprotocol=ws.subprotocols[-1], headers={"X-Answer": ws.headers["x-question"]})
        await ws.send_json([ws.headers["host"], ws.client.host if ws.client else "", ws.url.path])

    client = nexios_client(
        serving(handler), base_url="wss://chat.example:8443", client=("10.0.0.9", 1), root_path=""
    )
    async with client.connect("/", headers={"X-Question": "why"}, subprotocols=["v1", "v2"]) as ws:
        assert ws.subprotocol == "v2"
        assert ("x-answer", "why") in ws.headers
        assert await ws.receive_json() == ["chat.example:8443", "10.0.0.9", "/"]
    async with client.connect("/", headers=[("host", "other"), ("x-question", "")], subprotocols=["v"]) as ws:
        assert (await ws.receive_json())[0] == "other"


async def test_a_rejection_is_raised_with_status_headers_and_body(nexios_client: Client) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.reject(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})

    with pytest.raises(WebSocketRejected, match="HTTP 401: b'who are you") as rejected:
        async with nexios_client(serving(handler)).connect("/"):
            pass
    assert rejected.value.status == 401
    assert dict(rejected.value.headers)["www-authenticate"] == "Bearer"
    assert rejected.value.body == b"who are you?"


@pytest.mark.parametrize(("parts", "body"), [([b"a", b"b", b"c"], b"abc"), ([b""], b""), ([b"", b"z"], b"z")])
async def test_the_parts_of_a_rejection_are_put_together(
    parts: list[bytes], body: bytes, nexios_client: Client
) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"X-Pot", b"tea")]})
        for number, part in enumerate(parts, 1):
            await send(
                {"type": "websocket.http.response.body", "body": part, "more_body": number < len(parts)}
            )

    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app, lifespan=False).connect("/"):
            pass
    assert (rejected.value.status, rejected.value.headers) == (418, [("x-pot", "tea")])
    assert rejected.value.body == body


async def test_a_server_without_the_response_extension_answers_403(nexios_client: Client) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.reject(401, "who are you?")

    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(serving(handler)).connect("/", http_response=False):
            pass
    assert (rejected.value.status, rejected.value.headers, rejected.value.body) == (403, [], b"")


async def returns(_ws: WebSocket) -> None:
    """Neither accept nor reject."""


async def fails(_ws: WebSocket) -> None:
    raise ValueError("before accept")


async def waits(_ws: WebSocket) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(("handler", "status"), [(returns, 403), (fails, 500), (waits, 503)])
async def test_a_handler_that_never_accepts_is_a_rejection(
    handler: Handler, status: int, nexios_client: Client, autojump_clock: MockClock
) -> None:
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(serving(handler)).connect("/"):
            pass
    assert rejected.value.status == status


async def test_an_app_that_returns_without_a_whole_answer_is_a_500(nexios_client: Client) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/half":
            await send({"type": "websocket.http.response.start", "status": 200, "headers": []})

    client = nexios_client(app, lifespan=False)
    for path in ("/none", "/half"):
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect(path):
                pass
        assert rejected.value.status == 500


async def test_an_app_that_keeps_the_handshake_waiting_is_told_that_the_client_left(
    autojump_clock: MockClock,
) -> None:
    told: list[Message] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        told.extend([await receive(), await receive()])

    async with TestClient(app, lifespan=False, timeout=3) as client:
        with pytest.raises(trio.TooSlowError, match="the app sent no message within 3 s"):
            async with client.connect("/"):
                pass
        await trio.testing.wait_all_tasks_blocked()
    assert told == [
        {"type": "websocket.connect"},
        {"type": "websocket.disconnect", "code": 1006, "reason": ""},
    ]


async def test_the_app_is_told_the_clients_code_and_reason(nexios_client: Client) -> None:
    seen: list[WebSocketDisconnect] = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            seen.append(gone)

    client = nexios_client(serving(handler))
    async with client.connect("/") as ws:
        await ws.close(4001, "moved")
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive()
        assert (over.value.code, over.value.reason, over.value.by) == (4001, "moved", "local")
    async with client.connect("/"):
        pass
    assert [(gone.code, gone.reason) for gone in seen] == [(4001, "moved"), (1000, "")]


async def test_the_client_is_told_the_apps_code_and_reason(nexios_client: Client) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("last words")
        await ws.close(4002, "enough")

    client = nexios_client(serving(handler))
    async with client.connect("/") as ws:
        assert await ws.wait_closed() == (4002, "enough")
        assert (ws.close_code, ws.close_reason) == (4002, "enough")
        assert await ws.wait_closed() == (4002, "enough")
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.send_text("too late")
        assert over.value.code == 4002
    async with client.connect("/") as ws:
        assert await ws.receive_text() == "last words"
        assert await ws.receive() == {"type": "websocket.close", "code": 4002, "reason": "enough"}
        with pytest.raises(WebSocketDisconnect, match="4002 enough"):
            await ws.receive_text()


async def test_an_app_that_returns_without_a_close_frame_is_a_broken_connection(
    nexios_client: Client,
) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async with nexios_client(app, lifespan=False).connect("/") as ws:
        await ws._ended.wait()
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.send_text("anybody?")
        assert (over.value.code, over.value.by) == (1006, "network")
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive_text()
        assert (over.value.code, over.value.by) == (1006, "network")


async def test_a_client_that_has_left_cannot_send(nexios_client: Client) -> None:
    async with nexios_client(serving(echo)).connect("/") as ws:
        await ws.close()
        with pytest.raises(WrongStateError, match="has left already; connect again"):
            await ws.send_text("hello?")
        with pytest.raises(WrongStateError, match="has left already"):
            await ws.garbage(b"\x00")


async def test_an_app_that_does_not_receive_makes_the_client_wait_after_ten_messages(
    autojump_clock: MockClock,
) -> None:
    """hypercorn's queue, and no more: an app under test sees the backpressure that it will meet."""
    go = trio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go.wait()
        for _ in range(12):
            await receive()

    async with TestClient(app, lifespan=False, timeout=3) as client, client.connect("/") as ws:
        for number in range(10):
            await ws.send_text(str(number))
        with pytest.raises(trio.TooSlowError, match="the app took no message for 3 s, and 10 others wait"):
            await ws.send_text("eleventh")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send_text, "eleventh")
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            go.set()


async def test_a_client_can_leave_an_app_that_does_not_receive(autojump_clock: MockClock) -> None:
    received: list[Message] = []
    left = trio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await left.wait()
        for _ in range(11):
            received.append(await receive())

    async with TestClient(app, lifespan=False) as client, client.connect("/") as ws:
        for _ in range(10):
            await ws.send_text("x")
        await ws.drop()
        left.set()
    assert [message["type"] for message in received] == ["websocket.receive"] * 10 + ["websocket.disconnect"]


async def test_silence_of_the_app_ends_in_an_error_that_says_so(
    nexios_client: Client, autojump_clock: MockClock
) -> None:
    client = nexios_client(serving(echo), timeout=7)
    async with client.connect("/") as ws:
        for receive in (ws.receive, ws.receive_text, ws.receive_bytes, ws.receive_json, ws.wait_closed):
            before = trio.current_time()
            with pytest.raises(trio.TooSlowError, match="the app sent no message within 7 s"):
                await receive()
            assert trio.current_time() - before == pytest.approx(7)


async def test_a_handler_that_goes_on_after_its_client_left_is_reported(
    autojump_clock: MockClock,
) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with TestClient(app, lifespan=False, timeout=4) as client:
        with pytest.raises(trio.TooSlowError, match=r"went on for 4 s after the client had left; see dis"):
            async with client.connect("/"):
                pass
        with pytest.raises(trio.TooSlowError, match="went on for 4 s"):
            async with client.connect("/") as ws:
                await ws.close()
        with pytest.raises(KeyError):  # what the test found comes before it
            async with client.connect("/"):
                raise KeyError


async def test_several_clients_of_one_app_talk_at_once(nexios_client: Client) -> None:
    client = nexios_client(serving(echo))
    done = []

    async def talk(number: int) -> None:
        async with client.connect("/") as ws:
            for turn in range(5):
                await ws.send_json([number, turn])
                assert await ws.receive_json() == [number, turn]
        done.append(number)

    async with trio.open_nursery() as nursery:  # the first connection starts the app, the others wait
        for number in range(20):
            nursery.start_soon(talk, number)
    assert sorted(done) == list(range(20))


async def test_two_apps_in_one_test_do_not_meet(nexios_client: Client) -> None:
    first, second = serving(echo), serving(echo)
    async with nexios_client(first).connect("/") as a, nexios_client(second).connect("/") as b:
        assert len(first.connections) == len(second.connections) == 1
        await a.send_text("a")
        await b.send_text("b")
        assert (await a.receive_text(), await b.receive_text()) == ("a", "b")


async def test_a_reader_in_another_task_is_told_when_the_client_leaves(nexios_client: Client) -> None:
    seen: list[WebSocketDisconnect] = []
    async with nexios_client(serving(echo)).connect("/") as ws:

        async def read() -> None:
            with pytest.raises(WebSocketDisconnect) as over:
                await ws.receive_text()
            seen.append(over.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await ws.close(4003, "bye")
    assert [(gone.code, gone.reason, gone.by) for gone in seen] == [(4003, "bye", "local")]


async def test_a_sender_in_another_task_is_told_when_the_client_leaves() -> None:
    left = trio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await left.wait()

    async with TestClient(app, lifespan=False) as client, client.connect("/") as ws:

        async def write() -> None:
            with pytest.raises(WebSocketDisconnect) as over:
                for _ in range(20):
                    await ws.send_text("x")
            assert (over.value.code, over.value.by) == (1006, "network")
            left.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            await ws.drop()


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(WrongStateError, match="write `async with TestClient"):
        async with TestClient(serving(echo)).connect("/"):
            pass


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (["websocket.send"], "'websocket.send' on a connection that is connecting; servers take only"),
        (["websocket.accept", "websocket.accept"], "is open; servers take only 'websocket.send' or"),
        (["websocket.accept", "websocket.close", "websocket.send"], "is over"),
        (["websocket.http.response.start", "websocket.accept"], "is answering"),
        (["nonsense"], "'nonsense' on a connection"),
    ],
)
async def test_an_app_that_breaks_the_protocol_is_told_what_a_server_takes(
    messages: list[str], complaint: str
) -> None:
    complaints: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            for kind in messages:
                await send({"type": kind, "status": 200, "headers": [], "text": "x"})
        except WrongStateError as error:
            complaints.append(str(error))

    async with TestClient(app, lifespan=False) as client:
        try:
            async with client.connect("/") as ws:
                await ws._ended.wait()
        except WebSocketRejected:
            pass
    assert len(complaints) == 1
    assert complaint in complaints[0]


async def test_an_app_may_close_twice_as_hypercorn_allows(nexios_client: Client) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000})
        await send({"type": "websocket.close", "code": 4001})

    async with nexios_client(app, lifespan=False).connect("/") as ws:
        assert await ws.wait_closed() == (4000, "")


async def test_an_app_that_asks_again_after_the_disconnect_waits_as_under_hypercorn(
    autojump_clock: MockClock,
) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        with trio.move_on_after(1) as scope:
            await receive()
        assert scope.cancelled_caught

    async with TestClient(app, lifespan=False) as client, client.connect("/"):
        pass


async def test_the_apps_own_heartbeat_runs_on_the_virtual_clock(
    nexios_client: Client, autojump_clock: MockClock
) -> None:
    app = serving(echo, heartbeat=Heartbeat(interval=1000, timeout=5, message="ping"))
    async with nexios_client(app, timeout=2000).connect("/") as ws:
        assert await ws.receive_text() == "ping"
        assert trio.current_time() == pytest.approx(1000, abs=1)
