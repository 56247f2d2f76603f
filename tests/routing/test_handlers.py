"""What may handle a route, and how path parameters reach it."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nexios_trio import NexiosApp, RoutingError, WebSocket, WebsocketRoutes, WSRouter
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.routing.handlers import name_of
from nexios_trio.testing import TestClient

Clients = Callable[..., TestClient]


class Instance:
    async def __call__(self, ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("instance")

    async def method(self, ws: WebSocket, room: str) -> None:
        await ws.accept()
        await ws.send_text(f"method {room}")


async def bound(greeting: str, ws: WebSocket) -> None:
    await ws.accept()
    await ws.send_text(greeting)


async def answer(nexios_client: Clients, pattern: str, handler: Any, path: str) -> Any:
    app = NexiosApp()
    app.add_ws_route(pattern, handler)
    async with nexios_client(app).connect(path) as ws:
        return await ws.receive_text()


async def test_a_partial_is_a_handler(nexios_client: Clients) -> None:
    handler = functools.partial(functools.partial(bound), "hello")
    assert await answer(nexios_client, "/", handler, "/") == "hello"


async def test_an_instance_with_an_async_call_is_a_handler(nexios_client: Clients) -> None:
    assert await answer(nexios_client, "/", Instance(), "/") == "instance"


async def test_a_bound_method_is_a_handler(nexios_client: Clients) -> None:
    assert await answer(nexios_client, "/{room}", Instance().method, "/a") == "method a"


async def test_a_handler_may_take_any_number_of_positional_arguments(nexios_client: Clients) -> None:
    async def handler(*args: Any) -> None:
        (ws,) = args
        await ws.accept()
        await ws.send_text(str(ws.path_params))

    assert await answer(nexios_client, "/{room}", handler, "/a") == "{'room': 'a'}"


async def test_path_parameters_come_as_arguments_by_name_in_any_order(nexios_client: Clients) -> None:
    async def handler(ws: WebSocket, second: int, *, first: str) -> None:
        await ws.accept()
        await ws.send_text(f"{first!r} {second!r}")

    assert await answer(nexios_client, "/{first}/{second:int}/{third}", handler, "/a/2/c") == "'a' 2"


async def test_a_handler_with_kwargs_gets_all_path_parameters(nexios_client: Clients) -> None:
    async def handler(ws: WebSocket, a: str, **others: Any) -> None:
        await ws.accept()
        await ws.send_text(f"{a} {others}")

    assert await answer(nexios_client, "/{a}/{b:int}", handler, "/x/2") == "x {'b': 2}"


async def test_an_argument_with_a_default_need_not_be_in_the_path(nexios_client: Clients) -> None:
    async def handler(ws: WebSocket, room: str, limit: int = 50) -> None:
        await ws.accept()
        await ws.send_text(f"{room} {limit}")

    assert await answer(nexios_client, "/{room}", handler, "/a") == "a 50"
    assert await answer(nexios_client, "/{room}/{limit:int}", handler, "/a/7") == "a 7"


async def test_the_websocket_may_have_the_name_of_a_path_parameter(nexios_client: Clients) -> None:
    async def handler(room: WebSocket) -> None:
        await room.accept()
        await room.send_text(room.path_params["room"])

    assert await answer(nexios_client, "/{room}", handler, "/a") == "a"


def test_an_argument_that_is_not_in_the_path_is_an_error_at_registration() -> None:
    async def handler(ws: WebSocket, room: str) -> None: ...

    with pytest.raises(
        RoutingError,
        match=re.escape(
            "the handler handler wants an argument 'room', but the path '/{rom}' has no parameter {room}"
        ),
    ):
        NexiosApp().add_ws_route("/{rom}", handler)


def test_kwargs_do_not_hide_an_argument_that_is_not_in_the_path() -> None:
    async def handler(ws: WebSocket, room: str, **others: Any) -> None: ...

    with pytest.raises(RoutingError, match="wants an argument 'room'"):
        NexiosApp().add_ws_route("/{rom}", handler)


def test_a_positional_only_argument_cannot_come_from_the_path() -> None:
    async def handler(ws: WebSocket, room: str, /) -> None: ...

    with pytest.raises(RoutingError, match="wants an argument 'room'"):
        NexiosApp().add_ws_route("/{room}", handler)


def test_one_name_for_the_websocket_and_a_parameter_is_an_error_where_both_would_be_passed() -> None:
    async def handler(ws: WebSocket, **parameters: Any) -> None: ...

    with pytest.raises(
        RoutingError,
        match=re.escape(
            "the handler handler calls the WebSocket 'ws', and the path '/{ws}' has a parameter of that "
            "name; rename one of them"
        ),
    ):
        NexiosApp().add_ws_route("/{ws}", handler)


def test_a_routers_prefix_may_hold_the_parameter_so_only_the_app_can_tell() -> None:
    async def handler(ws: WebSocket, tenant: str) -> None: ...

    router = WSRouter(prefix="/{tenant}")
    router.add_ws_route("/ws", handler)
    NexiosApp().mount_ws_router(router)
    with pytest.raises(RoutingError, match=re.escape("has no parameter {tenant}")):
        NexiosApp().mount_ws_router(router, "/fixed")


def test_a_sync_handler_is_an_error_with_the_line_to_write() -> None:
    def handler(ws: WebSocket) -> None: ...

    with pytest.raises(
        WrongTypeError,
        match=re.escape(
            "the handler handler is not async; write `async def handler(ws)`. Blocking work goes through "
            "`await trio.to_thread.run_sync(...)`"
        ),
    ):
        NexiosApp().add_ws_route("/", handler)  # type: ignore[arg-type]


def test_an_async_generator_is_no_handler() -> None:
    async def handler(ws: WebSocket) -> Any:
        yield

    with pytest.raises(WrongTypeError, match="is not async; write `async def handler"):
        NexiosApp().add_ws_route("/", handler)


def test_an_instance_without_an_async_call_is_an_error() -> None:
    class Sync:
        def __call__(self, ws: WebSocket) -> Awaitable[None]:
            raise NotImplementedError

    with pytest.raises(WrongTypeError, match="the handler Sync is not async"):
        NexiosApp().add_ws_route("/", Sync())


def test_a_class_is_an_error_with_the_line_to_write() -> None:
    with pytest.raises(
        WrongTypeError, match="Instance is a class; register an instance of it, or an `async def` function"
    ):
        NexiosApp().add_ws_route("/", Instance)  # type: ignore[arg-type]


def test_a_handler_that_takes_no_websocket_is_an_error_with_the_line_to_write() -> None:
    async def handler() -> None: ...

    with pytest.raises(
        WrongTypeError,
        match=re.escape("the handler handler takes no WebSocket; write `async def handler(ws)`"),
    ):
        NexiosApp().add_ws_route("/", handler)


def test_a_handler_whose_websocket_is_keyword_only_is_an_error() -> None:
    async def handler(*, ws: WebSocket) -> None: ...

    with pytest.raises(WrongTypeError, match="takes no WebSocket"):
        NexiosApp().add_ws_route("/", handler)


def test_something_that_cannot_be_called_is_an_error() -> None:
    with pytest.raises(WrongTypeError, match="a handler is an `async def` function, not int"):
        WebsocketRoutes("/", 5)  # type: ignore[arg-type]


def test_a_handler_is_named_after_what_it_is() -> None:
    assert name_of(bound) == "bound"
    assert name_of(functools.partial(bound, "x")) == "bound"
    assert name_of(Instance()) == "Instance"
    assert name_of(Instance().method) == "method"
