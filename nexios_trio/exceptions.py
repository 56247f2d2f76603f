"""Every error this package raises, as one tree.

The branch says who has to act:

* `UsageError`: the program that calls us is wrong. The message holds the line to write instead.
* `PeerError`: the client sent something the handler cannot take, or wants what it may not have.
* `LimitError`: a bound of `nexios_trio.Limits` is reached.
* `BrokerError`: the engine behind the groups cannot be reached, or will not do it.
* `WebSocketDisconnect`: the connection is over; nobody is at fault.
* `WebSocketException`: raised *by* a handler to end its connection with a code of its choice.

Facts are attributes (``code``, ``reason``, ``path`` …); nobody needs to parse a message.
``close_code`` is the status code the connection is closed with when a handler lets the error escape.
"""

from __future__ import annotations

import json
from typing import ClassVar, Final, Literal

__all__ = [
    "NO_CREDENTIALS",
    "AuthenticationError",
    "BrokerCommandError",
    "BrokerError",
    "BrokerOverloaded",
    "BrokerRefused",
    "BrokerUnavailable",
    "ConcurrentReceiveError",
    "GroupNameError",
    "InvalidJSON",
    "LimitError",
    "MessageTypeError",
    "MessageValidationError",
    "NexiosTrioError",
    "PeerError",
    "PermissionDenied",
    "RoutingError",
    "UsageError",
    "WebSocketDisconnect",
    "WebSocketException",
    "WrongStateError",
    "WrongTypeError",
    "WrongValueError",
]


NO_CREDENTIALS: Final = "no credentials"


class NexiosTrioError(Exception):
    """Root of all errors of this package."""

    close_code: ClassVar[int] = 1011


class UsageError(NexiosTrioError, RuntimeError):
    """The calling program made a mistake; the message says what to write instead."""


class WrongStateError(UsageError):
    """A call that this connection or app cannot take now, such as sending before ``accept()``."""


class WrongTypeError(UsageError, TypeError):
    """An argument of a type that the call does not take."""


class WrongValueError(UsageError, ValueError):
    """An argument of the right type with a value that the call does not take."""


class RoutingError(UsageError, ValueError):
    """A route that cannot be registered, or a URL that cannot be built from one."""


class ConcurrentReceiveError(UsageError):
    """Two tasks wait for the next message of one connection."""


class PeerError(NexiosTrioError):
    """The client sent a message that the handler cannot take.

    Unhandled, it closes the connection with ``close_code`` and ``public_reason``, which never
    holds anything of the payload. Before ``accept()`` it is answered with HTTP ``status``.
    """

    close_code: ClassVar[int] = 1008
    status: int = 403

    @property
    def public_reason(self) -> str:
        """What the client may read in the Close frame."""
        return str(self)

    @property
    def log_reason(self) -> str:
        """What the log says, and with ``debug=True`` the client too."""
        return self.public_reason


class MessageTypeError(PeerError):
    """A text message came where bytes were expected, or the other way round (RFC 6455 §7.4.1, 1003).

    The message is not lost: it is in ``message``.
    """

    close_code: ClassVar[int] = 1003

    def __init__(self, expected: Literal["text", "binary"], message: str | bytes) -> None:
        self.expected = expected
        self.found: Literal["text", "binary"] = "text" if isinstance(message, str) else "binary"
        self.message = message
        cure = "receive_text()" if self.found == "text" else "receive_bytes()"
        super().__init__(
            f"expected a {expected} message, but the client sent a {self.found} one of length "
            f"{len(message)}; call {cure}, or receive() for either kind"
        )

    @property
    def public_reason(self) -> str:
        return f"expected a {self.expected} message, got a {self.found} one"


class InvalidJSON(PeerError, json.JSONDecodeError):
    """A message that is no JSON (RFC 6455 §7.4.1, 1007).

    It is a `json.JSONDecodeError` too, so code written for Nexios or Starlette catches it.
    ``doc`` is the message as it came, ``pos`` the offset of the mistake where it is known.
    """

    close_code: ClassVar[int] = 1007

    def __init__(self, problem: str, doc: str | bytes, pos: int = 0) -> None:
        text = doc if isinstance(doc, str) else doc.decode("utf-8", "replace")
        json.JSONDecodeError.__init__(self, problem, text, pos)
        self.problem = problem

    def __str__(self) -> str:
        return f"the client's message is not valid JSON: {self.problem}"

    @property
    def public_reason(self) -> str:
        return f"invalid JSON: {self.problem}"


class MessageValidationError(PeerError, ValueError):
    """A JSON message that does not fit the type asked for (RFC 6455 §7.4.1, 1007).

    ``path`` is where (``$.items[3].price``), ``expected`` and ``found`` are what should be and
    what is there, as type names. The value itself is never part of the error.
    """

    close_code: ClassVar[int] = 1007

    def __init__(self, problem: str, *, path: str = "$", expected: str = "", found: str = "") -> None:
        self.problem = problem
        self.path = path
        self.expected = expected
        self.found = found
        super().__init__(f"{problem} at {path}")


class AuthenticationError(PeerError):
    """Nobody knows who the client is: no credentials, or bad ones.

    Before ``accept()`` it is answered with HTTP 401, afterwards it closes with 4401. ``cause`` says what is
    wrong with the credentials, for the log (and for the client with ``debug=True``); never put a token there.
    """

    close_code: ClassVar[int] = 4401
    status: int = 401

    def __init__(self, cause: str = NO_CREDENTIALS) -> None:
        self.cause = cause
        super().__init__(f"authentication failed: {cause}")

    @property
    def public_reason(self) -> str:
        return "authentication required" if self.cause == NO_CREDENTIALS else "authentication failed"

    @property
    def log_reason(self) -> str:
        return str(self)


class PermissionDenied(PeerError):
    """The client is known and may not do this.

    Before ``accept()`` it is answered with HTTP 403, afterwards it closes with 4403. ``cause`` is for the log
    (and for the client with ``debug=True``).
    """

    close_code: ClassVar[int] = 4403
    status: int = 403

    def __init__(self, cause: str = "") -> None:
        self.cause = cause
        super().__init__(f"permission denied{': ' + cause if cause else ''}")

    @property
    def public_reason(self) -> str:
        return "permission denied"

    @property
    def log_reason(self) -> str:
        return str(self)


class GroupNameError(PeerError, WrongValueError):
    """A group's name that cannot be one; a client may have chosen it. Unhandled, it closes with 1008."""

    @property
    def public_reason(self) -> str:
        return "no name for a group"

    @property
    def log_reason(self) -> str:
        return str(self)


class LimitError(PeerError):
    """A bound of `nexios_trio.Limits` is reached; nothing was changed.

    ``limit`` is the name of the field, ``bound`` its value. Unhandled, it closes with 1008; before
    ``accept()`` it is answered with HTTP 429.
    """

    close_code: ClassVar[int] = 1008
    status: int = 429

    def __init__(self, limit: str, bound: float, problem: str) -> None:
        self.limit = limit
        self.bound = bound
        self.problem = problem
        super().__init__(f"{problem} (Limits.{limit} is {bound:g})")

    @property
    def public_reason(self) -> str:
        return self.problem


class BrokerError(NexiosTrioError):
    """Something is wrong between this process and the engine behind the groups.

    ``address`` is where it is, without credentials.
    """

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        self.problem = problem
        super().__init__(f"{address}: {problem}")


class BrokerUnavailable(BrokerError):
    """The engine cannot be reached, or did not answer in time.

    Unhandled, it closes with 1013 (try again later; IANA's registry of RFC 6455 §11.7); before ``accept()``
    it is answered with HTTP 503.

    ``uncertain``: the command was on its way, and nobody knows whether it was done. A publish that is tried
    again with the same ``message_id`` is delivered once.
    """

    close_code: ClassVar[int] = 1013

    def __init__(self, address: str, problem: str, *, uncertain: bool = False) -> None:
        self.uncertain = uncertain
        super().__init__(address, problem)


class BrokerRefused(BrokerError):
    """The engine is there and will not do: wrong password, too old, a cluster. Trying again does not help;
    the message says what to change."""


class BrokerCommandError(BrokerError):
    """The engine answered a command with an error, such as being out of memory; ``code`` is its first word
    (``OOM``, ``NOPERM``). Nothing was done."""

    def __init__(self, address: str, code: str, problem: str) -> None:
        self.code = code
        super().__init__(address, problem)


class BrokerOverloaded(BrokerCommandError):
    """The engine would do no command of this kind now: its memory is full (``OOM``), it cannot write to its
    disk (``MISCONF``), has too few replicas (``NOREPLICAS``), or runs a script for long (``BUSY``).
    Unhandled, it ends a connection as `BrokerUnavailable` does."""

    close_code: ClassVar[int] = 1013


class WebSocketDisconnect(NexiosTrioError):
    """The connection is over. ``code`` and ``reason`` are those of the Close frame, where one came.

    Codes that no frame carries (RFC 6455 §7.4.1): 1005, a Close frame without a code; 1006, the
    connection broke without one. ``by`` says who ended it: the peer (``"peer"``), this program
    (``"local"``: its own ``close()``, a timeout of ours, a server shutdown) or the network
    (``"network"``).
    """

    def __init__(
        self,
        code: int = 1000,
        reason: str | None = None,
        *,
        by: Literal["peer", "local", "network"] = "peer",
    ) -> None:
        self.code = code
        self.reason = reason or ""
        self.by = by
        super().__init__(f"the connection is over: {code}{' ' + self.reason if self.reason else ''}")


class WebSocketException(NexiosTrioError):
    """Raise it in a handler to close the connection with ``code`` and ``reason``.

    Before ``accept()`` no Close frame can be sent: the client gets HTTP 403 instead (to choose the
    status, call ``ws.reject(status)`` or raise Starlette's ``HTTPException``).
    """

    def __init__(self, code: int, reason: str | None = None) -> None:
        self.code = code
        self.reason = reason or ""
        super().__init__(f"close {code}{': ' + self.reason if self.reason else ''}")
