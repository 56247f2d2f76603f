"""HTTP beside the sockets: Starlette's endpoints, methods, errors and files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from nexios_trio import NexiosApp, RoutingError
from nexios_trio.types import ASGIApp
from tests.application.lifespans import lifespan_of


@asynccontextmanager
async def http(app: ASGIApp, *, raises: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=raises)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def method(request: Request) -> Response:
    return PlainTextResponse(request.method)


@pytest.mark.parametrize("verb", ["get", "post", "put", "patch", "delete"])
async def test_a_decorator_per_method_registers_an_endpoint(verb: str) -> None:
    app = NexiosApp()
    decorator = getattr(app, verb)
    assert decorator("/x")(method) is method
    async with http(app) as client:
        assert (await client.request(verb.upper(), "/x")).text == verb.upper()
        other = await client.request("PUT" if verb != "put" else "POST", "/x")
        assert other.status_code == 405


async def test_get_answers_head_too() -> None:
    app = NexiosApp()
    app.get("/x")(method)
    async with http(app) as client:
        answer = await client.head("/x")
    assert (answer.status_code, answer.text) == (200, "")


async def test_route_takes_a_list_of_methods_and_get_is_the_default() -> None:
    app = NexiosApp()
    app.route("/both", methods=["GET", "POST"])(method)
    app.route("/default")(method)
    app.add_route("/added", method, ["PUT"], name="put")
    async with http(app) as client:
        assert (await client.post("/both")).text == "POST"
        assert (await client.get("/default")).text == "GET"
        assert (await client.post("/default")).status_code == 405
        assert (await client.put("/added")).text == "PUT"
    assert app.url_path_for("put") == "/added"


async def test_the_endpoints_and_mounts_are_listed() -> None:
    app = NexiosApp()
    app.get("/x")(method)
    app.mount("/y", NexiosApp())
    assert [route.path for route in app.routes] == ["/x", "/y"]  # type: ignore[attr-defined]


async def test_an_endpoint_gets_path_parameters_and_a_body() -> None:
    app = NexiosApp()

    @app.post("/rooms/{room:int}")
    async def post(request: Request) -> Response:
        return JSONResponse([request.path_params["room"], await request.json()])

    async with http(app) as client:
        assert (await client.post("/rooms/7", json={"a": 1})).json() == [7, {"a": 1}]


async def test_one_path_serves_http_and_websocket(nexios_client: Any) -> None:
    app = NexiosApp()
    app.get("/x")(method)

    @app.ws_route("/x")
    async def handler(ws: Any) -> None:
        await ws.accept()
        await ws.send_text("websocket")

    async with http(app) as client, nexios_client(app).connect("/x") as ws:
        assert (await client.get("/x")).text == "GET"
        assert await ws.receive_text() == "websocket"


async def test_an_endpoint_sees_the_app_and_the_state() -> None:
    app = NexiosApp()
    app.state.greeting = "hello"

    @app.get("/")
    async def page(request: Request) -> Response:
        return PlainTextResponse(request.app.state.greeting)

    async with http(app) as client:
        assert (await client.get("/")).text == "hello"


async def test_an_unknown_path_is_404_and_a_wrong_method_405() -> None:
    app = NexiosApp()
    app.post("/x")(method)
    async with http(app) as client:
        assert (await client.get("/unknown")).status_code == 404
        answer = await client.get("/x")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


class Teapot(Exception):
    pass


async def test_exception_handlers_answer_by_class_and_by_status() -> None:
    async def on_teapot(request: Request, error: Exception) -> Response:
        return PlainTextResponse("short and stout", 418)

    async def on_404(request: Request, error: Exception) -> Response:
        return PlainTextResponse("nothing here", 404)

    app = NexiosApp(exception_handlers={Teapot: on_teapot, 404: on_404})

    @app.get("/teapot")
    async def teapot(request: Request) -> Response:
        raise Teapot

    async with http(app) as client:
        assert (await client.get("/teapot")).text == "short and stout"
        assert (await client.get("/unknown")).text == "nothing here"


async def test_an_http_exception_is_answered_with_its_status() -> None:
    app = NexiosApp()

    @app.get("/")
    async def page(request: Request) -> Response:
        raise HTTPException(409, "taken")

    async with http(app) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.text) == (409, "taken")


@pytest.mark.parametrize("key", [500, Exception])
async def test_a_handler_for_500_answers_what_nobody_caught(key: Any) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"sorry: {type(error).__name__}", 500)

    app = NexiosApp(exception_handlers={key: on_error})

    @app.get("/")
    async def page(request: Request) -> Response:
        raise Teapot

    async with http(app, raises=False) as client:
        assert (await client.get("/")).text == "sorry: Teapot"


@pytest.mark.parametrize("debug", [True, False])
async def test_the_traceback_is_shown_in_debug_only(debug: bool) -> None:
    app = NexiosApp(debug=debug)

    @app.get("/")
    async def page(request: Request) -> Response:
        raise Teapot("secret")

    async with http(app, raises=False) as client:
        answer = await client.get("/", headers={"accept": "text/html"})
    assert answer.status_code == 500
    assert ("Traceback" in answer.text) is debug
    assert ("secret" in answer.text) is debug


async def test_an_uncaught_error_reaches_the_server_too() -> None:
    app = NexiosApp()

    @app.get("/")
    async def page(request: Request) -> Response:
        raise Teapot

    async with http(app) as client:
        with pytest.raises(Teapot):
            await client.get("/")


async def test_files_are_served_although_they_have_no_lifespan(tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("a file")
    app = NexiosApp()
    app.mount("/static", StaticFiles(directory=tmp_path), name="static")
    async with lifespan_of(app) as server:
        async with http(app) as client:
            assert (await client.get("/static/page.txt")).text == "a file"
    assert server.kinds == ["startup.complete", "shutdown.complete"]
    assert app.url_path_for("static", path="/page.txt") == "/static/page.txt"


async def test_http_is_served_over_a_real_server(nexios_server: Any) -> None:
    app = NexiosApp()
    app.get("/x")(method)
    server = await nexios_server(app)
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{server.http_url}/x")).text == "GET"


@pytest.mark.parametrize(
    ("path", "cure"),
    [("x", 'write "/x" instead of "x"'), ("/caf%C3%A9", "write the characters themselves")],
)
def test_a_wrong_path_is_an_error_with_its_cure(path: str, cure: str) -> None:
    with pytest.raises(RoutingError, match=re.escape(cure)):
        NexiosApp().get(path)(method)
    with pytest.raises(RoutingError, match=re.escape(cure)):
        NexiosApp().mount(path, NexiosApp())


def test_an_app_is_mounted_at_the_root_with_an_empty_path() -> None:
    app = NexiosApp()
    app.mount("", NexiosApp())
    assert len(app.routes) == 1
