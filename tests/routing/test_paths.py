"""Path patterns and convertors, matching and building."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from starlette.convertors import Convertor

from nexios_trio import NexiosApp, RoutingError, WebSocket, WSRouter
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.routing.paths import CONVERTORS, PathPattern, check_path, route_path
from nexios_trio.testing import TestClient, WebSocketRejected

Clients = Callable[..., TestClient]

UUID = "123e4567-e89b-12d3-a456-426614174000"


def pattern(path: str) -> PathPattern:
    return PathPattern.compile(path, CONVERTORS)


async def handler(ws: WebSocket) -> None:
    await ws.accept()


async def echo_parameters(ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_json({name: [type(value).__name__, value] for name, value in ws.path_params.items()})


class HexConvertor(Convertor[int]):
    regex = "[0-9a-f]+"

    def convert(self, value: str) -> int:
        return int(value, 16)

    def to_string(self, value: int) -> str:
        return f"{value:x}"


class EvenConvertor(Convertor[int]):
    """Knows more than its regex: an odd number does not convert."""

    regex = "[0-9]+"

    def convert(self, value: str) -> int:
        number = int(value)
        if number % 2:
            raise ValueError("odd")
        return number

    def to_string(self, value: int) -> str:
        return str(value)


# Matching


@pytest.mark.parametrize(
    ("path", "given", "parameters"),
    [
        ("/ws", "/ws", {}),
        ("/{x}", "/a b", {"x": "a b"}),
        ("/{x}", "/..", {"x": ".."}),
        ("/{x:str}", "/a", {"x": "a"}),
        ("/{x:int}", "/007", {"x": 7}),
        ("/{x:float}", "/1.50", {"x": 1.5}),
        ("/{x:float}", "/2", {"x": 2.0}),
        ("/{x:uuid}", f"/{UUID}", {"x": uuid.UUID(UUID)}),
        ("/{x:uuid}", f"/{UUID.upper().replace('-', '')}", {"x": uuid.UUID(UUID)}),
        ("/{x:slug}", "/a-Z_9", {"x": "a-Z_9"}),
        ("/{x:path}", "/a/b/", {"x": "a/b/"}),
        ("/{x:path}", "/", {"x": ""}),
        ("/{x:path}/tail", "/a/tail/tail", {"x": "a/tail"}),
        ("/{a}-{b:int}.json", "/x-y-3.json", {"a": "x-y", "b": 3}),
        ("/café/{x}", "/café/naïve 漢字", {"x": "naïve 漢字"}),
        ("/a.b+c(d)", "/a.b+c(d)", {}),
        ("/100%", "/100%", {}),
    ],
)
def test_a_path_that_fits_gives_its_parameters_converted(
    path: str, given: str, parameters: dict[str, Any]
) -> None:
    assert pattern(path).match(given) == parameters


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/ws", "/ws/"),
        ("/ws/", "/ws"),
        ("/ws", "/WS"),
        ("/ws", "/ws\n"),
        ("/{x}", "/"),
        ("/{x}", "/a/b"),
        ("/{x:int}", "/-1"),
        ("/{x:int}", "/1.0"),
        ("/{x:int}", "/٣"),
        ("/{x:int}", "/1\n"),
        pytest.param("/{x:int}", "/" + "1" * 5000, id="an int of 5,000 digits"),
        ("/{x:float}", "/1."),
        ("/{x:float}", "/nan"),
        ("/{x:float}", "/1e5"),
        pytest.param("/{x:float}", "/" + "9" * 5000, id="a float of 5,000 digits"),
        ("/{x:uuid}", f"/{UUID[:-1]}"),
        ("/{x:uuid}", f"/{UUID[:-1]}g"),
        ("/{x:slug}", "/ä"),
        ("/{x:slug}", "/a.b"),
        ("/a.b", "/axb"),
    ],
)
def test_a_path_that_does_not_fit_is_no_match(path: str, given: str) -> None:
    assert pattern(path).match(given) is None


async def test_a_client_that_sends_five_thousand_digits_gets_404(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.add_ws_route("/{x:int}", handler)
    with pytest.raises(WebSocketRejected) as rejected:
        async with nexios_client(app).connect("/" + "1" * 5000):
            pass
    assert rejected.value.status == 404


@pytest.mark.parametrize("path", ["/café/%E6%BC%A2%E5%AD%97", "/caf%C3%A9/漢字", "/café/漢字"])
async def test_percent_encoded_and_plain_characters_are_the_same_path(
    nexios_client: Clients, path: str
) -> None:
    app = NexiosApp()
    app.add_ws_route("/café/{x}", echo_parameters)
    async with nexios_client(app).connect(path) as ws:
        assert await ws.receive_json() == {"x": ["str", "漢字"]}


async def test_a_percent_encoded_slash_is_a_slash_to_the_router(nexios_client: Clients) -> None:
    app = NexiosApp()
    app.add_ws_route("/{x}", echo_parameters)
    app.add_ws_route("/{x}/{y}", echo_parameters)
    async with nexios_client(app).connect("/a%2Fb") as ws:
        assert await ws.receive_json() == {"x": ["str", "a"], "y": ["str", "b"]}


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/ws", "", "/ws"),
        ("/rt/ws", "/rt", "/ws"),
        ("/rt", "/rt", ""),
        ("/rtx/ws", "/rt", "/rtx/ws"),
        ("/ws", "/rt", "/ws"),
        ("/ws", "/", "/ws"),
    ],
)
def test_routes_are_matched_below_root_path(path: str, root_path: str, expected: str) -> None:
    assert route_path({"path": path, "root_path": root_path}) == expected


# Patterns that are none


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("ws", 'write "/ws" instead of "ws"'),
        ("/caf%C3%A9", 'write the characters themselves in "/caf%C3%A9", for example "/café"'),
        ("/ws?x=1", "holds a query or fragment; a route matches the path only (see ws.query_params)"),
        ("/ws#top", "holds a query or fragment"),
    ],
)
def test_a_path_that_no_client_can_ask_for_is_an_error_with_its_cure(path: str, cure: str) -> None:
    with pytest.raises(RoutingError, match=re.escape(cure)):
        NexiosApp().add_ws_route(path, handler)


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("/{x", "holds a brace without its partner; a parameter is {name}"),
        ("/x}", "holds a brace without its partner"),
        ("/a}/{x}", "holds a brace without its partner"),
        ("/{:{x}", "holds a brace without its partner"),
        ("/{{x}}", "holds a brace without its partner"),
        ("/{x}{", "holds a brace without its partner"),
        ("/{}", '"{}" in "/{}" is not a parameter; write {name} or {name:convertor}'),
        ("/{x:}", "is not a parameter; write {name} or {name:convertor}"),
        ("/{x y}", "is not a parameter"),
        ("/{1}", "is not a parameter"),
        ("/{größe}", "is not a parameter"),
        ("/{x:a:b}", "is not a parameter"),
        ("/{x}/{x}", 'the parameter {x} stands twice in "/{x}/{x}"; give each its own name'),
        (
            "/{x:hex}",
            '"/{x:hex}" asks for an unknown convertor "hex"; known here: float, int, path, slug, str, uuid. '
            'Give your own as convertors={"hex": ...} to the NexiosApp or WSRouter that this route is '
            "added to",
        ),
    ],
)
def test_a_wrong_pattern_is_an_error_that_says_what_to_write(path: str, cure: str) -> None:
    with pytest.raises(RoutingError, match=re.escape(cure)):
        NexiosApp().add_ws_route(path, handler)


def test_a_path_that_is_no_str_is_a_type_error() -> None:
    with pytest.raises(
        WrongTypeError, match=re.escape('a path is a str such as "/rooms/{room_id}", not bytes')
    ):
        check_path(b"/ws")


# Own convertors


async def test_an_app_brings_its_own_convertors(nexios_client: Clients) -> None:
    app = NexiosApp(convertors={"hex": HexConvertor()})
    app.add_ws_route("/{x:hex}", echo_parameters)
    async with nexios_client(app).connect("/ff") as ws:
        assert await ws.receive_json() == {"x": ["int", 255]}


async def test_a_router_brings_its_own_convertors_and_the_app_need_not_know_them(
    nexios_client: Clients,
) -> None:
    router = WSRouter(prefix="/r", convertors={"hex": HexConvertor()})
    router.add_ws_route("/{x:hex}", echo_parameters)
    app = NexiosApp()
    app.mount_ws_router(router)
    async with nexios_client(app).connect("/r/ff") as ws:
        assert await ws.receive_json() == {"x": ["int", 255]}
    with pytest.raises(RoutingError, match="unknown convertor"):
        app.add_ws_route("/{x:hex}", handler)


async def test_two_apps_with_different_convertors_of_one_name_do_not_meet(nexios_client: Clients) -> None:
    first = NexiosApp(convertors={"number": HexConvertor()})
    second = NexiosApp(convertors={"number": EvenConvertor()})
    for app in (first, second):
        app.add_ws_route("/{x:number}", echo_parameters)
    async with nexios_client(first).connect("/10") as one, nexios_client(second).connect("/10") as two:
        assert await one.receive_json() == {"x": ["int", 16]}
        assert await two.receive_json() == {"x": ["int", 10]}


async def test_an_apps_convertor_in_the_place_of_a_built_in_one_holds_in_its_routers(
    nexios_client: Clients,
) -> None:
    router = WSRouter(prefix="/r")
    router.add_ws_route("/{x:int}", echo_parameters)
    app = NexiosApp(convertors={"int": HexConvertor()})
    app.add_ws_route("/{x:int}", echo_parameters)
    app.mount_ws_router(router)
    client = nexios_client(app)
    for path in ("/ff", "/r/ff"):
        async with client.connect(path) as ws:
            assert await ws.receive_json() == {"x": ["int", 255]}


def test_a_routers_convertor_goes_before_the_apps_of_the_same_name() -> None:
    router = WSRouter(prefix="/r", convertors={"number": HexConvertor()})
    router.add_ws_route("/{x:number}", handler)
    app = NexiosApp(convertors={"number": EvenConvertor()})
    app.mount_ws_router(router)
    found = app.ws_router.find("/r/11")
    assert found is not None
    assert found[1] == {"x": 17}


def test_different_convertors_of_one_name_do_not_make_a_duplicate() -> None:
    app = NexiosApp()
    for convertor in (EvenConvertor(), HexConvertor()):
        router = WSRouter(prefix="/r", convertors={"number": convertor})
        router.add_ws_route("/{x:number}", handler)
        app.mount_ws_router(router)
    even, odd = app.ws_router.find("/r/10"), app.ws_router.find("/r/11")
    assert even is not None
    assert odd is not None
    assert (even[1], odd[1]) == ({"x": 10}, {"x": 17})


def test_a_value_that_does_not_convert_is_no_match_and_the_next_route_is_tried() -> None:
    app = NexiosApp(convertors={"even": EvenConvertor()})
    app.add_ws_route("/{x:even}", handler, name="even")
    app.add_ws_route("/{x:int}", handler, name="any")
    names = []
    for path in ("/4", "/5"):
        found = app.ws_router.find(path)
        assert found is not None
        names.append(found[0].route.name)
    assert names == ["even", "any"]


def test_a_convertor_with_groups_of_its_own_does_not_disturb_the_parameters() -> None:
    class Grouped(HexConvertor):
        regex = "(?P<inner>[0-9a-f])([0-9a-f]*)"

    compiled = PathPattern.compile("/{x:hex}/{y}", {**CONVERTORS, "hex": Grouped()})
    assert compiled.match("/ff/z") == {"x": 255, "y": "z"}


def test_a_convertor_whose_regex_does_not_compile_is_an_error_that_names_the_path() -> None:
    class Broken(HexConvertor):
        regex = "(["

    app = NexiosApp(convertors={"hex": Broken()})
    with pytest.raises(
        RoutingError, match=r'"/\{x:hex\}" has a convertor whose regex does not compile .*; try it alone with'
    ):
        app.add_ws_route("/{x:hex}", handler)


@pytest.mark.parametrize("make", [NexiosApp, WSRouter])
def test_a_convertor_class_instead_of_an_instance_is_a_type_error(make: Any) -> None:
    with pytest.raises(
        WrongTypeError,
        match=re.escape(
            'the convertor "hex" is an instance of a subclass of nexios_trio.routing.Convertor, not <class'
        ),
    ):
        make(convertors={"hex": HexConvertor})


# Building


@pytest.mark.parametrize(
    ("path", "parameters", "url"),
    [
        ("/ws", {}, "/ws"),
        ("/{x}", {"x": "a b"}, "/a%20b"),
        ("/{x}", {"x": "50%?#"}, "/50%25%3F%23"),
        ("/café/{x}", {"x": "漢"}, "/caf%C3%A9/%E6%BC%A2"),
        ("/{x:path}", {"x": "a/b c"}, "/a/b%20c"),
        ("/{x:int}/y", {"x": 7}, "/7/y"),
        ("/{x:float}", {"x": 0.5}, "/0.5"),
        ("/{x:uuid}", {"x": uuid.UUID(UUID)}, f"/{UUID}"),
        ("/{x:slug}", {"x": "a-b"}, "/a-b"),
    ],
)
def test_a_built_path_is_percent_encoded(path: str, parameters: dict[str, Any], url: str) -> None:
    assert pattern(path).build(parameters) == url


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("/{x}", "a/b", "May not contain path separators"),
        ("/{x}", "", "Must not be empty"),
        ("/{x:int}", -1, "Negative integers are not supported"),
        ("/{x:int}", "seven", "invalid literal"),
        pytest.param("/{x:int}", 10**5000, "Exceeds the limit", id="an int of 5,000 digits"),
        ("/{x:float}", float("nan"), "NaN"),
        ("/{x:uuid}", "abc", "'abc' does not match [0-9a-fA-F]{8}"),
        ("/{x:slug}", "a b", "a slug has letters, digits, - and _ only"),
        ("/{x:slug}", 5, "expected string"),
    ],
)
def test_a_parameter_that_does_not_fit_is_an_error_that_names_it(path: str, value: Any, problem: str) -> None:
    with pytest.raises(
        RoutingError, match=re.escape(f"the parameter 'x' given does not fit \"{path}\": ") + ".*"
    ) as error:
        pattern(path).build({"x": value})
    assert problem in str(error.value)


def test_what_was_built_matches_and_gives_the_parameters_back() -> None:
    compiled = pattern("/{a}/{b:int}/{c:uuid}/{d:slug}/{e:path}")
    parameters = {"a": "x", "b": 10**100, "c": uuid.UUID(UUID), "d": "s-1", "e": "p/q"}
    assert compiled.match(compiled.build(parameters)) == parameters
