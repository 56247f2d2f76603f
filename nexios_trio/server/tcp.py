"""hypercorn's task for one TCP connection, as far as its own leaves a client room to harm others.

What is mended, of hypercorn 0.18:

* An error in answering one client's garbage ends that connection; hypercorn would end the worker.
* A connection without a request under way has a deadline. hypercorn's own (``keep_alive_timeout``) is called
  off by the start of HTTP/2 over plain TCP and by each upgrade request, also one that is answered 400: such a
  client could stay for good, and one that does not begin its TLS handshake for 60 seconds.
* There are so many of these connections and no more; the oldest goes.
* What comes after we have refused something (1 MiB of headers, a message too big) is read for a moment and
  thrown away before TCP is closed: else TCP resets, and the client loses the answer that says why.
* A client that has left is let go at once, not when ``keep_alive_timeout`` is over.
* Data for a stream of HTTP/2 that has ended is thrown away; hypercorn would end all the streams beside it.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from nexios_trio.server.internals import GARBAGE, Event, H2Protocol, TCPServer, Updated

__all__ = ["Lobby", "TCPConnection", "keep_other_streams"]

logger = logging.getLogger("nexios_trio.server")

LINGER: Final = 2.0
"""Seconds that a refused client has to take our answer before TCP is closed on what it still sends."""

_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)

COMPLAIN_EVERY: Final = 60.0
"""Seconds between two lines in the log about connections that went for others."""


class Patience(Protocol):
    """What a `trio.CancelScope` has of it."""

    deadline: float

    def cancel(self) -> None:
        """End the connection now."""


class Waiting(Protocol):
    """A TCP connection."""

    @property
    def patience(self) -> Patience:
        """When it is to end."""


class Lobby:
    """The TCP connections that have no request under way, the oldest first: how many, and for how long.

    A new one has ``first`` seconds to bring its request to the app, the TLS handshake and all; one that has
    been served has ``again`` seconds for another.
    """

    def __init__(self, first: float, again: float, most: int) -> None:
        self._first = first
        self._again = again
        self._most = most
        self._waiting: dict[Waiting, None] = {}
        self._dropped = 0
        self._complained = -math.inf

    def enter(self, connection: Waiting, *, served: bool = False) -> None:
        """Begin to wait; end the connection that has waited longest if there are too many."""
        self._waiting[connection] = None
        connection.patience.deadline = trio.current_time() + (self._again if served else self._first)
        if len(self._waiting) > self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.patience.cancel()
            self._complain()

    def leave(self, connection: Waiting) -> None:
        """The connection has a request, or is gone."""
        if connection in self._waiting:
            del self._waiting[connection]
            connection.patience.deadline = math.inf

    def _complain(self) -> None:
        self._dropped += 1
        if trio.current_time() - self._complained >= COMPLAIN_EVERY:
            logger.warning(
                "%d TCP connections wait without a request; dropping the oldest (%d so far)",
                self._most,
                self._dropped,
            )
            self._complained = trio.current_time()


class TCPConnection(TCPServer):
    """See the module. Besides it notes whether TCP has given the peer up, which is how a dead peer is told
    from one that left."""

    def __init__(self, lobby: Lobby, *args: Any) -> None:
        super().__init__(*args)
        self.timed_out = False
        self.when_lost: dict[Callable[[str], None], None] = {}
        self.patience = trio.CancelScope()
        self._lobby = lobby
        self._calls = 0
        self._reader: trio.lowlevel.Task | None = None
        self._over = False
        self._read = False
        self._raw: Any = getattr(self.stream, "transport_stream", self.stream)
        self._receive_raw: Callable[..., Awaitable[Any]] = self._raw.receive_some
        self._raw.receive_some = self._noting(self._receive_raw)
        self._raw.send_all = self._noting(self._raw.send_all)

    def _noting(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noting(*args: Any) -> Any:
            try:
                received = await method(*args)
            except trio.BrokenResourceError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ETIMEDOUT:
                    self.timed_out = True
                # hypercorn may be unable to tell the app: its queue is full while nobody receives.
                for tell in tuple(self.when_lost):
                    tell("heartbeat timeout" if self.timed_out else "")
                raise
            if received == b"":
                self._over = True
            return received

        return noting

    async def run(self) -> None:
        """See hypercorn."""
        self._reader = trio.lowlevel.current_task()
        self._lobby.enter(self)
        try:
            with self.patience:
                await self.serve()
        except* GARBAGE as group:
            error = group.exceptions[0]
            # A UnicodeError's text holds what the client sent, which may be a token.
            what = type(error).__name__ if isinstance(error, UnicodeError) else repr(error)
            logger.info("ended a connection that broke the protocol: %a", what)
        except* _GONE:
            pass  # hypercorn closes a connection beside its own sending
        except* Exception as group:
            logger.error("a connection failed in hypercorn", exc_info=group)
        finally:
            self._lobby.leave(self)

    async def serve(self) -> None:
        """Serve the connection to its end, as hypercorn does."""
        await super().run()

    def call_begins(self) -> None:
        """A request of this connection has come to the app."""
        self._calls += 1
        self._lobby.leave(self)

    def call_ends(self) -> None:
        """The app is done with it."""
        self._calls -= 1
        if not self._calls:
            self._lobby.enter(self, served=True)

    def client_closed(self) -> None:
        """The client will send nothing more that matters."""
        self._over = True

    async def protocol_send(self, event: Event) -> None:
        """See hypercorn."""
        if isinstance(event, Updated) and self._read:
            return  # it would start the timer that _read_data stops
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._read = True
        await self.idle_task.stop()

    async def _close(self) -> None:
        # In another task than the one that reads, that one would read at the same time.
        if trio.lowlevel.current_task() is self._reader and not self._over:
            try:
                await self._raw.send_eof()
                with trio.move_on_after(LINGER):
                    while await self._receive_raw(1 << 16):
                        pass
            except _GONE:
                pass
        await super()._close()


class _Nobody:
    """Takes what comes for a stream that has ended."""

    async def handle(self, event: object) -> None:
        """See hypercorn's streams."""


class _Streams(dict[int, Any]):
    def __missing__(self, stream_id: int) -> _Nobody:
        return _Nobody()


def keep_other_streams(protocol: object) -> None:
    """Have a client's data for a stream that we have ended do no harm to its other streams."""
    if isinstance(protocol, H2Protocol) and type(protocol.streams) is dict:
        protocol.streams = _Streams(protocol.streams)
