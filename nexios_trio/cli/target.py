"""A WebSocket URL from the command line, and the stream behind it."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import click
import trio
from attrs import frozen

from nexios_trio.wire.headers import is_token

if TYPE_CHECKING:
    from typing import TypeAlias

    Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

__all__ = [
    "ConnectError",
    "Number",
    "RefusedError",
    "Target",
    "handshake_options",
    "open_stream",
    "status_line",
    "tls_context",
]

F = TypeVar("F", bound=Callable[..., Any])

_SAFE = "/?:@!$&'()*+,;=~%-._"


class Number(click.FloatRange):
    """A range of click without NaN, which is not less than any bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType`."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


@frozen
class Target:
    """Where to connect: what a ``ws://`` or ``wss://`` URL says (RFC 6455 §3)."""

    url: str
    secure: bool
    host: str
    port: int
    resource: str
    """Path and query, as they go onto the wire."""

    @property
    def authority(self) -> str:
        """The value of the header Host (RFC 9110 §7.2)."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


class ConnectError(click.ClickException):
    """There is no connection; the message says why."""

    exit_code = 3


class RefusedError(ConnectError):
    """The server answered the handshake with another status than 101."""

    exit_code = 4


def parse_url(_ctx: click.Context, _param: click.Parameter, value: str) -> Target:
    """A callback of click: ``ws://host:port/path?query`` to a `Target`."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no URL: {error}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise click.BadParameter(f"a URL is ws://HOST[:PORT]/PATH or wss://..., not {value!r}")
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter("a URL holds no password here; write -H 'Authorization: ...'")
    if "#" in value:  # RFC 6455 §3
        raise click.BadParameter(f"a WebSocket URL has no fragment; write '%23' for '#': {value!r}")
    try:
        host = parts.hostname.encode("ascii" if ":" in parts.hostname else "idna").decode("ascii")
    except UnicodeError:
        raise click.BadParameter(f"{parts.hostname!r} is no name of a host") from None
    secure = parts.scheme == "wss"
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if port is None:
        port = 443 if secure else 80
    return Target(value, secure, host, port, quote(resource, _SAFE))


def parse_headers(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[bytes, bytes]]:
    """A callback of click: each ``Name: value`` to the two as bytes."""
    return [_header(value) for value in values]


def _header(value: str) -> tuple[bytes, bytes]:
    name, colon, text = (part.strip() for part in value.partition(":"))
    if not colon or not is_token(name.encode("utf-8", "replace")):
        raise click.BadParameter(f"a header is 'Name: value', not {value!r}")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise click.BadParameter(f"the value of {name} holds a control character")
    lower = name.lower()
    if lower in ("host", "connection", "upgrade") or lower.startswith("sec-websocket-"):
        raise click.BadParameter(f"{name} is the handshake's own (a subprotocol is --subprotocol)")
    return name.encode("ascii"), text.encode("utf-8", "surrogateescape")


def parse_subprotocols(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """A callback of click: each is a token (RFC 6455 §4.1, item 10)."""
    for value in values:
        if not is_token(value.encode("utf-8", "replace")):
            raise click.BadParameter(f"a subprotocol is made of letters, digits, '.' and '-', not {value!r}")
    return values


def handshake_options(command: F) -> F:
    """What ``connect`` and ``bench`` both take about the opening handshake."""
    options = [
        click.argument("target", metavar="URL", callback=parse_url),
        click.option(
            "-H",
            "--header",
            "headers",
            multiple=True,
            callback=parse_headers,
            metavar="'NAME: VALUE'",
            help="Send this header with the handshake; may be given again.",
        ),
        click.option(
            "-s",
            "--subprotocol",
            "subprotocols",
            multiple=True,
            callback=parse_subprotocols,
            metavar="NAME",
            help="Offer this subprotocol; may be given again, the favourite first.",
        ),
        click.option(
            "--cafile",
            type=click.Path(exists=True, dir_okay=False),
            help="Trust the certificate authorities of this file (PEM) with wss://.",
        ),
        click.option("--insecure", is_flag=True, help="Take any certificate with wss://."),
        click.option(
            "--timeout",
            type=Number(min=0, min_open=True),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="For TCP, TLS and the handshake together.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def tls_context(target: Target, cafile: str | None, *, insecure: bool) -> ssl.SSLContext | None:
    """None for ``ws://``. The machine's certificate authorities, or those of ``cafile``; ``insecure`` checks
    nothing."""
    if not target.secure:
        return None
    try:
        context = ssl.create_default_context(cafile=cafile)
    except (OSError, ssl.SSLError) as error:
        raise click.BadParameter(f"{cafile} holds no certificates: {error}", param_hint="--cafile") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def open_stream(target: Target, context: ssl.SSLContext | None) -> Stream:
    """TCP, and TLS if the URL asks for it, without a timeout. Raises `ConnectError`."""
    try:
        stream = await trio.open_tcp_stream(target.host, target.port)
    except OSError as error:
        raise ConnectError(f"cannot connect to {target.host}:{target.port}: {_why(error)}") from None
    if context is None:
        return stream
    # https_compatible: peers that end TCP without ending TLS are common (and RFC 6455 has its own end).
    secure = trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(secure)
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = f"the certificate of {target.host} is not trusted: {cause.verify_message}"
            raise ConnectError(f"{problem}; name its authority with --cafile") from None
        raise ConnectError(
            f"no TLS with {target.host}:{target.port}: {_why(cause or error)}; is it a ws:// server?"
        ) from None
    except BaseException:
        await trio.aclose_forcefully(secure)
        raise
    return secure


def status_line(status: int) -> str:
    """``HTTP 403 Forbidden``."""
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _why(error: BaseException) -> str:
    """What the system says, of all the addresses that were tried."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(map(_why, error.exceptions)))
    if isinstance(error, OSError) and error.errno is None and error.__cause__ is not None:
        return _why(error.__cause__)
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
