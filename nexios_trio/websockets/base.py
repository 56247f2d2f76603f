"""`WebSocket`: one connection, as a handler sees it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from attrs import frozen
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketState

from nexios_trio.config import Rate
from nexios_trio.exceptions import (
    MessageTypeError,
    PeerError,
    WebSocketDisconnect,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.status import check_close
from nexios_trio.transports.states import TRANSITIONS, Event, State
from nexios_trio.types import Message, Receive, Scope, Send
from nexios_trio.websockets import codec
from nexios_trio.websockets.headers import encode_headers, encode_subprotocol
from nexios_trio.websockets.metering import Intake, MeterFactory

if TYPE_CHECKING:
    from nexios_trio.config import Overflow
    from nexios_trio.websockets.groups import Group
    from nexios_trio.websockets.hub import Hub
    from nexios_trio.websockets.lifetime import Connection

SERVICES = "nexios_trio.services"
"""The scope key of what the app that a connection belongs to has for it."""

__all__ = ["SERVICES", "Services", "WebSocket", "WebSocketDisconnect", "WebSocketState"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Authorize: TypeAlias = Callable[["WebSocket", str], "bool | Awaitable[bool]"]
"""Whether a client may join a group."""

OnInvalid: TypeAlias = Literal["close", "reply"] | Callable[["WebSocket", PeerError], Awaitable[None]]
"""What becomes of a JSON message that is none or does not fit: the error is raised where it was received,
which closes unless the handler catches it; the client is told and the next message taken; or the function is
called and the next message taken."""

Renewal: TypeAlias = Callable[["WebSocket", str], Awaitable[None]]

_CLIENT_STATE = {
    State.CONNECTING: WebSocketState.CONNECTING,
    State.OPEN: WebSocketState.CONNECTED,
    State.CLOSING: WebSocketState.CONNECTED,
    State.CLOSED: WebSocketState.DISCONNECTED,
    State.REJECTED: WebSocketState.DISCONNECTED,
}


@frozen
class OutboxStatistics:
    """See `WebSocket.statistics`."""

    waiting_messages: int = 0
    waiting_bytes: int = 0
    dropped_oldest: int = 0
    dropped_newest: int = 0
    conflated: int = 0


@frozen
class Services:
    """What an app has for its connections; one object for all, so that scopes stay small."""

    hub: Any
    """Its groups: a `nexios_trio.websockets.hub.Hub`."""
    guard: Any
    """Its `nexios_trio.security.guard.Guard`."""


class _Messages(Generic[T]):
    """Calls ``receive`` until the connection is over. No async generator: nothing to finalise when the
    loop is left early."""

    def __init__(self, receive: Callable[[], Awaitable[T]]) -> None:
        self._receive = receive

    def __aiter__(self) -> _Messages[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive()
        except WebSocketDisconnect:
            raise StopAsyncIteration from None


class _Plain(Generic[T]):
    """The same for messages of one type as they are: one step less between the loop and the inbox."""

    def __init__(self, ws: WebSocket, wanted: type[T], name: Literal["text", "binary"]) -> None:
        self._take = ws._take
        self._wanted = wanted
        self._name = name

    def __aiter__(self) -> _Plain[T]:
        return self

    async def __anext__(self) -> T:
        try:
            data = await self._take()
        except WebSocketDisconnect:
            raise StopAsyncIteration from None
        if isinstance(data, self._wanted):
            return data
        raise MessageTypeError(self._name, data)


class WebSocket(HTTPConnection):
    """One WebSocket connection; the framework makes it and passes it to your handler.

    From Starlette's `HTTPConnection` it has ``url``, ``headers``, ``cookies``, ``query_params``,
    ``path_params``, ``client``, ``session``, ``user``, ``auth``, ``state`` and ``app``.

    Any number of tasks may send at once; messages go out whole and in the order of the calls. One task
    at a time may receive. Every ``async`` method is a checkpoint.
    """

    def __init__(self, scope: Scope, connection: Connection) -> None:
        super().__init__(scope)
        self._connection = connection
        self._transport = connection.transport
        # Set while ASGI middleware that wraps receive or send stands between the server and us:
        self._via_receive: Receive | None = None
        self._via_send: Send | None = None
        self._told: Message | None = None
        self._intake: Intake | None = None
        """Made with the first rate limit."""
        self._renewal: Renewal | None = None
        self._on_invalid: OnInvalid = "close"

    def _replace_scope(self, scope: Scope) -> None:
        self.scope = scope
        for cached in ("_url", "_base_url", "_headers", "_query_params", "_cookies", "_state"):
            self.__dict__.pop(cached, None)

    # Facts

    @property
    def id(self) -> str:
        """A short random id of this connection, unique within the app; log lines carry it."""
        return self._connection.id

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, its favourite first (RFC 6455 §1.9)."""
        return list(self.scope.get("subprotocols") or ())

    @property
    def accepted_subprotocol(self) -> str | None:
        """What ``accept(subprotocol=...)`` chose."""
        return self._connection.subprotocol

    @property
    def session(self) -> dict[str, Any]:
        """The session dict of Starlette's `SessionMiddleware`."""
        return cast("dict[str, Any]", self._from_middleware("session", "SessionMiddleware"))

    @property
    def user(self) -> Any:
        """Who the client is: what ``authenticate=`` found, or Starlette's `AuthenticationMiddleware`."""
        return self._from_middleware("user", "AuthenticationMiddleware")

    @property
    def auth(self) -> Any:
        """What the user may: ``ws.auth.scopes``, and until when: ``ws.auth.expires`` (Unix time, or None)."""
        return self._from_middleware("auth", "AuthenticationMiddleware")

    def _from_middleware(self, key: str, middleware: str) -> Any:
        if key not in self.scope:
            ours = "authenticate=, which this route has not, or by " if key != "session" else ""
            raise WrongStateError(
                f"ws.{key} is filled in by {ours}Starlette's {middleware}, which is not installed; write "
                f"NexiosApp(middleware=[Middleware({middleware}, ...)])"
            )
        return getattr(super(), key)

    @property
    def client_state(self) -> WebSocketState:
        """The peer's side, as Starlette's enum names it."""
        return _CLIENT_STATE[self._transport.state]

    @property
    def application_state(self) -> WebSocketState:
        """Our side, as Starlette's enum names it."""
        if self._transport.state is State.CLOSING:
            return WebSocketState.DISCONNECTED
        return _CLIENT_STATE[self._transport.state]

    @property
    def latency(self) -> float | None:
        """Seconds from the last answered Ping to its Pong (RFC 6455 §5.5.2); None: none was answered yet, or
        the server does not say (only the engine does)."""
        return self._transport.latency

    def is_connected(self) -> bool:
        """Whether a message can be sent now (Nexios' name). A ``True`` may be outdated the next moment:
        catch `WebSocketDisconnect` rather than ask first."""
        return self._transport.state is State.OPEN

    def __repr__(self) -> str:
        return f"<WebSocket {self.id} {self.scope['path']!r} {self._transport.state.value}>"

    # The opening handshake

    async def accept(
        self,
        subprotocol: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None = None,
    ) -> None:
        """Complete the opening handshake (RFC 6455 §4.2.2).

        ``subprotocol`` must be one of those the client offers; ``headers`` go into the 101 response
        (names are lower-cased; none may start with ``sec-websocket-``, no value may hold a line break).
        Raises `WrongStateError` on a second call, `WrongValueError` for what may not be sent,
        `WebSocketDisconnect` if the client is gone already, and `LimitError` if `identify` has named a user
        with too many connections on other servers.
        """
        chosen = encode_subprotocol(subprotocol, self.subprotocols)
        encoded = encode_headers(headers)
        connection = self._connection
        if connection.known_to is not None:
            await connection.known_to.claim(connection)
        if self._via_send is None:
            await self._transport.accept(chosen, encoded)
        else:
            await self._out({"type": "websocket.accept", "subprotocol": chosen, "headers": encoded})
        if connection.known_to is not None:  # or has become so while that went out
            connection.known_to.claim_soon(connection)

    async def reject(
        self,
        status: int = 403,
        body: str | bytes | dict[str, Any] | list[Any] = b"",
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None = None,
    ) -> None:
        """Answer the opening handshake with an HTTP response instead of an upgrade.

        ``status`` is 300 to 599. ``body`` as str is sent as text, as dict or list as JSON. A server
        without ASGI's ``websocket.http.response`` extension sends a bare 403. Raises
        `WrongStateError` after `accept`.
        """
        if isinstance(status, bool) or not isinstance(status, int) or not 300 <= status <= 599:
            raise WrongValueError(
                f"a rejection has an HTTP status from 300 to 599, such as 401, not {status!r}"
            )
        content_type = b"application/octet-stream"
        if isinstance(body, dict | list):
            body, content_type = codec.encode(body), b"application/json"
        elif isinstance(body, str):
            body, content_type = body.encode("utf-8", "replace"), b"text/plain; charset=utf-8"
        elif not isinstance(body, bytes):
            raise WrongTypeError(f"a body is str, bytes, dict or list, not {type(body).__name__}")
        encoded = [pair for pair in encode_headers(headers) if pair[0] != b"content-length"]
        if body and not any(name == b"content-type" for name, _ in encoded):
            encoded.append((b"content-type", content_type))
        encoded.append((b"content-length", str(len(body)).encode()))
        if self._via_send is None:
            await self._transport.reject(status, encoded, body)
        else:
            await self._out({"type": "websocket.http.response.start", "status": status, "headers": encoded})
            await self._out({"type": "websocket.http.response.body", "body": body})

    # Receiving

    async def receive_text(self) -> str:
        """The next message, which must be text.

        Raises `WebSocketDisconnect` once all messages are read and the connection is over, and
        `MessageTypeError` for a binary message (which it carries). Cancelled, it has taken nothing.
        """
        data = await self._take()
        if isinstance(data, str):
            return data
        raise MessageTypeError("text", data)

    async def receive_bytes(self) -> bytes:
        """The next message, which must be binary; otherwise as `receive_text`."""
        data = await self._take()
        if isinstance(data, bytes):
            return data
        raise MessageTypeError("binary", data)

    @overload
    async def receive_json(self, mode: Literal["text", "binary"] = ..., *, type: type[T]) -> T: ...
    @overload
    async def receive_json(self, mode: Literal["text", "binary"] = ..., *, type: Any = ...) -> Any: ...

    async def receive_json(self, mode: Literal["text", "binary"] = "text", *, type: Any = Any) -> Any:
        """The next message, read as JSON and checked against ``type`` if one is given.

        ``type`` is what `msgspec` takes (a Struct, dataclass, attrs class, TypedDict, a union …) or a
        Pydantic model. Raises `InvalidJSON` (a `json.JSONDecodeError`) and `MessageValidationError`;
        the message is taken in either case, and unhandled they close with 1007.
        """
        self._check_mode(mode)
        return await self._receive_json(self.receive_text if mode == "text" else self.receive_bytes, type)

    async def _receive_json(self, take: Callable[[], Awaitable[str | bytes]], type: Any) -> Any:
        limits = self._connection.settings.limits
        while True:
            try:
                data = await take()
                value = codec.decode(data, type, depth=limits.json_depth, items=limits.json_items)
            except PeerError as error:
                if self._on_invalid == "close":
                    raise
                self._connection.counts["invalid"] += 1
                await self._answer_invalid(error)
                continue
            if self._intake is None or self._intake.passes(data, codec.kind_of(value)):
                return value

    async def _answer_invalid(self, error: PeerError) -> None:
        if callable(self._on_invalid):
            await self._on_invalid(self, error)
        else:
            await self.send_json(codec.problem_of(error))

    async def receive(self) -> Message:
        """The next ASGI message, as a dict; for code that wants either kind of message.

        ``{"type": "websocket.receive", "text": str | None, "bytes": bytes | None}``; before `accept`
        ``{"type": "websocket.connect"}``; at the end, once, ``{"type": "websocket.disconnect", "code":
        …, "reason": …}``, and after that it raises `WebSocketDisconnect`.
        """
        if self._told is not None:
            closure = self._transport.closure
            by = closure.by if closure is not None else "peer"
            raise WebSocketDisconnect(self._told["code"], self._told["reason"], by=by)
        if self._intake is not None and self._intake.holds:
            data = await self._intake.held()
            text, binary = (data, None) if isinstance(data, str) else (None, data)
            return {"type": "websocket.receive", "text": text, "bytes": binary}
        via = self._via_receive
        message = await (self._transport.asgi_receive() if via is None else via())
        if message["type"] == "websocket.connect" and self._transport.state is not State.CONNECTING:
            message = await (self._transport.asgi_receive() if via is None else via())
        if message["type"] == "websocket.disconnect":
            self._told = {"type": "websocket.disconnect", "code": 1005, "reason": "", **message}
            return self._told
        return message

    def _take(self) -> Awaitable[str | bytes]:
        if self._intake is None and self._via_receive is None and self._transport.state is State.OPEN:
            return self._transport.take()
        return self._next()

    async def _next(self) -> str | bytes:
        if self._intake is not None:
            if self._intake.holds:
                return await self._intake.held()
            self._intake.taken()
        if (self._transport.state, Event.RECEIVE) not in TRANSITIONS:
            raise self._transport.refusal(Event.RECEIVE)
        if self._via_receive is None:
            return await self._transport.take()
        message = await self._via_receive()
        while message["type"] == "websocket.connect":
            message = await self._via_receive()
        if message["type"] == "websocket.disconnect":
            closure = self._transport.closure
            by = closure.by if closure is not None else "peer"
            raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"), by=by)
        text = message.get("text")
        return cast("str | bytes", text if text is not None else message["bytes"])

    def iter_text(self) -> AsyncIterator[str]:
        """Text messages until the connection is over; a binary one raises as in `receive_text`."""
        return _Plain(self, str, "text")

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Binary messages until the connection is over; a text one raises as in `receive_bytes`."""
        return _Plain(self, bytes, "binary")

    @overload
    def iter_json(self, type: type[T], *, mode: Literal["text", "binary"] = ...) -> AsyncIterator[T]: ...
    @overload
    def iter_json(self, type: Any = ..., *, mode: Literal["text", "binary"] = ...) -> AsyncIterator[Any]: ...

    def iter_json(self, type: Any = Any, *, mode: Literal["text", "binary"] = "text") -> AsyncIterator[Any]:
        """JSON messages, checked against ``type``, until the connection is over. A message that is no
        JSON or does not fit raises as in `receive_json`; a new iterator goes on behind it."""
        self._check_mode(mode)
        return _Messages(functools.partial(self.receive_json, mode, type=type))

    # Sending

    async def send_text(self, data: str) -> None:
        """Send one text message.

        Raises `WebSocketDisconnect` if the connection is over, `WrongStateError` before `accept`,
        `WrongTypeError` for anything but a str. It returns when the server has taken the message, which
        blocks while the client does not read. Cancelled, it has sent the whole message or nothing.
        """
        if not isinstance(data, str):
            raise WrongTypeError(
                f"send_text() takes a str, not {type(data).__name__}; use send_bytes() for bytes and "
                "send_json() for anything else"
            )
        try:
            if self._via_send is None:
                await self._transport.send_text(data)
            else:
                await self._out({"type": "websocket.send", "text": data})
        except UnicodeEncodeError as error:
            raise WrongValueError(
                "this str holds a lone surrogate, which no text message can (RFC 6455 §8.1); it may come "
                'from errors="surrogateescape": send the bytes instead'
            ) from error

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send one binary message; otherwise as `send_text`."""
        if not isinstance(data, bytes):
            if not isinstance(data, bytearray | memoryview):
                raise WrongTypeError(
                    f"send_bytes() takes bytes, bytearray or memoryview, not {type(data).__name__}; use "
                    "send_text() for str and send_json() for anything else"
                )
            data = bytes(data)
        if self._via_send is None:
            await self._transport.send_bytes(data)
        else:
            await self._out({"type": "websocket.send", "bytes": data})

    async def send_json(self, data: Any, mode: Literal["text", "binary"] = "text") -> None:
        """Send ``data`` as JSON, in a text message or, with ``mode="binary"``, a binary one.

        Takes what msgspec encodes (also dataclasses, attrs classes, Structs, datetimes, UUIDs) and
        Pydantic models; `WrongTypeError` for anything else. Otherwise as `send_text`.
        """
        self._check_mode(mode)
        encoded = codec.encode(data)
        if mode == "text":
            await self.send_text(encoded.decode())
        else:
            await self.send_bytes(encoded)

    async def send(self, message: Message) -> None:
        """Send an ASGI message: ``websocket.accept``, ``websocket.send``, ``websocket.close``."""
        if not isinstance(message, Mapping):
            raise WrongTypeError(
                f"send() takes an ASGI message, not {type(message).__name__}; use send_text(), "
                "send_bytes() or send_json()"
            )
        match message.get("type"):
            case "websocket.accept":
                await self.accept(message.get("subprotocol"), message.get("headers"))
            case "websocket.close":
                await self.close(message.get("code", 1000), message.get("reason"))
            case "websocket.send" if message.get("text") is not None:
                await self.send_text(message["text"])
            case "websocket.send" if message.get("bytes") is not None:
                await self.send_bytes(message["bytes"])
            case "websocket.send":
                raise WrongValueError(
                    'a websocket.send has "text": str or "bytes": bytes; this one has neither'
                )
            case kind:
                raise WrongValueError(
                    f"send() takes an ASGI message of type websocket.accept, websocket.send or "
                    f"websocket.close, not {kind!r}; send_json() sends any dict as JSON"
                )

    async def _out(self, message: Message) -> None:
        assert self._via_send is not None
        try:
            await self._via_send(message)
        except OSError as error:
            if isinstance(error, WebSocketDisconnect):
                raise
            raise WebSocketDisconnect(1006, by="network") from error

    @staticmethod
    def _check_mode(mode: str) -> None:
        if mode not in ("text", "binary"):
            raise WrongValueError(f'mode is "text" or "binary", not {mode!r}')

    # Bounds and identity

    def rate_limit(self, limit: MeterFactory | Rate | str) -> None:
        """From now on, hold what this client sends to ``limit``: a `nexios_trio.RateLimit`, or a rate such as
        ``"10/s"``, beyond which messages wait.

        It acts where messages are received: by `receive`, `receive_text` and its relatives, and the loops
        over them. Not a checkpoint.
        """
        if isinstance(limit, str | Rate):
            factory: MeterFactory = self.scope[SERVICES].guard.rate_limit(limit)
        elif isinstance(limit, type) or not callable(getattr(limit, "meter", None)):
            raise WrongTypeError(f'a rate limit is a RateLimit or a str such as "10/s", not {limit!r}')
        else:
            factory = limit
        if self._intake is None:
            self._intake = Intake(self._connection)
        self._intake.add(factory.meter(self))

    async def renew(self, token: str) -> None:
        """Go on with a new token of the same user, before the old one has expired.

        Raises `AuthenticationError` for a token that is no good or another user's, `PermissionDenied` if its
        scopes are not enough for this route; unhandled, they close with 4401 and 4403. The old one holds on
        where nothing was raised. `WrongStateError` if the client was not authenticated by a token.
        """
        if self._renewal is None:
            raise WrongStateError(
                "this client was not authenticated by a token; renew() needs authenticate=BearerToken(...), "
                "SubprotocolToken(...) or FirstMessage(...), or an Identity with renew="
            )
        await self._renewal(self, token)

    # The end

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection (RFC 6455 §7.1.2); before `accept`, refuse it with HTTP 403.

        Idempotent and legal in every state: on a connection that is over it does nothing, so
        ``finally: await ws.close()`` is safe. ``code`` is one that may be sent (1000, 1001-1003,
        1007-1014, 3000-4999; else `WrongValueError`); ``reason`` is cut to 123 bytes. It does not wait
        for the client's answer: that happens when the handler has returned. Cancelled, the Close frame
        is still sent before the connection ends.
        """
        reason = check_close(code, reason)
        if self._via_send is None or self._transport.state not in (State.CONNECTING, State.OPEN):
            await self._transport.close(code, reason)
        else:
            await self._out({"type": "websocket.close", "code": code, "reason": reason})

    # Groups

    def join(
        self,
        name: str,
        *,
        since: str | None = None,
        presence: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        overflow: Overflow | None = None,
        envelope: bool = False,
        authorize: Authorize | None = None,
    ) -> Group:
        """Membership of a group: ``async with ws.join("room.42") as group``.

        Entering replays what was missed since the position ``since`` (``"epoch:offset"``), then follows,
        with no gap and no repeat; ``group.recovered`` says whether that was possible. ``presence`` (a dict of
        metadata) lists this connection under ``user_id`` (default: that of `identify`, else the connection's
        own id) and makes it receive ``presence.join`` and ``presence.leave`` messages. ``overflow`` is what
        happens when this client does not read (default: `Overflow.DISCONNECT`). With ``envelope`` each JSON
        or text message comes as ``{"group": …, "position": …, "payload": …}``, so that the client knows
        where to resume.

        ``authorize(ws, name)``, async or not, says whether this client may: if it gives False, entering
        raises `PermissionDenied`, unhandled 4403. Entering a group too many, or one with too long a name,
        raises `LimitError`, unhandled 1008.

        Leaving is immediate: at the end of the block, or when the connection is over. Entering raises
        `WebSocketDisconnect`, or `WrongStateError` before `accept` and if this connection is in the group
        already. Messages of groups bypass middleware that wraps ``send``.
        """
        return self._hub().membership(
            self._connection,
            name,
            since=since,
            presence=presence,
            user_id=user_id,
            overflow=overflow,
            envelope=envelope,
            authorize=authorize,
        )

    def identify(self, user_id: str) -> None:
        """Note whose connection this is, for ``app.channels.send_to_user`` and ``disconnect_user``.

        Raises `LimitError` if he has ``Limits.connections_per_user`` already. Where that counts all servers,
        `accept` raises it, and a client that is accepted is closed with 1008. Not a checkpoint.
        """
        hub = self._hub()
        hub.identify(self._connection, user_id)
        hub.claim_soon(self._connection)

    @property
    def user_id(self) -> str | None:
        """What `identify` noted."""
        return self._connection.user_id

    def statistics(self) -> OutboxStatistics:
        """What waits to be sent to this client, and what was dropped on the way."""
        outbox = self._transport.outbox
        if outbox is None:
            return OutboxStatistics()
        return OutboxStatistics(
            len(outbox),
            outbox.size,
            outbox.drops.dropped_oldest,
            outbox.drops.dropped_newest,
            outbox.drops.conflated,
        )

    def _hub(self) -> Hub:
        hub: Hub = self.scope[SERVICES].hub
        return hub

    # Children

    def start_soon(
        self,
        async_fn: Callable[[*Ts], Awaitable[object]],
        *args: *Ts,
        name: object = None,
    ) -> None:
        """Run ``async_fn(*args)`` as a task that lives no longer than this connection.

        It is cancelled the moment the peer is gone or the handler returns. If it raises, the handler is
        cancelled and the connection closes as if the handler had raised. Not a checkpoint. Raises
        `WebSocketDisconnect` if the connection is over.
        """
        self._connection.start_soon(async_fn, *args, name=name)
