"""WebSocket close codes (RFC 6455 §7.4 and the IANA registry) and what may be done with them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["REASON_BYTES", "CloseCode", "check_close", "cut_reason", "is_sendable"]

REASON_BYTES: Final = 123
"""The most UTF-8 bytes a close reason may have: 125 of a control frame less the code (RFC 6455 §5.5)."""


class CloseCode(IntEnum):
    """The registered codes, by the names of the IANA registry."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})


def is_sendable(code: int) -> bool:
    """Whether a Close frame may carry ``code``: 1000-1003, 1007-1014, 3000-4999 (RFC 6455 §7.4)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in _NEVER_SENT)


def cut_reason(reason: str) -> str:
    """``reason``, cut to 123 UTF-8 bytes on a character border (RFC 6455 §5.5)."""
    if len(reason) <= REASON_BYTES and reason.isascii():
        return reason
    return reason.encode("utf-8", "replace")[:REASON_BYTES].decode("utf-8", "ignore")


def check_close(code: int, reason: str | None) -> str:
    """Check what a program wants to put into a Close frame; give the reason back, cut to fit.

    Raises `WrongTypeError` or `WrongValueError`: a code must be 1000-1003, 1007-1014 (registered)
    or 3000-4999 (libraries and programs, RFC 6455 §7.4.2).
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise WrongTypeError(f"a close code is an int such as 1000 or 4001, not {code!r}")
    if not is_sendable(code):
        raise WrongValueError(
            f"close code {code} cannot be sent; use 1000 for a normal end, 1008 for a breach of "
            "your rules, or 4000-4999 for codes of your own"
        )
    if reason is None:
        return ""
    if not isinstance(reason, str):
        raise WrongTypeError(f"a close reason is a str, not {type(reason).__name__}")
    return cut_reason(reason)
