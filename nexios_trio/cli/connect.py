"""``nexios-trio connect``: a WebSocket client for the command line, on trio-websocket."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import click
import trio
from attrs import Factory, define, frozen

from nexios_trio.cli.lines import LongLineError, indented, lines, printable
from nexios_trio.cli.target import (
    ConnectError,
    RefusedError,
    Target,
    handshake_options,
    open_stream,
    status_line,
    tls_context,
)
from nexios_trio.status import CloseCode

if TYPE_CHECKING:
    import ssl

    from trio_websocket import CloseReason, ConnectionRejected, WebSocketConnection

__all__ = ["connect"]

SILENCE: Final = 1.0
"""Seconds without a message after which the connection ends when the input has ended."""
CLOSING: Final = 2.0
"""Seconds that the server has to answer our Close frame."""
MAX_SIZE: Final = 16 << 20
BODY: Final = 2000
"""Characters of the body of a refusal that are shown."""

_INTERRUPTED: Final = 130


@frozen
class Options:
    """What the command line says besides the handshake."""

    listen: bool
    binary: bool
    pretty: bool
    count: int | None
    wait: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@handshake_options
@click.option("--listen", is_flag=True, help="Only print what comes, until the end; read no input.")
@click.option("--binary", is_flag=True, help="Send each line as a binary message.")
@click.option("--pretty/--raw", default=None, help="Indent JSON.  [default: if the output is a terminal]")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", help="Close after N messages have come."
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="When the input has ended: close once nothing has come for so long ('inf': wait for the server).  "
    f"[default: {SILENCE:g}; inf with --count]",
)
def connect(
    target: Target,
    headers: list[tuple[bytes, bytes]],
    subprotocols: tuple[str, ...],
    cafile: str | None,
    insecure: bool,
    timeout: float,
    listen: bool,
    binary: bool,
    pretty: bool | None,
    count: int | None,
    wait: float | None,
) -> None:
    """Talk to a WebSocket server: each line of the input is a message, each message is printed.

    Messages go to the standard output, everything else to the standard error. Ctrl-D (the end of the input)
    or Ctrl-C closes with 1000. Binary messages are printed in hexadecimal.

    Exit codes: 0 if we closed, or the server did with 1000 or 1001; 1 if the connection ended in any other
    way; 2 for a wrong option; 3 if there is no server; 4 if it refused with an HTTP status; 130 after
    Ctrl-C.
    """
    try:
        import trio_websocket  # noqa: F401 - an extra: only this command needs it
    except ImportError:
        raise click.ClickException(
            'this command needs trio-websocket; install it with: pip install "nexios-trio[client]"'
        ) from None
    if wait is None:
        wait = SILENCE if count is None else math.inf
    if pretty is None:
        pretty = sys.stdout.isatty()
    session = _Session(target, Options(listen, binary, pretty, count, wait))
    context = tls_context(target, cafile, insecure=insecure)
    try:
        trio.run(session.run, context, headers, subprotocols, timeout)
    except BaseException as error:
        session.code = _ended_by(error, target)
    sys.exit(session.code)


@define
class _Session:
    """One connection, from the first packet to the exit code."""

    target: Target
    options: Options
    code: int = 0
    _input_ended: bool = False
    _silence: trio.CancelScope = Factory(trio.CancelScope)

    async def run(
        self,
        context: ssl.SSLContext | None,
        headers: list[tuple[bytes, bytes]],
        subprotocols: tuple[str, ...],
        timeout: float,
    ) -> None:
        async with trio.open_nursery() as nursery:
            async with _opened(self.target, context, headers, subprotocols, timeout) as ws:
                chosen = f", subprotocol {printable(ws.subprotocol)}" if ws.subprotocol else ""
                _tell(f"connected to {self.target.url}{chosen}")
                if not self.options.listen:
                    nursery.start_soon(self._send_input, ws)
                with self._silence:
                    await self._print_messages(ws)
            nursery.cancel_scope.cancel()

    async def _print_messages(self, ws: WebSocketConnection) -> None:
        from trio_websocket import ConnectionClosed

        left = self.options.count
        try:
            while left is None or left > 0:
                message = await ws.get_message()
                self._print(message)
                self._restart_silence()
                if left is not None:
                    left -= 1
        except ConnectionClosed as closed:
            self.code = _tell_end(closed.reason)

    async def _send_input(self, ws: WebSocketConnection) -> None:
        from trio_websocket import ConnectionClosed

        number = 0
        try:
            if sys.stdin is not None:  # it may have been closed by whoever started us
                async for line in lines(sys.stdin.fileno(), MAX_SIZE):
                    number += 1
                    await ws.send_message(line if self.options.binary else line.decode("utf-8"))
        except LongLineError as error:
            raise click.ClickException(f"the input cannot be sent: {error}") from None
        except UnicodeDecodeError:
            raise click.ClickException(
                f"line {number} of the input is not UTF-8; send it with --binary"
            ) from None
        except ConnectionClosed:
            return  # `_print_messages` says it
        self._input_ended = True
        self._restart_silence()

    def _restart_silence(self) -> None:
        if self._input_ended:
            self._silence.deadline = trio.current_time() + self.options.wait

    def _print(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            text = f"binary, {len(message)} bytes: {message.hex(' ')}"
        else:
            text = indented(message) if self.options.pretty else message
        if sys.stdout.isatty():
            text = printable(text)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@asynccontextmanager
async def _opened(
    target: Target,
    context: ssl.SSLContext | None,
    headers: list[tuple[bytes, bytes]],
    subprotocols: tuple[str, ...],
    timeout: float,
) -> AsyncIterator[WebSocketConnection]:
    """The connection; closed with 1000 at the end of the block. Raises `ConnectError`."""
    from trio_websocket import wrap_client_stream
    from wsproto.utilities import LocalProtocolError

    closing = False
    try:
        # The reader of trio-websocket runs in this nursery, and raises there what refuses the handshake.
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(timeout) as patience:
                stream = await open_stream(target, context)
                ws = await wrap_client_stream(
                    nursery,
                    stream,
                    target.authority,
                    target.resource,
                    subprotocols=subprotocols,
                    extra_headers=headers,
                    max_message_size=MAX_SIZE,
                )
            if patience.cancelled_caught:
                raise ConnectError(
                    f"{target.url} has not answered within {timeout:g} seconds; is it a WebSocket server?"
                )
            if ws.closed is not None and ws.closed.code == CloseCode.ABNORMAL_CLOSURE:
                raise ConnectError(f"{target.url} is no WebSocket server: {_end(ws.closed)}")
            try:
                yield ws
            finally:
                closing = True
                nursery.cancel_scope.shield = True  # only the end of the reader cuts the closing short
                with trio.move_on_after(CLOSING):
                    try:
                        await ws.aclose()
                    finally:
                        await trio.aclose_forcefully(stream)
                nursery.cancel_scope.cancel()
    except* LocalProtocolError:
        # trio-websocket wants to answer a Ping after its Close, or to close while the server does.
        if not closing:
            raise


def _ended_by(error: BaseException, target: Target) -> int:
    """The exit code after what came out of Trio; raises what click prints, or what nobody expected."""
    import h11
    from trio_websocket import ConnectionRejected
    from wsproto.utilities import ProtocolError

    causes = list(_leaves(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return _INTERRUPTED
    for cause in causes:
        if isinstance(cause, click.ClickException):
            raise cause from None
        if isinstance(cause, ConnectionRejected):
            raise _refused(target, cause) from None
        if isinstance(cause, h11.ProtocolError | ProtocolError):  # trio-websocket lets them through
            raise ConnectError(f"{target.url} does not answer as a WebSocket server does") from None
        if isinstance(cause, BrokenPipeError):  # whoever reads our output has seen enough
            # Nothing more goes there, not even what Python flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    raise error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _refused(target: Target, answer: ConnectionRejected) -> RefusedError:
    text = f"{target.url} refused: {status_line(answer.status_code)}"
    for name, value in answer.headers:
        if name.lower() in (b"location", b"retry-after", b"www-authenticate"):
            text += f"\n{name.decode('latin-1')}: {printable(value.decode('latin-1'))}"
    if answer.body:
        body = answer.body[: 4 * BODY].decode("utf-8", "replace")
        text += "\n" + printable(body[:BODY] + ("…" if len(body) > BODY else ""))
    return RefusedError(text)


def _tell_end(reason: CloseReason | None) -> int:
    """Say how the server ended it; gives the exit code."""
    _tell(f"closed: {_end(reason)}")
    normal = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)
    return 0 if reason is not None and reason.code in normal else 1


def _end(reason: CloseReason | None) -> str:
    if reason is None:
        return "the connection broke"
    if reason.code == CloseCode.ABNORMAL_CLOSURE:
        return "1006, the connection broke without a Close frame"
    code = int(reason.code)
    name = reason.reason
    if not name and code in CloseCode._value2member_map_:
        name = CloseCode(code).name.lower().replace("_", " ")
    return f"{code} {printable(name or '')}".rstrip()


def _tell(text: str) -> None:
    click.echo(text, err=True)
