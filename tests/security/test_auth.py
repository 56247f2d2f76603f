"""Who the client is: how it says so, what it is told if it does not, and for how long it counts."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from http.cookies import SimpleCookie
from typing import Any

import httpx2
import msgspec
import pytest
import trio
from attrs import evolve, frozen
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette.websockets import WebSocketDisconnect as StarletteDisconnect
from trio.testing import MockClock
from wsproto.events import RejectConnection, RejectData
from wsproto.events import Request as WireRequest

from nexios_trio import (
    AnyOf,
    AuthenticationError,
    BearerToken,
    FirstMessage,
    Identity,
    Limits,
    NexiosApp,
    PermissionDenied,
    SessionUser,
    SubprotocolToken,
    User,
    WebSocket,
    WebSocketConsumer,
    WebSocketDisconnect,
    WebSocketException,
    WebsocketRoutes,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
    WSRouter,
    nobody,
    requires,
)
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import Message, Receive, Scope, Send
from tests.lanes import Lane, MemoryPeer, Peer, Serve, SocketPeer

MARKER = "s3cret-marker-t0ken"

IDENTITIES = {
    "ada": Identity("ada", ["read", "write"]),
    "bob": Identity("bob", ["read"]),
    MARKER: Identity("eve", ["read"]),
}


def verify(token: str) -> Identity | None:
    return IDENTITIES.get(token)


def lasting(seconds: float) -> Callable[[str], Identity | None]:
    """A verify whose tokens expire so long after it is asked: no test depends on how quick it gets there."""

    def verify_briefly(token: str) -> Identity | None:
        known = IDENTITIES.get(token)
        return None if known is None else evolve(known, expires=time.time() + seconds)

    return verify_briefly


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def in_subprotocol(token: str | bytes, prefix: str = "base64url.bearer.") -> str:
    raw = token if isinstance(token, bytes) else token.encode()
    return prefix + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def asking(
    lane: Lane,
    headers: dict[str, str] | Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
) -> dict[str, Any]:
    """Options of `Lane.connect`."""
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    if lane.name == "memory":
        return {"headers": pairs, "subprotocols": list(subprotocols)}
    return {
        "extra_headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "subprotocols": list(subprotocols),
    }


@frozen
class Answer:
    """What a client is told that may not come in."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        (text,) = msgspec.json.decode(self.body, type=dict[str, str]).values()
        return text


async def refused(lane: Lane, path: str = "/", **options: Any) -> Answer:
    """Open a connection that is refused."""
    if lane._client is not None:
        with pytest.raises(WebSocketRejected) as rejected:
            async with lane.connect(path, **asking(lane, **options)):
                pass
        return Answer(rejected.value.status, dict(rejected.value.headers), rejected.value.body)
    assert lane.server is not None
    async with await trio.open_tcp_stream(lane.server.host, lane.server.port) as stream:
        peer = SocketPeer(stream)
        request = WireRequest(host=lane.server.host, target=path, **asking(lane, **options))
        await stream.send_all(peer.wire.send(request))
        event = await peer._event()
        assert isinstance(event, RejectConnection), event
        headers = {name.decode().lower(): value.decode() for name, value in event.headers}
        body, more = b"", True
        while more:
            part = await peer._event()
            assert isinstance(part, RejectData), part
            body, more = body + part.data, not part.body_finished
        return Answer(event.status_code, headers, body)


async def soon(event: trio.Event) -> None:
    """Wait, but not for ever where a handler has failed."""
    with trio.fail_after(500):
        await event.wait()


async def all_gone(app: NexiosApp, but: int = 0) -> None:
    """Wait until the server has seen who has left."""
    with trio.fail_after(500):
        while len(app.connections) > but:
            await trio.sleep(0.1)


async def who(ws: WebSocket) -> None:
    """Tells the client who it is, then echoes."""
    await ws.accept()
    user = ws.user.display_name if isinstance(ws.user, BaseUser) else ws.user
    await ws.send_json({"user": user, "scopes": sorted(ws.auth.scopes), "user_id": ws.user_id})
    async for text in ws.iter_text():
        await ws.send_text(text)


async def never(ws: WebSocket) -> None:
    pytest.fail("the handler must not run")


def app_of(authenticate: Any = None, handler: Any = who, **options: Any) -> NexiosApp:
    app = NexiosApp(authenticate=authenticate, **options)
    app.add_ws_route("/", handler)
    return app


async def told(peer: Peer) -> Any:
    return json.loads(await peer.receive())


ADA = {"user": "ada", "scopes": ["read", "write"], "user_id": "ada"}
BOB = {"user": "bob", "scopes": ["read"], "user_id": "bob"}


# A token in the header


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_bearer_token_says_who_the_client_is(scheme: str, lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(BearerToken(verify))
    async with (
        lane.serving(app),
        lane.connect("/", **asking(lane, {"Authorization": f"{scheme} ada"})) as peer,
    ):
        assert await told(peer) == ADA
    assert not app.guard.counts


async def test_verify_may_be_async(autojump_clock: MockClock) -> None:
    async def look_up(token: str) -> Identity | None:
        await trio.sleep(3)
        return verify(token)

    async with TestClient(app_of(BearerToken(look_up))) as client:
        async with client.connect("/", headers=bearer("bob")) as ws:
            assert await ws.receive_json() == BOB


async def test_what_verify_gives_is_the_user_where_it_is_no_identity(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json([ws.user, ws.user_id, sorted(ws.auth.scopes), ws.auth.expires])

    app = app_of(BearerToken(lambda token: {"id": 7, "name": token}), handler)
    async with TestClient(app) as client, client.connect("/", headers=bearer("ada")) as ws:
        assert await ws.receive_json() == [{"id": 7, "name": "ada"}, "7", [], None]


@pytest.mark.parametrize(
    ("error", "status"),
    [(AuthenticationError("revoked"), 401), (PermissionDenied("banned"), 403), (HTTPException(402), 402)],
    ids=["authentication", "permission", "http"],
)
@pytest.mark.parametrize("in_nursery", [False, True])
async def test_verify_says_by_an_error_why_it_refuses(
    error: Exception, status: int, in_nursery: bool, lane: Lane, lane_clock: MockClock
) -> None:
    """Out of a nursery the error comes in a group."""

    async def look_up(token: str) -> Identity:
        if not in_nursery:
            raise error
        async with trio.open_nursery():
            raise error

    async with lane.serving(app_of(BearerToken(look_up), never)):
        assert (await refused(lane, headers=bearer("ada"))).status == status


@pytest.mark.parametrize(
    ("headers", "error", "challenge"),
    [
        ([], "authentication required", "Bearer"),
        ([("Authorization", "Basic YWRhOmFkYQ==")], "authentication required", "Bearer"),
        ([("Authorization", "Bearer nobody")], "authentication failed", 'Bearer error="invalid_token"'),
        ([("Authorization", "Bearer")], "authentication failed", 'Bearer error="invalid_token"'),
        ([("Authorization", "Bearer ada bob")], "authentication failed", 'Bearer error="invalid_token"'),
        ([("Authorization", "Bearer \xe4da")], "authentication failed", 'Bearer error="invalid_token"'),
        (
            [("Authorization", "Bearer ada"), ("Authorization", "Bearer ada")],
            "authentication failed",
            'Bearer error="invalid_token"',
        ),
    ],
    ids=["none", "basic", "unknown", "empty", "two words", "not ASCII", "two headers"],
)
async def test_who_has_no_good_token_gets_401_with_a_body_and_a_challenge(
    headers: list[tuple[str, str]], error: str, challenge: str, lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(BearerToken(verify), never)
    async with lane.serving(app):
        answer = await refused(lane, headers=headers)
    assert (answer.status, answer.error) == (401, error)
    assert answer.headers["www-authenticate"] == challenge
    assert answer.headers["content-length"] == str(len(answer.body))
    assert app.guard.counts == {"closed.AuthenticationError": 1}


async def test_a_server_that_cannot_answer_with_a_body_refuses_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with TestClient(app_of(BearerToken(verify), never)) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/", http_response=False):
                pass
    assert (rejected.value.status, rejected.value.body) == (403, b"")


@pytest.mark.parametrize("make", [BearerToken, SubprotocolToken, FirstMessage])
@pytest.mark.parametrize("bad", [None, "secret", {"ada": 1}])
def test_verify_is_a_function(make: Any, bad: Any) -> None:
    with pytest.raises(WrongTypeError, match=re.escape(f"write {make.__name__}(verify)")):
        make(bad)


# A token among the subprotocols


@pytest.mark.parametrize("token", ["a", "ab", "abc", "abcd", "ä~ÿ>?\U0001f600", "x" * 3000])
async def test_a_page_sends_its_token_among_the_subprotocols(
    token: str, lane: Lane, lane_clock: MockClock
) -> None:
    got = []

    def remember(token: str) -> str:
        got.append(token)
        return "ada"

    app = app_of(SubprotocolToken(remember))
    offered = ["chat", in_subprotocol(token)]
    async with lane.serving(app), lane.connect("/", **asking(lane, subprotocols=offered)) as peer:
        assert (await told(peer))["user"] == "ada"
        if isinstance(peer, MemoryPeer):
            assert peer.ws.subprotocol == "chat"
    assert got == [token]


async def test_the_token_is_hidden_from_the_handler_and_from_middleware_inside(
    lane: Lane, lane_clock: MockClock
) -> None:
    offered = ["chat", in_subprotocol(MARKER), "v2"]

    async def handler(ws: WebSocket) -> None:
        assert ws.subprotocols == ["chat", "v2"]
        assert ws.headers["sec-websocket-protocol"] == "chat, v2"
        assert ws.headers.getlist("sec-websocket-protocol") == ["chat, v2"]
        assert offered[1] not in repr(ws.scope)
        assert MARKER not in repr(ws.scope)
        await ws.accept("v2")
        await ws.send_text("hidden")

    app = app_of(SubprotocolToken(verify), handler)
    async with lane.serving(app), lane.connect("/", **asking(lane, subprotocols=offered)) as peer:
        assert await peer.receive() == "hidden"


@pytest.mark.parametrize(
    ("offered", "chosen", "accepted"),
    [
        (["chat", "TOKEN"], None, "chat"),
        (["TOKEN", "v2", "chat"], None, "v2"),
        (["v2", "chat", "TOKEN"], "chat", "chat"),
    ],
)
async def test_accept_chooses_a_subprotocol_beside_the_token(
    offered: list[str], chosen: str | None, accepted: str, lane: Lane, lane_clock: MockClock
) -> None:
    offered = [in_subprotocol("ada") if name == "TOKEN" else name for name in offered]

    async def handler(ws: WebSocket) -> None:
        await ws.accept(chosen)
        await ws.send_text(str(ws.accepted_subprotocol))

    app = app_of(SubprotocolToken(verify), handler)
    async with lane.serving(app), lane.connect("/", **asking(lane, subprotocols=offered)) as peer:
        assert await peer.receive() == accepted
        if isinstance(peer, MemoryPeer):
            assert peer.ws.subprotocol == accepted


async def test_the_token_cannot_be_the_subprotocol_chosen(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ws: WebSocket) -> None:
        with pytest.raises(WrongValueError) as wrong:
            await ws.accept(in_subprotocol("ada"))
        assert "it offers 1 (see ws.subprotocols)" in str(wrong.value)
        await ws.accept("chat")

    app = app_of(SubprotocolToken(verify), handler)
    async with TestClient(app) as client:
        async with client.connect("/", subprotocols=["chat", in_subprotocol("ada")]) as ws:
            assert ws.subprotocol == "chat"


async def test_without_a_token_nothing_is_chosen_for_the_client(autojump_clock: MockClock) -> None:
    app = app_of(AnyOf(SubprotocolToken(verify), nobody), handler=_accept_only)
    async with TestClient(app) as client, client.connect("/", subprotocols=["chat"]) as ws:
        assert ws.subprotocol is None


async def _accept_only(ws: WebSocket) -> None:
    await ws.accept()


@pytest.mark.parametrize(
    ("offered", "cause"),
    [
        ([in_subprotocol(MARKER)], "and no subprotocol beside it"),
        (["chat", in_subprotocol(MARKER), in_subprotocol("ada")], "several tokens"),
        (["chat", f"base64url.bearer.{MARKER}!"], "not base64url"),
        (["chat", "base64url.bearer.abcde"], "not base64url"),
        (["chat", in_subprotocol(b"\xff\xfe")], "not base64url"),
        (["chat", in_subprotocol("unknown")], "not known"),
        (["chat", "base64url.bearer."], "not known"),
    ],
    ids=["alone", "two", "characters", "length", "no UTF-8", "unknown", "empty"],
)
async def test_a_token_among_the_subprotocols_that_is_no_good_is_refused(
    offered: list[str], cause: str, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with lane.serving(app_of(SubprotocolToken(verify), never)):
        answer = await refused(lane, subprotocols=offered)
    assert (answer.status, answer.error) == (401, "authentication failed")
    assert cause in caplog.text
    for name in offered:
        assert name == "chat" or name.removeprefix("base64url.bearer.") == "" or name not in caplog.text
    assert MARKER not in caplog.text


async def test_a_token_in_a_header_line_of_its_own_is_found_and_hidden(serve: Serve) -> None:
    """RFC 6455 §11.3.4: the header may appear several times, which is the same as once with all values."""
    seen: list[Any] = []

    async def handler(ws: WebSocket) -> None:
        seen.append((ws.user, in_subprotocol(MARKER) in repr(ws.scope)))
        await ws.accept()

    app = app_of(AnyOf(SubprotocolToken(verify), nobody), handler)
    async with serve(app) as server, await trio.open_tcp_stream(server.host, server.port) as stream:
        lines = [in_subprotocol(MARKER), "chat"]  # of these, hypercorn lists only the last
        headers = [(b"Sec-WebSocket-Protocol", line.encode()) for line in lines]
        request = WireRequest(host=server.host, target="/", extra_headers=headers)
        await stream.send_all(SocketPeer(stream).wire.send(request))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
    assert seen == [("eve", False)]


async def test_the_beginning_of_the_name_can_be_another_one(autojump_clock: MockClock) -> None:
    app = app_of(SubprotocolToken(verify, prefix="my.token."))
    async with TestClient(app) as client:
        offered = ["chat", in_subprotocol("bob", "my.token.")]
        async with client.connect("/", subprotocols=offered) as ws:
            assert await ws.receive_json() == BOB
        with pytest.raises(WebSocketRejected):
            async with client.connect("/", subprotocols=["chat", in_subprotocol("bob")]):
                pass


@pytest.mark.parametrize("prefix", ["", "a b", "a,b", "ä", None, b"x"])
def test_a_prefix_is_what_a_subprotocol_may_begin_with(prefix: Any) -> None:
    with pytest.raises(WrongValueError, match="the beginning of a subprotocol's name"):
        SubprotocolToken(verify, prefix=prefix)


# A session


SECRET = "only for tests"


def session_app(authenticate: Any, handler: Any = who) -> NexiosApp:
    app = app_of(authenticate, handler, middleware=[Middleware(SessionMiddleware, secret_key=SECRET)])

    @app.post("/login")
    async def login(request: Request) -> Response:
        request.session["user_id"] = (await request.body()).decode()
        return PlainTextResponse("in")

    return app


async def logged_in(app: NexiosApp, user: str) -> str:
    """The cookie that a browser would have after logging in."""
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app),
        base_url="http://testserver",
    ) as http:
        answer = await http.post("/login", content=user)
    cookie = SimpleCookie(answer.headers["set-cookie"])["session"]
    return f"session={cookie.coded_value}"


async def test_the_user_of_a_starlette_session_is_the_user(lane: Lane, lane_clock: MockClock) -> None:
    app = session_app(SessionUser())
    async with lane.serving(app):
        cookie = await logged_in(app, "ada")
        async with lane.connect("/", **asking(lane, {"cookie": cookie})) as peer:
            assert await told(peer) == {"user": "ada", "scopes": [], "user_id": "ada"}


@pytest.mark.parametrize("cookie", ["", "session=eyJ1c2VyX2lkIjogImFkYSJ9.forged.signature"])
async def test_who_has_no_session_of_ours_is_nobody(cookie: str, lane: Lane, lane_clock: MockClock) -> None:
    async with lane.serving(session_app(SessionUser(), never)):
        answer = await refused(lane, headers={"cookie": cookie} if cookie else {})
    assert (answer.status, answer.error) == (401, "authentication required")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_session_s_user_can_be_looked_up(asynchronous: bool, autojump_clock: MockClock) -> None:
    def load(user_id: str) -> Identity | None:
        return IDENTITIES.get(user_id)

    async def load_slowly(user_id: str) -> Identity | None:
        await trio.sleep(1)
        return load(user_id)

    app = session_app(SessionUser(load=load_slowly if asynchronous else load))
    async with TestClient(app) as client:
        async with client.connect("/", headers={"cookie": await logged_in(app, "bob")}) as ws:
            assert await ws.receive_json() == BOB
        with pytest.raises(WebSocketRejected) as rejected:  # he was deleted since
            async with client.connect("/", headers={"cookie": await logged_in(app, "carl")}):
                pass
    assert rejected.value.status == 401
    assert msgspec.json.decode(rejected.value.body) == {"error": "authentication failed"}


async def test_the_key_in_the_session_can_be_another_one(autojump_clock: MockClock) -> None:
    app = session_app(SessionUser("uid"))

    @app.get("/login-elsewhere")
    async def login(request: Request) -> Response:
        request.session["uid"] = 5
        return PlainTextResponse("in")

    async with (
        TestClient(app) as client,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app),
            base_url="http://testserver",
        ) as http,
    ):
        answer = await http.get("/login-elsewhere")
        cookie = answer.headers["set-cookie"].partition(";")[0]
        async with client.connect("/", headers={"cookie": cookie}) as ws:
            assert await ws.receive_json() == {"user": 5, "scopes": [], "user_id": "5"}


async def test_a_session_without_its_middleware_is_a_mistake_with_the_line_to_write(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with TestClient(app_of(SessionUser(), never)) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert rejected.value.status == 500
    assert "NexiosApp(middleware=[Middleware(SessionMiddleware, ...)])" in caplog.text


def test_what_loads_a_session_s_user_is_a_function() -> None:
    with pytest.raises(WrongTypeError, match="load is a function of the user's id, not dict"):
        SessionUser(load={})  # type: ignore[arg-type]


# A token in the first message


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(None, []), ("welcome", ["welcome"]), ({"ok": True}, ['{"ok":true}']), ([], ["[]"])],
    ids=["none", "text", "dict", "list"],
)
@pytest.mark.parametrize("binary", [False, True])
async def test_a_page_sends_its_token_in_the_first_message(
    reply: Any, expected: list[str], binary: bool, lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(FirstMessage(verify, reply=reply))
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(b'{"token":"ada"}' if binary else '{"token":"ada"}')
        assert [await peer.receive() for _ in expected] == expected
        assert await told(peer) == ADA
        await peer.send("the handler's")
        assert await peer.receive() == "the handler's"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "ada",
        '"ada"',
        '["token", "ada"]',
        '{"token":5}',
        '{"token":null}',
        '{"name":"ada"}',
        '{"token":"nobody"}',
        '{"token":"ada"',
        '{"token":"ada"} x',
        b"\xff\xfe",
        "[" * 100_000,
        '{"a":' * 50_000,
    ],
    ids=lambda message: str(message)[:20],
)
async def test_a_first_message_without_a_good_token_closes_with_4401(
    message: str | bytes, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(FirstMessage(verify), never)
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(message)
        assert await peer.wait_closed() == (4401, "authentication failed")
    assert app.guard.counts == {"closed.AuthenticationError": 1}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_does_not_say_who_it_is_has_a_deadline(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(FirstMessage(verify, timeout=4), never)
    async with lane.serving(app), lane.connect() as peer:
        before = trio.current_time()
        assert await peer.wait_closed() == (4401, "authentication failed")
        if lane.name == "memory":
            assert trio.current_time() - before == 4
    assert "no token within 4 s" in caplog.text


async def test_the_time_for_the_first_message_is_not_that_for_accepting(autojump_clock: MockClock) -> None:
    app = app_of(FirstMessage(verify, timeout=30), limits=Limits(accept_timeout=2))
    async with TestClient(app, timeout=60) as client, client.connect("/") as ws:
        await trio.sleep(29)
        await ws.send_text('{"token":"ada"}')
        assert await ws.receive_json() == ADA
        await trio.sleep(20)  # and the handler has all the time it likes
        await ws.send_text("still here")
        assert await ws.receive_text() == "still here"


async def test_looking_the_token_up_is_part_of_the_deadline(autojump_clock: MockClock) -> None:
    async def look_up(token: str) -> Identity:
        await trio.sleep_forever()
        raise AssertionError

    app = app_of(FirstMessage(look_up, timeout=4), never)
    async with TestClient(app) as client, client.connect("/") as ws:
        before = trio.current_time()
        await ws.send_text('{"token":"ada"}')
        assert await ws.wait_closed() == (4401, "authentication failed")
        assert trio.current_time() - before == 4


@pytest.mark.parametrize("how", ["close", "drop"])
async def test_who_leaves_before_saying_who_it_is_leaves_no_trace(
    how: str, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(FirstMessage(verify), never)
    async with lane.serving(app):
        async with lane.connect() as peer:
            await (peer.close() if how == "close" else peer.drop())
        await all_gone(app)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_handler_s_own_accept_finds_it_done_once(lane: Lane, lane_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WrongStateError, match="accepted already"):
            await ws.accept()
        await ws.send_text("fine")

    async with lane.serving(app_of(FirstMessage(verify), handler)), lane.connect() as peer:
        await peer.send('{"token":"ada"}')
        assert await peer.receive() == "fine"


async def test_a_handler_need_not_accept_what_is_accepted(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.send_text("no accept()")

    async with TestClient(app_of(FirstMessage(verify), handler)) as client, client.connect("/") as ws:
        await ws.send_text('{"token":"ada"}')
        assert await ws.receive_text() == "no accept()"


@pytest.mark.parametrize("arguments", [{"subprotocol": "chat"}, {"headers": {"x-late": "1"}}])
async def test_what_comes_too_late_to_be_accepted_with_is_a_mistake(
    arguments: dict[str, Any], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept(**arguments)

    async with TestClient(app_of(FirstMessage(verify), handler)) as client:
        async with client.connect("/", subprotocols=["chat"]) as ws:
            await ws.send_text('{"token":"ada"}')
            assert await ws.wait_closed() == (1011, "internal error")
    assert "give the subprotocol and headers to that authenticator" in caplog.text


async def test_a_rejection_comes_too_late_after_a_first_message(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.reject(404)

    async with TestClient(app_of(FirstMessage(verify), handler)) as client, client.connect("/") as ws:
        await ws.send_text('{"token":"ada"}')
        assert await ws.wait_closed() == (4404, "")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_subprotocol_can_be_chosen_before_the_first_message(
    lane: Lane, lane_clock: MockClock
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(str(ws.accepted_subprotocol))

    app = app_of(FirstMessage(verify, choose=lambda offered: offered[-1] if offered else None), handler)
    async with lane.serving(app):
        for offered, chosen in ((["v1", "v2"], "v2"), ([], "None")):
            async with lane.connect("/", **asking(lane, subprotocols=offered)) as peer:
                await peer.send('{"token":"ada"}')
                assert await peer.receive() == chosen


async def test_a_first_message_can_have_a_form_of_its_own(autojump_clock: MockClock) -> None:
    def token_of(message: str | bytes) -> str | None:
        return message.removeprefix("AUTH ") if isinstance(message, str) else None

    app = app_of(FirstMessage(verify, token_of=token_of))
    async with TestClient(app) as client:
        async with client.connect("/") as ws:
            await ws.send_text("AUTH bob")
            assert await ws.receive_json() == BOB
        async with client.connect("/") as ws:
            await ws.send_bytes(b"AUTH bob")
            assert await ws.wait_closed() == (4401, "authentication failed")


@pytest.mark.parametrize("timeout", [0, -1, True, "5", None, float("nan")])
def test_the_deadline_of_a_first_message_is_a_time(timeout: Any) -> None:
    with pytest.raises(WrongValueError, match="timeout is more than 0 seconds"):
        FirstMessage(verify, timeout=timeout)


class Passing:
    """ASGI middleware that wraps both ways and changes nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hear() -> Message:
            return await receive()

        async def say(message: Message) -> None:
            await send(message)

        await self.app(scope, hear, say)


@pytest.mark.parametrize(
    "authenticator", [BearerToken(verify), SubprotocolToken(verify), FirstMessage(verify)], ids=type
)
async def test_authentication_works_below_asgi_middleware(
    authenticator: Any, lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(authenticator, middleware=[Passing])
    options: dict[str, Any] = {"headers": bearer("ada"), "subprotocols": ["chat", in_subprotocol("ada")]}
    async with lane.serving(app), lane.connect("/", **asking(lane, **options)) as peer:
        if isinstance(authenticator, FirstMessage):
            await peer.send('{"token":"ada"}')
        assert await told(peer) == ADA
        await peer.send("x")
        assert await peer.receive() == "x"


async def test_a_client_gone_after_its_first_message_is_found_gone_by_accept(
    autojump_clock: MockClock,
) -> None:
    gone = trio.Event()

    async def look_up(token: str) -> str:
        await trio.sleep(2)
        return token

    async def handler(ws: WebSocket) -> None:
        with pytest.raises(WebSocketDisconnect):
            await ws.accept()
        gone.set()

    async with TestClient(app_of(FirstMessage(look_up), handler)) as client, client.connect("/") as ws:
        await ws.send_text('{"token":"ada"}')
        await ws.drop()
        await soon(gone)


# Several ways


async def test_the_first_way_in_which_a_client_has_said_who_it_is_decides(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(AnyOf(BearerToken(verify), SubprotocolToken(verify), FirstMessage(verify)))
    async with lane.serving(app):
        async with lane.connect("/", **asking(lane, bearer("ada"))) as peer:
            assert await told(peer) == ADA
        async with lane.connect("/", **asking(lane, subprotocols=["chat", in_subprotocol("bob")])) as peer:
            assert await told(peer) == BOB
        async with lane.connect("/") as peer:
            await peer.send('{"token":"bob"}')
            assert await told(peer) == BOB
        both: dict[str, Any] = {"headers": bearer("ada"), "subprotocols": ["chat", in_subprotocol("bob")]}
        async with lane.connect("/", **asking(lane, **both)) as peer:
            assert await told(peer) == ADA
        answer = await refused(lane, headers=bearer("bad"), subprotocols=["chat", in_subprotocol("bob")])
        assert answer.status == 401  # wrong is not nothing: no second try


async def test_who_says_nothing_in_any_way_is_refused_or_a_guest(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(AnyOf(BearerToken(verify), SubprotocolToken(verify)))
    app.add_ws_route("/guests", who, authenticate=AnyOf(BearerToken(verify), nobody))
    async with lane.serving(app):
        assert (await refused(lane)).error == "authentication required"
        async with lane.connect("/guests") as peer:
            assert await told(peer) == {"user": None, "scopes": [], "user_id": None}
        async with lane.connect("/guests", **asking(lane, bearer("bob"))) as peer:
            assert await told(peer) == BOB
        assert (await refused(lane, "/guests", headers=bearer("bad"))).status == 401


def test_any_of_takes_authenticators_and_the_first_message_last() -> None:
    with pytest.raises(WrongTypeError, match="AnyOf\\(BearerToken"):
        AnyOf()
    with pytest.raises(WrongTypeError, match="async def authenticate"):
        AnyOf(BearerToken(verify), verify)  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="put it last in AnyOf"):
        AnyOf(FirstMessage(verify), BearerToken(verify))


# Functions


class Member(SimpleUser):
    """A user as Starlette wants them."""

    @property
    def identity(self) -> str:
        return f"member-{self.username}"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("ada", {"user": "ada", "scopes": [], "user_id": "ada"}),
        (5, {"user": 5, "scopes": [], "user_id": "5"}),
        ({"name": "x"}, {"user": {"name": "x"}, "scopes": [], "user_id": None}),
        (Identity("ada", ["b", "a"], user_id="a-1"), {"user": "ada", "scopes": ["a", "b"], "user_id": "a-1"}),
        (Identity(None), {"user": None, "scopes": [], "user_id": None}),
        (Member("ada"), {"user": "ada", "scopes": [], "user_id": "member-ada"}),
    ],
    ids=["str", "int", "dict", "identity", "nobody", "starlette"],
)
async def test_a_function_of_ones_own_gives_the_user(
    result: Any, expected: Any, lane: Lane, lane_clock: MockClock
) -> None:
    async def authenticate(ws: WebSocket) -> Any:
        await trio.lowlevel.checkpoint()
        return result

    async with lane.serving(app_of(authenticate)), lane.connect() as peer:
        assert await told(peer) == expected


async def test_a_user_object_reaches_the_handler_as_it_is(autojump_clock: MockClock) -> None:
    user = User("ada", {"name": "Ada"})
    seen = []

    async def authenticate(ws: WebSocket) -> User:
        return user

    async def handler(ws: WebSocket) -> None:
        seen.append(ws.user)
        await ws.accept()

    async with TestClient(app_of(authenticate, handler)) as client, client.connect("/"):
        pass
    assert seen[0] is user


@pytest.mark.parametrize(
    ("outcome", "status", "body", "logged"),
    [
        (None, 401, b'{"error":"authentication required"}', False),
        (AuthenticationError("no such key"), 401, b'{"error":"authentication failed"}', False),
        (PermissionDenied("banned"), 403, b'{"error":"permission denied"}', False),
        (HTTPException(402, "pay first", headers={"x-price": "1"}), 402, b"pay first", False),
        (WebSocketException(4000, "no"), 403, b"", False),
        (True, 500, b"", True),
        (False, 500, b"", True),
        (LookupError("a bug"), 500, b"", True),
        (ExceptionGroup("g", [AuthenticationError()]), 401, b'{"error":"authentication required"}', False),
    ],
    ids=["none", "authentication", "permission", "http", "close", "true", "false", "bug", "group"],
)
async def test_how_a_function_of_ones_own_refuses(
    outcome: Any,
    status: int,
    body: bytes,
    logged: bool,
    lane: Lane,
    lane_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def authenticate(ws: WebSocket) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with lane.serving(app_of(authenticate, never)):
        answer = await refused(lane)
    assert (answer.status, answer.body) == (status, body)
    if status == 402:
        assert answer.headers["x-price"] == "1"
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == logged
    if isinstance(outcome, bool):
        assert "an authenticator gives the user or an Identity, or None for nobody" in caplog.text
    elif logged:
        assert "LookupError: a bug" in caplog.text


async def test_a_bug_after_accept_is_logged_and_closes_with_1011(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def look_up(token: str) -> Identity:
        raise LookupError("a bug")

    async with lane.serving(app_of(FirstMessage(look_up), never)), lane.connect() as peer:
        await peer.send('{"token":"ada"}')
        assert await peer.wait_closed() == (1011, "internal error")
    assert caplog.text.count("the check of a token raised LookupError in ") == 1
    assert "a bug" not in caplog.text  # for all we know, that is the token


class Doorman:
    async def __call__(self, ws: WebSocket) -> str:
        return "ada"

    async def method(self, ws: WebSocket) -> str:
        return "ada"


async def _with_option(option: str, ws: WebSocket) -> str:
    return option


@pytest.mark.parametrize(
    "authenticator",
    [Doorman(), Doorman().method, functools.partial(_with_option, "ada")],
    ids=["instance", "method", "partial"],
)
async def test_whatever_can_be_called_and_awaited_authenticates(
    authenticator: Any, autojump_clock: MockClock
) -> None:
    async with TestClient(app_of(authenticator)) as client, client.connect("/") as ws:
        assert (await ws.receive_json())["user"] == "ada"


@pytest.mark.parametrize(
    "wrong",
    [verify, lambda ws: "ada", BearerToken, Doorman, "ada", 5, object()],
    ids=lambda wrong: repr(wrong).split(" at ")[0],
)
@pytest.mark.parametrize("place", ["app", "router", "route", "decorator", "WebsocketRoutes"])
def test_what_cannot_be_awaited_is_refused_at_registration(wrong: Any, place: str) -> None:
    register: dict[str, Callable[[], object]] = {
        "app": lambda: NexiosApp(authenticate=wrong),
        "router": lambda: WSRouter(authenticate=wrong),
        "route": lambda: NexiosApp().add_ws_route("/", who, authenticate=wrong),
        "decorator": lambda: NexiosApp().ws_route("/", authenticate=wrong)(who),
        "WebsocketRoutes": lambda: WebsocketRoutes("/", who, authenticate=wrong),
    }
    with pytest.raises(WrongTypeError) as error:
        register[place]()
    assert "`async def authenticate(ws)` that gives the user or None" in str(error.value)
    assert "BearerToken(verify)" in str(error.value)


# What a handler says


@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (AuthenticationError(), 401, 4401, "authentication required"),
        (AuthenticationError("the key was revoked"), 401, 4401, "authentication failed"),
        (PermissionDenied(), 403, 4403, "permission denied"),
        (PermissionDenied("not your room"), 403, 4403, "permission denied"),
    ],
    ids=["nobody", "bad", "denied", "denied because"],
)
async def test_a_handler_refuses_in_the_same_words_before_and_after_accept(
    error: Exception, status: int, code: int, reason: str, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()

    @app.ws_route("/before")
    async def before(ws: WebSocket) -> None:
        raise error

    @app.ws_route("/after")
    async def after(ws: WebSocket) -> None:
        await ws.accept()
        raise error

    async with lane.serving(app):
        answer = await refused(lane, "/before")
        assert (answer.status, answer.error) == (status, reason)
        assert ("www-authenticate" in answer.headers) is (status == 401)
        async with lane.connect("/after") as peer:
            assert await peer.wait_closed() == (code, reason)
    assert app.guard.counts == {f"closed.{type(error).__name__}": 2}


@pytest.mark.parametrize("debug", [False, True])
async def test_causes_are_for_the_log_and_with_debug_for_the_client(
    debug: bool, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(BearerToken(verify), debug=debug)
    app.add_ws_route("/first", who, authenticate=FirstMessage(verify))
    app.add_ws_route("/admin", who, requires="admin")
    async with lane.serving(app):
        answers = [
            (await refused(lane, headers=bearer("bad"))).error,
            (await refused(lane, "/admin", headers=bearer("ada"))).error,
        ]
        async with lane.connect("/first") as peer:
            await peer.send("no token")
            answers.append((await peer.wait_closed())[1])
    causes = [
        "authentication failed: the token is not known",
        "permission denied: one of the scopes admin is missing",
        "authentication failed: a first message without a token",
    ]
    assert answers == (
        causes if debug else ["authentication failed", "permission denied", "authentication failed"]
    )
    for cause in causes:
        assert cause in caplog.text


# Scopes


async def test_scopes_decide_who_of_the_known_may_come_in(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(BearerToken(verify))
    app.add_ws_route("/write", who, requires=["read", "write"])
    async with lane.serving(app):
        async with lane.connect("/write", **asking(lane, bearer("ada"))) as peer:
            assert await told(peer) == ADA
        answer = await refused(lane, "/write", headers=bearer("bob"))
        assert (answer.status, answer.error) == (403, "permission denied")
        assert (await refused(lane, "/write")).status == 401
    assert app.guard.counts == {"closed.PermissionDenied": 1, "closed.AuthenticationError": 1}


async def test_a_first_message_of_somebody_who_may_not_closes_with_4403(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = app_of(FirstMessage(verify), never, requires="write")
    async with lane.serving(app), lane.connect() as peer:
        await peer.send('{"token":"bob"}')
        assert await peer.wait_closed() == (4403, "permission denied")


async def test_scopes_without_any_authentication_keep_everybody_out(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with lane.serving(app_of(None, never, requires="read")):
        answer = await refused(lane, headers=bearer("ada"))
    assert (answer.status, answer.error) == (401, "authentication failed")
    assert "requires= without authenticate=" in caplog.text


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        if name is None:
            return None
        return AuthCredentials(["read", "write"] if name == "ada" else ["read"]), SimpleUser(name)


async def test_scopes_work_with_starlettes_authentication_middleware(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp(middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])

    @app.ws_route("/")
    @requires("write")
    async def handler(ws: WebSocket) -> None:
        await who(ws)

    async with lane.serving(app):
        async with lane.connect("/", **asking(lane, {"x-user": "ada"})) as peer:
            assert await told(peer) == {"user": "ada", "scopes": ["read", "write"], "user_id": None}
        answer = await refused(lane, headers={"x-user": "bob"})
        assert (answer.status, answer.error) == (403, "permission denied")
        answer = await refused(lane)
        assert (answer.status, answer.error) == (401, "authentication required")


async def test_our_authentication_inside_starlettes_counts(autojump_clock: MockClock) -> None:
    app = app_of(BearerToken(verify), middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])
    async with TestClient(app) as client:
        async with client.connect("/", headers={"x-user": "carl", **bearer("ada")}) as ws:
            assert await ws.receive_json() == ADA
        with pytest.raises(WebSocketRejected):
            async with client.connect("/", headers={"x-user": "carl"}):
                pass


# Where it is asked for


def named(name: str) -> Callable[[WebSocket], Awaitable[str]]:
    async def authenticate(ws: WebSocket) -> str:
        return name

    return authenticate


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain", "app"),
        ("/own", "route"),
        ("/router/plain", "router"),
        ("/router/own", "route"),
        ("/router/nested/plain", "nested"),
        ("/router/nested/own", "route"),
        ("/router/bare/plain", "router"),
        ("/bare/plain", "app"),
        ("/public", None),
    ],
)
async def test_the_innermost_authentication_counts(
    path: str, expected: str | None, autojump_clock: MockClock
) -> None:
    def fill(router: WSRouter | NexiosApp) -> None:
        router.add_ws_route("/plain", who)
        router.add_ws_route("/own", who, authenticate=named("route"))

    nested = WSRouter(prefix="/nested", authenticate=named("nested"))
    bare = WSRouter(prefix="/bare")
    router = WSRouter(prefix="/router", authenticate=named("router"))
    app = NexiosApp(authenticate=named("app"))
    app.add_ws_route("/public", who, authenticate=nobody)
    for each in (nested, bare, router, app):
        fill(each)
    router.mount_router(nested)
    router.mount_router(bare)
    app.mount_ws_router(router)
    app.mount_ws_router(bare)
    async with TestClient(app) as client, client.connect(path) as ws:
        assert (await ws.receive_json())["user"] == expected


async def test_authentication_is_asked_for_once(autojump_clock: MockClock) -> None:
    asked = []

    def asking_for(name: str) -> Callable[[WebSocket], Awaitable[str]]:
        async def authenticate(ws: WebSocket) -> str:
            asked.append(name)
            return name

        return authenticate

    router = WSRouter(prefix="/router", authenticate=asking_for("router"))
    router.add_ws_route("/", who, authenticate=asking_for("route"))
    app = NexiosApp(authenticate=asking_for("app"))
    app.mount_ws_router(router)
    async with TestClient(app) as client, client.connect("/router/"):
        pass
    assert asked == ["route"]


async def test_a_path_that_nobody_answers_is_not_found_rather_than_unauthorized(
    lane: Lane, lane_clock: MockClock
) -> None:
    async with lane.serving(app_of(BearerToken(verify), never)):
        assert (await refused(lane, "/else")).status == 404


async def test_http_is_not_authenticated(autojump_clock: MockClock) -> None:
    app = app_of(BearerToken(verify))

    @app.get("/page")
    async def page(request: Request) -> Response:
        return PlainTextResponse("public")

    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app),
        base_url="http://testserver",
    ) as http:
        assert (await http.get("/page")).text == "public"


# Apps inside apps


async def starlette_who(ws: StarletteWebSocket) -> None:
    await ws.accept()
    await ws.send_json(
        {"user": ws.user, "scopes": sorted(ws.auth.scopes), "offered": ws.scope["subprotocols"]}
    )
    try:
        while True:
            await ws.send_text(await ws.receive_text())
    except StarletteDisconnect:
        pass


def starlette(handler: Any = starlette_who) -> Starlette:
    return Starlette(
        routes=[
            WebSocketRoute("/ws", handler),
            Route("/page", lambda request: PlainTextResponse("public")),
        ]
    )


async def test_an_app_s_authentication_protects_starlette_apps_inside_it(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp(authenticate=BearerToken(verify), requires="write")
    app.mount("/star", starlette())
    async with lane.serving(app):
        answer = await refused(lane, "/star/ws")
        assert (answer.status, answer.error) == (401, "authentication required")
        assert (await refused(lane, "/star/ws", headers=bearer("bad"))).status == 401
        assert (await refused(lane, "/star/ws", headers=bearer("bob"))).status == 403
        async with lane.connect("/star/ws", **asking(lane, bearer("ada"))) as peer:
            assert await told(peer) == {"user": "ada", "scopes": ["read", "write"], "offered": []}
            await peer.send("x")
            assert await peer.receive() == "x"


async def test_a_starlette_app_does_not_see_the_token_among_the_subprotocols(
    lane: Lane, lane_clock: MockClock
) -> None:
    async def handler(ws: StarletteWebSocket) -> None:
        assert in_subprotocol(MARKER) not in repr(ws.scope)
        await ws.accept(subprotocol=ws.scope["subprotocols"][0])
        await ws.send_text(ws.user)

    app = NexiosApp(authenticate=SubprotocolToken(verify))
    app.mount("/star", starlette(handler))
    offered = ["chat", in_subprotocol(MARKER)]
    async with lane.serving(app):
        async with lane.connect("/star/ws", **asking(lane, subprotocols=offered)) as peer:
            assert await peer.receive() == "eve"


async def test_a_starlette_app_that_chooses_no_subprotocol_has_one_chosen_for_it(
    autojump_clock: MockClock,
) -> None:
    """A browser ends a connection for which none of the subprotocols it offered was chosen."""
    app = NexiosApp(authenticate=SubprotocolToken(verify))
    app.mount("/star", starlette())
    async with TestClient(app) as client:
        async with client.connect("/star/ws", subprotocols=["chat", in_subprotocol("ada")]) as ws:
            assert ws.subprotocol == "chat"


async def test_a_starlette_app_comes_after_the_first_message(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(authenticate=FirstMessage(verify))
    app.mount("/star", starlette())
    async with lane.serving(app), lane.connect("/star/ws") as peer:
        await peer.send('{"token":"ada"}')
        with trio.fail_after(50):
            assert (await told(peer))["user"] == "ada"
        await peer.send("x")
        assert await peer.receive() == "x"


async def test_expiry_ends_a_starlette_app_s_connection_too(lane: Lane, lane_clock: MockClock) -> None:
    codes, ended = [], trio.Event()

    async def handler(ws: StarletteWebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except StarletteDisconnect as over:
            codes.append(over.code)
            ended.set()

    app = NexiosApp(authenticate=BearerToken(lasting(10)))
    app.mount("/star", starlette(handler))
    async with lane.serving(app), lane.connect("/star/ws", **asking(lane, bearer("ada"))) as peer:
        assert await peer.wait_closed() == (4401, "authentication expired")
        await soon(ended)
    assert codes == [4401]


async def test_an_app_s_authentication_protects_our_own_apps_inside_it(
    lane: Lane, lane_clock: MockClock
) -> None:
    inner = NexiosApp()
    inner.add_ws_route("/", who)
    inner.add_ws_route("/own", who, authenticate=named("inner"))
    outer = NexiosApp(authenticate=BearerToken(verify))
    outer.mount("/in", inner)
    async with lane.serving(outer):
        for path in ("/in/", "/in/own"):
            assert (await refused(lane, path)).status == 401
        async with lane.connect("/in/", **asking(lane, bearer("ada"))) as peer:
            assert await told(peer) == ADA
        async with lane.connect("/in/own", **asking(lane, bearer("ada"))) as peer:
            assert (await told(peer))["user"] == "inner"


async def test_an_app_inside_can_have_an_authentication_that_the_outer_one_lacks(
    lane: Lane, lane_clock: MockClock
) -> None:
    inner, outer = app_of(BearerToken(verify)), NexiosApp()
    outer.mount("/in", inner)
    async with lane.serving(outer):
        assert (await refused(lane, "/in/")).status == 401
        async with lane.connect("/in/", **asking(lane, bearer("bob"))) as peer:
            assert await told(peer) == BOB


async def test_an_app_inside_does_not_prolong_what_the_outer_one_has_let_in(
    lane: Lane, lane_clock: MockClock
) -> None:
    inner = app_of(named("forever"))
    outer = NexiosApp(authenticate=BearerToken(lasting(10)))
    outer.mount("/in", inner)
    async with lane.serving(outer), lane.connect("/in/", **asking(lane, bearer("ada"))) as peer:
        assert (await told(peer))["user"] == "forever"
        with trio.fail_after(50):
            assert await peer.wait_closed() == (4401, "authentication expired")


async def test_who_the_outer_app_knows_is_not_who_an_inner_one_has_authenticated(
    autojump_clock: MockClock,
) -> None:
    """A new token for the outer app must not make the inner app's user somebody else."""
    done = trio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        assert ws.user == "inner"
        try:
            await ws.renew("ada")
        except (AuthenticationError, WrongStateError):
            pass
        assert (ws.user, ws.user_id) == ("inner", "inner")
        done.set()

    outer = NexiosApp(authenticate=BearerToken(verify))
    outer.mount("/in", app_of(named("inner"), handler))
    async with TestClient(outer) as client, client.connect("/in/", headers=bearer("ada")):
        await soon(done)


async def test_inside_starlette_its_authentication_and_our_scopes_work_together(
    lane: Lane, lane_clock: MockClock
) -> None:
    inner = app_of(handler=who, requires="write")
    outer = Starlette(
        routes=[Mount("/in", inner)],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    async with lane.serving(outer):
        async with lane.connect("/in/", **asking(lane, {"x-user": "ada"})) as peer:
            assert await told(peer) == {"user": "ada", "scopes": ["read", "write"], "user_id": None}
        assert (await refused(lane, "/in/", headers={"x-user": "bob"})).status == 403
        assert (await refused(lane, "/in/")).status == 401


# Messages to a user


async def test_a_user_can_be_sent_to_and_sent_away(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(BearerToken(verify))
    async with (
        lane.serving(app),
        lane.connect("/", **asking(lane, bearer("ada"))) as first,
        lane.connect("/", **asking(lane, bearer("ada"))) as second,
        lane.connect("/", **asking(lane, bearer("bob"))) as other,
    ):
        for peer in (first, second, other):
            await told(peer)
        assert await app.channels.send_to_user("ada", "for ada") == 2
        assert [await first.receive(), await second.receive()] == ["for ada", "for ada"]
        assert await app.channels.disconnect_user("ada", 4000, "bye") == 2
        assert await first.wait_closed() == (4000, "bye")
        assert await second.wait_closed() == (4000, "bye")
        await other.send("still here")
        assert await other.receive() == "still here"


async def test_a_user_s_id_is_known_before_the_handler_runs(autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        assert ws.user_id == "ada"
        assert await app.channels.disconnect_user("bob") == 0
        await ws.accept()

    app = app_of(BearerToken(verify), handler)
    async with TestClient(app) as client, client.connect("/", headers=bearer("ada")):
        pass
    assert await app.channels.send_to_user("ada", "gone") == 0


# Expiry


async def test_when_the_token_expires_the_connection_closes_with_4401(
    lane: Lane, lane_clock: MockClock
) -> None:
    seen: list[WebSocketDisconnect] = []
    ended = trio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect as over:
            seen.append(over)
            await trio.sleep(4)  # its grace is 5
            ended.set()

    app = app_of(BearerToken(lasting(10)), handler)
    async with lane.serving(app), lane.connect("/", **asking(lane, bearer("ada"))) as peer:
        await peer.send("before")
        assert await peer.receive() == "before"
        assert await peer.wait_closed() == (4401, "authentication expired")
        await soon(ended)
    assert (seen[0].code, seen[0].reason, seen[0].by) == (4401, "authentication expired", "local")
    assert app.guard.counts == {"expired": 1}


async def test_a_handler_that_does_not_end_after_expiry_is_cancelled_after_its_grace(
    autojump_clock: MockClock,
) -> None:
    times = []

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        times.append(trio.current_time())
        try:
            await trio.sleep_forever()
        finally:
            times.append(trio.current_time())

    app = app_of(BearerToken(lasting(1000)), handler, disconnect_grace=3)
    async with TestClient(app, timeout=5000) as client, client.connect("/", headers=bearer("ada")) as ws:
        assert (await ws.wait_closed())[0] == 4401
    assert times[1] - times[0] == 3


async def test_who_expires_before_it_is_accepted_gets_401(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(ws: WebSocket) -> None:
        await trio.sleep_forever()

    app = app_of(BearerToken(lasting(5)), slow, limits=Limits(accept_timeout=500))
    async with lane.serving(app):
        answer = await refused(lane, headers=bearer("ada"))
    assert (answer.status, answer.error) == (401, "authentication failed")
    assert app.guard.counts["expired"] == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("first_message", [False, True])
async def test_a_token_that_has_expired_lets_nobody_in(
    first_message: bool, lane: Lane, lane_clock: MockClock
) -> None:
    make: Any = FirstMessage if first_message else BearerToken
    app = app_of(make(lasting(-1)), never)
    async with lane.serving(app):
        if first_message:
            async with lane.connect() as peer:
                await peer.send('{"token":"ada"}')
                assert await peer.wait_closed() == (4401, "authentication failed")
        else:
            assert (await refused(lane, headers=bearer("ada"))).status == 401


async def test_the_handler_knows_when_the_token_expires(autojump_clock: MockClock) -> None:
    moment = time.time() + 3600

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_json(ws.auth.expires)

    app = app_of(BearerToken(lambda token: Identity(token, expires=moment)), handler)
    async with TestClient(app) as client, client.connect("/", headers=bearer("ada")) as ws:
        assert await ws.receive_json() == moment


# Renewal


class Renewing:
    """A handler that takes messages ``renew <token>`` and says what came of it, and who the client is."""

    def __init__(self, *, catching: bool = True) -> None:
        self.catching = catching

    async def __call__(self, ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            try:
                await ws.renew(text.removeprefix("renew "))
            except (AuthenticationError, PermissionDenied, WrongStateError) as error:
                if not self.catching:
                    raise
                await ws.send_text(type(error).__name__)
            else:
                await ws.send_text(f"{ws.user} {sorted(ws.auth.scopes)}")


def renewable(token: str) -> Identity | None:
    """``name:scopes:seconds``, such as ``ada:read write:10``; no seconds: for ever."""
    name, _, rest = token.partition(":")
    scopes, _, seconds = rest.partition(":")
    if name not in ("ada", "bob"):
        return None
    return Identity(name, scopes.split(), time.time() + float(seconds) if seconds else None)


def renewable_app(handler: Any, authenticator: Any = None, **options: Any) -> NexiosApp:
    # Spaces are for no header: the authenticator here takes them out of the first message.
    return app_of(authenticator or FirstMessage(renewable), handler, **options)


def first(token: str) -> str:
    return json.dumps({"token": token})


async def test_a_new_token_in_time_keeps_the_connection_open(lane: Lane, lane_clock: MockClock) -> None:
    app = renewable_app(Renewing(), heartbeat=None)  # this client answers no Ping while the test sleeps
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(first("ada:read:20"))
        await peer.send("renew ada:read write:60")
        assert await peer.receive() == "ada ['read', 'write']"
        await trio.sleep(40)
        await peer.send("renew ada:read:20")
        assert await peer.receive() == "ada ['read']"
        assert await peer.wait_closed() == (4401, "authentication expired")
    assert app.guard.counts == {"expired": 1}


async def test_a_new_token_that_lasts_for_ever_ends_the_expiry(autojump_clock: MockClock) -> None:
    async with TestClient(renewable_app(Renewing())) as client, client.connect("/") as ws:
        await ws.send_text(first("ada:read:1000"))
        await ws.send_text("renew ada:read")
        assert await ws.receive_text() == "ada ['read']"
        await trio.sleep(100_000)
        await ws.send_text("renew ada:read")
        assert await ws.receive_text() == "ada ['read']"


async def test_a_shorter_new_token_shortens(autojump_clock: MockClock) -> None:
    async with TestClient(renewable_app(Renewing()), timeout=5000) as client, client.connect("/") as ws:
        await ws.send_text(first("ada:read"))
        before = trio.current_time()
        await ws.send_text("renew ada:read:1000")
        assert await ws.receive_text() == "ada ['read']"
        assert (await ws.wait_closed())[0] == 4401
        assert trio.current_time() - before <= 1000


@pytest.mark.parametrize(
    ("token", "error", "code"),
    [
        ("bob:read write:60", "AuthenticationError", (4401, "authentication failed")),
        ("carl:read:60", "AuthenticationError", (4401, "authentication failed")),
        ("ada:read:-5", "AuthenticationError", (4401, "authentication failed")),
        ("ada:write:60", "PermissionDenied", (4403, "permission denied")),
    ],
    ids=["another user", "unknown", "expired", "fewer scopes"],
)
@pytest.mark.parametrize("catching", [True, False])
async def test_a_new_token_that_is_no_good_changes_nothing_or_closes(
    token: str, error: str, code: tuple[int, str], catching: bool, lane: Lane, lane_clock: MockClock
) -> None:
    app = renewable_app(Renewing(catching=catching), requires="read")
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(first("ada:read:20"))
        await peer.send(f"renew {token}")
        if catching:
            assert await peer.receive() == error
            await peer.send("renew ada:read also:20")  # the old one holds on
            assert await peer.receive() == "ada ['also', 'read']"
            assert await peer.wait_closed() == (4401, "authentication expired")
        else:
            assert await peer.wait_closed() == code


async def test_a_new_token_of_a_user_without_an_id_has_to_be_the_same_user_s(
    autojump_clock: MockClock,
) -> None:
    """A user that is a dict without an id still is somebody."""

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        assert ws.user_id is None
        with pytest.raises(AuthenticationError):
            await ws.renew("bob")
        assert ws.user == {"name": "ada"}
        await ws.renew("ada")
        await ws.send_text("renewed")

    app = app_of(BearerToken(lambda token: {"name": token}), handler)
    async with TestClient(app) as client, client.connect("/", headers=bearer("ada")) as ws:
        assert await ws.receive_text() == "renewed"


async def test_the_old_expiry_holds_while_a_new_token_is_looked_up(autojump_clock: MockClock) -> None:
    outcome: list[object] = []

    async def look_up(token: str) -> Identity:
        if token == "ada":
            return Identity("ada", expires=time.time() + 1000)
        await trio.sleep(5000)
        return Identity("ada")

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.renew("slow")
        outcome.append(ws.client_state)
        await ws.send_text("too late")

    app = app_of(BearerToken(look_up), handler, disconnect_grace=10_000)
    async with TestClient(app, timeout=20_000) as client, client.connect("/", headers=bearer("ada")) as ws:
        assert await ws.wait_closed() == (4401, "authentication expired")


@pytest.mark.parametrize(
    "authenticator",
    [named("ada"), nobody, None, SessionUser()],
    ids=["function", "nobody", "none", "session"],
)
async def test_only_who_came_with_a_token_can_renew_it(authenticator: Any, autojump_clock: MockClock) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WrongStateError, match=re.escape("authenticate=BearerToken(...)")):
            await ws.renew("ada")
        await ws.send_text("still open")

    app = session_app(authenticator, handler)
    async with TestClient(app) as client:
        async with client.connect("/", headers={"cookie": await logged_in(app, "ada")}) as ws:
            assert await ws.receive_text() == "still open"


async def test_a_function_of_ones_own_can_say_how_to_renew(autojump_clock: MockClock) -> None:
    async def renew(token: str) -> Identity | None:
        return Identity("ada", [token]) if token != "bad" else None

    async def authenticate(ws: WebSocket) -> Identity:
        return Identity("ada", ["old"], renew=renew)

    async with TestClient(app_of(authenticate, Renewing())) as client, client.connect("/") as ws:
        await ws.send_text("renew new")
        assert await ws.receive_text() == "ada ['new']"
        await ws.send_text("renew bad")
        assert await ws.receive_text() == "AuthenticationError"
        await ws.send_text("renew newer")
        assert await ws.receive_text() == "ada ['newer']"


async def test_a_new_token_goes_the_way_of_the_first(autojump_clock: MockClock) -> None:
    def of(kind: str) -> Callable[[str], Identity | None]:
        return lambda token: Identity("ada", [kind]) if token.startswith(kind) else None

    app = app_of(AnyOf(BearerToken(of("header")), SubprotocolToken(of("page"))), Renewing())
    async with TestClient(app) as client:
        async with client.connect("/", headers=bearer("header-1")) as ws:
            await ws.send_text("renew page-2")
            assert await ws.receive_text() == "AuthenticationError"
            await ws.send_text("renew header-2")
            assert await ws.receive_text() == "ada ['header']"
        async with client.connect("/", subprotocols=["chat", in_subprotocol("page-1")]) as ws:
            await ws.send_text("renew header-2")
            assert await ws.receive_text() == "AuthenticationError"
            await ws.send_text("renew page-2")
            assert await ws.receive_text() == "ada ['page']"


async def test_a_renewal_is_no_new_connection_of_the_user(autojump_clock: MockClock) -> None:
    app = renewable_app(Renewing(), limits=Limits(connections_per_user=1))
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text(first("ada:read"))
        for _ in range(3):
            await ws.send_text("renew ada:read")
            assert await ws.receive_text() == "ada ['read']"


# Secrets


def _fails(token: str) -> Identity:
    raise RuntimeError("the database is down")


def _looks_up(token: str) -> Identity:
    return {"another": Identity("ada")}[token]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("check", "welcome"),
    [
        (verify, True),
        (lasting(10), True),
        (lasting(-1), False),
        (lambda token: None, False),
        (lambda token: True, False),
        (_fails, False),
        (_looks_up, False),
    ],
    ids=["good", "expiring", "expired", "unknown", "true", "failing", "key error"],
)
async def test_a_token_is_in_no_log_no_answer_no_reason_and_no_repr(
    check: Any,
    welcome: bool,
    debug: bool,
    lane: Lane,
    lane_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    async def handler(ws: WebSocket) -> None:
        seen.append(repr([ws, ws._connection, ws.user, ws.auth]) + str(ws._connection))
        await ws.accept()
        try:
            await ws.receive_text()
        finally:
            seen.append(repr(ws))

    authenticators: list[Any] = [BearerToken(check), SubprotocolToken(check), FirstMessage(check)]
    app = NexiosApp(debug=debug)
    for number, authenticator in enumerate(authenticators):
        app.add_ws_route(f"/{number}", handler, authenticate=authenticator)
    seen.append(repr([app, authenticators, IDENTITIES[MARKER]]))
    hidden = in_subprotocol(MARKER)

    async def end(peer: Peer) -> None:
        if check is verify:
            await peer.close()
        else:
            seen.append(repr(await peer.wait_closed()))

    ways: list[dict[str, Any]] = [
        {"headers": bearer(MARKER)},
        {"subprotocols": ["chat", hidden]},
    ]
    async with lane.serving(app):
        for number, options in enumerate(ways):
            if welcome:
                async with lane.connect(f"/{number}", **asking(lane, **options)) as peer:
                    await end(peer)
            else:
                seen.append(repr(await refused(lane, f"/{number}", **options)))
        async with lane.connect("/2") as peer:
            await peer.send(first(MARKER))
            await end(peer)
    seen += [repr(app.guard.counts), caplog.text, *(str(vars(record)) for record in caplog.records)]
    for text in seen:
        assert MARKER not in text
        assert hidden.removeprefix("base64url.bearer.") not in text


@pytest.mark.parametrize("catching", [True, False])
async def test_a_new_token_is_in_no_log_and_no_reason_either(
    catching: bool, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = renewable_app(Renewing(catching=catching), debug=True)
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(first("ada:read:10"))
        await peer.send(f"renew {MARKER}")
        if catching:
            assert await peer.receive() == "AuthenticationError"
        code, reason = await peer.wait_closed()
    assert code == 4401
    assert MARKER not in reason
    assert MARKER not in caplog.text
    assert not any(MARKER in str(vars(record)) for record in caplog.records)


# Slow and cancelled


async def test_an_authenticator_that_waits_long_is_bounded_by_the_accept_timeout(
    lane: Lane, lane_clock: MockClock
) -> None:
    cancelled = trio.Event()

    async def authenticate(ws: WebSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    app = app_of(authenticate, never, limits=Limits(accept_timeout=4))
    async with lane.serving(app):
        answer = await refused(lane)
        await soon(cancelled)
    assert answer.status == 503
    assert len(app.connections) == 0


async def test_the_accept_timeout_is_for_the_authenticator_and_the_handler_together(
    autojump_clock: MockClock,
) -> None:
    async def authenticate(ws: WebSocket) -> str:
        await trio.sleep(3)
        return "ada"

    async def handler(ws: WebSocket) -> None:
        await trio.sleep(3)
        await ws.accept()

    app = app_of(authenticate, handler, limits=Limits(accept_timeout=5))
    async with TestClient(app) as client:
        before = trio.current_time()
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
        assert trio.current_time() - before == 5
    assert rejected.value.status == 503


async def test_a_client_that_leaves_while_it_is_authenticated_ends_that(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    times = []
    asked = trio.Event()

    async def authenticate(ws: WebSocket) -> None:
        asked.set()
        try:
            await trio.sleep_forever()
        finally:
            times.append(trio.current_time())

    app = app_of(authenticate, never, limits=Limits(accept_timeout=500), disconnect_grace=3)
    async with TestClient(app, timeout=1000) as client, trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def come_and_leave() -> None:
            with leaving:
                async with client.connect("/"):
                    pytest.fail("it must not be accepted")

        nursery.start_soon(come_and_leave)
        await soon(asked)
        before = trio.current_time()
        leaving.cancel()
        await all_gone(app)
    assert times == [before + 3]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_shutdown_while_a_client_is_authenticated_answers_503(
    autojump_clock: MockClock,
) -> None:
    asked = trio.Event()

    async def authenticate(ws: WebSocket) -> None:
        asked.set()
        await trio.sleep_forever()

    app = app_of(authenticate, never, limits=Limits(accept_timeout=500))
    statuses = []

    async def come(client: TestClient) -> None:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
        statuses.append(rejected.value.status)

    async with TestClient(app) as client, trio.open_nursery() as nursery:
        nursery.start_soon(come, client)
        await soon(asked)
        await app.drain()
    assert statuses == [503]


# Connections of one user


async def test_a_user_has_so_many_connections_and_no_more(lane: Lane, lane_clock: MockClock) -> None:
    app = app_of(BearerToken(verify), limits=Limits(connections_per_user=2))
    ada, bob = asking(lane, bearer("ada")), asking(lane, bearer("bob"))
    async with lane.serving(app):
        async with lane.connect("/", **ada) as one:
            async with lane.connect("/", **ada):
                answer = await refused(lane, headers=bearer("ada"))
                assert (answer.status, answer.error) == (429, "too many connections of this user")
                assert answer.headers["retry-after"] == "5"
                async with lane.connect("/", **bob) as other:
                    assert await told(other) == BOB
                assert await told(one) == ADA
            await all_gone(app, but=1)
            async with lane.connect("/", **ada) as again:
                assert await told(again) == ADA
    assert app.guard.counts == {"closed.LimitError": 1}
    assert not app.channels.hub.users
    assert not app.channels.hub.owners


async def test_after_accept_a_connection_too_many_closes_with_1008(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(connections_per_user=1))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.identify(await ws.receive_text())
        await ws.send_text("in")
        await ws.receive_text()

    async with lane.serving(app), lane.connect() as one, lane.connect() as two, lane.connect() as other:
        await one.send("ada")
        assert await one.receive() == "in"
        await two.send("ada")
        assert await two.wait_closed() == (1008, "too many connections of this user")
        await other.send("bob")
        assert await other.receive() == "in"
        await one.drop()
        await all_gone(app, but=1)
        async with lane.connect() as three:
            await three.send("ada")
            assert await three.receive() == "in"


async def test_a_first_message_of_a_user_with_too_many_connections_closes_with_1008(
    autojump_clock: MockClock,
) -> None:
    app = app_of(FirstMessage(verify), limits=Limits(connections_per_user=1))
    async with TestClient(app) as client, client.connect("/") as one, client.connect("/") as two:
        await one.send_text(first("ada"))
        assert await one.receive_json() == ADA
        await two.send_text(first("ada"))
        assert await two.wait_closed() == (1008, "too many connections of this user")


async def test_who_is_nobody_counts_for_no_user(autojump_clock: MockClock) -> None:
    app = app_of(nobody, limits=Limits(connections_per_user=1))
    async with TestClient(app) as client, client.connect("/"), client.connect("/"), client.connect("/"):
        assert len(app.connections) == 3


async def test_a_user_refused_for_lack_of_scopes_takes_no_place(autojump_clock: MockClock) -> None:
    app = app_of(BearerToken(verify), limits=Limits(connections_per_user=1))
    app.add_ws_route("/admin", never, requires="admin")
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected):
            async with client.connect("/admin", headers=bearer("ada")):
                pass
        async with client.connect("/", headers=bearer("ada")) as ws:
            assert await ws.receive_json() == ADA


# What a fresh pair of eyes found


class Keys(dict[str, str]):
    """Empty when it is registered, and so false."""

    async def __call__(self, ws: WebSocket) -> str | None:
        return self.get(ws.headers.get("x-api-key", ""))


async def test_an_authenticator_that_is_false_still_decides(autojump_clock: MockClock) -> None:
    app = app_of(Keys(), never)
    outer = NexiosApp(authenticate=Keys())
    outer.add_ws_route("/", never)
    for guarded in (app, outer):
        async with TestClient(guarded) as client:
            with pytest.raises(WebSocketRejected) as rejected:
                async with client.connect("/"):
                    pass
        assert rejected.value.status == 401


@pytest.mark.parametrize("user", [UnauthenticatedUser(), ""], ids=["unauthenticated", "empty"])
async def test_who_says_that_he_is_nobody_is_nobody(user: Any, autojump_clock: MockClock) -> None:
    async def find(_ws: WebSocket) -> Any:
        return user

    async with TestClient(app_of(find, never)) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert rejected.value.status == 401


async def test_what_an_expired_client_has_sent_is_not_handled(autojump_clock: MockClock) -> None:
    handled = []

    async def slow(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            handled.append(text)
            await trio.sleep(1)

    async def for_ten_seconds(_ws: WebSocket) -> Identity:
        return Identity("ada", expires=time.time() + 10)

    async with TestClient(app_of(for_ten_seconds, slow), timeout=100) as client, client.connect("/") as ws:
        for number in range(40):
            await ws.send_text(str(number))
        assert (await ws.wait_closed())[0] == 4401
        await trio.sleep(30)
    assert len(handled) <= 11


async def test_middleware_that_swallows_a_refusal_does_not_change_it(autojump_clock: MockClock) -> None:
    async def swallowing(_ws: WebSocket, call_next: Any) -> None:
        with contextlib.suppress(Exception):
            await call_next()

    app = NexiosApp(middleware=[swallowing])
    app.add_ws_route("/early", never, authenticate=BearerToken(verify))
    app.add_ws_route("/late", never, authenticate=FirstMessage(verify))
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/early"):
                pass
        assert rejected.value.status == 401
        async with client.connect("/late") as ws:
            await ws.send_text('{"token":"eve"}')
            assert (await ws.wait_closed())[0] == 4401


async def test_a_slow_check_of_an_older_token_does_not_undo_a_newer_one(autojump_clock: MockClock) -> None:
    async def check(token: str) -> Identity:
        seconds, pause = map(int, token.split("-"))
        await trio.sleep(pause)
        return Identity("ada", expires=time.time() + seconds)

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.renew, "50-5")
            await trio.sleep(1)
            nursery.start_soon(ws.renew, "5000-0")
        await ws.send_text(str(ws.auth.expires - time.time() > 1000))

    async with TestClient(app_of(BearerToken(check), handler)) as client:
        async with client.connect("/", headers=bearer("100-0")) as ws:
            assert await ws.receive_text() == "True"


def test_our_marks_on_what_they_do_not_hold_for_are_refused() -> None:
    @requires("admin")
    async def endpoint(_request: Any) -> None:
        pass

    with pytest.raises(WrongTypeError, match=r"use starlette\.authentication\.requires"):
        NexiosApp().add_route("/admin", endpoint)

    class Chat(WebSocketConsumer):
        @requires("admin")
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            pass

    with pytest.raises(WrongTypeError, match="above a consumer's class"):
        Chat.as_route("/")


async def test_a_starlette_route_for_websockets_is_held_to_our_marks(autojump_clock: MockClock) -> None:
    @requires("admin")
    async def endpoint(websocket: Any) -> None:
        await websocket.accept()

    app = NexiosApp()
    app.http_router.routes.append(WebSocketRoute("/s", endpoint))
    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/s"):
                pass
    assert rejected.value.status == 401


async def test_a_token_is_hidden_also_where_another_authenticator_has_decided(
    autojump_clock: MockClock,
) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept(ws.subprotocols[0])
        await ws.send_text(str(in_subprotocol("bob") in str(ws.headers)))

    app = app_of(AnyOf(BearerToken(verify), SubprotocolToken(verify)), handler)
    offered = [in_subprotocol("bob"), "chat"]
    async with TestClient(app) as client:
        async with client.connect("/", headers=bearer("ada"), subprotocols=offered) as ws:
            assert ws.subprotocol == "chat"
            assert await ws.receive_text() == "False"
