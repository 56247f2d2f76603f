"""The bounded queue between whoever reads the socket and the handler."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final

import trio
from outcome import Outcome, Value
from trio.lowlevel import Abort, Task, checkpoint, checkpoint_if_cancelled, current_task, reschedule

from nexios_trio.exceptions import ConcurrentReceiveError

__all__ = ["CHECKPOINT_BUDGET", "Inbox"]

CHECKPOINT_BUDGET: Final = 32
"""How many messages in a row one task may take before it must let others run."""


_WOKEN: Final[Outcome[Any]] = Value(None)
"""Handed to a task that is woken. Trio would make a new one each time; nobody unwraps this one."""


@types.coroutine
def _sleep(trap: Any) -> Generator[Any, Outcome[Any], Outcome[Any]]:
    return (yield trap)


def _trap(abort: Callable[[Any], Abort]) -> Any:
    """What `trio.lowlevel.wait_task_rescheduled` gives to Trio's loop, to be given to it again and again:
    the making of it costs more than the sleep."""
    sleeping = trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105 - it is, each time
    trap = sleeping.send(None)
    sleeping.close()
    return trap


SHORT_QUEUE: Final = 1024
"""Up to how many messages a list is as good as a deque: taking the first one moves the others."""


class Inbox:
    """Messages in the order they came; bounded in messages and bytes; one writer, one reader.

    A memory channel would do the same, at three times the cost per message (the reader task hands
    over through here for every message of every connection).
    """

    __slots__ = (
        "_bytes",
        "_end",
        "_getter",
        "_max_bytes",
        "_max_messages",
        "_messages",
        "_room",
        "_streak",
        "_trap",
    )

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        # An empty deque takes 600 bytes more than an empty list, and most connections wait, empty.
        self._messages: list[str | bytes] | deque[str | bytes] = (
            [] if max_messages <= SHORT_QUEUE else deque()
        )
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._getter: Task | None = None
        self._room: Callable[[], object] | None = None
        self._end: Callable[[], Exception] | None = None
        self._streak = 0
        self._trap: Any = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        """Whether a bound is reached, and more may still come."""
        return self._end is None and (
            self._bytes >= self._max_bytes or len(self._messages) >= self._max_messages
        )

    @property
    def size(self) -> int:
        """Bytes (characters for text) waiting here."""
        return self._bytes

    def put_nowait(self, message: str | bytes) -> bool:
        """Add a message and wake the reader; dropped once `stop` was called.

        Returns whether the inbox is at its bound now: call `wait_for_room` before the next one.
        """
        if self._end is not None:
            return False
        messages = self._messages
        messages.append(message)
        self._bytes += len(message)
        if self._getter is not None:
            getter, self._getter = self._getter, None
            reschedule(getter, _WOKEN)
        return self._bytes >= self._max_bytes or len(messages) >= self._max_messages

    async def wait_for_room(self) -> None:
        """Block until the inbox is below its bounds or stopped; a checkpoint if it blocks."""
        while self.full:
            await self.wait_taken()

    async def wait_taken(self) -> None:
        """Block until a message is taken or the inbox is stopped."""
        taken = trio.Event()
        self.when_taken(taken.set)
        await taken.wait()

    def when_taken(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once, when a message is taken next or the inbox is stopped."""
        self._room = callback

    def stop(self, end: Callable[[], Exception]) -> None:
        """Take nothing more. Once what is here has been read, `get` raises ``end()``."""
        if self._end is None:
            self._end = end
            self._trap = None  # which refers to us
            self._wake()

    def discard(self) -> None:
        """Forget what is here; nobody shall read it."""
        self._messages.clear()
        self._bytes = 0
        if self._room is not None:
            room, self._room = self._room, None
            room()

    def _wake(self) -> None:
        if self._getter is not None:
            getter, self._getter = self._getter, None
            reschedule(getter, _WOKEN)
        if self._room is not None:
            room, self._room = self._room, None
            room()

    async def get(self) -> str | bytes:
        """The oldest message. A checkpoint: checks for cancellation always, yields when it has to wait
        and at every 32nd call that did not. A cancelled call has taken nothing."""
        messages = self._messages
        self._streak += 1
        if messages and self._streak < CHECKPOINT_BUDGET:
            await checkpoint_if_cancelled()
        else:
            self._streak = 0
            if messages or self._end is not None:
                await checkpoint()
            while not messages:
                if self._end is not None:
                    raise self._end()
                if self._getter is not None:
                    raise ConcurrentReceiveError(
                        "another task is already waiting for the next message of this connection; receive "
                        "in one task and hand messages on, for example through trio.open_memory_channel()"
                    )
                self._getter = current_task()
                if self._trap is None:
                    self._trap = _trap(self._abort)
                woken = await _sleep(self._trap)
                if woken is not _WOKEN:
                    woken.unwrap()  # raises Cancelled
        message = messages[0]
        del messages[0]
        self._bytes -= len(message)
        if self._room is not None:
            room, self._room = self._room, None
            room()
        return message

    def _abort(self, _raise_cancel: object) -> Abort:
        self._getter = None
        return Abort.SUCCEEDED
