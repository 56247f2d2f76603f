"""An HTTP endpoint that sends to groups, for programs that speak neither Python nor Redis."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection
from contextlib import aclosing
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from nexios_trio.brokers.base import Message
from nexios_trio.exceptions import (
    BrokerError,
    BrokerOverloaded,
    BrokerUnavailable,
    LimitError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.types import ASGIApp, Receive, Scope, Send

__all__ = ["Sender", "publish_endpoint"]

SHORTEST_TOKEN: Final = 16
"""Characters."""


class Sender(Protocol):
    """``app.channels``, or a `Publisher`."""

    async def send(
        self, group: str, payload: Any, *, save_history: bool = True, message_id: str | None = None
    ) -> Message:
        """See `Group.send`."""


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request."""

    group: str
    payload: Any = msgspec.UNSET
    base64: str | msgspec.UnsetType = msgspec.UNSET
    save_history: bool = True
    message_id: str | None = None

    def content(self) -> Any:
        """What is to be sent. Raises ValueError."""
        if (self.payload is msgspec.UNSET) == (self.base64 is msgspec.UNSET):
            raise ValueError("give either payload or base64")
        if isinstance(self.base64, str):
            return base64.b64decode(self.base64, validate=True)
        return self.payload


_orders: msgspec.json.Decoder[_Order] = msgspec.json.Decoder(_Order)


def publish_endpoint(sender: Sender, *, tokens: Collection[str], body_bytes: int = 1 << 20) -> ASGIApp:
    """An ASGI app to mount: ``app.mount("/publish", publish_endpoint(app.channels, tokens=[...]))``.

    It takes ``POST`` with ``Authorization: Bearer <one of the tokens>`` and a JSON object: ``group``,
    ``payload`` (any JSON; a string goes as text) or ``base64`` (goes as bytes), and optionally
    ``save_history`` and ``message_id``. It answers 200 with ``id`` and ``position``; 400 for a bad body, 401
    for a bad token, 405, 413 for a body of more than ``body_bytes``, 503 with Retry-After if the broker is
    not available; errors are ``{"error": "…"}``. Tokens are compared in constant time; give two while you
    change them. Raises `WrongTypeError` and `WrongValueError` for tokens that are none, or too short.
    """
    if isinstance(tokens, str | bytes):
        raise WrongTypeError("tokens is a collection; write tokens=[token]")
    if not tokens:
        raise WrongValueError("tokens is empty, so nobody could publish; give one at least")
    for token in tokens:
        if not isinstance(token, str):
            raise WrongTypeError(f"a token is a str, not {type(token).__name__}")
        if len(token) < SHORTEST_TOKEN or not all("!" <= sign <= "~" for sign in token):
            raise WrongValueError(
                f"a token has {SHORTEST_TOKEN} or more ASCII letters and signs; "
                "make one by secrets.token_urlsafe(32)"
            )
    # Digests are of one length, so that the time does not tell that of a token.
    digests = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise WrongTypeError(
                f"publish_endpoint serves HTTP, not {scope['type']!r}; mount it with app.mount"
            )
        request = Request(scope, receive)
        try:
            response = await _respond(request, sender, digests, body_bytes)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    return endpoint


async def _respond(request: Request, sender: Sender, digests: tuple[bytes, ...], body_bytes: int) -> Response:
    if request.method != "POST":
        return _problem(405, "POST only", {"allow": "POST"})
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    found = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
    known = [hmac.compare_digest(found, digest) for digest in digests]
    if scheme.lower() != "bearer" or not any(known):
        return _problem(401, "a token of the publish endpoint is needed", {"www-authenticate": "Bearer"})
    body = bytearray()
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            body += chunk
            if len(body) > body_bytes:
                return _problem(413, f"the body has at most {body_bytes} bytes")
    try:
        order = _orders.decode(bytes(body))
        message = await sender.send(
            order.group, order.content(), save_history=order.save_history, message_id=order.message_id
        )
    except (BrokerUnavailable, BrokerOverloaded):
        return _problem(503, "the broker is not available", {"retry-after": "5"})
    except BrokerError:
        raise
    except (msgspec.MsgspecError, ValueError, LimitError, WrongTypeError, WrongValueError) as error:
        return _problem(400, str(error))
    position = message.position
    return JSONResponse({"id": message.id, "position": None if position is None else str(position)})


def _problem(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)
