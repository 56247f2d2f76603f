"""One task that watches all sockets of the fast lane, and keeps their timers."""

from __future__ import annotations

import heapq
import math
import select
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from nexios_trio.transports.engine import Watched

__all__ = ["EpollReactor", "TaskReactor", "make_reactor"]

BATCH = 64
"""Sockets that are served, or timers, before other tasks run. 256 took up to 20 ms on a busy machine."""


class _Timers:
    """The next `tick` of each connection, in one heap; one task sleeps, whatever their number."""

    def __init__(self) -> None:
        self.now = trio.current_time()
        self._heap: list[tuple[float, int, Watched]] = []
        self._count = 0
        self._scope = trio.CancelScope()
        self._sleeping_until = math.inf
        self._stale = 0

    def wake_at(self, watched: Watched, due: float) -> None:
        """See `nexios_trio.transports.engine.Reactor`."""
        if due >= watched.scheduled:
            return
        watched.scheduled = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, watched))
        if due < self._sleeping_until:
            self._scope.cancel()

    def _forget_timer(self, watched: Watched) -> None:
        if watched.scheduled == math.inf:
            return
        watched.scheduled = math.inf
        self._stale += 1
        if self._stale > 64 and self._stale * 2 > len(self._heap):
            # A connection that is over shall not live on in a timer that is due in an hour.
            self._heap = [entry for entry in self._heap if entry[2].scheduled == entry[0]]
            heapq.heapify(self._heap)
            self._stale = 0

    async def run_timers(self) -> None:
        """Call what is due, for ever."""
        while True:
            self._sleeping_until = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope() as self._scope:
                await trio.sleep_until(self._sleeping_until)
            self._sleeping_until = -math.inf
            now = self.now = trio.current_time()
            done = 0
            while self._heap and self._heap[0][0] <= now:
                due, _, transport = heapq.heappop(self._heap)
                if transport.scheduled != due:
                    continue  # replaced by an earlier one, or of a connection that is over
                transport.scheduled = math.inf
                following = transport.tick(now)
                if following != math.inf:
                    self.wake_at(transport, following)
                done += 1
                if done % BATCH == 0:
                    await trio.lowlevel.checkpoint()


class EpollReactor(_Timers):
    """All sockets in one epoll object, whose own file descriptor Trio waits for: no task, and no system call
    but recv and send, per message."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def watch(self, watched: Watched) -> None:
        """See `nexios_trio.transports.engine.Reactor`."""
        wanted = select.EPOLLIN * watched.reading | select.EPOLLOUT * watched.writing
        fd = watched.sock.fileno()
        if self._epoll.closed:
            return
        if fd not in self._watched:
            self._watched[fd] = watched
            self._epoll.register(fd, wanted)
        elif wanted != watched.watched:
            self._epoll.modify(fd, wanted)
        watched.watched = wanted

    def forget(self, watched: Watched) -> None:
        """See `nexios_trio.transports.engine.Reactor`."""
        fd = watched.sock.fileno()
        if self._watched.get(fd) is watched:
            del self._watched[fd]
            self._epoll.unregister(fd)
        self._forget_timer(watched)

    async def run(self) -> None:
        """Serve the sockets, for ever."""
        epoll, watched = self._epoll, self._watched
        writable, broken = select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
        reading = select.EPOLLIN
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run_timers)
            try:
                while True:
                    # While there is something to do, look again once the woken handlers have run, and once
                    # more after that: a client that waits for its answer has sent the next message by then.
                    # A look is cheaper than Trio's, which arms its own epoll for one event each time.
                    ready = epoll.poll(0, BATCH)
                    if not ready:
                        await trio.lowlevel.checkpoint()
                        ready = epoll.poll(0, BATCH)
                    if not ready:
                        await trio.lowlevel.wait_readable(epoll)
                        continue
                    self.now = trio.current_time()
                    for fd, mask in ready:
                        transport = watched.get(fd)
                        if transport is None:
                            continue
                        if mask & writable:
                            transport.writable()
                        if mask & reading:
                            transport.readable()
                        elif mask & broken:
                            transport.hung_up()
                    await trio.lowlevel.checkpoint()
            finally:
                watched.clear()
                epoll.close()


class TaskReactor(_Timers):
    """The same where there is no epoll: a task per socket and direction."""

    def __init__(self) -> None:
        super().__init__()
        self._nursery: trio.Nursery | None = None
        self._tasks: dict[Watched, dict[str, trio.CancelScope]] = {}

    def watch(self, watched: Watched) -> None:
        """See `nexios_trio.transports.engine.Reactor`."""
        if self._nursery is None:
            return  # it is over
        tasks = self._tasks.setdefault(watched, {})
        for direction, wanted in (("read", watched.reading), ("write", watched.writing)):
            if wanted and direction not in tasks:
                scope = tasks[direction] = trio.CancelScope()
                self._nursery.start_soon(self._serve, watched, direction, scope)
            elif not wanted and direction in tasks:
                tasks.pop(direction).cancel()

    async def _serve(self, watched: Watched, direction: str, scope: trio.CancelScope) -> None:
        wait = trio.lowlevel.wait_readable if direction == "read" else trio.lowlevel.wait_writable
        act = watched.readable if direction == "read" else watched.writable
        with scope:
            while not scope.cancel_called:  # or it would wait beside, or in the way of, who is next
                try:
                    await wait(watched.sock)
                except trio.ClosedResourceError:
                    return
                if not scope.cancel_called:
                    self.now = trio.current_time()
                    act()

    def forget(self, watched: Watched) -> None:
        """See `nexios_trio.transports.engine.Reactor`."""
        tasks = self._tasks.pop(watched, {})
        for scope in tasks.values():
            scope.cancel()
        if tasks:  # nobody may wait for a descriptor that is another's by then
            trio.lowlevel.notify_closing(watched.sock)
        self._forget_timer(watched)

    async def run(self) -> None:
        """Serve the sockets, for ever."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self.run_timers()
        finally:
            self._nursery = None


def make_reactor() -> EpollReactor | TaskReactor:
    """The best one that this platform has."""
    return EpollReactor() if hasattr(select, "epoll") else TaskReactor()
