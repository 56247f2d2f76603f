"""A connection is a nursery: what runs in it, what ends it, and what the client is told."""

from __future__ import annotations

import logging
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVarTuple

import trio

from nexios_trio.config import ConnectionSettings
from nexios_trio.exceptions import (
    AuthenticationError,
    PeerError,
    UsageError,
    WebSocketDisconnect,
    WrongStateError,
)
from nexios_trio.instrument import NULL_INSTRUMENT, Backlog, Instrument, Tally, log_fields
from nexios_trio.transports.asgi import ON_LOST, AsgiTransport, sends_atomically
from nexios_trio.transports.engine import EngineTransport
from nexios_trio.transports.outbox import Outbox
from nexios_trio.transports.states import Event, State
from nexios_trio.types import Receive, Scope, Send
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.children import check_async_fn, checked_awaitable
from nexios_trio.websockets.heartbeat import Beat, Pulse
from nexios_trio.websockets.verdict import FAILED, GONE, RESTART, Farewell, Outcome

if TYPE_CHECKING:
    from nexios_trio.websockets.hub import Hub

__all__ = ["Connection"]

logger = logging.getLogger("nexios_trio.connection")

Ts = TypeVarTuple("Ts")


class Connection:
    """The lifetime of one WebSocket; `run` is called in the server's task for this connection.

    | task | what it does | when it ends |
    |---|---|---|
    | the server's own | the handler, inside ``_handler_scope`` | returns, raises, or is cancelled |
    | reader | drains ``receive()``, keeps the timers | after the closing handshake |
    | children | what ``ws.start_soon`` started | peer gone, or the handler has ended |
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_begun_at",
        "_children",
        "_ends_at",
        "_expires_at",
        "_failures",
        "_first_by",
        "_handler_scope",
        "_instrument",
        "_nursery",
        "_pulse",
        "_read_out",
        "_reader_scope",
        "_server_receive",
        "_shutting_down",
        "_websocket",
        "_writer_scope",
        "counts",
        "delayed",
        "id",
        "known_to",
        "memberships",
        "refused",
        "route",
        "scope",
        "settings",
        "subprotocol",
        "transport",
        "user_id",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: ConnectionSettings,
        counts: Counter[str] | None = None,
        transport: EngineTransport | None = None,
        instrument: Instrument = NULL_INSTRUMENT,
    ) -> None:
        self.id = secrets.token_hex(6)
        self.scope = scope
        self.settings = settings
        self.counts = Counter() if counts is None else counts
        """How often a client was refused something, by cause; the app's."""
        self.route = ""
        """The path pattern of the route that the handler was found by."""
        self.refused: PeerError | None = None
        """Why the client was not let in, should that not be heard of otherwise."""
        self.delayed = False
        """Whether a rate limit makes a message wait."""
        self.memberships = 0
        """The groups that this connection is in."""
        self.subprotocol: str | None = None
        self.transport: AsgiTransport | EngineTransport = (
            AsgiTransport(
                receive,
                send,
                extensions=scope.get("extensions"),
                atomic=sends_atomically(scope),
                limits=settings.limits,
            )
            if transport is None
            else transport
        )
        if isinstance(self.transport, EngineTransport):
            self.transport.configure(settings)
        self.transport.close_timeout = settings.close_timeout
        self.transport.unread_timeout = settings.unread_timeout
        self.transport.hooks = self
        self._server_receive = receive
        self._websocket: WebSocket | None = None
        self._nursery: trio.Nursery | None = None
        self._handler_scope = trio.CancelScope()
        self._reader_scope: trio.CancelScope | None = None
        self._read_out = False
        self._pulse: Pulse | None = None
        self._first_by = self._ends_at = self._expires_at = math.inf
        self._children: set[trio.CancelScope] | None = None
        self._failures: list[BaseException] = []
        self._at_end: dict[Callable[[], object], None] | None = None
        self._writer_scope: trio.CancelScope | None = None
        self.user_id: str | None = None
        self.known_to: Hub | None = None
        """Whose `Hub.identify` has noted the user: the app's, or that of one around it."""
        self._shutting_down = False
        self._instrument = instrument
        self._begun_at = trio.current_time()

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.scope['path']!r} {self.transport.state.value}>"

    # For those who watch

    @property
    def tally(self) -> Tally | None:
        """See `Observed.tally`."""
        return self.transport.tally

    @property
    def code(self) -> int | None:
        """See `Observed.code`."""
        closure = self.transport.closure
        return None if closure is None else closure.code

    @property
    def by(self) -> Literal["peer", "local", "network"] | None:
        """See `Observed.by`."""
        closure = self.transport.closure
        return None if closure is None else closure.by

    @property
    def backlog(self) -> Backlog:
        """See `Observed.backlog`."""
        outbox, unsent = self.transport.outbox, self.transport.unsent
        if outbox is None:
            return Backlog(size=unsent)
        drops = outbox.drops
        return Backlog(
            len(outbox), outbox.size + unsent, drops.dropped_oldest, drops.dropped_newest, drops.conflated
        )

    @property
    def seconds(self) -> float:
        """See `Observed.seconds`."""
        return trio.current_time() - self._begun_at

    @property
    def tasks(self) -> trio.lowlevel.Task | None:
        """The task that everything of this connection runs in or below; None: it is over."""
        return None if self._nursery is None else self._nursery.parent_task

    # For the layers above

    @property
    def receive(self) -> Receive:
        """ASGI's receive() of this connection."""
        return self.transport.asgi_receive

    @property
    def send(self) -> Send:
        """ASGI's send() of this connection."""
        return self.transport.asgi_send

    def plain_websocket(self) -> WebSocket:
        """The one `WebSocket` of this connection."""
        if self._websocket is None:
            self._websocket = WebSocket(self.scope, self)
        return self._websocket

    @contextmanager
    def websocket(self, scope: Scope, receive: Receive, send: Send) -> Iterator[WebSocket]:
        """The same, as it is to be seen below ``receive`` and ``send``.

        Middleware may have wrapped these or replaced the scope; what was seen above comes back
        afterwards.
        """
        ws = self.plain_websocket()
        before = (ws.scope, ws._via_receive, ws._via_send)
        if ws.scope is not scope:
            ws._replace_scope(scope)
        ws._via_receive = None if receive == self.receive else receive
        ws._via_send = None if send == self.send else send
        try:
            yield ws
        finally:
            if ws.scope is not before[0]:
                ws._replace_scope(before[0])
            ws._via_receive, ws._via_send = before[1:]

    def start_soon(
        self, async_fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, name: object = None
    ) -> None:
        """See `WebSocket.start_soon`."""
        check_async_fn(async_fn, "ws")
        if self._nursery is None or self.transport.state in (State.CLOSED, State.REJECTED):
            raise (
                self.transport.closure.error() if self.transport.closure else WebSocketDisconnect(by="local")
            )
        self._nursery.start_soon(self._run_child, async_fn, args, name=name or async_fn)

    def open_outbox(self) -> Outbox:
        """The outbox of this connection, with its writer; made with the first group membership.

        Raises `WebSocketDisconnect` if the connection is over, `WrongStateError` before accept.
        """
        transport = self.transport
        if transport.state is not State.OPEN or self._nursery is None:
            raise (
                transport.refusal(Event.SEND) if transport.state is not State.OPEN else WebSocketDisconnect()
            )
        if transport.outbox is None:
            outbox = transport.open_outbox(self.settings.limits)
            if isinstance(transport, AsgiTransport):
                self._writer_scope = trio.CancelScope(shield=True)
                self._nursery.start_soon(self._write, transport, self._writer_scope, name="writer")
            return outbox
        return transport.outbox

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` the moment the connection is over, whoever ended it; now, if it has ended."""
        if self._nursery is None and self.transport.state is not State.CONNECTING:
            callback()
            return
        if self._at_end is None:
            self._at_end = {}
        self._at_end[callback] = None

    def not_at_end(self, callback: Callable[[], object]) -> None:
        """Take `at_end` back."""
        if self._at_end is not None:
            self._at_end.pop(callback, None)

    def kick(self, code: int, reason: str) -> None:
        """As `close_soon`, without what still waits in the outbox: the client does not read it."""
        if self.transport.outbox is not None:
            self.transport.outbox.throw_away()
        self.close_soon(code, reason)

    def close_soon(self, code: int, reason: str) -> None:
        """Close; the connection is over when this returns, the Close frame follows what is in the outbox."""
        if self._nursery is not None and self.transport.begin_close(code, reason):
            self._nursery.start_soon(self._send_close)

    def begin_shutdown(self) -> None:
        """The server goes down: close with 1012 (before accept: HTTP 503), give the handler its grace."""
        self._shutting_down = True
        if self.transport.state is State.CONNECTING:
            self._handler_scope.cancel()
        else:
            self.close_soon(RESTART.code, RESTART.reason)

    # The run

    async def run(self, call: Callable[[Connection], Awaitable[None]]) -> None:
        """Run ``call(self)`` for this connection, from ASGI's ``websocket.connect`` to the end of everything.

        The frames between the server and the handler are stepped through at every message, so there are
        few.
        """
        if isinstance(self.transport, AsgiTransport):
            event = await self._server_receive()
            if event["type"] != "websocket.connect":
                return
        self._handler_scope.deadline = trio.current_time() + self.settings.limits.accept_timeout
        if (tell_lost := self.transport.extensions.get(ON_LOST)) is not None:
            tell_lost(self.transport.lost)
        self._instrument.begun(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._start_clock()
                if isinstance(self.transport, AsgiTransport):
                    nursery.start_soon(self._read, self.transport, name="reader")
                try:
                    with self._handler_scope:
                        try:
                            await call(self)
                        except* Exception as group:
                            self._failures.append(group)
                except BaseException:  # cancelled from outside: the server is going down
                    self._end_children()
                    await self._say_goodbye(RESTART, wait=False)
                    raise
                else:
                    self._end_children()
                    await self._say_goodbye(self._verdict(), wait=True)
                finally:
                    self._read_out = True
                    if self._reader_scope is not None:
                        self._reader_scope.cancel()
                    if self._writer_scope is not None:
                        self._writer_scope.cancel()
                    self._tell_end()
                    nursery.cancel_scope.cancel()
        finally:
            self._log_failures("a task failed as the connection ended")
            self._instrument.ended(self)
            self._websocket = None
            self.transport.detach()

    async def _write(self, transport: AsgiTransport, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await transport.write()
            except Exception as error:  # the server would not take a message
                self._fail(error)
                if transport.outbox is not None:
                    transport.outbox.throw_away()

    def _start_clock(self) -> None:
        transport, now = self.transport, trio.current_time()
        self._pulse = Pulse.of(self.settings, now)
        transport.track_time = (
            self._pulse is not None or self.settings.limits.first_message_timeout != math.inf
        )
        transport.received_at = now
        self._rearm()

    async def _read(self, transport: AsgiTransport) -> None:
        while not self._read_out:
            with trio.CancelScope(deadline=self._due(), shield=True) as self._reader_scope:
                await transport.read()
                return
            if not self._read_out:
                self._time_is_up(trio.current_time())

    def _rearm(self) -> None:
        """Look at the clock when it is time, after something has changed."""
        if isinstance(self.transport, AsgiTransport):
            if self._reader_scope is not None:  # else it looks when it begins
                self._reader_scope.deadline = self._due()
        elif (due := self._due()) != math.inf:
            self.transport.set_alarm(self._ring, due)

    def _ring(self, now: float) -> float:
        if self._read_out:
            return math.inf
        self._time_is_up(now)
        return self._due()

    def _due(self) -> float:
        """When to look at the clock again. All timers of a connection live in its reader: a task for each
        would cost more memory than the rest of an idle connection."""
        due = min(self._first_by, self._ends_at, self._expires_at)
        return due if self._pulse is None else min(due, self._pulse.due)

    def _time_is_up(self, now: float) -> None:
        if now >= self._expires_at:
            self._expires_at = math.inf
            self.counts["expired"] += 1
            if self.transport.state is State.CONNECTING:
                self._fail(AuthenticationError("expired before accept()"))
            else:
                self.close_soon(AuthenticationError.close_code, "authentication expired")
                self.transport.inbox.discard()
        if now >= self._ends_at:
            self._ends_at = math.inf
            self.counts["lifetime"] += 1
            self.close_soon(1001, "lifetime over")
        if now >= self._first_by:
            self._first_by = math.inf
            if not self.transport.spoken and self.transport.state is State.OPEN:
                self.counts["first_message_timeout"] += 1
                self.close_soon(1008, "no message in time")
        if self._pulse is not None and now >= self._pulse.due:
            self._beat(self._pulse)

    @property
    def expires_at(self) -> float:
        """What `expire_at` was told last."""
        return self._expires_at

    def expire_at(self, deadline: float) -> None:
        """Close with 4401 at ``deadline`` (`trio.current_time`); `math.inf`: never. Replaces what was said
        before."""
        self._expires_at = deadline
        self._rearm()

    def _beat(self, pulse: Pulse) -> None:
        if self.transport.state is not State.OPEN or self._nursery is None or self.transport.choked:
            pulse.heard = trio.current_time()  # a silence that is not the peer's
            pulse.pinged = None
            return
        match pulse.check(trio.current_time(), self.transport.received_at):
            case Beat.PING:
                self._nursery.start_soon(self._ping)
            case Beat.DEAD:
                self.transport.declare_dead("heartbeat timeout")
            case Beat.IDLE:
                self.close_soon(1001, "idle timeout")
            case Beat.NOTHING:
                pass

    async def _ping(self) -> None:
        heartbeat = self.settings.heartbeat
        assert heartbeat is not None
        assert heartbeat.message is not None
        try:
            if isinstance(heartbeat.message, str):
                await self.transport.send_text(heartbeat.message)
            else:
                await self.transport.send_bytes(heartbeat.message)
        except WebSocketDisconnect:
            pass

    async def _run_child(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        with trio.CancelScope() as scope:
            if self._children is None:
                self._children = set()
            self._children.add(scope)
            if self.transport.state is State.CLOSED:
                scope.cancel()
            try:
                await checked_awaitable(async_fn, args)
            except* GONE as group:
                if self.transport.closure is None:
                    self._fail(group)  # raised by hand: the connection is not over
            except* Exception as group:
                self._fail(group)
            finally:
                self._children.discard(scope)

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._handler_scope.cancel()

    def _end_children(self) -> None:
        self._nursery = None
        self._cancel_children()

    def _cancel_children(self) -> None:
        for scope in self._children or ():
            scope.cancel()

    def accepted(self, subprotocol: str | None) -> None:
        """The handshake is done: from now on the handler may take as long as it likes, and the client is
        expected to speak."""
        self.subprotocol = subprotocol
        now = self.transport.received_at = trio.current_time()
        limits = self.settings.limits
        if limits.first_message_timeout != math.inf or limits.lifetime != math.inf:
            self._first_by, self._ends_at = now + limits.first_message_timeout, now + limits.lifetime
            self._rearm()
        if self.transport.closure is None:
            self._handler_scope.deadline = math.inf
        if self._instrument.counts:
            self.transport.track_time = True
            self.transport.tally = Tally(trio.current_time)
        self._instrument.opened(self)

    def unread(self) -> None:
        if self.delayed:
            return
        logger.warning(
            "%s: the handler has read nothing for %g s while messages wait; closed 1008",
            self,
            self.settings.unread_timeout,
            extra=log_fields(self),
        )
        self.counts["unread_timeout"] += 1
        self.close_soon(1008, "messages are not read")

    def too_big(self) -> None:
        limits = self.settings.limits
        if self.transport.closure is None:
            logger.info(
                "%s: a message of more than %d bytes; closed 1009",
                self,
                limits.message_bytes,
                extra=log_fields(self),
            )
            self.counts["message_bytes"] += 1
        self.close_soon(1009, f"a message has at most {limits.message_bytes} bytes")

    async def _send_close(self) -> None:
        try:
            await self.transport.send_close()
        except Exception:
            logger.exception("%s: the server did not take the Close frame", self, extra=log_fields(self))

    def closing(self) -> None:
        """The connection is over, on our side or on both; called by the transport, once or twice."""
        if self.transport.state is State.CLOSED:
            self._cancel_children()
        self._tell_end()
        grace = trio.current_time() + self.settings.disconnect_grace
        self._handler_scope.deadline = min(self._handler_scope.deadline, grace)

    def _tell_end(self) -> None:
        callbacks, self._at_end = self._at_end, None
        for callback in callbacks or ():
            callback()

    # The end

    def close_code(self, error: BaseException | None) -> int:
        """What the connection was closed with, or will be if its handler ends with ``error``; 1006 if it was
        never accepted."""
        if self.transport.closure is not None:
            return self.transport.closure.code
        if self.transport.state is not State.OPEN:
            return 1006
        outcome = Outcome([*self._failures, error] if error is not None else self._failures, connecting=False)
        cancelled = outcome.cancelled and not self._failures
        if not outcome.mistakes and (self._shutting_down or cancelled):
            return RESTART.code
        return outcome.close_code

    def _verdict(self) -> Farewell:
        """What the client is to be told; logs what deserves it, once."""
        connecting = self.transport.state is State.CONNECTING
        outcome = Outcome(self._failures, connecting=connecting or self.transport.accepted_early)
        self._log_failures("the handler failed")
        if outcome.said is None and outcome.answer is None and not (outcome.mistakes or outcome.away):
            outcome.said = self.refused
        try:
            farewell = outcome.farewell(debug=self.settings.debug)
        except UsageError as error:
            self._failures.append(error)
            self._log_failures("the handler failed")
            return FAILED
        if self._shutting_down and not outcome.mistakes:
            return RESTART
        if isinstance(outcome.said, PeerError):
            self.counts[f"closed.{type(outcome.said).__name__}"] += 1
            logger.info("%s: closed, %a", self, outcome.said.log_reason, extra=log_fields(self))
        if outcome.away is not None:
            self.counts["closed.BrokerUnavailable"] += 1
            logger.warning("%s: the broker is not available: %s", self, outcome.away, extra=log_fields(self))
        if farewell is not None:
            return farewell
        return self._not_accepted() if connecting else Farewell()

    def _log_failures(self, what: str) -> None:
        """Log the mistakes since the last time, together."""
        failures, self._failures = self._failures, []
        connecting = self.transport.state is State.CONNECTING or self.transport.accepted_early
        mistakes = Outcome(failures, connecting=connecting).mistakes
        if mistakes:
            error = mistakes[0]
            if len(mistakes) > 1:
                error = BaseExceptionGroup("several tasks of one connection failed", failures)
            logger.error("%s: %s", self, what, exc_info=error, extra=log_fields(self))

    def _not_accepted(self) -> Farewell:
        if self._handler_scope.cancelled_caught and trio.current_time() >= self._handler_scope.deadline:
            logger.warning(
                "%s: the handler neither accepted nor rejected within %g s; answered 503",
                self,
                self.settings.limits.accept_timeout,
                extra=log_fields(self),
            )
            self.counts["accept_timeout"] += 1
            return Farewell(1013, "", 503)
        logger.info(
            "%s: the handler returned without accept() or reject(); answered 403",
            self,
            extra=log_fields(self),
        )
        return Farewell()

    async def _say_goodbye(self, farewell: Farewell, *, wait: bool) -> None:
        """Send whatever the client is still owed; then wait for its half of the closing handshake, so
        that the server does not drop TCP under a Close frame that is still on its way."""
        transport = self.transport
        patience = self.settings.close_timeout
        if transport.outbox is not None and len(transport.outbox):
            patience *= 2  # once for what waits there, once for the handshake
        with trio.move_on_after(patience, shield=True):
            try:
                if transport.state is State.CONNECTING:
                    await self._answer(farewell)
                elif transport.close_owed:
                    await transport.send_close()
                else:
                    await transport.close(farewell.code, farewell.reason)
            except WebSocketDisconnect:
                pass
            except Exception:
                logger.exception("%s: the server did not take the Close frame", self, extra=log_fields(self))
            else:
                if wait and transport.state is State.CLOSING:
                    await transport.wait_gone()

    async def _answer(self, farewell: Farewell) -> None:
        try:
            await self.transport.reject(farewell.status, farewell.headers, farewell.body)
        except WrongStateError:  # a child was just accepting
            await self.transport.close(farewell.code, farewell.reason)

    def __str__(self) -> str:
        client = self.scope.get("client")
        peer = f"{client[0]}:{client[1]}" if client else "unknown peer"
        return f"connection {self.id} {self.scope['path']!a} from {peer}"
