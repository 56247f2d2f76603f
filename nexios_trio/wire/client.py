"""The opening handshake on the client's side (RFC 6455 §4.1)."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import frozen

from nexios_trio.exceptions import WrongValueError
from nexios_trio.wire.deflate import Agreement, Deflate
from nexios_trio.wire.errors import HandshakeError
from nexios_trio.wire.handshake import MAX_FIELDS, MAX_HEAD_BYTES, accept_key
from nexios_trio.wire.headers import (
    Headers,
    HeadReader,
    by_name,
    encode_headers,
    is_token,
    members,
    parse_extensions,
    split_head,
)
from nexios_trio.wire.negotiation import agreed, offer

__all__ = ["ClientHandshake", "Response"]

MAX_INTERIM: Final = 10

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\r\n]*)?")
_TARGET: Final = re.compile(r"/[!-~]*")
_HOST: Final = re.compile(r"[!-~]+")
_OURS: Final = frozenset(
    {
        b"connection",
        b"host",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
    }
)


@frozen(eq=False)
class Response:
    """The server's acceptance."""

    headers: Headers
    subprotocol: str | None
    agreement: Agreement | None
    """What holds for compression; None: there is none."""


class ClientHandshake:
    """One opening handshake: `request` goes out, the answer comes into `receive_data`.

    ``nonce`` is 16 random bytes (RFC 6455 §4.1, item 7), ``host`` the value of the header Host, ``target``
    the path and query, both as they go onto the wire. Raises `WrongValueError` for what would break the
    request.
    """

    def __init__(
        self,
        host: str,
        target: str,
        *,
        nonce: bytes,
        subprotocols: Sequence[str] = (),
        deflate: Deflate | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        max_head_bytes: int = MAX_HEAD_BYTES,
    ) -> None:
        if len(nonce) != 16:
            raise WrongValueError(f"the nonce has 16 bytes, not {len(nonce)}; write os.urandom(16)")
        if not _TARGET.fullmatch(target) or "#" in target:
            raise WrongValueError(
                f"a target is a path and query in ASCII, such as '/chat?room=1', not {target!r}; "
                "escape the rest with urllib.parse.quote"
            )
        if not _HOST.fullmatch(host):
            raise WrongValueError(f"a host is ASCII without spaces, such as 'example.com:8000', not {host!r}")
        if not all(is_token(name.encode("utf-8", "replace")) for name in subprotocols):
            raise WrongValueError(
                f"a subprotocol is made of letters, digits, '.' and '-', not {subprotocols!r}"
            )
        self._key = b64encode(nonce)
        self._subprotocols = subprotocols
        self._deflate = deflate
        self._head = HeadReader(max_head_bytes)
        self._interim = 0
        fields = [
            (b"Host", host.encode("ascii")),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Key", self._key),
            (b"Sec-WebSocket-Version", b"13"),
        ]
        if subprotocols:
            fields.append((b"Sec-WebSocket-Protocol", ", ".join(subprotocols).encode("ascii")))
        if deflate is not None:
            fields.append((b"Sec-WebSocket-Extensions", offer(deflate).encode("ascii")))
        for name, value in headers:
            if name.lower() in _OURS:
                raise WrongValueError(f"the header {name.decode()} is the handshake's own; leave it out")
            fields.append((name, value))
        self.request = b"GET %b HTTP/1.1\r\n%b\r\n" % (target.encode("ascii"), encode_headers(fields))
        """What to send first."""

    @property
    def trailing(self) -> bytes:
        """The bytes behind the answer's head: the server's first frames, or the body of a refusal."""
        return self._head.trailing

    def receive_data(self, data: bytes) -> Response | None:
        """The acceptance, once it is complete; None: more is needed.

        Raises `HandshakeError` for any other answer: with its status and headers, if it is an HTTP answer,
        with 101 if it accepts what was not asked for, with 0 if it is not HTTP/1.1.
        """
        # RFC 9110 §15.2: a client has to be able to read interim answers; not any number of them.
        while self._interim <= MAX_INTERIM:
            try:
                head = self._head.receive_data(data)
                if head is None:
                    return None
                first, headers = split_head(head, MAX_FIELDS)
            except HandshakeError as error:
                raise HandshakeError(0, f"the server's answer is not HTTP: {error.reason}") from error
            status = _STATUS_LINE.fullmatch(first)
            if status is None:
                raise HandshakeError(0, "the server's answer is not HTTP: its first line is no status line")
            code = int(status[1])
            if code == 101:
                return self._accepted(headers)
            if code >= 200:
                raise HandshakeError(code, f"the server answered {code}", headers)
            self._interim += 1
            data = self._head.trailing
        raise HandshakeError(0, f"the server sent more than {MAX_INTERIM} interim answers")

    def _accepted(self, headers: Headers) -> Response:
        """The checks of RFC 6455 §4.1 on the server's answer."""
        fields = by_name(headers)
        if [value.lower() for value in fields.get(b"upgrade", ())] != [b"websocket"]:
            raise HandshakeError(101, "the server's answer does not upgrade to websocket", headers)
        if b"upgrade" not in (member.lower() for member in members(fields.get(b"connection", []))):
            raise HandshakeError(101, "the server's Connection does not name upgrade", headers)
        if fields.get(b"sec-websocket-accept") != [accept_key(self._key)]:
            raise HandshakeError(101, "the server's Sec-WebSocket-Accept is not that of this key", headers)
        subprotocol = None
        if chosen := fields.get(b"sec-websocket-protocol"):
            subprotocol = chosen[0].decode("latin-1")
            if len(chosen) > 1 or subprotocol not in self._subprotocols:
                raise HandshakeError(101, "the server chose a subprotocol that was not offered", headers)
        try:
            extensions = parse_extensions(fields.get(b"sec-websocket-extensions", []))
        except HandshakeError as error:
            raise HandshakeError(101, error.reason, headers) from error
        return Response(headers, subprotocol, agreed(self._deflate, extensions))
