"""The syntax of HTTP/1.1 heads (RFC 9112 §2-5, RFC 9110 §5), strictly, and of the lists in their fields."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire.errors import HandshakeError

__all__ = [
    "Extension",
    "HeadReader",
    "Headers",
    "by_name",
    "encode_headers",
    "is_token",
    "members",
    "parse_extensions",
    "split_head",
]

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Names in lower case, values without white space around them, in the order of arrival."""

Extension: TypeAlias = tuple[str, list[tuple[str, str | None]]]
"""The name of an extension, and its parameters (RFC 6455 §9.1)."""

_TOKEN: Final = (
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # RFC 9110 §5.6.2
)
_CONTROLS: Final = bytes(byte for byte in range(0x20) if byte != 0x09) + b"\x7f"

_EXTENSION_PART: Final = re.compile(
    rb"[ \t]*+(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]++)[ \t]*+"
    rb"(?:=[ \t]*+(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]++)|\"((?:[^\"\\]|\\.)*+)\")[ \t]*+)?)?([;,]|\Z)",
    re.DOTALL,
)


def is_token(data: bytes) -> bool:
    """Whether ``data`` is a token (RFC 9110 §5.6.2)."""
    return bool(data) and not data.translate(None, _TOKEN)


class HeadReader:
    """Collects the bytes of a head until its empty line, and refuses early what can be none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self.trailing = b""
        """What came behind the head, once it is whole."""

    def receive_data(self, data: bytes) -> bytes | None:
        """The head without its empty line, or None: more is needed.

        Raises `HandshakeError`: 431 (RFC 6585 §5) if it is too large, 400 for a CR or LF that stands alone.
        In linear time, however small the pieces are.
        """
        buffer = self._data
        known = len(buffer)
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(known - 3, 0))
        if (end + 4 if end >= 0 else len(buffer)) > self._max_bytes:
            raise HandshakeError(431, f"the head has more than {self._max_bytes} bytes")
        # RFC 9112 §2.2 lets a recipient take a lone LF for a line's end, and a lone CR for a space; where two
        # recipients differ in that, requests are smuggled.
        begin = known - 1 if buffer[known - 1 : known] == b"\r" else known
        if _has_lone_break(buffer[begin : end + 4] if end >= 0 else buffer[begin:]):
            raise HandshakeError(400, "a CR or LF stands alone")
        if end < 0:
            return None
        self.trailing = bytes(buffer[end + 4 :])
        head = bytes(buffer[:end])
        self._data = bytearray()
        return head

    @property
    def beginning(self) -> bytearray:
        """What has come of the head so far."""
        return self._data


def _has_lone_break(piece: bytearray) -> bool:
    """Whether there is a CR or LF outside of a CRLF; a CR at the end may still become one."""
    pairs = piece.count(b"\r\n")
    return piece.count(b"\n") != pairs or piece.count(b"\r") != pairs + piece.endswith(b"\r")


_KNOWN: Final = {
    word: word
    for word in (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"cache-control",
        b"connection",
        b"cookie",
        b"host",
        b"keep-alive, Upgrade",
        b"no-cache",
        b"origin",
        b"pragma",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
        b"Upgrade",
        b"user-agent",
        b"websocket",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"13",
    )
}
"""What comes in most requests: one object for all of them, since a connection keeps its headers."""


def split_head(head: bytes, max_fields: int) -> tuple[bytes, Headers]:
    """The first line of a head, and its header fields.

    Raises `HandshakeError`: 400 for what RFC 9112 §5 does not allow, 431 for more than ``max_fields`` fields.
    """
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * head.count(b"\r\n"):
        raise HandshakeError(400, "a control character in the head")  # RFC 9110 §5.5
    first, *lines = head.split(b"\r\n")
    if len(lines) > max_fields:
        raise HandshakeError(431, f"more than {max_fields} header fields")
    headers: Headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not is_token(name):
            raise HandshakeError(400, _why_no_field(line))
        name, value = name.lower(), value.strip(b" \t")
        headers.append((_KNOWN.get(name, name), _KNOWN.get(value, value)))
    return first, headers


def _why_no_field(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a header field is continued on the next line"  # obs-fold, RFC 9112 §5.2
    name, colon, _ = line.partition(b":")
    if colon and name != name.rstrip(b" \t"):
        return "white space between a field's name and its colon"  # RFC 9112 §5.1
    return "a header line is no field"


def by_name(headers: Headers) -> dict[bytes, list[bytes]]:
    """The values of each field, in the order of arrival."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def members(field_values: list[bytes]) -> list[bytes]:
    """The members of a list (RFC 9110 §5.6.1) in one or more fields; empty ones are left out."""
    found = (member.strip(b" \t") for value in field_values for member in value.split(b","))
    return [member for member in found if member]


def parse_extensions(field_values: list[bytes]) -> list[Extension]:
    """The extensions in Sec-WebSocket-Extensions (RFC 6455 §9.1), in linear time.

    Raises `HandshakeError` (400) for what is not of that form.
    """
    extensions: list[Extension] = []
    for text in field_values:
        pos = 0
        parts: Extension | None = None
        while True:
            match = _EXTENSION_PART.match(text, pos)
            if match is None:
                raise _bad_extensions()
            name, token, quoted, separator = match.groups()
            value = token if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted, flags=re.DOTALL)
            if name is None:
                # Empty members of the list are allowed, empty parameters are not.
                if parts is not None or separator == b";":
                    raise _bad_extensions()
            elif parts is None:
                if value is not None:
                    raise _bad_extensions()
                parts = (name.decode("ascii"), [])
                extensions.append(parts)
            else:
                # §9.1: a quoted value "MUST conform to the 'token' ABNF" once it is unquoted
                if value is not None and not is_token(value):
                    raise _bad_extensions()
                parts[1].append((name.decode("ascii"), None if value is None else value.decode("ascii")))
            pos = match.end()
            if separator != b";":
                parts = None
            if not separator:
                break
    return extensions


def _bad_extensions() -> HandshakeError:
    return HandshakeError(400, "Sec-WebSocket-Extensions is not a list of extensions")


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines; raises `WrongValueError` for a name that is no token, or a value that breaks its line."""
    lines = []
    for name, value in headers:
        if not is_token(name):
            raise WrongValueError(f"a header's name is made of letters, digits and -, not {name!r}")
        if value.translate(None, _CONTROLS) != value:
            raise WrongValueError(
                f"the value of the header {name.decode()} has a line break or another control character; "
                "take them out"
            )
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)
