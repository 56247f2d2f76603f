"""What a route asks of its clients: by decorators and options, on all levels, put together."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from nexios_trio import (
    BearerToken,
    Identity,
    InvalidJSON,
    LimitError,
    MessageTypeError,
    MessageValidationError,
    NexiosApp,
    PeerError,
    Rate,
    RateLimit,
    RoutingError,
    WebSocket,
    WebSocketConsumer,
    WebSocketException,
    WebsocketRoutes,
    WrongTypeError,
    WrongValueError,
    WSRouter,
    rate_limit,
    requires,
)
from nexios_trio.cli import main
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import RouteSpec
from tests.lanes import Lane

Handler = Callable[..., Awaitable[None]]


def verify(token: str) -> Identity:
    """A token is the list of its scopes."""
    return Identity("ada", token.split("."))


def scoped(*scopes: str) -> dict[str, str]:
    return {"authorization": f"Bearer {'.'.join(scopes)}"}


async def status(client: TestClient, path: str, *scopes: str) -> int:
    """What a client with these scopes is answered."""
    try:
        async with client.connect(path, headers=scoped(*scopes)):
            return 101
    except WebSocketRejected as rejected:
        return rejected.status


async def needs(app: NexiosApp, path: str, *scopes: str) -> None:
    """Who has all of these scopes comes in, and nobody who lacks one."""
    async with TestClient(app) as client:
        assert await status(client, path, *scopes, "another") == 101
        for scope in scopes:
            assert await status(client, path, *({*scopes, "another"} - {scope})) == 403


def app_with(**options: Any) -> NexiosApp:
    return NexiosApp(authenticate=BearerToken(verify), **options)


def handler() -> Handler:
    """A new one each time: decorators mark the function itself."""

    async def accept(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    return accept


# Where decorators stand


async def test_requires_below_the_route_s_decorator_holds(autojump_clock: MockClock) -> None:
    app = app_with()

    @app.ws_route("/")
    @requires("a", "b")
    async def one(ws: WebSocket) -> None:
        await ws.accept()

    await needs(app, "/", "a", "b")


async def test_requires_above_the_route_s_decorator_holds(autojump_clock: MockClock) -> None:
    app = app_with()

    @requires("a", "b")
    @app.ws_route("/")
    async def one(ws: WebSocket) -> None:
        await ws.accept()

    await needs(app, "/", "a", "b")


async def test_requires_on_both_sides_and_several_times_is_put_together(autojump_clock: MockClock) -> None:
    app = app_with()

    @requires("a")
    @requires("b", "a")
    @app.ws_route("/")
    @requires("c")
    async def one(ws: WebSocket) -> None:
        await ws.accept()

    await needs(app, "/", "a", "b", "c")


async def test_a_decorated_handler_added_by_a_call_is_held_to_it(autojump_clock: MockClock) -> None:
    app, router = app_with(), WSRouter(prefix="/router")
    app.add_ws_route("/call", requires("a")(handler()))
    app.add_ws_route(WebsocketRoutes("/object", requires("b")(handler())))
    router.add_ws_route("/inner", requires("c")(handler()))
    app.mount_ws_router(router)
    await needs(app, "/call", "a")
    await needs(app, "/object", "b")
    await needs(app, "/router/inner", "c")


async def test_a_decorated_handler_keeps_its_path_parameters(autojump_clock: MockClock) -> None:
    app = app_with()

    @app.ws_route("/rooms/{name}/{number:int}")
    @requires("a")
    async def room(ws: WebSocket, number: int, name: str) -> None:
        await ws.accept()
        await ws.send_json([name, number])

    async with TestClient(app) as client:
        async with client.connect("/rooms/x/7", headers=scoped("a")) as ws:
            assert await ws.receive_json() == ["x", 7]


async def test_a_partial_carries_the_marks_of_its_function_and_its_own(autojump_clock: MockClock) -> None:
    @requires("inner")
    async def room(greeting: str, ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(greeting)

    app = app_with()
    once = functools.partial(room, "hello")
    twice = requires("outer")(functools.partial(requires("middle")(functools.partial(room)), "hi"))
    app.add_ws_route("/once", once)
    app.add_ws_route("/twice", twice)
    await needs(app, "/once", "inner")
    await needs(app, "/twice", "inner", "outer", "middle")
    async with TestClient(app) as client:
        async with client.connect("/once", headers=scoped("inner")) as ws:
            assert await ws.receive_text() == "hello"


async def test_a_decorator_of_ones_own_passes_marks_on_by_functools_wraps(autojump_clock: MockClock) -> None:
    calls = []

    def logged(function: Handler) -> Handler:
        @functools.wraps(function)
        async def wrapper(ws: WebSocket, **parameters: Any) -> None:
            calls.append(ws.scope["path"])
            await function(ws, **parameters)

        return wrapper

    app = app_with()

    @app.ws_route("/between")
    @requires("above")
    @logged
    @requires("below")
    async def between(ws: WebSocket) -> None:
        await ws.accept()

    @requires("late")
    @app.ws_route("/late")
    @logged
    async def late(ws: WebSocket) -> None:
        await ws.accept()

    await needs(app, "/between", "above", "below")
    await needs(app, "/late", "late")
    assert calls == ["/between", "/late"]


async def test_marks_above_a_wrapper_do_not_reach_what_it_wraps(autojump_clock: MockClock) -> None:
    inner = requires("below")(handler())

    @functools.wraps(inner)
    async def wrapper(ws: WebSocket) -> None:
        await inner(ws)

    app = app_with()
    app.add_ws_route("/wrapped", requires("above")(wrapper))
    app.add_ws_route("/bare", inner)
    await needs(app, "/wrapped", "above", "below")
    await needs(app, "/bare", "below")
    async with TestClient(app) as client:
        assert await status(client, "/bare", "below") == 101  # and nothing of "above"


async def test_an_instance_that_can_be_called_can_be_decorated(autojump_clock: MockClock) -> None:
    class Room:
        async def __call__(self, ws: WebSocket) -> None:
            await ws.accept()

    class Decorated:
        @requires("method")
        async def handle(self, ws: WebSocket) -> None:
            await ws.accept()

    app = app_with()
    app.add_ws_route("/instance", requires("a")(Room()))
    app.add_ws_route("/method", Decorated().handle)
    await needs(app, "/instance", "a")
    await needs(app, "/method", "method")


async def test_a_decorated_call_method_is_held_to_its_marks(autojump_clock: MockClock) -> None:
    class Room:
        @requires("a")
        async def __call__(self, ws: WebSocket) -> None:
            await ws.accept()

    app = app_with()
    app.add_ws_route("/", Room())
    await needs(app, "/", "a")


async def test_marks_of_an_instance_its_class_and_its_bases_all_hold(autojump_clock: MockClock) -> None:
    @requires("member")
    class Members:
        pass

    @requires("paid")
    class Paying:
        pass

    @requires("class")
    class Room(Members, Paying):
        @requires("method")
        async def __call__(self, ws: WebSocket) -> None:
            await ws.accept()

    app = app_with()
    app.add_ws_route("/plain", Room())
    app.add_ws_route("/marked", requires("instance")(Room()))
    app.add_ws_route("/partial", functools.partial(Room()))
    await needs(app, "/plain", "member", "paid", "class", "method")
    await needs(app, "/marked", "member", "paid", "class", "method", "instance")
    await needs(app, "/partial", "member", "paid", "class", "method")


def test_what_cannot_be_marked_says_what_to_write() -> None:
    class Room:
        async def handle(self, ws: WebSocket) -> None: ...

    with pytest.raises(WrongTypeError, match=re.escape("ws_route(path, requires=...)")):
        requires("a")(Room().handle)
    for decorate in (requires("a"), rate_limit("1/s")):
        with pytest.raises(WrongTypeError, match="this decorates a handler, not RouteSpec"):
            decorate(WebSocketConsumer.as_route("/"))  # type: ignore[type-var]


def test_decorators_without_their_arguments_say_what_to_write() -> None:
    with pytest.raises(WrongTypeError, match=re.escape('@requires("chat:write")')):
        requires()
    with pytest.raises(WrongTypeError, match="scopes are names"):
        requires(handler())  # type: ignore[arg-type]
    with pytest.raises(WrongTypeError, match=re.escape('@rate_limit("10/s")')):
        rate_limit(handler())  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="a rate is a Rate, or a str"):
        rate_limit("often")
    with pytest.raises(WrongTypeError, match="a rate limit is a RateLimit or a str"):
        rate_limit(5)  # type: ignore[arg-type]


# Consumers


class Talker(WebSocketConsumer):
    encoding = "text"


async def test_a_consumer_s_class_can_be_decorated(autojump_clock: MockClock) -> None:
    @requires("a")
    @requires("b")
    class Room(Talker):
        pass

    app = app_with()
    app.add_ws_route(Room.as_route("/"))
    await needs(app, "/", "a", "b")
    plain = app_with()
    plain.add_ws_route(Talker.as_route("/"))
    async with TestClient(plain) as client:
        assert await status(client, "/", "nothing") == 101


async def test_subclasses_inherit_what_their_class_requires_and_add_to_it(autojump_clock: MockClock) -> None:
    @requires("member")
    class Members(Talker):
        pass

    class Room(Members):
        pass

    @requires("admin")
    class Admins(Members):
        pass

    app = app_with()
    for consumer, path in ((Members, "/members"), (Room, "/room"), (Admins, "/admins")):
        app.add_ws_route(consumer.as_route(path))
    await needs(app, "/members", "member")
    await needs(app, "/room", "member")
    await needs(app, "/admins", "member", "admin")
    async with TestClient(app) as client:
        assert await status(client, "/members", "member") == 101  # the subclass has not changed it


async def test_a_class_with_two_bases_is_held_to_what_both_require(autojump_clock: MockClock) -> None:
    @requires("member")
    class Members(Talker):
        pass

    @requires("paid")
    class Paying(Talker):
        pass

    class Room(Members, Paying):
        pass

    app = app_with()
    app.add_ws_route(Room.as_route("/"))
    await needs(app, "/", "member", "paid")


async def test_as_route_takes_the_options_of_a_route(autojump_clock: MockClock) -> None:
    class Echo(WebSocketConsumer):
        encoding = "json"

        def __init__(self, greeting: str = "") -> None:
            self.greeting = greeting

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.send_json([self.greeting, data])

    app = NexiosApp()
    app.add_ws_route(
        Echo.as_route(
            "/",
            authenticate=BearerToken(verify),
            requires=["a"],
            rate_limit=RateLimit("1/s", action="drop"),
            on_invalid="reply",
            greeting="hi",
        )
    )
    await needs(app, "/", "a")
    async with TestClient(app) as client, client.connect("/", headers=scoped("a")) as ws:
        await ws.send_json(1)
        await ws.send_json(2)
        assert await ws.receive_json() == ["hi", 1]
        await trio.sleep(1)
        await ws.send_text("no JSON")
        assert (await ws.receive_json())["error"] == "json"
    assert app.guard.counts["rate_limit.drop"] == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"authenticate": verify}, "`async def authenticate(ws)`"),
        ({"requires": [5]}, "scopes are names"),
        ({"rate_limit": "often"}, "a rate is a Rate, or a str"),
        ({"on_invalid": "ignore"}, 'on_invalid is "close", "reply" or'),
    ],
)
def test_bad_options_of_as_route_are_refused_when_it_is_added(options: dict[str, Any], error: str) -> None:
    with pytest.raises((WrongTypeError, WrongValueError), match=re.escape(error)):
        NexiosApp().add_ws_route(Talker.as_route("/", **options))


# All levels together


async def test_scopes_of_app_router_route_and_handler_are_all_required(autojump_clock: MockClock) -> None:
    inner = WSRouter(prefix="/inner", requires="inner")
    inner.add_ws_route("/", requires("handler")(handler()), requires=("route", "app"))
    outer = WSRouter(prefix="/outer", requires=["outer"])
    outer.mount_router(inner)
    app = app_with(requires="app")
    app.mount_ws_router(outer)
    app.add_ws_route("/plain", handler())
    await needs(app, "/outer/inner/", "app", "outer", "inner", "route", "handler")
    await needs(app, "/plain", "app")


async def test_a_router_mounted_twice_has_the_rules_of_each_place(autojump_clock: MockClock) -> None:
    shared = WSRouter()
    shared.add_ws_route("/room", handler())
    app = app_with()
    for name in ("one", "two"):
        around = WSRouter(prefix=f"/{name}", requires=name)
        around.mount_router(shared)
        app.mount_ws_router(around)
    await needs(app, "/one/room", "one")
    await needs(app, "/two/room", "two")


async def test_rules_hold_for_routes_added_after_the_router_was_mounted(autojump_clock: MockClock) -> None:
    router = WSRouter(prefix="/r", requires="router")
    app = app_with()
    app.mount_ws_router(router)
    router.add_ws_route("/late", handler())
    await needs(app, "/r/late", "router")


async def test_an_app_s_own_routes_argument_is_held_to_its_rules(autojump_clock: MockClock) -> None:
    app = app_with(
        routes=[WebsocketRoutes("/", handler(), requires="route"), Talker.as_route("/talk")], requires="app"
    )
    await needs(app, "/", "app", "route")
    await needs(app, "/talk", "app")


async def test_a_router_s_own_routes_argument_too(autojump_clock: MockClock) -> None:
    app = app_with()
    app.mount_ws_router(WSRouter([WebsocketRoutes("/", handler(), requires="a")], prefix="/r", requires="r"))
    await needs(app, "/r/", "a", "r")


async def test_a_route_spec_carries_rules(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    app.add_ws_route(
        RouteSpec("/", handler(), rules={"authenticate": BearerToken(verify), "requires": "spec"})
    )
    await needs(app, "/", "spec")


def test_a_route_spec_with_a_rule_that_nobody_knows_is_refused() -> None:
    with pytest.raises(WrongTypeError, match="not 'colour'"):
        NexiosApp().add_ws_route(RouteSpec("/", handler(), rules={"colour": "red"}))


def test_rules_beside_a_route_object_are_refused() -> None:
    with pytest.raises(WrongTypeError, match="takes a WebsocketRoutes alone"):
        NexiosApp().add_ws_route(WebsocketRoutes("/", handler()), requires="a")  # type: ignore[call-overload]


# Mistakes


@pytest.mark.parametrize(
    "register",
    [
        lambda **rules: WSRouter(**rules),
        lambda **rules: WebsocketRoutes("/", handler(), **rules),
        lambda **rules: NexiosApp().add_ws_route("/", handler(), **rules),
        lambda **rules: NexiosApp().ws_route("/", **rules)(handler()),
        lambda **rules: WSRouter().ws_route("/", **rules)(handler()),
    ],
    ids=["router", "WebsocketRoutes", "add_ws_route", "ws_route", "router's ws_route"],
)
@pytest.mark.parametrize(
    ("rules", "error"),
    [
        (
            {"require": "admin"},
            "authenticate, requires, rate_limit, on_invalid, name and middleware, not 'require'",
        ),
        ({"requires": [""]}, "scopes are names"),
        ({"requires": [1]}, "scopes are names"),
        ({"requires": ""}, "scopes are names"),
        ({"requires": 5}, "scopes are names"),
        ({"rate_limit": "10"}, "a rate is a Rate, or a str"),
        ({"rate_limit": ["10/s", 5]}, 'a rate limit is a RateLimit or a str such as "10/s"'),
        ({"rate_limit": 5}, 'a rate limit is a RateLimit or a str such as "10/s"'),
        ({"on_invalid": "ignore"}, 'on_invalid is "close", "reply" or `async def on_invalid(ws, error)`'),
        ({"on_invalid": 5}, 'on_invalid is "close", "reply" or `async def on_invalid(ws, error)`'),
        ({"on_invalid": lambda ws, error: None}, "`async def on_invalid(ws, error)`"),
    ],
    ids=[
        "unknown",
        "empty scope",
        "scope 1",
        "no scope",
        "scopes 5",
        "rate",
        "one of the rates",
        "rate 5",
        "policy",
        "policy 5",
        "sync policy",
    ],
)
def test_a_mistake_in_a_rule_is_found_at_registration(
    register: Callable[..., object], rules: dict[str, Any], error: str
) -> None:
    with pytest.raises((WrongTypeError, WrongValueError), match=re.escape(error)):
        register(**rules)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ({"requires": [1]}, "scopes are names"),
        ({"rate_limit": "10"}, "a rate is a Rate, or a str"),
        ({"on_invalid": "ignore"}, 'on_invalid is "close", "reply" or'),
    ],
)
def test_a_mistake_in_an_app_s_rules_is_found_when_it_is_made(rules: dict[str, Any], error: str) -> None:
    with pytest.raises((WrongTypeError, WrongValueError), match=re.escape(error)):
        NexiosApp(**rules)


@pytest.mark.parametrize(
    "limit", ["1/s", Rate(1), RateLimit("1/s"), ["1/s", Rate(2), RateLimit("3/s")], (), None]
)
async def test_a_rate_limit_is_given_in_many_forms(limit: Any, autojump_clock: MockClock) -> None:
    app = NexiosApp()
    app.add_ws_route("/", handler(), rate_limit=limit)
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("x")
        assert await ws.receive_text() == "x"


# Names, paths and tables are as before


async def test_rules_do_not_change_names_and_urls(autojump_clock: MockClock) -> None:
    app = app_with(requires="app")
    router = WSRouter(prefix="/r", requires="router")

    @requires("a")
    @router.ws_route("/rooms/{name}", requires="b", rate_limit="10/s")
    @rate_limit("5/s")
    async def room(ws: WebSocket, name: str) -> None:
        await ws.accept()
        await ws.send_text(str(ws.url_for("room", name="other")))

    app.mount_ws_router(router)

    @requires("c")
    class Talk(Talker):
        pass

    app.add_ws_route(Talk.as_route("/talk", requires="d"))
    assert app.url_path_for("room", name="x y") == "/r/rooms/x%20y"
    assert app.url_path_for("Talk") == "/talk"
    with pytest.raises(RoutingError):
        app.url_path_for("room")
    async with TestClient(app) as client:
        async with client.connect("/r/rooms/x", headers=scoped("app", "router", "a", "b")) as ws:
            assert await ws.receive_text() == "ws://testserver/r/rooms/other"


def test_the_table_of_routes_shows_rules_nowhere_and_the_handlers_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ruled.py").write_text(
        """
from nexios_trio import NexiosApp, WebSocketConsumer, rate_limit, requires

app = NexiosApp(requires="app", rate_limit="10/s")


@requires("a")
@app.ws_route("/rooms/{name}", requires=["b"], on_invalid="reply")
@rate_limit("1/s")
async def room(ws, name): ...


@requires("c")
class Talk(WebSocketConsumer): ...


app.add_ws_route(Talk.as_route("/talk", rate_limit="2/s"))
"""
    )
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["routes", "ruled:app", "--json"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [(row["path"], row["name"], row["handler"], row["middleware"]) for row in rows] == [
        ("/rooms/{name}", "room", "ruled.room", ""),
        ("/talk", "Talk", "ruled.Talk", ""),
    ]


# Bad messages


class Move(msgspec.Struct, tag="move"):
    x: int


GOOD = '{"type":"move","x":1}'
NO_JSON = '{"type":'
MISFIT = '{"type":"move","x":"secret"}'


async def by_receive(ws: WebSocket) -> None:
    await ws.accept()
    while True:
        value = await ws.receive_json(type=Move)
        await ws.send_json(["got", value.x])


async def by_loop(ws: WebSocket) -> None:
    await ws.accept()
    async for value in ws.iter_json(Move):
        await ws.send_json(["got", value.x])


class Mover(WebSocketConsumer):
    encoding = "json"
    message_type = Move

    async def on_receive(self, websocket: WebSocket, data: Move) -> None:
        await websocket.send_json(["got", data.x])


class SeveralAtOnce(Mover):
    concurrency = 3

    def ordering_key(self, data: Move) -> str:
        return "all"


Kind = Literal["receive", "loop", "consumer", "concurrent"]
KINDS: list[Kind] = ["receive", "loop", "consumer", "concurrent"]


def add(app: NexiosApp, kind: Kind, path: str = "/", **rules: Any) -> None:
    match kind:
        case "receive":
            app.add_ws_route(path, by_receive, **rules)
        case "loop":
            app.add_ws_route(path, by_loop, **rules)
        case "consumer":
            app.add_ws_route(Mover.as_route(path, **rules))
        case "concurrent":
            app.add_ws_route(SeveralAtOnce.as_route(path, **rules))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("explicitly", [False, True])
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (NO_JSON, "invalid JSON: "),
        (MISFIT, "expected int, got str at $.x"),
        ('{"type":"other"}', ""),
        ("", "invalid JSON: "),
    ],
    ids=["no JSON", "misfit", "tag", "empty"],
)
async def test_a_bad_message_closes_unless_something_else_is_said(
    kind: Kind, explicitly: bool, message: str, reason: str, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()
    add(app, kind, **({"on_invalid": "close"} if explicitly else {}))
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(GOOD)
        assert await peer.receive() == '["got",1]'
        await peer.send(message)
        code, said = await peer.wait_closed()
    assert code == 1007
    assert said.startswith(reason)
    assert "secret" not in said
    assert sum(app.guard.counts.values()) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_with_reply_the_client_is_told_and_may_go_on(
    kind: Kind, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()
    add(app, kind, on_invalid="reply")
    async with lane.serving(app), lane.connect() as peer:
        replies = []
        for message in (NO_JSON, MISFIT, GOOD, "[" * 1000, b"\xff", GOOD):
            if isinstance(message, bytes) and kind in ("receive", "loop"):
                continue  # another kind of wrong there, see below
            await peer.send(message)
            replies.append(json.loads(await peer.receive()))
    errors = [reply["error"] for reply in replies if isinstance(reply, dict)]
    assert errors == ["json", "validation", "json"] + ["json"] * (kind not in ("receive", "loop"))
    assert [reply for reply in replies if not isinstance(reply, dict)] == [["got", 1], ["got", 1]]
    misfit = replies[1]
    assert (misfit["type"], misfit["path"]) == ("error", "$.x")
    assert (misfit["expected"], misfit["found"]) == ("int", "str")
    assert "secret" not in json.dumps(replies)
    assert app.guard.counts == {"invalid": len(errors)}


@pytest.mark.parametrize("kind", ["receive", "loop"])
async def test_with_reply_a_message_of_the_other_kind_is_one_more_mistake(
    kind: Kind, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()
    add(app, kind, on_invalid="reply")
    async with lane.serving(app), lane.connect() as peer:
        await peer.send(GOOD.encode())
        reply = json.loads(await peer.receive())
        assert (reply["error"], reply["expected"], reply["found"]) == ("type", "text", "binary")
        await peer.send(GOOD)
        assert await peer.receive() == '["got",1]'


@pytest.mark.parametrize("kind", ["consumer", "concurrent"])
async def test_a_consumer_takes_json_in_messages_of_either_kind(
    kind: Kind, lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()
    add(app, kind, on_invalid="reply")
    async with lane.serving(app), lane.connect() as peer:
        for message in (GOOD, GOOD.encode()):
            await peer.send(message)
            assert await peer.receive() == '["got",1]'
        await peer.send(MISFIT.encode())
        assert json.loads(await peer.receive())["error"] == "validation"


async def test_binary_json_is_answered_in_the_same_way(autojump_clock: MockClock) -> None:
    app = NexiosApp(on_invalid="reply")

    @app.ws_route("/")
    async def binary(ws: WebSocket) -> None:
        await ws.accept()
        async for value in ws.iter_json(Move, mode="binary"):
            await ws.send_json(["got", value.x])

    async with TestClient(app) as client, client.connect("/") as ws:
        for message in (GOOD, NO_JSON.encode(), GOOD.encode()):
            await (ws.send_text(message) if isinstance(message, str) else ws.send_bytes(message))
        found = [(await ws.receive_json())["error"] for _ in range(2)]
        assert found == ["type", "json"]
        assert await ws.receive_json() == ["got", 1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_function_of_ones_own_judges_bad_messages(
    kind: Kind, lane: Lane, lane_clock: MockClock
) -> None:
    errors: list[PeerError] = []

    async def on_invalid(ws: WebSocket, error: PeerError) -> None:
        errors.append(error)
        if len(errors) == 3:
            raise WebSocketException(4000, "enough")
        await ws.send_text(f"mistake {len(errors)}")

    app = NexiosApp()
    add(app, kind, on_invalid=on_invalid)
    async with lane.serving(app), lane.connect() as peer:
        for number, message in enumerate((NO_JSON, MISFIT), 1):
            await peer.send(message)
            assert await peer.receive() == f"mistake {number}"
        await peer.send(GOOD)
        assert await peer.receive() == '["got",1]'
        await peer.send(MISFIT)
        assert await peer.wait_closed() == (4000, "enough")
    assert [type(error) for error in errors] == [
        InvalidJSON,
        MessageValidationError,
        MessageValidationError,
    ]


@pytest.mark.parametrize("code", [1007, 1008, 1011])
async def test_what_that_function_raises_ends_the_connection(code: int, autojump_clock: MockClock) -> None:
    async def on_invalid(ws: WebSocket, error: PeerError) -> None:
        if code == 1007:
            raise error
        raise LimitError("mistakes", 1, "too many mistakes") if code == 1008 else LookupError("a bug")

    app = NexiosApp(on_invalid=on_invalid)
    app.add_ws_route("/", by_loop)
    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text(NO_JSON)
        assert (await ws.wait_closed())[0] == code


async def test_a_handler_s_own_except_comes_after_the_route_s_policy(autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/close")
    @app.ws_route("/reply", on_invalid="reply")
    async def catching(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            try:
                await ws.send_json(["got", (await ws.receive_json(type=Move)).x])
            except (InvalidJSON, MessageValidationError, MessageTypeError) as error:
                await ws.send_json(type(error).__name__)

    async with TestClient(app) as client:
        async with client.connect("/close") as ws:
            await ws.send_text(MISFIT)
            assert await ws.receive_json() == "MessageValidationError"
            await ws.send_text(GOOD)
            assert await ws.receive_json() == ["got", 1]
        async with client.connect("/reply") as ws:
            await ws.send_text(MISFIT)
            assert (await ws.receive_json())["error"] == "validation"


@pytest.mark.parametrize("client_gone", ["close", "drop"])
async def test_a_reply_to_a_client_that_has_gone_is_no_failure(
    client_gone: str, lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, ended = NexiosApp(on_invalid="reply"), trio.Event()

    @app.ws_route("/")
    async def loop(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("ready")
        await trio.sleep(1)
        async for _ in ws.iter_json(Move):
            pass
        ended.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        await peer.send(NO_JSON)
        await (peer.close() if client_gone == "close" else peer.drop())
        await ended.wait()
    assert caplog.records == []


async def test_the_innermost_policy_counts(autojump_clock: MockClock) -> None:
    def saying(name: str) -> Any:
        async def on_invalid(ws: WebSocket, error: PeerError) -> None:
            await ws.send_text(name)

        return on_invalid

    nested = WSRouter(prefix="/nested", on_invalid=saying("nested"))
    bare = WSRouter(prefix="/bare")
    router = WSRouter(prefix="/router", on_invalid=saying("router"))
    app = NexiosApp(on_invalid=saying("app"))
    for each in (nested, bare, router, app):
        each.add_ws_route("/plain", by_loop)
        each.add_ws_route("/own", by_loop, on_invalid=saying("route"))
        each.add_ws_route("/strict", by_loop, on_invalid="close")
    router.mount_router(nested)
    router.mount_router(bare)
    app.mount_ws_router(router)
    async with TestClient(app) as client:
        for path, expected in (
            ("/plain", "app"),
            ("/own", "route"),
            ("/router/plain", "router"),
            ("/router/nested/plain", "nested"),
            ("/router/nested/own", "route"),
            ("/router/bare/plain", "router"),
        ):
            async with client.connect(path) as ws:
                await ws.send_text(NO_JSON)
                assert await ws.receive_text() == expected
        for path in ("/strict", "/router/strict", "/router/nested/strict"):
            async with client.connect(path) as ws:
                await ws.send_text(NO_JSON)
                assert (await ws.wait_closed())[0] == 1007


async def test_a_policy_is_for_json_and_not_for_text(autojump_clock: MockClock) -> None:
    app = NexiosApp(on_invalid="reply")
    app.add_ws_route("/", handler())
    app.add_ws_route(Talker.as_route("/talk"))
    async with TestClient(app) as client:
        for path in ("/", "/talk"):
            async with client.connect(path) as ws:
                await ws.send_bytes(b"x")
                assert (await ws.wait_closed())[0] == 1003


async def test_a_policy_ends_with_the_connection_it_was_for(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    app.add_ws_route("/reply", by_loop, on_invalid="reply")
    app.add_ws_route("/close", by_loop)
    async with TestClient(app) as client:
        async with client.connect("/reply") as first:
            async with client.connect("/close") as second:
                await second.send_text(NO_JSON)
                assert (await second.wait_closed())[0] == 1007
            await first.send_text(NO_JSON)
            assert (await first.receive_json())["error"] == "json"
