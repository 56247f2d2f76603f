"""The opening handshake on the server's side (RFC 6455 §4.2): the request's bytes in, the answer's bytes
out."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha1
from http import HTTPStatus
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from attrs import frozen

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire.deflate import Agreement
from nexios_trio.wire.errors import HandshakeError
from nexios_trio.wire.headers import (
    Extension,
    Headers,
    HeadReader,
    by_name,
    encode_headers,
    is_token,
    members,
    parse_extensions,
    split_head,
)
from nexios_trio.wire.negotiation import answer

__all__ = ["Request", "RequestReader", "accept_key", "accept_response", "error_response", "reject_response"]

MAX_HEAD_BYTES: Final = 32 << 10
MAX_TARGET_BYTES: Final = 8 << 10
MAX_FIELDS: Final = 128

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_REQUEST_LINE: Final = re.compile(rb"([!-~]++) ([!-~]++) HTTP/([0-9])\.([0-9])")
_ABSOLUTE: Final = re.compile(rb"(?:https?|wss?)://([^/?]*)(.*)", re.IGNORECASE)
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-fv:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?"
)
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64

_VERSION: Final = (b"Sec-WebSocket-Version", b"13")
_UPGRADE: Final = (b"Upgrade", b"websocket")
_OURS: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"transfer-encoding",
        b"upgrade",
    }
)


_Fields: TypeAlias = dict[bytes, list[bytes]]


@frozen(eq=False)
class Request:
    """A client's opening handshake that may be accepted: what an ASGI scope has to say of it."""

    raw_path: bytes
    """The path as it came, without the query."""
    path: str
    """The path with its percent-escapes decoded; what is no UTF-8 then becomes U+FFFD."""
    query_string: bytes
    """What came behind the ``?``, still escaped; empty if there was none."""
    headers: Headers
    """Names in lower case, in the order of arrival."""
    subprotocols: list[str]
    """What the client offers, its favourite first, each once."""
    extensions: list[Extension]
    """What the client offers: names, each with its parameters."""
    key: bytes
    """Its Sec-WebSocket-Key, for `accept_response`."""


class RequestReader:
    """Reads the head of one request, strictly: RFC 9112 for its syntax, RFC 6455 §4.2.1 for the rest."""

    def __init__(
        self,
        *,
        max_head_bytes: int = MAX_HEAD_BYTES,
        max_target_bytes: int = MAX_TARGET_BYTES,
        max_fields: int = MAX_FIELDS,
    ) -> None:
        self._head = HeadReader(max_head_bytes)
        self._max_target_bytes = max_target_bytes
        self._max_fields = max_fields

    @property
    def trailing(self) -> bytes:
        """The bytes behind the head, once `receive_data` has given the request: the client's first frames."""
        return self._head.trailing

    def receive_data(self, data: bytes) -> Request | None:
        """The request, once it is complete; None: more is needed.

        Raises `HandshakeError` with the status to answer with: 400, 405 (with Allow), 414, 426 (with the
        version that is spoken here), 431 or 505. A request with several faults gets one of their statuses.
        """
        head = self._head.receive_data(data)
        if head is None:
            beginning = self._head.beginning
            longest = self._max_target_bytes + len("GET  HTTP/1.1\r\n")
            if len(beginning) > longest and beginning.find(b"\r\n", 0, longest) < 0:
                raise self._target_too_long()
            return None
        first, headers = split_head(head, self._max_fields)
        target = self._target(first)
        fields = by_name(headers)
        _check_upgrade(fields)
        raw_path, query_string = _split_target(target, headers)
        return Request(
            raw_path,
            unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            query_string,
            headers,
            _subprotocols(fields),
            parse_extensions(fields.get(b"sec-websocket-extensions", [])),
            _key(fields),
        )

    def _target(self, line: bytes) -> bytes:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise HandshakeError(400, "the request line is not of the form 'GET target HTTP/1.1'")
        method, target, major, minor = match.groups()
        if major != b"1":
            raise HandshakeError(505, "the request is not HTTP/1.1")
        if not is_token(method):
            raise HandshakeError(400, "the method is no token")
        if method != b"GET":
            raise HandshakeError(405, "a WebSocket handshake is a GET request", [(b"Allow", b"GET")])
        if minor == b"0":
            raise HandshakeError(400, "a WebSocket handshake needs HTTP/1.1")  # RFC 6455 §4.2.1, item 1
        if len(target) > self._max_target_bytes:
            raise self._target_too_long()
        return target

    def _target_too_long(self) -> HandshakeError:
        return HandshakeError(414, f"the target of the request has more than {self._max_target_bytes} bytes")


def _one(fields: _Fields, name: bytes) -> bytes:
    found = fields.get(name, [])
    if len(found) != 1:
        times = "is missing" if not found else "came more than once"
        title = name.decode().title().replace("Websocket", "WebSocket")
        raise HandshakeError(400, f"the header {title} {times}")
    return found[0]


def _check_upgrade(fields: _Fields) -> None:
    """RFC 6455 §4.2.1, items 2, 3, 4 and 6."""
    if not _HOST.fullmatch(_one(fields, b"host")):
        raise HandshakeError(400, "the header Host names no host")  # RFC 9112 §3.2
    if b"transfer-encoding" in fields or any(
        length.strip(b"0") or not length for length in fields.get(b"content-length", ())
    ):
        raise HandshakeError(400, "a WebSocket handshake has no body")
    if not _names(fields, b"upgrade", b"websocket"):
        raise HandshakeError(426, "the header Upgrade does not name websocket", [_UPGRADE, _VERSION])
    if not _names(fields, b"connection", b"upgrade"):
        raise HandshakeError(400, "the header Connection does not name upgrade")
    versions = fields.get(b"sec-websocket-version", [])
    if len(versions) > 1:
        raise HandshakeError(400, "the header Sec-WebSocket-Version came more than once")
    if versions != [b"13"]:
        raise HandshakeError(426, "the WebSocket version is not 13", [_UPGRADE, _VERSION])  # §4.4


def _names(fields: _Fields, name: bytes, option: bytes) -> bool:
    return option in (member.lower() for member in members(fields.get(name, [])))


def _key(fields: _Fields) -> bytes:
    key = _one(fields, b"sec-websocket-key")
    if not _KEY.fullmatch(key):
        raise HandshakeError(400, "the header Sec-WebSocket-Key is not 16 bytes in base64")  # item 5
    return key


def _subprotocols(fields: _Fields) -> list[str]:
    offered = members(fields.get(b"sec-websocket-protocol", []))
    if not all(map(is_token, offered)):
        raise HandshakeError(400, "the header Sec-WebSocket-Protocol is no list of tokens")  # §4.1, item 10
    return list(dict.fromkeys(name.decode("ascii") for name in offered))


def _split_target(target: bytes, headers: Headers) -> tuple[bytes, bytes]:
    """Path and query of the target (RFC 9112 §3.2)."""
    if absolute := _ABSOLUTE.fullmatch(target):
        host, target = absolute.groups()
        if not _HOST.fullmatch(host):
            raise HandshakeError(400, "the target of the request names no host")
        # RFC 9112 §3.2.2: "an origin server MUST ignore the received Host header field (if any) and instead
        # replace it"
        index = next(i for i, (name, _) in enumerate(headers) if name == b"host")
        headers[index] = (b"host", host)
        if target[:1] != b"/":
            target = b"/" + target
    if target[:1] != b"/" or b"#" in target:
        raise HandshakeError(400, "the target of the request is no path")
    path, _, query = target.partition(b"?")
    return path, query


def accept_key(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 §4.2.2, item 5.4)."""
    return b64encode(sha1(key + _GUID).digest())  # noqa: S324 - no secret: the protocol asks for SHA-1


def accept_response(
    request: Request,
    *,
    subprotocol: str | None = None,
    agreement: Agreement | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """The 101 that opens the connection (RFC 6455 §4.2.2).

    ``agreement`` is what `nexios_trio.wire.negotiation.agree` made of the client's offers. Raises
    `WrongValueError` for a subprotocol that the client did not offer, for a header that this function writes
    itself, and for line breaks in ``headers``.
    """
    fields = [
        _UPGRADE,
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", accept_key(request.key)),
    ]
    if subprotocol is not None:
        if subprotocol not in request.subprotocols:
            raise WrongValueError(
                f"the client did not offer the subprotocol {subprotocol!r}; choose one of "
                f"{request.subprotocols}, or None"
            )
        fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode("ascii")))
    if agreement is not None:
        fields.append((b"Sec-WebSocket-Extensions", answer(agreement).encode("ascii")))
    for name, value in headers:
        if name.lower() in _OURS:
            raise WrongValueError(f"the header {name.decode()} is the handshake's own; leave it out")
        fields.append((name, value))
    return b"HTTP/1.1 101 Switching Protocols\r\n" + encode_headers(fields) + b"\r\n"


def reject_response(status: int, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b"") -> bytes:
    """An HTTP answer instead of the upgrade; the TCP connection is to be closed after it.

    ``status`` is 200 to 599: 101 would open the connection. Raises `WrongValueError` for others, and for
    line breaks in ``headers``. A Content-Length or Transfer-Encoding among the headers is left out for the
    right one.
    """
    if not 200 <= status <= 599:
        raise WrongValueError(f"a rejection has a status such as 403 or 404, not {status}")
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    ours = (b"connection", b"content-length", b"transfer-encoding")
    fields = [(name, value) for name, value in headers if name.lower() not in ours]
    # RFC 9110 §7.8: who sends Upgrade, as a 426 has to, names it in Connection
    upgrade = any(name.lower() == b"upgrade" for name, _ in fields)
    fields.append((b"Connection", b"Upgrade, close" if upgrade else b"close"))
    if status in (204, 304):  # RFC 9110 §8.6: no Content-Length, and no body
        body = b""
    else:
        fields.append((b"Content-Length", str(len(body)).encode()))
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, phrase.encode(), encode_headers(fields), body)


def error_response(error: HandshakeError) -> bytes:
    """The answer to a request that `RequestReader` has refused; its body says why."""
    headers = [*error.headers, (b"Content-Type", b"text/plain; charset=utf-8")]
    return reject_response(error.status, headers, error.reason.encode())
