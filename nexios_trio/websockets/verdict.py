"""How a connection ends, decided from what was raised in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import trio
from attrs import frozen
from starlette.exceptions import HTTPException
from starlette.exceptions import WebSocketException as StarletteException
from starlette.websockets import WebSocketDisconnect as StarletteDisconnect

from nexios_trio.exceptions import (
    NO_CREDENTIALS,
    AuthenticationError,
    BrokerOverloaded,
    BrokerUnavailable,
    PeerError,
    WebSocketDisconnect,
    WebSocketException,
)
from nexios_trio.status import check_close, cut_reason
from nexios_trio.transports.core import close_code_of
from nexios_trio.websockets import codec
from nexios_trio.websockets.headers import encode_headers

__all__ = ["FAILED", "GONE", "RESTART", "Farewell", "Outcome", "leaves"]

GONE = (WebSocketDisconnect, StarletteDisconnect)
"""Nobody's fault: the connection was over."""


@frozen
class Farewell:
    """What the client is told: a Close frame, or an HTTP answer if nobody has accepted."""

    code: int = 1000
    reason: str = ""
    status: int = 403
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-length", b"0"),)
    body: bytes = b""


RESTART = Farewell(1012, "service restart", 503)
FAILED = Farewell(1011, "internal error", 500)
AWAY = Farewell(1013, "try again later", 503, ((b"content-length", b"0"), (b"retry-after", b"5")))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, however nested; or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class Outcome:
    """What the tasks of one connection have raised, sorted by who has to act."""

    def __init__(self, failures: Iterable[BaseException], *, connecting: bool) -> None:
        """While ``connecting``, an HTTPException is an answer; afterwards it is a mistake."""
        self.answer: HTTPException | None = None
        self.said: WebSocketException | StarletteException | PeerError | None = None
        self.cancelled = False
        self.away: BrokerUnavailable | BrokerOverloaded | None = None
        """Nobody's fault in this process, and nothing that a traceback tells."""
        self.mistakes: list[BaseException] = []
        """Errors that nobody meant: to be logged."""
        for leaf in (leaf for failure in failures for leaf in leaves(failure)):
            if isinstance(leaf, trio.Cancelled):
                self.cancelled = True
            elif isinstance(leaf, WebSocketException | StarletteException | PeerError):
                self.said = self.said or leaf
            elif isinstance(leaf, BrokerUnavailable | BrokerOverloaded):
                self.away = self.away or leaf
            elif connecting and isinstance(leaf, HTTPException):
                self.answer = self.answer or leaf
            elif not isinstance(leaf, GONE):
                self.mistakes.append(leaf)

    @property
    def close_code(self) -> int:
        """The code that these failures close a connection with; 1000 for none."""
        if self.mistakes:
            return 1011
        if self.said is None and self.away is not None:
            return self.away.close_code
        if isinstance(self.said, PeerError):
            return self.said.close_code
        return self.said.code if self.said is not None else 1000

    def farewell(self, *, debug: bool = False) -> Farewell | None:
        """What these failures ask for; None if they ask for nothing. With ``debug`` it says what went wrong.

        Raises a `UsageError` if they ask for what cannot be sent.
        """
        if self.answer is not None:
            return _http(self.answer)
        if self.mistakes:
            return _failed(self.mistakes[0]) if debug else FAILED
        if isinstance(self.said, PeerError):
            return _refused(self.said, self.said.log_reason if debug else self.said.public_reason)
        if self.said is not None:
            return Farewell(self.said.code, check_close(self.said.code, self.said.reason))
        return AWAY if self.away is not None else None


def _failed(error: BaseException) -> Farewell:
    text = f"{type(error).__name__}: {error}"
    body = text.encode("utf-8", "replace")
    headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()))
    return Farewell(1011, cut_reason(text), 500, headers, body)


def _refused(error: PeerError, reason: str) -> Farewell:
    body = codec.encode({"error": reason})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if isinstance(error, AuthenticationError):
        # RFC 9110 §11.6.1 wants a challenge with each 401; RFC 6750 §3.1: no error code without credentials
        bad = b"" if error.cause == NO_CREDENTIALS else b' error="invalid_token"'
        headers.append((b"www-authenticate", b"Bearer" + bad))
    elif error.status == 429:
        headers.append((b"retry-after", b"5"))
    return Farewell(error.close_code, cut_reason(reason), error.status, tuple(headers), body)


def _http(error: HTTPException) -> Farewell:
    detail: object = error.detail
    if isinstance(detail, str):
        body, content_type = detail.encode("utf-8", "replace"), b"text/plain; charset=utf-8"
    else:  # FastAPI's may be anything that has a JSON form
        body, content_type = codec.encode(detail), b"application/json"
    headers = [pair for pair in encode_headers(error.headers) if pair[0] != b"content-length"]
    if b"content-type" not in {name for name, _ in headers}:
        headers.append((b"content-type", content_type))
    headers.append((b"content-length", str(len(body)).encode()))
    return Farewell(close_code_of(error.status_code), "", error.status_code, tuple(headers), body)
