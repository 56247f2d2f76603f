"""The log: one line for each request, whatever the client wrote into it, and no secrets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.server.hypercorn import hypercorn_config
from nexios_trio.server.log import LineFormatter, SafeLogger, printable
from nexios_trio.testing import TestServer
from tests.lanes import Serve
from tests.server.clients import H2Client, read_to_end
from tests.server.test_hostile_and_dead_clients import UPGRADE

ATOMS = (
    "h l t r R s st S m U Uq q H b B f a T D L p {Authorization}i {cookie}i {sec-websocket-protocol}i "
    "{proxy-authorization}i {x-evil}i {X-Forwarded-For}i {set-cookie}o {Location}o {x-nothing}i"
)
EVERYTHING = " ".join(f"{name}=%({name})s" for name in ATOMS.split())


class Lines(logging.Handler):
    """What a file would hold of a logger's entries."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += self.format(record).splitlines()


@pytest.fixture
def access() -> Iterator[Lines]:
    logger, lines = logging.getLogger("tests.access"), Lines()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)


@pytest.fixture
def app() -> NexiosApp:
    app = NexiosApp()

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/fail")
    async def fail(ws: WebSocket) -> None:
        raise RuntimeError("broken")

    @app.get("/{rest:path}")
    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers={"location": "/next?token=SECRET", "set-cookie": "SECRET"})

    return app


def logging_to(access: Lines, form: str = EVERYTHING) -> dict[str, Any]:
    return {"accesslog": logging.getLogger("tests.access"), "access_log_format": form}


def close_handlers(name: str) -> None:
    logger = logging.getLogger(name)
    for handler in logger.handlers:
        handler.close()
    logger.handlers = []


async def get(server: TestServer, target: bytes, headers: bytes = b"", *, method: bytes = b"GET") -> bytes:
    async with await trio.open_tcp_stream(server.host, server.port) as stream:
        request = b"%s %s HTTP/1.1\r\nHost: server\r\nConnection: close\r\n%s\r\n"
        await stream.send_all(request % (method, target, headers))
        return await read_to_end(stream)


PATHS = [
    b"/%0aforged%20line",
    b"/%0d%0aforged",
    b"/%1b[2Jforged",
    b"/%e2%80%a8forged",
    b"/%c2%85forged",
    b"/%00forged",
    b"/%ff%0aforged",
    b'/"quoted"\\forged',
    b"/%22%0a%22forged",
    b"/%e2%80%aeforged",
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_forges_no_line(serve: Serve, path: bytes, app: NexiosApp, access: Lines) -> None:
    async with serve(app, **logging_to(access)) as server:
        assert (await get(server, path)).startswith(b"HTTP/1.1 ")
    (line,) = access.lines
    assert line.isprintable()
    assert "forged" in line


HEADERS = {
    "an escape": b"\x1b[2Jforged",
    "a C1 control": b"a\x9bforged\x85forged",
    "quotes": b'" 200 "forged\\',
    "a backspace": b"x\x08forged",
    "a tab": b"x\tforged",
}


@pytest.mark.parametrize("value", HEADERS.values(), ids=HEADERS.keys())
async def test_a_header_forges_no_part_of_a_line(
    serve: Serve, value: bytes, app: NexiosApp, access: Lines
) -> None:
    headers = b"".join(b"%s: %s\r\n" % (name, value) for name in (b"X-Evil", b"Referer", b"User-Agent"))
    async with serve(app, **logging_to(access, '"%(f)s" "%(a)s" "%({x-evil}i)s"')) as server:
        assert b"200" in await get(server, b"/", headers)
    (line,) = access.lines
    assert line.isprintable()
    assert line.count("forged") >= 3
    assert line.replace("\\\\", "").replace('\\"', "").count('"') == 6


SECRETS = (
    b"Authorization: Bearer SECRET\r\nCookie: session=SECRET\r\nProxy-Authorization: Basic SECRET\r\n"
    b"Sec-WebSocket-Protocol: bearer, SECRET\r\nReferer: https://example.com/page?token=SECRET#SECRET\r\n"
)


async def test_no_atom_tells_a_secret(serve: Serve, app: NexiosApp, access: Lines) -> None:
    """Neither the atoms of a format, nor the mapping that a formatter of JSON would take."""
    seen: list[str] = []

    class Everything(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(repr(record.__dict__))
            return True

    access.addFilter(Everything())
    async with serve(app, **logging_to(access)) as server:
        assert b"200" in await get(server, b"/page?token=SECRET", SECRETS)
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            target = UPGRADE.replace(b"GET / ", b"GET /echo?token=SECRET ")
            await stream.send_all(target[:-2] + SECRETS + b"\r\n")
            assert b"101" in await stream.receive_some(1000)
    page, ws = access.lines
    for text in (*access.lines, *seen):
        assert "SECRET" not in text
    assert "r=GET /page 1.1 R=GET /page?[...] 1.1 s=200 st=OK" in page
    assert "U=/page Uq=/page?[...] q=[...]" in page
    assert "f=https://example.com/page?[...] a=- " in page
    assert "{Authorization}i=[...] {cookie}i=[...] {sec-websocket-protocol}i=[...]" in page
    assert "{set-cookie}o=[...] {Location}o=/next?[...] {x-nothing}i=-" in page
    assert "r=GET /echo 1.1 R=GET /echo?[...] 1.1 s=101 st=Switching Protocols S=ws" in ws


async def test_what_is_no_secret_is_logged_as_it_came(serve: Serve, app: NexiosApp, access: Lines) -> None:
    async with serve(
        app, **logging_to(access, '%(h)s "%(r)s" %(s)s "%(R)s" "%(q)s" "%(f)s" "%(a)s"')
    ) as server:
        await get(server, b"/caf%C3%A9", b"User-Agent: Mozilla/5.0 (X11)\r\nReferer: http://x/y\r\n")
    (line,) = access.lines
    host, _, rest = line.partition(" ")
    assert host.startswith("127.0.0.1:")
    assert rest == '"GET /caf%C3%A9 1.1" 200 "GET /caf%C3%A9 1.1" "" "http://x/y" "Mozilla/5.0 (X11)"'


async def test_each_handshake_has_one_line(
    serve: Serve, server_lane: str, app: NexiosApp, access: Lines
) -> None:
    wrong = {
        b"/echo": (UPGRADE, "101"),
        b"/nowhere": (UPGRADE, "404"),
        b"/fail": (UPGRADE, "500"),
        b"/old": (
            UPGRADE.replace(b"Version: 13", b"Version: 99"),
            "426" if server_lane == "engine" else "400",
        ),
    }
    async with serve(app, **logging_to(access, "%(m)s %(U)s %(s)s %(S)s"), handshake_timeout=0.5) as server:
        for path, (request, status) in wrong.items():
            async with await trio.open_tcp_stream(server.host, server.port) as stream:
                await stream.send_all(request.replace(b"GET / ", b"GET %s " % path))
                assert status.encode() in await stream.receive_some(1000)
    assert access.lines == [f"GET {path.decode()} {status} ws" for path, (_, status) in wrong.items()]


async def test_an_app_that_leaves_a_handshake_unanswered_is_one_line(serve: Serve, access: Lines) -> None:
    """hypercorn alone writes it twice."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()

    async with serve(app, **logging_to(access, "%(s)s")) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            await stream.send_all(UPGRADE)
            await read_to_end(stream)
    assert access.lines == ["500"]


async def test_over_http2_neither(serve: Serve, app: NexiosApp, access: Lines) -> None:
    async with serve(app, **logging_to(access)) as server:
        client = H2Client(await trio.open_tcp_stream(server.host, server.port))
        await client.start()
        ws = await client.connect('/echo?token=SECRET&"\\')
        await ws.send("hello")
        assert await ws.receive() == "hello"
        await client.stream.aclose()
    (line,) = access.lines
    assert "SECRET" not in line
    assert "R=CONNECT" not in line
    assert "R=GET /echo?[...] 2 s=200" in line


@pytest.mark.parametrize("path", ["/echo", "/fail", "/nowhere"])
async def test_no_logger_of_ours_tells_the_query_or_a_forged_path(
    serve: Serve, path: str, app: NexiosApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve(app) as server:
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            target = f"GET {path}%0aforged?token=SECRET ".encode()
            await stream.send_all(UPGRADE.replace(b"GET / ", target)[:-2] + SECRETS + b"\r\n")
            await stream.receive_some(1000)
        async with await trio.open_tcp_stream(server.host, server.port) as stream:
            target = f"GET {path}?token=SECRET ".encode()
            await stream.send_all(UPGRADE.replace(b"GET / ", target)[:-2] + SECRETS + b"\r\n")
            await stream.receive_some(1000)
            with trio.move_on_after(0.1):
                await stream.send_all(b"\x83\x00")  # a violation: its log line, if there is one
                await read_to_end(stream)
    assert "SECRET" not in caplog.text
    assert not [record for record in caplog.records if "\nforged" in record.getMessage()]


async def test_a_logger_class_of_the_users_own_is_used_as_it_is(
    serve: Serve, app: NexiosApp, access: Lines
) -> None:
    class Own(Logger):
        pass

    async with serve(app, **logging_to(access, "%(R)s"), logger_class=Own) as server:
        await get(server, b"/?token=SECRET")
    assert access.lines == ["GET /?token=SECRET 1.1"]


async def test_statsd_is_counted_in_all_the_same(serve: Serve, app: NexiosApp, access: Lines) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(10)
        host = f"127.0.0.1:{statsd.getsockname()[1]}"
        async with serve(app, **logging_to(access, "%(R)s"), statsd_host=host) as server:
            await get(server, b"/?token=SECRET")
        assert statsd.recv(1000).startswith(b"hypercorn.request.duration:")
    assert access.lines == ["GET /?[...] 1.1"]


async def test_a_log_made_before_serving_is_made_anew(serve: Serve, app: NexiosApp, tmp_path: Path) -> None:
    config = hypercorn_config(accesslog=str(tmp_path / "log"), errorlog=None)
    assert type(config.log) is Logger
    close_handlers("hypercorn.access")
    async with serve(app, **vars(config) | {"bind": ["127.0.0.1:0"]}) as server:
        await get(server, b"/%1bforged?token=SECRET")
    close_handlers("hypercorn.access")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert '"GET /%1bforged 1.1" 200' in line


def test_text_is_escaped_unless_it_is_printable() -> None:
    assert printable("plain, naïve and 東京 💥") == "plain, naïve and 東京 💥"
    forged = "\r\n\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\ud800"
    assert printable(forged) == r"\r\n\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\ud800"


def test_an_entry_of_several_lines_begins_one_of_them() -> None:
    """A traceback ends with the exception's message, which may hold what a client sent."""
    formatter = LineFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    try:
        raise ValueError("from a client:\n[INFO] forged\r\x1b[2J\u2028[INFO] forged")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed\n%s", ("[INFO] forged",), info)
    first, *others = formatter.format(record).splitlines()
    assert first == "[ERROR] failed"
    assert len(others) > 3
    for line in others:
        assert line.startswith("    ")
        assert line.isprintable()


def test_the_logs_files_have_that_format(tmp_path: Path) -> None:
    config = Config.from_mapping(accesslog=str(tmp_path / "access"), errorlog=str(tmp_path / "error"))
    log = SafeLogger(config)
    for logger in (log.access_logger, log.error_logger):
        assert logger is not None
        (handler,) = logger.handlers
        assert isinstance(handler.formatter, LineFormatter)
        close_handlers(logger.name)
