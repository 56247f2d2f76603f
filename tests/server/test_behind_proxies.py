"""The configurations of docs/security.md, tried: a real nginx and a real Caddy in front of a real server.

They are taken from the page. Only ports and paths are replaced, and where a test is about it one value. The
clients are at 127.0.0.2 and .3, so that they are not where the proxy is.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from wsproto.events import AcceptConnection, Event, Ping, RejectConnection, RejectData
from wsproto.events import Request as Handshake
from wsproto.extensions import PerMessageDeflate

from nexios_trio import (
    Deflate,
    Heartbeat,
    Limits,
    NexiosApp,
    Proxy,
    SubprotocolToken,
    WebSocket,
    WebSocketDisconnect,
)
from nexios_trio.testing import TestServer, serve
from tests.lanes import SocketPeer
from tests.server.test_hostile_and_dead_clients import HOSTILE

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NAME = "chat.example.org"
UPSTREAM = "127.0.0.1:8000"
PATIENCE = 30.0
"""Seconds that a proxy has to start, and anything else has to happen."""

NGINX = """
pid {here}/nginx.pid;
daemon off;
master_process off;
events {{}}
http {{
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    include {here}/chat.conf;
}}
"""

CADDY = """{{
	admin off
	default_bind 127.0.0.1
	http_port {http}
	https_port {https}
	local_certs
	skip_install_trust
	storage file_system {here}/storage
	servers {{
		protocols h1 h2
	}}
"""


class Refused(Exception):
    """The handshake was answered by HTTP."""

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = dict(headers)
        self.body = body


class Client(SocketPeer):
    """A WebSocket client that tells of refusals and counts the server's pings."""

    pings = 0

    async def shake_hands(self, host: str, path: str, **options: Any) -> None:
        await self.stream.send_all(self.wire.send(Handshake(host=host, target=path, **options)))
        event = await self._event()
        if isinstance(event, RejectConnection):
            body, finished = b"", not event.has_body
            while not finished:
                data = await self._event()
                assert isinstance(data, RejectData)
                body, finished = body + bytes(data.data), data.body_finished
            raise Refused(event.status_code, event.headers, body)
        assert isinstance(event, AcceptConnection), event
        self.extensions = event.extensions

    async def _event(self) -> Event:
        event = await super()._event()
        self.pings += isinstance(event, Ping)
        return event

    async def wait_for_pings(self, count: int) -> None:
        while self.pings < count:
            event = await self._event()
            assert isinstance(event, Ping), event
            await self._put(event.response())


class Front:
    """A proxy, running."""

    def __init__(self, here: Path, http: int, https: int, trust: ssl.SSLContext) -> None:
        self.here = here
        self.http = http
        self.https = https
        self.trust = trust
        self.host = f"{NAME}:{https}"
        self.origin = f"https://{self.host}"

    async def open(self, source: str = "127.0.0.2") -> trio.SSLStream[trio.SocketStream]:
        tcp = await trio.open_tcp_stream("127.0.0.1", self.https, local_address=source)
        stream = trio.SSLStream(tcp, self.trust, server_hostname=NAME, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise
        return stream

    @asynccontextmanager
    async def connect(
        self,
        path: str = "/",
        *,
        source: str = "127.0.0.2",
        host: str | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[Client]:
        stream = await self.open(source)
        try:
            client = Client(cast("Any", stream))
            extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
            with trio.fail_after(PATIENCE):
                await client.shake_hands(host or self.host, path, extra_headers=extra, **options)
                yield client
        finally:
            await trio.aclose_forcefully(stream)

    async def refusal(self, **options: Any) -> Refused:
        with pytest.raises(Refused) as refused:
            async with self.connect(**options):
                pass
        return refused.value

    def logged(self) -> str:
        """All that the proxy has logged; for nginx both its logs."""
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self.here.glob("*.log")))


def documented(language: str) -> str:
    """The one block of this language in docs/security.md."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert isinstance(block, str)
    return block


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def nginx(conf: str, here: Path, upstream: str, http: int, https: int) -> list[str]:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(
        [*command, "-keyout", f"{here}/key.pem", "-out", f"{here}/trust.pem"], check=True, capture_output=True
    )
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{http};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{https} ssl;"),
        (f"/etc/ssl/{NAME}.pem", f"{here}/trust.pem"),
        (f"/etc/ssl/{NAME}.key", f"{here}/key.pem"),
        ("/var/log/nginx/chat.log", f"{here}/access.log"),
        (f"http://{UPSTREAM}", f"http://{upstream}"),
    ):
        conf = replaced(conf, old, new)
    (here / "chat.conf").write_text(conf)
    (here / "nginx.conf").write_text(NGINX.format(here=here))
    return ["-p", str(here), "-c", f"{here}/nginx.conf", "-e", "stderr"]


def caddy(conf: str, here: Path, upstream: str, http: int, https: int) -> list[str]:
    assert conf.startswith("{\n")
    ours = CADDY.format(here=here, http=http, https=https)
    (here / "Caddyfile").write_text(ours + replaced(conf.removeprefix("{\n"), UPSTREAM, upstream))
    return ["run", "--adapter", "caddyfile", "--config", f"{here}/Caddyfile"]


PROXIES = {
    "nginx": (nginx, "trust.pem"),
    "caddy": (caddy, "storage/pki/authorities/local/root.crt"),
}


class Start:
    """``async with start(server) as front``; ``change`` are things to replace in the configuration."""

    def __init__(self, name: str, here: Path) -> None:
        for wanted in (name, "openssl"):
            if find(wanted) is None:
                pytest.skip(f"{wanted} IS NOT INSTALLED: the {name} of docs/security.md stays untried")
        self.name = name
        self.here = here

    @asynccontextmanager
    async def __call__(
        self, server: TestServer | None, *change: tuple[str, str], upstream: str = ""
    ) -> AsyncIterator[Front]:
        if server is not None:
            upstream = upstream or f"{server.host}:{server.port}"
        configure, trusted = PROXIES[self.name]
        http, https = free_ports()
        text = documented(self.name)
        for old, new in change:
            text = replaced(text, old, new)
        command = [find(self.name) or "", *configure(text, self.here, upstream, http, https)]
        environment = {**os.environ, "HOME": str(self.here), "XDG_DATA_HOME": str(self.here)}
        with (self.here / "error.log").open("wb") as log:
            process = await trio.lowlevel.open_process(command, env=environment, stdout=log, stderr=log)
        try:
            with trio.fail_after(PATIENCE):
                front = await ready(process, self.here, trusted, http, https)
            yield front
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@pytest.fixture(params=PROXIES)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    return Start(request.param, tmp_path)


@pytest.fixture
def start_nginx(tmp_path: Path) -> Start:
    return Start("nginx", tmp_path)


async def ready(process: trio.Process, here: Path, trusted: str, http: int, https: int) -> Front:
    """The proxy, as soon as it shakes hands by TLS with a certificate that we trust."""
    while True:
        assert process.poll() is None, (here / "error.log").read_text("utf-8")
        if (here / trusted).exists():
            try:
                trust = ssl.create_default_context(cafile=here / trusted)
                front = Front(here, http, https, trust)
                await trio.aclose_forcefully(await front.open())
            except (OSError, trio.BrokenResourceError):
                pass
            else:
                return front
        await trio.sleep(0.05)


def echo_app(**options: Any) -> NexiosApp:
    """An app with the settings that the page gives it, and these."""
    app = NexiosApp(**{"proxy": Proxy(["127.0.0.1"]), "trusted_hosts": [NAME], **options})

    @app.ws_route("/")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/who")
    async def who(ws: WebSocket) -> None:
        await ws.accept("chat" if "chat" in ws.subprotocols else None)
        assert ws.client is not None
        await ws.send_text(f"{ws.client.host} at {ws.url.scheme}://{ws.url.netloc}")

    @app.ws_route("/close")
    async def close(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close(4002, "grüße")

    @app.ws_route("/reject")
    async def reject(ws: WebSocket) -> None:
        await ws.reject(418, "no coffee", headers={"x-why": "teapot"})

    @app.get("/page")
    async def page(request: Request) -> PlainTextResponse:
        assert request.client is not None
        return PlainTextResponse(f"{request.client.host} at {request.url}")

    return app


@pytest.mark.parametrize("fast_lane", [False, True], ids=["hypercorn", "engine"])
async def test_an_upgrade_passes_and_the_client_has_its_own_address(start: Start, fast_lane: bool) -> None:
    async with serve(echo_app(), fast_lane=fast_lane) as server, start(server) as front:
        async with front.connect() as client:
            await client.send("hello")
            assert await client.receive() == "hello"
            await client.close()
        for source in ("127.0.0.2", "127.0.0.3"):
            async with front.connect("/who", source=source) as client:
                assert await client.receive() == f"{source} at wss://{front.host}"


async def test_what_a_client_says_it_was_forwarded_from_is_not_believed(start: Start) -> None:
    lies = {
        "X-Forwarded-For": "198.51.100.9",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Real-IP": "198.51.100.9",
        "Forwarded": "for=198.51.100.9;host=evil.example;proto=http",
    }
    async with serve(echo_app()) as server, start(server) as front:
        async with front.connect("/who", headers=lies) as client:
            assert await client.receive() == f"127.0.0.2 at wss://{front.host}"


async def test_a_proxy_that_appends_to_the_header_makes_no_client_believed(start_nginx: Start) -> None:
    appending = ("X-Forwarded-For $remote_addr;", "X-Forwarded-For $proxy_add_x_forwarded_for;")
    async with serve(echo_app()) as server, start_nginx(server, appending) as front:
        async with front.connect("/who", headers={"X-Forwarded-For": "198.51.100.9, 127.0.0.1"}) as client:
            assert await client.receive() == f"127.0.0.2 at wss://{front.host}"


async def test_a_page_of_the_same_host_comes_in_and_no_other(start: Start) -> None:
    async with serve(echo_app()) as server, start(server) as front:
        async with front.connect(headers={"Origin": front.origin}) as client:
            await client.send("from our own page")
            assert await client.receive() == "from our own page"
        for origin in (
            "https://evil.example",
            f"http://{front.host}",  # the proxy says that the connection has TLS; that page had none
            f"https://{NAME}:1",
            f"https://{front.host}.evil.example",
            "null",
        ):
            refused = await front.refusal(headers={"Origin": origin})
            assert (refused.status, refused.body) == (403, b'{"error":"origin not allowed"}')


async def test_a_list_of_origins_holds_behind_a_proxy(start: Start) -> None:
    app = echo_app(allowed_origins=["https://www.example.org"])
    async with serve(app) as server, start(server) as front:
        async with front.connect(headers={"Origin": "https://www.example.org"}):
            pass
        assert (await front.refusal(headers={"Origin": front.origin})).status == 403
    assert app.guard.counts == {"allowed_origins": 1}


async def test_a_host_that_is_not_ours_does_not_come_in(start: Start) -> None:
    app = echo_app()
    async with serve(app) as server, start(server) as front:
        refused = await front.refusal(host="evil.example")
        if start.name == "nginx":  # which has no other server to send it to
            assert (refused.status, refused.body) == (400, b'{"error":"unknown host"}')
            assert app.guard.counts == {"trusted_hosts": 1}
        else:
            assert refused.status == 200  # an empty page of Caddy's own
            assert not app.guard.counts


async def test_limits_per_address_count_clients_and_not_the_proxy(start: Start) -> None:
    app = echo_app(limits=Limits(connections_per_address=1))
    async with serve(app) as server, start(server) as front:
        async with front.connect(), front.connect(source="127.0.0.3"):
            refused = await front.refusal()
            assert refused.status == 429
            assert refused.body == b'{"error":"too many connections"}'
            assert refused.headers[b"retry-after"] == b"5"


async def test_close_codes_and_refusals_pass(start: Start) -> None:
    async with serve(echo_app()) as server, start(server) as front:
        async with front.connect("/close") as client:
            assert await client.wait_closed() == (4002, "grüße")
        refused = await front.refusal(path="/reject")
        assert (refused.status, refused.headers[b"x-why"], refused.body) == (418, b"teapot", b"no coffee")
        assert (await front.refusal(path="/nowhere")).status == 404


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "compressed"])
async def test_a_message_of_a_mebibyte_passes_and_a_larger_one_closes_with_1009(
    deflate: bool, start: Start
) -> None:
    app = echo_app(deflate=Deflate())
    extensions = [PerMessageDeflate()] if deflate else []
    async with serve(app) as server, start(server) as front:
        async with front.connect(extensions=extensions) as client:
            assert bool(client.extensions) is deflate
            await client.send("x" * (1 << 20))
            assert await client.receive() == "x" * (1 << 20)
            await client.send("x" * ((1 << 20) + 1))
            assert await client.wait_closed() == (1009, "a message has at most 1048576 bytes")
        async with front.connect() as client:
            await client.send("the next one is served")
            await client.receive()


async def test_pings_keep_a_silent_connection_open_beyond_nginxs_patience(start_nginx: Start) -> None:
    app = echo_app(heartbeat=Heartbeat(interval=0.2))
    impatient = ("proxy_read_timeout 60s;", "proxy_read_timeout 2s;")
    async with serve(app) as server, start_nginx(server, impatient) as front:
        async with front.connect() as client:
            await client.wait_for_pings(15)  # 3 seconds
            await client.send("still there?")
            assert await client.receive() == "still there?"


async def test_without_pings_nginx_ends_a_silent_connection(start_nginx: Start) -> None:
    told: list[WebSocketDisconnect] = []
    app = echo_app(heartbeat=None)

    @app.ws_route("/listen")
    async def listen(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            told.append(gone)

    impatient = ("proxy_read_timeout 60s;", "proxy_read_timeout 1s;")
    async with serve(app) as server, start_nginx(server, impatient) as front:
        async with front.connect("/listen") as client:
            assert (await client.wait_closed())[0] == 1006
    assert [(gone.code, gone.by) for gone in told] == [(1006, "network")]


async def test_a_client_that_hangs_is_found_by_messages_of_the_app(start: Start) -> None:
    app = echo_app(heartbeat=Heartbeat(interval=0.2, timeout=0.2, message="ping"))
    async with serve(app) as server, start(server) as front:
        async with front.connect() as client:
            assert await client.receive() == "ping"
            assert await client.wait_closed() == (1011, "heartbeat timeout")


async def test_a_client_that_does_not_read_is_ended(start: Start) -> None:
    app, seen = echo_app(heartbeat=Heartbeat(interval=60, timeout=0.5)), trio.Event()
    told: list[WebSocketDisconnect] = []

    @app.ws_route("/flood")
    async def flood(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_bytes(b"x" * 1_000_000)
        except WebSocketDisconnect as gone:
            told.append(gone)
        seen.set()

    async with serve(app) as server, start(server) as front:
        async with front.connect("/flood"):
            await seen.wait()
    assert [(gone.code, gone.reason) for gone in told] == [(1006, "heartbeat timeout")]


async def test_a_client_that_vanishes_is_gone_for_the_app_too(start: Start) -> None:
    app, over = echo_app(disconnect_grace=0), trio.Event()

    @app.ws_route("/wait")
    async def wait(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await trio.sleep_forever()
        finally:
            over.set()

    async with serve(app) as server, start(server) as front:
        async with front.connect("/wait"):
            pass
        with trio.fail_after(PATIENCE):
            await over.wait()


async def test_a_shutdown_says_1012(start: Start) -> None:
    async with serve(echo_app()) as server, start(server) as front:
        async with front.connect() as client:
            await client.send("ready")
            await client.receive()
            server.stop()
            assert await client.wait_closed() == (1012, "service restart")
        await server.wait_stopped()
        assert (await front.refusal()).status == 502


async def test_no_token_is_in_the_logs_of_the_proxy(start: Start) -> None:
    async def verify(token: str) -> str:
        return token

    encoded = base64.urlsafe_b64encode(b"SECRET-1").decode().rstrip("=")
    handshake: dict[str, Any] = {
        "subprotocols": ["chat", f"base64url.bearer.{encoded}"],
        "headers": {"Authorization": "Bearer SECRET-2", "Cookie": "session=SECRET-3"},
    }
    app = echo_app(authenticate=SubprotocolToken(verify))
    async with serve(app) as server, start(server) as front:
        async with front.connect("/who?token=SECRET-4", **handshake) as client:
            await client.receive()
            await client.close()
        server.stop()
        await server.wait_stopped()
        # The error log of nginx has the query, and no setting takes it out: the page says so.
        path = "/who" if start.name == "nginx" else "/who?token=SECRET-4"
        assert (await front.refusal(path=path, **handshake)).status == 502
    logged = front.logged()
    assert "/who" in logged
    assert "SECRET" not in logged
    assert encoded not in logged


async def test_no_request_that_passes_the_proxy_ends_the_worker(start: Start) -> None:
    async with serve(echo_app()) as server, start(server) as front:
        async with front.connect() as neighbour:
            for data in HOSTILE.values():
                stream = await front.open()
                with trio.move_on_after(0.2):
                    await stream.send_all(data.replace(b"Host: x", f"Host: {front.host}".encode()))
                    while await stream.receive_some():
                        pass
                await trio.aclose_forcefully(stream)
            await neighbour.send("still there?")
            assert await neighbour.receive() == "still there?"


async def test_the_proxy_can_speak_to_a_unix_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    upstream = f"unix:{path}:" if start.name == "nginx" else f"unix/{path}"
    app = echo_app(proxy=Proxy(["unix"]))
    async with serve(app, bind=[f"unix:{path}"]), start(None, upstream=upstream) as front:
        async with front.connect("/who", headers={"Origin": front.origin}) as client:
            assert await client.receive() == f"127.0.0.2 at wss://{front.host}"


async def test_plain_http_is_sent_on_to_https(start: Start) -> None:
    async with serve(echo_app()) as server, start(server) as front:
        async with await trio.open_tcp_stream("127.0.0.1", front.http) as stream:
            await stream.send_all(f"GET /page HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join([data async for data in stream])
    assert answer.split()[1] in (b"301", b"308")
    assert f"location: https://{NAME}/page\r\n".encode() in answer.replace(b"Location", b"location")
