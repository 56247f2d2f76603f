"""UTF-8 of a text message that comes in pieces: invalid as soon as that is certain (RFC 6455 §8.1)."""

from __future__ import annotations

from codecs import utf_8_decode

from nexios_trio.status import CloseCode
from nexios_trio.wire.errors import ProtocolViolation

__all__ = ["Utf8Checker", "invalid_utf8"]


def invalid_utf8(what: str = "text message") -> ProtocolViolation:
    """1007, as RFC 6455 §8.1 wants it; to be raised."""
    return ProtocolViolation(CloseCode.INVALID_PAYLOAD, f"a {what} is not valid UTF-8")


class Utf8Checker:
    """Checks a text piece by piece; keeps at most three bytes, the beginning of a character."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes | bytearray) -> None:
        """Check the next piece, in linear time, whatever the pieces are.

        Raises `ProtocolViolation` (1007) at the first byte that no text has in this place. Whether the text
        ends inside a character is not checked.
        """
        pending = self._pending
        if not pending and data.isascii():
            return
        if pending:
            data = pending + data
        try:
            _, used = utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            raise invalid_utf8() from None
        self._pending = pending = bytes(data[used:])
        # CPython waits for the third byte of a surrogate, for the sake of an error handler that lets it pass.
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            raise invalid_utf8()
