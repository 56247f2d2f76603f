"""`WSRouter`, `WebsocketRoutes` and the routes of an app: registering, nesting, order, names."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.convertors import Convertor
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute

from nexios_trio import NexiosApp, RoutingError, WebSocket, WebsocketRoutes, WSRouter
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.testing import TestClient, WebSocketRejected

Clients = Callable[..., TestClient]


async def handler(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text(ws.url.path)


async def other(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text("other")


def paths(table: WSRouter | NexiosApp) -> list[str]:
    router = table.ws_router if isinstance(table, NexiosApp) else table
    return [resolved.pattern.path for resolved in router.routes]


def router_with(*routes: str, prefix: str = "") -> WSRouter:
    return WSRouter([WebsocketRoutes(path, handler) for path in routes], prefix=prefix)


# The forms of registering


@pytest.mark.parametrize("make", [NexiosApp, WSRouter])
def test_an_app_and_a_router_take_a_route_in_every_form(make: Any) -> None:
    table = make([WebsocketRoutes("/list", handler)])
    table.add_ws_route(WebsocketRoutes("/object", handler))
    table.add_ws_route("/positional", handler)
    table.add_ws_route(path="/keywords", handler=handler)
    assert table.ws_route("/decorator")(handler) is handler
    assert table.websocket("/websocket")(handler) is handler
    assert paths(table) == ["/list", "/object", "/positional", "/keywords", "/decorator", "/websocket"]


async def test_a_registered_handler_answers(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.add_ws_route("/ws", handler)
    async with nexios_client(app).connect("/ws") as ws:
        assert await ws.receive_text() == "/ws"


def test_a_path_without_a_handler_is_an_error_with_the_line_to_write() -> None:
    with pytest.raises(
        WrongTypeError,
        match=re.escape(
            "add_ws_route('/ws') has no handler; write add_ws_route('/ws', handler) or decorate it with "
            "@app.ws_route('/ws')"
        ),
    ):
        NexiosApp().add_ws_route("/ws")  # type: ignore[call-overload]


@pytest.mark.parametrize("extra", [{"handler": handler}, {"name": "x"}, {"middleware": []}])
def test_a_route_object_and_more_arguments_is_an_error(extra: dict[str, Any]) -> None:
    with pytest.raises(
        WrongTypeError,
        match=re.escape("add_ws_route() takes a WebsocketRoutes alone, or a path and a handler"),
    ):
        NexiosApp().add_ws_route(WebsocketRoutes("/ws", handler), **extra)


def test_a_route_of_starlette_is_an_error_that_says_what_is_taken() -> None:
    with pytest.raises(
        WrongTypeError,
        match=re.escape("takes a WebsocketRoutes, or a path and a handler, not WebSocketRoute"),
    ):
        NexiosApp([WebSocketRoute("/ws", handler)])  # type: ignore[list-item]


def test_a_route_shows_its_path_and_name() -> None:
    assert repr(WebsocketRoutes("/ws", handler)) == "<WebsocketRoutes '/ws' handler>"


# Prefixes and nesting


def test_a_router_prefix_stands_before_each_path() -> None:
    app = NexiosApp()
    app.mount_ws_router(router_with("/ws", "/{x}", prefix="/api"))
    assert paths(app) == ["/api/ws", "/api/{x}"]


@pytest.mark.parametrize(("path", "expected"), [("/over", "/over/ws"), ("", "/ws"), ("/", "/ws")])
def test_a_router_prefix_is_replaced_by_the_mount_path(path: str, expected: str) -> None:
    app = NexiosApp()
    app.mount_ws_router(router_with("/ws", prefix="/api"), path)
    assert paths(app) == [expected]


def test_a_slash_at_the_end_of_a_prefix_is_not_doubled() -> None:
    app = NexiosApp()
    app.mount_ws_router(router_with("/ws", prefix="/api/"))
    app.mount_ws_router(router_with("/ws"), "/v2/")
    assert paths(app) == ["/api/ws", "/v2/ws"]


def test_nested_routers_add_their_prefixes_from_the_outside_in() -> None:
    inner = router_with("/ws", prefix="/inner")
    middle = router_with("/ws", prefix="/middle")
    middle.mount_router(inner)
    outer = WSRouter(prefix="/outer")
    outer.include(middle, "/replaced")
    app = NexiosApp()
    app.mount_ws_router(outer)
    assert paths(app) == ["/outer/replaced/ws", "/outer/replaced/inner/ws"]


async def test_parameters_of_a_prefix_reach_the_handler(nexios_client: Clients) -> None:
    router = WSRouter(prefix="/{tenant}")

    @router.ws_route("/rooms/{room:int}")
    async def room(ws: WebSocket, tenant: str, room: int) -> None:
        await ws.accept()
        await ws.send_json([tenant, room])

    app = NexiosApp()
    app.mount_ws_router(router)
    async with nexios_client(app).connect("/acme/rooms/7") as ws:
        assert await ws.receive_json() == ["acme", 7]


async def test_a_route_added_after_mounting_is_seen_at_once(nexios_client: Clients) -> None:
    inner = WSRouter(prefix="/inner")
    outer = WSRouter(prefix="/outer")
    outer.mount_router(inner)
    app = NexiosApp()
    app.mount_ws_router(outer)
    client = nexios_client(app)
    with pytest.raises(WebSocketRejected):
        async with client.connect("/outer/inner/late"):
            pass
    inner.add_ws_route("/late", handler)
    async with client.connect("/outer/inner/late") as ws:
        assert await ws.receive_text() == "/outer/inner/late"


def test_one_router_serves_two_apps_and_two_paths_of_one() -> None:
    router = router_with("/ws")
    first, second = NexiosApp(), NexiosApp()
    first.mount_ws_router(router, "/a")
    first.mount_ws_router(router, "/b")
    second.mount_ws_router(router, "/c")
    router.add_ws_route("/late", handler)
    assert paths(first) == ["/a/ws", "/a/late", "/b/ws", "/b/late"]
    assert paths(second) == ["/c/ws", "/c/late"]


def test_a_router_does_not_keep_the_apps_alive_that_it_was_mounted_on() -> None:
    router = router_with("/ws")
    app = NexiosApp()
    app.mount_ws_router(router)
    gone = weakref.ref(app.ws_router)
    del app
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_router_inside_itself_is_an_error(depth: int) -> None:
    top = bottom = WSRouter()
    for _ in range(depth):
        inner = WSRouter()
        bottom.mount_router(inner)
        bottom = inner
    with pytest.raises(RoutingError, match="a router cannot be mounted inside itself"):
        bottom.mount_router(top)


def test_mounting_something_else_as_a_router_is_a_type_error() -> None:
    with pytest.raises(WrongTypeError, match=re.escape("mount_router() takes a WSRouter, not NexiosApp")):
        NexiosApp().mount_ws_router(NexiosApp())  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["api", "/api?x"])
def test_a_wrong_prefix_is_an_error(prefix: str) -> None:
    with pytest.raises(RoutingError):
        WSRouter(prefix=prefix)
    with pytest.raises(RoutingError):
        WSRouter().mount_router(WSRouter(), prefix)


# Duplicates


def test_a_path_that_is_taken_is_an_error_that_names_both_handlers() -> None:
    app = NexiosApp()
    app.add_ws_route("/rooms/{a}", handler)
    with pytest.raises(
        RoutingError,
        match=re.escape(
            'the path "/rooms/{b}" of other is taken: handler has "/rooms/{a}", which matches the same '
            "paths. Give one of them another path"
        ),
    ):
        app.add_ws_route("/rooms/{b}", other)


def test_the_same_words_with_another_convertor_are_another_path() -> None:
    app = NexiosApp()
    for path in ("/{a}", "/{a:int}", "/{a:path}", "/{a}/", "/x"):
        app.add_ws_route(path, handler)
    assert len(paths(app)) == 5


def taken_in_a_router() -> None:
    router = router_with("/ws")
    router.add_ws_route("/ws", other)


def taken_in_the_list() -> None:
    router_with("/ws", "/ws")


def taken_in_the_apps_list() -> None:
    NexiosApp([WebsocketRoutes("/ws", handler), WebsocketRoutes("/ws", other)])


def taken_by_a_mounted_router() -> None:
    app = NexiosApp([WebsocketRoutes("/a/ws", handler)])
    app.mount_ws_router(router_with("/ws"), "/a")


def taken_by_the_same_router_again() -> None:
    app = NexiosApp()
    router = router_with("/ws", prefix="/a")
    app.mount_ws_router(router)
    app.mount_ws_router(router)


def taken_by_another_nested_router() -> None:
    app = NexiosApp()
    for inner in (router_with("/{x}", prefix="/b"), router_with("/b/{y}")):
        outer = WSRouter(prefix="/a")
        outer.mount_router(inner)
        app.mount_ws_router(outer)


def taken_by_a_route_added_after_mounting() -> None:
    inner, outer, app = WSRouter(), WSRouter(prefix="/a"), NexiosApp()
    outer.mount_router(inner)
    app.mount_ws_router(outer)
    app.add_ws_route("/a/late", handler)
    inner.add_ws_route("/late", other)


def taken_in_one_of_the_apps_of_a_router() -> None:
    router = WSRouter()
    NexiosApp().mount_ws_router(router)
    app = NexiosApp([WebsocketRoutes("/ws", handler)])
    app.mount_ws_router(router)
    router.add_ws_route("/ws", other)


def taken_by_a_router_with_two_mounts_that_meet() -> None:
    router, app = WSRouter(), NexiosApp()
    app.mount_ws_router(router, "/{a}")
    app.mount_ws_router(router, "/{b}")
    router.add_ws_route("/ws", handler)


@pytest.mark.parametrize(
    "register",
    [
        taken_in_a_router,
        taken_in_the_list,
        taken_in_the_apps_list,
        taken_by_a_mounted_router,
        taken_by_the_same_router_again,
        taken_by_another_nested_router,
        taken_by_a_route_added_after_mounting,
        taken_in_one_of_the_apps_of_a_router,
        taken_by_a_router_with_two_mounts_that_meet,
    ],
    ids=lambda register: register.__name__,
)
def test_a_duplicate_is_found_at_every_level(register: Callable[[], None]) -> None:
    with pytest.raises(RoutingError, match="is taken"):
        register()


async def test_a_failed_registration_leaves_every_table_as_it_was(nexios_client: Clients) -> None:
    inner, outer, app = WSRouter(), WSRouter(prefix="/a"), NexiosApp()
    outer.mount_router(inner)
    app.mount_ws_router(outer)
    app.add_ws_route("/a/x", handler)
    before = (paths(inner), paths(outer), paths(app))
    with pytest.raises(RoutingError):
        inner.add_ws_route("/x", other)
    with pytest.raises(RoutingError):
        inner.add_ws_route("/{x:nothing}", other)
    with pytest.raises(RoutingError):
        inner.mount_router(router_with("/y", "/x"))
    assert (paths(inner), paths(outer), paths(app)) == before
    inner.add_ws_route("/y", other)
    async with nexios_client(app).connect("/a/y") as ws:
        assert await ws.receive_text() == "other"


def test_a_router_whose_mounting_failed_is_not_bound_to_the_app() -> None:
    app = NexiosApp([WebsocketRoutes("/ws", handler)])
    router = router_with("/ws")
    with pytest.raises(RoutingError):
        app.mount_ws_router(router)
    app.add_ws_route("/late", handler)
    router.add_ws_route("/late", other)
    assert paths(app) == ["/ws", "/late"]


# Matching order


def test_the_first_route_that_matches_wins_in_the_order_of_adding() -> None:
    app = NexiosApp()
    app.add_ws_route("/rooms/{x}", handler, name="any")
    app.add_ws_route("/rooms/main", handler, name="main")
    app.add_ws_route("/halls/main", handler, name="main hall")
    app.add_ws_route("/halls/{x}", handler, name="any hall")
    found = [app.ws_router.find(path) for path in ("/rooms/main", "/halls/main", "/halls/x")]
    assert [hit and hit[0].route.name for hit in found] == ["any", "main hall", "any hall"]


def test_a_mounted_router_stands_where_it_was_mounted() -> None:
    router = WSRouter()
    app = NexiosApp()
    app.add_ws_route("/a", handler)
    app.mount_ws_router(router)
    app.add_ws_route("/{x}", handler)
    router.add_ws_route("/b", handler)
    assert paths(app) == ["/a", "/b", "/{x}"]


def test_an_unknown_path_finds_nothing() -> None:
    assert NexiosApp().ws_router.find("/") is None


# Trailing slashes


@pytest.mark.parametrize(
    ("registered", "asked", "hint"), [("/ws", "/ws/", True), ("/ws/", "/ws", True), ("/ws", "/", False)]
)
@pytest.mark.parametrize("debug", [True, False])
async def test_trailing_slashes_count_and_a_hint_says_so_in_debug(
    nexios_client: Clients, registered: str, asked: str, hint: bool, debug: bool
) -> None:
    app = NexiosApp(debug=debug)
    app.add_ws_route(registered, handler)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect(asked):
            pass
    assert rejected.value.status == 404
    hinted = "; there is one that differs in the trailing slash" if hint and debug else ""
    assert rejected.value.body.decode() == f"no WebSocket route matches this path{hinted}\n"


# Names


def test_a_path_is_built_from_a_route_name() -> None:
    router = WSRouter(prefix="/api")
    router.add_ws_route("/rooms/{room}/{n:int}", handler, name="room")
    app = NexiosApp()
    app.mount_ws_router(router)
    url = app.url_path_for("room", room="a b", n=2)
    assert url == "/api/rooms/a%20b/2"
    assert url.make_absolute_url("http://example.org/") == "ws://example.org/api/rooms/a%20b/2"


def test_a_route_is_named_after_its_handler_by_default() -> None:
    app = NexiosApp()
    app.add_ws_route("/ws", handler)
    assert app.url_path_for("handler") == "/ws"


def test_of_routes_of_one_name_that_with_the_parameters_given_is_built() -> None:
    app = NexiosApp()
    app.add_ws_route("/rooms", handler, name="rooms")
    app.add_ws_route("/rooms/{room}", handler, name="rooms")
    assert app.url_path_for("rooms") == "/rooms"
    assert app.url_path_for("rooms", room="x") == "/rooms/x"


def test_a_parameter_may_be_called_name() -> None:
    app = NexiosApp()
    app.add_ws_route("/{name}", handler, name="user")
    assert app.url_path_for("user", name="ada") == "/ada"


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("room", {}, "the route 'room' takes the parameters: room, n; given: none"),
        ("room", {"room": "x", "m": 1}, "the route 'room' takes the parameters: room, n; given: room, m"),
        ("plain", {"x": 1}, "the route 'plain' takes the parameters: none; given: x"),
        ("rom", {}, "no WebSocket route is named 'rom'; known: plain, room"),
    ],
)
def test_a_path_that_cannot_be_built_is_an_error_that_lists_what_is_known(
    name: str, parameters: dict[str, Any], problem: str
) -> None:
    app = NexiosApp()
    app.add_ws_route("/rooms/{room}/{n:int}", handler, name="room")
    app.add_ws_route("/plain", handler, name="plain")
    with pytest.raises(RoutingError, match=re.escape(problem)):
        app.url_path_for(name, **parameters)


def test_a_table_without_routes_knows_no_names() -> None:
    with pytest.raises(RoutingError, match="no WebSocket route is named 'x'; known: none"):
        WSRouter().url_path_for("x")


def test_the_path_of_an_http_route_is_built_too_but_websocket_routes_go_first() -> None:
    app = NexiosApp()

    @app.get("/page/{n:int}", name="page")
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app.get("/http", name="both")(page)
    app.add_ws_route("/ws", handler, name="both")
    assert app.url_path_for("page", n=3) == "/page/3"
    assert app.url_path_for("both") == "/ws"


async def test_a_handler_builds_absolute_urls(nexios_client: Clients) -> None:
    app = NexiosApp()

    @app.ws_route("/rooms/{room}")
    async def room(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(str(ws.url_for("room", room="b c")))

    async with nexios_client(app).connect("/rooms/a") as ws:
        assert await ws.receive_text() == "ws://testserver/rooms/b%20c"


# Size


class Counted(Convertor[str]):
    """Counts how often a pattern is compiled: the regex is asked for once each time."""

    asked = 0

    @property
    def regex(self) -> str:  # type: ignore[override]
        self.asked += 1
        return "[a-z]+"

    def convert(self, value: str) -> str:
        return value


def test_a_thousand_routes_are_compiled_a_bounded_number_of_times_each() -> None:
    def branches() -> Iterator[WebsocketRoutes]:
        for number in range(1000):
            yield WebsocketRoutes(f"/{number}/{{x:counted}}", handler)

    counted = Counted()
    router = WSRouter(convertors={"counted": counted})
    outer, app = WSRouter(prefix="/outer"), NexiosApp()
    outer.mount_router(router, "/inner")
    app.mount_ws_router(outer)
    for route in branches():
        router.add_ws_route(route)
    assert counted.asked <= 3 * 1000  # as seen by the router, the outer one and the app
    for number in (0, 500, 999):
        assert app.ws_router.find(f"/outer/inner/{number}/x") is not None
    assert counted.asked <= 4 * 1000


async def test_an_empty_path_is_the_router_s_prefix_itself(nexios_client: Callable[..., TestClient]) -> None:
    app, router = NexiosApp(), WSRouter(prefix="/game")

    @router.ws_route("")
    async def game(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("game")

    app.mount_ws_router(router)
    async with nexios_client(app).connect("/game") as ws:
        assert await ws.receive_text() == "game"
    assert app.url_path_for("game") == "/game"


async def test_an_empty_path_in_an_app_is_an_error() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()

    with pytest.raises(RoutingError, match='has an empty path in an app: write "/"'):
        NexiosApp().add_ws_route("", handler)
    with pytest.raises(RoutingError, match="mount its router with a prefix"):
        NexiosApp().mount_ws_router(WSRouter([WebsocketRoutes("", handler)]))
