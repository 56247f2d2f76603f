"""What the wire raises belongs to the tree of the package's errors."""

from __future__ import annotations

from nexios_trio.exceptions import PeerError
from nexios_trio.wire import HandshakeError, ProtocolViolation


def test_a_violation_tells_its_code_and_what_the_peer_may_read() -> None:
    error = ProtocolViolation(1007, "a text message is not valid UTF-8")
    assert isinstance(error, PeerError)
    assert (error.code, error.reason) == (1007, "a text message is not valid UTF-8")
    assert error.public_reason == error.reason
    assert str(error) == "1007: a text message is not valid UTF-8"


def test_a_refused_handshake_tells_its_status_and_headers() -> None:
    error = HandshakeError(405, "why", [(b"Allow", b"GET")])
    assert isinstance(error, PeerError)
    assert (error.status, error.reason, error.headers) == (405, "why", [(b"Allow", b"GET")])
    assert str(error) == "405: why"
