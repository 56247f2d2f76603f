"""What the peer can do wrong, as exceptions. Both are raised inside `nexios_trio.wire` only by what
parses."""

from __future__ import annotations

from collections.abc import Sequence

from nexios_trio.exceptions import PeerError

__all__ = ["HandshakeError", "ProtocolViolation"]


class ProtocolViolation(PeerError):
    """Bytes after which the connection must be failed (RFC 6455 §7.1.7).

    ``code`` and ``reason`` are those of the Close frame that tells the peer; the reason never holds
    anything of a payload.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")

    @property
    def public_reason(self) -> str:
        return self.reason


class HandshakeError(PeerError):
    """An opening handshake that is refused (RFC 6455 §4.2.1), or an answer to one that is no acceptance.

    ``status`` is the HTTP status: the one to answer with on the server's side (`error_response` makes the
    bytes), the one that came on the client's side, 0 there for an answer that is not well-formed.
    ``headers`` go with it.
    """

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status = status
        self.reason = reason
        self.headers = list(headers)
        super().__init__(f"{status}: {reason}")
