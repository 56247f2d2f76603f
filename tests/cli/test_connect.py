"""``nexios-trio connect`` as its users run it: a process, a real server, a pipe or a terminal."""

from __future__ import annotations

import errno
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha1
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from nexios_trio.cli.lines import LongLineError, indented, lines, printable
from tests.cli.commands import COMMAND, an_app, run


async def test_each_line_of_a_pipe_is_a_message_and_each_message_a_line(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    done = await run("connect", f"{server.url}/echo", stdin=b'one\r\n{"a":1}\n\nlast')
    assert done.out.splitlines() == ["one", '{"a":1}', "", "last"]
    assert done.code == 0
    assert done.err == f"connected to {server.url}/echo\n"


async def test_it_closes_with_1000_when_as_many_messages_have_come_as_were_wanted(nexios_server: Any) -> None:
    app = an_app()
    server = await nexios_server(app, fast_lane=True)
    done = await run("connect", "-n", "2", "--pretty", f"{server.url}/echo", stdin=b'{"a":[1]}\nb\nc\n')
    assert done.out == '{\n  "a": [\n    1\n  ]\n}\nb\n'
    assert done.code == 0
    server.stop()
    await server.wait_stopped()
    assert app.state.ends == [1000]


async def test_binary_lines_are_sent_as_they_are_and_shown_in_hexadecimal(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    url = f"{server.url}/echo"
    done = await run("connect", "--binary", "-n", "1", url, stdin=b"\xff\x00\n")
    assert done.out == "binary, 2 bytes: ff 00\n"
    done = await run("connect", url, stdin=b"fine\n\xff\n")
    assert done.code == 1
    assert "line 2 of the input is not UTF-8; send it with --binary" in done.err


async def test_headers_and_subprotocols_go_with_the_handshake(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    headers = ["-H", "X-Name: Ada", "-H", "authorization: Bearer a:b"]
    done = await run("connect", "--listen", *headers, f"{server.url}/headers?q=a b")
    assert (done.code, done.out) == (0, "Ada Bearer a:b a b\n")
    assert "closed: 1000 normal closure" in done.err
    done = await run("connect", "--wait", "0", "-s", "v2", "-s", "v1", f"{server.url}/echo")
    assert "subprotocol v1" in done.err


async def test_the_exit_code_and_the_message_say_how_it_ended(nexios_server: Any) -> None:
    server = await nexios_server(an_app())
    done = await run("connect", "--listen", f"{server.url}/many")
    assert (done.code, done.out) == (1, "0\n1\n2\n")
    assert r"closed: 4001 enough \x1b[31m\nclosed: 1000" in done.err
    done = await run("connect", f"{server.url}/no")
    assert done.code == 4
    assert "refused: HTTP 403 Forbidden" in done.err
    assert r"not \x1b[31m you" in done.err


async def test_a_server_that_is_not_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    done = await run("connect", f"ws://127.0.0.1:{port}/")
    assert done.code == 3
    assert done.err == f"Error: cannot connect to 127.0.0.1:{port}: {os.strerror(errno.ECONNREFUSED)}\n"
    done = await run("connect", "ws://name.invalid/")
    assert done.code == 3
    assert "cannot connect to name.invalid:80: " in done.err


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"SSH-2.0-x\r\n\r\n", "does not answer as a WebSocket server does"),
        (
            b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
            "does not answer as a WebSocket server does",
        ),
        (b"", "has not answered within 0.5 seconds; is it a WebSocket server?"),
    ],
)
async def test_a_server_of_another_kind_is_said(answer: bytes, problem: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
        port = listener.socket.getsockname()[1]
        done = await run("connect", "--timeout", "0.5", f"ws://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel()
    assert done.code == 3
    assert problem in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["http://x/"], "a URL is ws://HOST"),
        (["ws:///x"], "a URL is ws://HOST"),
        (["ws://x:99999/"], "is no URL"),
        (["ws://a:b@x/"], "write -H 'Authorization: ...'"),
        (["ws://x/#y"], "has no fragment"),
        (["ws://x/", "-H", "no colon"], "a header is 'Name: value'"),
        (["ws://x/", "-H", "A: b\r\nC: d"], "control character"),
        (["ws://x/", "-H", "Upgrade: x"], "the handshake's own"),
        (["ws://x/", "--timeout", "nan"], "'nan' is no number"),
        (["ws://x/", "-s", "a b"], "a subprotocol is made of"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_connects(arguments: list[str], problem: str) -> None:
    from click.testing import CliRunner

    from nexios_trio.cli import main

    for command in ("connect", "bench"):
        result = CliRunner().invoke(main, [command, *arguments])
        assert result.exit_code == 2
        assert problem in result.output


def test_without_trio_websocket_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from nexios_trio.cli import main

    monkeypatch.setitem(sys.modules, "trio_websocket", None)
    result = CliRunner().invoke(main, ["connect", "ws://127.0.0.1:1/"])
    assert result.exit_code == 1
    assert 'pip install "nexios-trio[client]"' in result.output


async def test_a_reader_of_the_output_that_has_seen_enough_ends_it_quietly(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [*COMMAND, "connect", f"{server.url}/echo"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                task_status=task_status,
            )
        )
        await process.stdin.send_all(b"a\n")
        assert await process.stdout.receive_some() == b"a\n"
        await process.stdout.aclose()
        await process.stdin.send_all(b"b\n")
        errors = b"".join([part async for part in process.stderr])
        assert await process.wait() == 0
    assert errors.decode() == f"connected to {server.url}/echo\n"


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, fd: int, process: trio.Process) -> None:
        self.fd = fd
        self.process = process
        self.seen = ""

    async def until(self, text: str) -> str:
        """Everything shown so far, once ``text`` is in it."""
        with trio.fail_after(60):
            while text not in self.seen:
                await trio.lowlevel.wait_readable(self.fd)
                self.seen += os.read(self.fd, 65536).decode()
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


@pytest.fixture
async def terminal() -> AsyncIterator[Callable[..., Any]]:
    ours, theirs = pty.openpty()

    async with trio.open_nursery() as nursery:

        async def start(*arguments: str) -> Terminal:
            process = await trio.lowlevel.open_process(
                [*COMMAND, *arguments],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
            os.close(theirs)
            return Terminal(ours, process)

        yield start
        nursery.cancel_scope.cancel()
    os.close(ours)


async def test_on_a_terminal_json_is_indented_and_nothing_moves_the_cursor(
    nexios_server: Any, terminal: Callable[..., Any]
) -> None:
    server = await nexios_server(an_app())
    shell = await terminal("connect", f"{server.url}/coloured")
    text = await shell.until("}")
    assert r"red \x1b[31m title \x9d0;x\x07" in text
    assert '{\r\n  "name": "A\\u001b",\r\n  "n": 1.00000000000000000001\r\n}' in text
    shell.type("bye\n")
    text = await shell.until("closed: 1000")
    assert "\x1b" not in text
    assert await shell.process.wait() == 0


async def test_ctrl_c_closes_with_1000(nexios_server: Any, terminal: Callable[..., Any]) -> None:
    app = an_app()
    server = await nexios_server(app, fast_lane=True)
    shell = await terminal("connect", f"{server.url}/echo")
    await shell.until("connected to")
    shell.type("hello\n")
    await shell.until("hello\r\nhello")
    shell.process.send_signal(signal.SIGINT)
    assert await shell.process.wait() == 130
    server.stop()
    await server.wait_stopped()
    assert app.state.ends == [1000]


async def test_a_ping_that_crosses_our_close_frame_is_no_error() -> None:
    echo, close, ping = b"\x81\x02hi", b"\x88\x02\x03\xe8", b"\x89\x00"

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            request = h11.Connection(h11.SERVER)
            while (event := request.next_event()) is h11.NEED_DATA:
                request.receive_data(await stream.receive_some())
            assert isinstance(event, h11.Request)
            key = dict(event.headers)[b"sec-websocket-key"]
            accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            await stream.send_all(
                b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + echo
            )
            received = b""
            while b"\x88" not in received[-8:]:  # 2 bytes, the key of 4, and the code
                received += await stream.receive_some()
            await stream.send_all(ping + close)
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
        port = listener.socket.getsockname()[1]
        done = await run("connect", "-n", "1", f"ws://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel()
    assert (done.code, done.out) == (0, "hi\n"), done.err


@pytest.mark.untraced
async def test_a_certificate_nobody_vouches_for_is_refused_unless_told(
    nexios_server: Any, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    server = await nexios_server(an_app(), certfile=str(cert), keyfile=str(key))
    url = f"wss://127.0.0.1:{server.port}/echo"
    done = await run("connect", url)
    assert done.code == 3
    assert "the certificate of 127.0.0.1 is not trusted" in done.err
    for trust in (["--cafile", str(cert)], ["--insecure"]):
        done = await run("connect", "-n", "1", *trust, url, stdin=b"hi\n")
        assert (done.code, done.out) == (0, "hi\n"), done.err
    done = await run("bench", "--cafile", str(cert), "-c", "2", "-t", "0.2", url)
    assert done.code == 0, done.err
    done = await run("connect", f"wss://127.0.0.1:{(await nexios_server(an_app())).port}/echo")
    assert "is it a ws:// server?" in done.err


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    ssl.create_default_context(cafile=str(cert))
    return cert, key


async def test_lines_end_with_lf_or_crlf_wherever_the_stream_is_cut() -> None:
    reader, writer = os.pipe()
    got: list[bytes] = []

    async def read() -> None:
        async for line in lines(reader):
            got.append(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for part in (b"a", b"b\r", b"\nc\n\n", b"d"):
            os.write(writer, part)
            await trio.testing.wait_all_tasks_blocked()
        os.close(writer)
    os.close(reader)
    assert got == [b"ab", b"c", b"", b"d"]


async def test_a_file_is_read_although_it_cannot_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"a\nb\n")
    with path.open("rb") as file:
        assert [line async for line in lines(file.fileno())] == [b"a", b"b"]


async def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    with open("/dev/zero", "rb") as zeros, pytest.raises(LongLineError):
        async for _ in lines(zeros.fileno(), 1 << 20):
            pass


async def test_a_closed_input_is_an_input_that_has_ended(nexios_server: Any) -> None:
    server = await nexios_server(an_app(), fast_lane=True)
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "connect", "--wait", "0", f"{server.url}/echo"]
    done = await trio.run_process(shell, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode() == f"connected to {server.url}/echo\n"


def test_text_that_is_no_json_stays_as_it_is() -> None:
    for text in ("7", '"x"', "{", "[" * 100_000, '{"a": "\\ud800"}', "", "  "):
        assert indented(text) == text
    assert indented(' {"b":1,"a":[]}') == '{\n  "b": 1,\n  "a": []\n}'


def test_printable_keeps_tabs_and_newlines() -> None:
    assert printable("ä\t\n\x00\x7f\x85\ud800") == "ä\t\n\\x00\\x7f\\x85\\xd800"
