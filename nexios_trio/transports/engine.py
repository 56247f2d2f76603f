"""The fast lane: a connection on a socket that a reactor watches, without a task of its own.

What comes is parsed where the reactor finds it and goes into the inbox; what is sent goes straight to the
socket. Only what the kernel does not take waits, and the reactor sends it when there is room again.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from nexios_trio.config import ConnectionSettings, Limits
from nexios_trio.transports.base import Closure
from nexios_trio.transports.core import Core, close_code_of
from nexios_trio.transports.direct import DirectOutbox
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET
from nexios_trio.transports.outbox import Entry, Outbox
from nexios_trio.transports.pings import Pings, PingsDue
from nexios_trio.transports.states import TRANSITIONS, Event, State
from nexios_trio.wire import (
    Agreement,
    Close,
    Failure,
    Ping,
    Pong,
    Request,
    accept_response,
    agree,
    reject_response,
)
from nexios_trio.wire import Connection as Wire
from nexios_trio.wire import Event as WireEvent

__all__ = ["TRANSPORT", "EngineTransport", "Reactor"]

TRANSPORT: Final = "nexios_trio.transport"
"""Under this key of ``scope["extensions"]`` the engine hands its transport to an app that knows what to do
with it; ASGI's ``receive`` and ``send`` are that transport's methods."""

READ_BYTES: Final = 1 << 13
"""What is read from a socket at a time. It may all be frames of six bytes, and other connections wait until
they have been parsed..."""
READ_MORE_BYTES: Final = 1 << 17
"""...and the most that is once there was a large frame, so that the next one comes in one piece or few..."""
READ_LESS_BYTES: Final = 1 << 12
"""...and what is, from then on, when there were many frames in one read."""
MANY_FRAMES: Final = 512
PING_READS: Final = 64
"""Reads with Pings whose answers have to wait, since the client does not read; then neither do we."""
WRITE_BYTES: Final = 1 << 16
"""What is taken out of an outbox for one write."""
EARLY_BYTES: Final = 1 << 16
"""What a client may send before it is accepted."""
UNBOUNDED: Final = (1 << 62) - 1
"""The largest bound that a wire takes."""
LINGER: Final = 2.0
"""Seconds that we read on, and throw away, after the last word: closing TCP on unread bytes would make the
kernel reset it, and the client might lose what we said."""

_BUSY: Final = (BlockingIOError, InterruptedError)


class Watched(Protocol):
    """A socket, and whom to tell of it. To be hashable."""

    sock: socket.socket
    reading: bool
    writing: bool
    watched: int
    """The reactor's note of what it watches for."""
    scheduled: float
    """The reactor's note of the next `tick`; `math.inf` to begin with."""

    def readable(self) -> None:
        """There is something to read, or the end of it."""

    def writable(self) -> None:
        """There is room for something to send."""

    def hung_up(self) -> None:
        """The kernel says that the socket is broken, whether it is read from or not."""

    def tick(self, now: float) -> float:
        """Do what is due; gives when to be called next."""


class Reactor(Protocol):
    """Who watches the sockets; see `nexios_trio.server.reactor`."""

    now: float

    def watch(self, watched: Watched) -> None:
        """Begin to watch, or watch for what ``reading`` and ``writing`` say now."""

    def forget(self, watched: Watched) -> None:
        """Watch no longer; before the socket is closed."""

    def wake_at(self, watched: Watched, due: float) -> None:
        """Call ``watched.tick(now)`` at ``due``, or before."""


class EngineTransport(Core):
    """See `nexios_trio.transports.base.Transport`."""

    __slots__ = (
        "_agreement",
        "_alarm",
        "_alarm_at",
        "_deflate",
        "_drained",
        "_early",
        "_ended",
        "_failed",
        "_heard",
        "_heard_all",
        "_heartbeat",
        "_last_word",
        "_last_word_by",
        "_limits",
        "_message_bytes",
        "_pending",
        "_ping_reads",
        "_pings",
        "_progress",
        "_reactor",
        "_read_bytes",
        "_recv",
        "_request",
        "_send_raw",
        "_streak",
        "_unread_by",
        "_wire",
        "answered",
        "reading",
        "scheduled",
        "sock",
        "unsent",
        "watched",
        "writing",
    )

    def __init__(
        self,
        sock: socket.socket,
        request: Request,
        reactor: Reactor,
        settings: ConnectionSettings,
        *,
        early: bytes = b"",
        message_bytes: int | None = None,
    ) -> None:
        """``message_bytes``: the bound on a message, whatever ``settings`` say of it."""
        self._message_bytes = message_bytes
        super().__init__({}, settings.limits)
        self._limits = settings.limits
        self._heartbeat = settings.heartbeat
        self._deflate = settings.deflate
        self.close_timeout = settings.close_timeout
        self.sock = sock
        self._recv = sock.recv
        self._read_bytes = READ_BYTES
        self._send_raw = sock.send
        self._request: Request | None = request
        """Until it is answered."""
        self._reactor = reactor
        self._agreement: Agreement | None = None
        self.answered = 0
        """The status that the handshake was answered with; 0: none yet."""
        self._wire: Wire | None = None
        self._early = early
        self._pending: deque[bytes | memoryview] | None = None
        self.unsent = 0
        """Bytes that the kernel has not taken yet."""
        self._streak = 0
        self.reading = True
        self.writing = False
        self.watched = 0
        """The reactor's note of what it watches for."""
        self.scheduled = math.inf
        """The reactor's note of the next `tick`."""
        self._last_word: Callable[[], Exception] | None = None
        self._last_word_by = math.inf
        """What ends the connection once the handler has had what came before, and by when at the latest."""
        self._failed = False
        """The peer broke the protocol, and may be sending still."""
        self._drained: trio.Event | None = None
        self._ended = False
        """The socket is broken, or closed."""
        self._heard_all = False
        """The peer sends nothing more."""
        self._heard = self._progress = reactor.now
        self._pings: Pings | None = None
        self._ping_reads = 0
        self._unread_by = math.inf
        self._alarm_at = math.inf
        self._alarm: Callable[[float], float] | None = None
        reactor.watch(self)

    def configure(self, settings: ConnectionSettings) -> None:
        """What holds for this connection; before `accept` only."""
        if settings.limits is not self._limits:
            self._limits = settings.limits
            self.set_limits(settings.limits)
        self._heartbeat = settings.heartbeat
        self._deflate = settings.deflate
        self.close_timeout = settings.close_timeout

    def set_limits(self, limits: Limits) -> None:
        """See `Core.set_limits`."""
        super().set_limits(limits)
        if self._message_bytes is not None:
            self.max_message = self._message_bytes

    # What the reactor tells us

    def readable(self) -> None:
        """Read once, and hand on what is complete."""
        try:
            data = self._recv(self._read_bytes)
        except _BUSY:
            return
        except OSError as error:
            self._broken(error)
            return
        if not data:
            self._eof()
            return
        self._heard = self._reactor.now
        wire = self._wire
        if wire is None:
            self._take_early(data)
            return
        events = wire.receive_data(data)
        if len(data) >= READ_LESS_BYTES:
            self._choose_size(wire, len(data), len(events))
        self._feed(wire, events)

    def _choose_size(self, wire: Wire, size: int, events: int) -> None:
        """How much to read next time, of how much came now and how many events it made."""
        if events + wire.fragments > MANY_FRAMES:
            self._read_bytes = READ_LESS_BYTES
        elif READ_BYTES <= self._read_bytes <= size:
            self._read_bytes = min(size + wire.missing, READ_MORE_BYTES)

    def _feed(self, wire: Wire, events: list[WireEvent]) -> None:
        full = False
        inbox = self.inbox
        answers = False
        for event in events:
            kind = type(event)
            if kind is str or kind is bytes:
                full = inbox.put_nowait(event)  # type: ignore[arg-type]
                if self.track_time:
                    self.received_at = self._heard
                    self.spoken = True
                    tally = self.tally
                    if tally is not None:  # `Tally.came`
                        tally.messages_in += 1
                        tally.bytes_in += len(event)  # type: ignore[arg-type]
                        if tally.messages_in >= tally.look_at:
                            tally.look_in(event, self._heard)  # type: ignore[arg-type]
            elif kind is Ping:
                answers = True
            elif kind is Pong:
                if self._pings is not None:
                    self._pings.answered(event.payload, trio.current_time())  # type: ignore[union-attr]
            elif kind is Close:
                self._closed_by_peer(wire, event)  # type: ignore[arg-type]
            else:
                self._violated(wire, event)  # type: ignore[arg-type]
        if answers and not self._ended:
            if self._pending:
                self._count_pings()
            else:
                self._write(wire.data_to_send())
        if full:
            self._choke()

    def _count_pings(self) -> None:
        self._ping_reads += 1
        if self._ping_reads == PING_READS:
            self.reading = False
            self._reactor.watch(self)

    def _take_early(self, data: bytes) -> None:
        if self.state is not State.CONNECTING:
            return  # rejected: what comes now is thrown away until TCP is closed
        self._early += data
        if len(self._early) >= EARLY_BYTES:
            self.reading = False
            self._reactor.watch(self)

    def writable(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        while True:
            if not self._pending and not self._refill():
                self._pending = None
                self.writing = False
                if self._ping_reads >= PING_READS:
                    self._read_on()
                self._ping_reads = 0
                self._reactor.watch(self)
                if self._drained is not None:
                    self._drained.set()
                self._end_tcp_if_over()
                return
            pending = self._pending
            assert pending is not None
            try:
                sent = self.sock.sendmsg(list(islice(pending, 64)))
            except _BUSY:
                return
            except OSError as error:
                self._broken(error)
                return
            self._progress = self._reactor.now
            self.unsent -= sent
            while sent:
                first = pending[0]
                if sent < len(first):
                    pending[0] = memoryview(first)[sent:]
                    return
                sent -= len(first)
                pending.popleft()

    def _refill(self) -> bool:
        """Take more out of the outbox; False: there is nothing."""
        size = 0
        if self._wire is not None:
            answer = self._wire.data_to_send()
            if answer:
                self._keep_for_later(answer)
                size = len(answer)
        if self.outbox is not None:
            while size < WRITE_BYTES:
                entry = self.outbox.take_nowait()
                if entry is None:
                    break
                frame = self._frame_of(entry)
                if self.tally is not None:
                    self.tally.went(entry.data)
                self._keep_for_later(frame)
                size += len(frame)
        self.unsent += size
        return size > 0

    def _keep_for_later(self, piece: bytes | memoryview) -> None:
        if self._pending is None:
            self._pending = deque()
        self._pending.append(piece)

    def hung_up(self) -> None:
        """The kernel says that the socket is broken, whether we read or not."""
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or self._heard_all:
            self._broken(OSError(error or errno.ECONNRESET, "the connection is broken"))
        else:
            self.readable()

    def _eof(self) -> None:
        """Nothing more will come; the client may still read (a half-closed TCP connection)."""
        self._heard_all = True
        self.reading = False
        self._reactor.watch(self)
        if self._last_word is None and not self._peer_gone:
            self._end_after_inbox(self._answer_eof)

    def _answer_eof(self) -> Exception:
        self._last_word, self._last_word_by = None, math.inf
        if self._wire is not None:
            self._wire.receive_eof()
        self.lost()
        self._end_tcp_if_over()
        assert self.closure is not None
        return self.closure.error()

    def _broken(self, error: OSError, reason: str = "") -> None:
        self._ended = True
        self._forget_unsent()
        self._stop_watching()
        if error.errno == errno.ETIMEDOUT:
            reason = "heartbeat timeout"
        self.lost(reason)

    def _forget_unsent(self) -> None:
        self._pending = None
        self.unsent = 0
        if self._drained is not None:
            self._drained.set()

    def _stop_watching(self) -> None:
        self.reading = self.writing = False
        self._reactor.forget(self)

    # Frames

    def _end_after_inbox(self, last_word: Callable[[], Exception]) -> None:
        """End the connection once the handler has had what came before, so that it can still answer that; a
        Close may be answered so much later (RFC 6455 §5.5.1)."""
        if self.state is not State.OPEN or not len(self.inbox):
            last_word()
            return
        self._last_word = last_word
        self._last_word_by = trio.current_time() + self.close_timeout
        self._wake_at(self._last_word_by)
        self.inbox.stop(last_word)

    def _end_tcp_if_over(self) -> None:
        """End TCP once both have said their last word (RFC 6455 §7.1.1), however long the handler stays: our
        half, since closing it on what the peer may be sending would reset it."""
        if self._heard_all and self._close_sent and self._peer_gone and not self.unsent and not self._ended:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the reactor hears of it

    def _closed_by_peer(self, wire: Wire, close: Close) -> None:
        self._end_after_inbox(partial(self._answer_close, wire, close))

    def _answer_close(self, wire: Wire, close: Close) -> Exception:
        self._last_word, self._last_word_by = None, math.inf
        if not self._close_sent:
            self._close_sent = True
            self._write(wire.encode_close())
        if not self._peer_gone:
            self._gone(Closure(close.code, close.reason, "peer"))
        self._heard_all = True
        self._end_tcp_if_over()
        assert self.closure is not None
        return self.closure.error()

    def _violated(self, wire: Wire, failure: Failure) -> None:
        """Fail the connection (RFC 6455 §7.1.7)."""
        self._end_after_inbox(partial(self._fail, wire, failure))
        if self._last_word is not None:
            self.reading = False
            self._reactor.watch(self)

    def _fail(self, wire: Wire, failure: Failure) -> Exception:
        self._last_word, self._last_word_by = None, math.inf
        if self.state is State.OPEN or self.state is State.CLOSING:
            code, reason = failure.code, failure.reason
            if code == 1009:
                reason = f"a message has at most {self.max_message} bytes"
                self.hooks.too_big()
            if not self._close_sent:
                self._close_sent = True
                self._write(wire.encode_close(code, reason))
            self._failed = True
            self._gone(Closure(code, reason, "local"))
        assert self.closure is not None
        return self.closure.error()

    # Reading no further

    def _choke(self) -> None:
        self.choked = True
        self.reading = False
        self._reactor.watch(self)
        self.inbox.when_taken(self._relieve)
        if self.unread_timeout != math.inf:
            self._unread_by = trio.current_time() + self.unread_timeout
            self._wake_at(self._unread_by)

    def _relieve(self) -> None:
        if self.inbox.full:
            self.inbox.when_taken(self._relieve)
            if self.unread_timeout != math.inf:
                self._unread_by = trio.current_time() + self.unread_timeout
            return
        self.choked = False
        self._unread_by = math.inf
        self.received_at = self._heard = trio.current_time()
        if self._ping_reads < PING_READS:
            self._read_on()

    def _read_on(self) -> None:
        """One reason not to read is over; unless there is another, do."""
        self._heard = trio.current_time()
        if not (self.choked or self._ended or self._heard_all or self._failed or self._last_word is not None):
            self.reading = True
            self._reactor.watch(self)

    # Time

    def set_alarm(self, alarm: Callable[[float], float], due: float) -> None:
        """Call ``alarm(now)`` at ``due``; it gives when to be called next. Replaces the former one."""
        self._alarm, self._alarm_at = alarm, due
        self._wake_at(due)

    @property
    def latency(self) -> float | None:
        """Seconds from the last answered Ping to its Pong; None: none was answered yet."""
        return None if self._pings is None else self._pings.latency

    @property
    def _patience(self) -> float:
        """How long a client may take nothing of what waits for it."""
        return math.inf if self._heartbeat is None else self._heartbeat.timeout

    def tick(self, now: float) -> float:
        """Do what is due; gives when to be called next."""
        if now >= self._alarm_at and self._alarm is not None:
            self._alarm_at = math.inf
            self._alarm_at = self._alarm(now)
        if self._ended:
            return self._alarm_at
        if now >= self._last_word_by and self._last_word is not None:
            self._last_word()
        if now >= self._unread_by:
            self._unread_by = now + self.unread_timeout
            self.hooks.unread()
        due = min(self._alarm_at, self._unread_by, self._last_word_by)
        if self.unsent:
            if now >= self._progress + self._patience:
                self._broken(OSError(errno.ETIMEDOUT, "the client does not read"))
                return due
            due = min(due, self._progress + self._patience)
        pings = self._pings
        if pings is not None and self.state is State.OPEN:
            match pings.check(now, self._heard, listening=not self.choked and self._ping_reads < PING_READS):
                case PingsDue.DEAD:
                    self.declare_dead("heartbeat timeout")
                case PingsDue.PING if self._wire is not None and not self.unsent:
                    # One behind what is not read would measure nothing.
                    self._write(self._wire.encode_ping(pings.payload(now)))
                case _:
                    pass
            due = min(due, pings.due)
        return due

    # The handshake

    def _check(self, event: Event) -> None:
        if (self.state, event) not in TRANSITIONS:
            raise self.refusal(event)

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._is_accepted_early(subprotocol, headers):
            await checkpoint()
            return
        self._check(Event.ACCEPT)
        await checkpoint()
        self._check(Event.ACCEPT)
        if subprotocol is None:
            subprotocol = self.default_subprotocol
        request = self._request
        assert request is not None
        agreement = None if self._deflate is None else agree(self._deflate, request.extensions)
        self._agreement = agreement
        answer = accept_response(request, subprotocol=subprotocol, agreement=agreement, headers=headers)
        self._wire = wire = Wire.server(max_message_bytes=min(self.max_message, UNBOUNDED), deflate=agreement)
        self.state = State.OPEN
        self._request = None
        self._write(answer)
        self.answered = 101
        self._begin_heartbeat()
        self.hooks.accepted(subprotocol)
        early, self._early = self._early, b""
        if early:
            self._feed(wire, wire.receive_data(early))
        if not self.reading and not self.choked and not self._ended:
            self.reading = True
            self._reactor.watch(self)

    def _begin_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._pings = Pings(self._heartbeat, trio.current_time())
            self._wake_at(self._pings.due)

    def _wake_at(self, due: float) -> None:
        if due < self.scheduled:
            self._reactor.wake_at(self, due)

    async def reject(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        if self._is_late():
            await self.close(close_code_of(status), "")
            return
        self._check(Event.REJECT)
        await checkpoint()
        self._check(Event.REJECT)
        answer = reject_response(status, headers, body)
        self.state = State.REJECTED
        self._write(answer)
        self.answered = status

    # Sending

    def open_outbox(self, limits: Limits) -> Outbox:
        """Make the outbox for what the socket does not take at once."""
        self.outbox = DirectOutbox(limits, self)
        return self.outbox

    def send_text(self, data: str) -> Coroutine[Any, Any, None]:
        return self._send(data)

    def send_bytes(self, data: bytes) -> Coroutine[Any, Any, None]:
        return self._send(data)

    async def _send(self, data: str | bytes) -> None:
        if self.state is not State.OPEN:
            raise self.refusal(Event.SEND)
        wire = self._wire
        if self.unsent:
            await self._send_in_turn(data)
            return
        await checkpoint_if_cancelled()
        frame = wire.encode_text(data) if type(data) is str else wire.encode_binary(data)  # type: ignore[union-attr,arg-type]
        try:
            sent = self._send_raw(frame)
        except _BUSY:
            sent = 0
        except OSError as error:
            self._broken(error)
            raise self.refusal(Event.SEND) from error
        tally = self.tally
        if tally is not None:  # `Tally.went`
            tally.messages_out += 1
            tally.bytes_out += len(data)
            if tally.alert:
                tally.look_out(data)
        if sent < len(frame):
            self._keep(frame, sent)
        self._streak += 1
        if self._streak >= CHECKPOINT_BUDGET:
            self._streak = 0
            await cancel_shielded_checkpoint()

    async def _send_in_turn(self, data: str | bytes) -> None:
        """Behind what waits already: the kernel takes nothing, so neither do we beyond the outbox."""
        if isinstance(data, str):
            data.encode()  # raises for surrogates, here and not in the reactor
            entry = Entry({"type": "websocket.send", "text": data}, len(data))
        else:
            entry = Entry({"type": "websocket.send", "bytes": bytes(data)}, len(data))
        outbox = self.open_outbox(self._limits) if self.outbox is None else self.outbox
        if not await outbox.put(entry):
            raise self.refusal(Event.SEND)

    def send_now(self, entry: Entry) -> bool:
        """Send a message past the outbox; for `DirectOutbox`. Never raises."""
        # While the outbox holds something there is something unsent, and an open connection has an open one.
        if self.unsent or self.state is not State.OPEN:
            return False
        frame = entry.made or entry.wire() if self._agreement is None else self._frame_of(entry)
        try:
            sent = self._send_raw(frame)
        except _BUSY:
            sent = 0
        except OSError as error:
            self._broken(error)
            return True
        if self.tally is not None:
            self.tally.went(entry.data)
        if sent < len(frame):
            self._keep(frame, sent)
        return True

    def _frame_of(self, entry: Entry) -> bytes:
        wire = self._wire
        assert wire is not None
        agreement = self._agreement
        if agreement is None:
            return entry.wire()
        bits = wire.shared_window_bits
        if bits is not None:
            return entry.compressed(agreement.settings, bits)
        text = entry.frame.get("text")
        return wire.encode_binary(entry.frame["bytes"]) if text is None else wire.encode_text(text)

    def _write(self, data: bytes) -> None:
        if self._ended or not data:
            return
        if self.unsent:
            self._keep_for_later(data)
            self.unsent += len(data)
            return
        try:
            sent = self._send_raw(data)
        except _BUSY:
            sent = 0
        except OSError as error:
            self._broken(error)
            return
        if sent < len(data):
            self._keep(data, sent)

    def _keep(self, frame: bytes, sent: int) -> None:
        self._keep_for_later(memoryview(frame)[sent:] if sent else frame)
        self.unsent += len(frame) - sent
        self.writing = True
        self._progress = trio.current_time()
        self._reactor.watch(self)
        self._wake_at(self._progress + self._patience)

    # The end

    async def send_close(self) -> None:
        if self.outbox is not None:
            with trio.move_on_after(self.close_timeout):
                await self.outbox.wait_sent()
            self.outbox.throw_away()
        await checkpoint_if_cancelled()
        if self._close_sent or self._peer_gone:
            return
        self._close_sent = True
        code, reason = self._wire_close
        if self._wire is None:
            self._write(reject_response(403))
            self.answered = 403
            return
        self._write(self._wire.encode_close(code, reason))
        if self._last_word is not None:
            self._last_word()

    async def finish(self) -> None:
        """Let the last words out, within `close_timeout`; then close TCP. For once the app has ended."""
        self._pings = None
        if self.unsent and not self._ended:
            self._drained = trio.Event()
            with trio.move_on_after(self.close_timeout, shield=True):
                await self._drained.wait()
        if not self._ended and not self._finished_cleanly():
            await self._linger()
        self._ended = True
        self._stop_watching()
        self.sock.close()

    def _finished_cleanly(self) -> bool:
        """Whether the peer has said its last word: closing TCP cannot cost it ours."""
        closure = self.closure
        return (
            self._peer_gone
            and self._close_sent
            and closure is not None
            and closure.code not in (1002, 1007, 1008, 1009)
        )

    async def _linger(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self._stop_watching()
        with trio.move_on_after(LINGER, shield=True):
            while True:
                await trio.lowlevel.wait_readable(self.sock)
                try:
                    if not self._recv(READ_BYTES):
                        return
                except _BUSY:
                    pass
                except OSError:
                    return
