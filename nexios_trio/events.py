"""`EventEmitter`: named events inside one app, with the names of Nexios."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, overload

import trio

from nexios_trio.exceptions import WrongTypeError

__all__ = ["EventEmitter", "EventNamespace"]

logger = logging.getLogger("nexios_trio.events")

L = TypeVar("L", bound=Callable[..., Any])


class EventEmitter:
    """Listeners by event name. A listener is a function or an ``async def``; it takes what is emitted.

    The listeners of one event run concurrently in a nursery. One that raises is logged with its
    traceback; the others go on.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """``around`` is entered for each call of a listener."""
        self._around = around
        self._listeners: dict[str, list[tuple[Callable[..., Any], bool]]] = {}

    @overload
    def on(self, event: str) -> Callable[[L], L]: ...
    @overload
    def on(self, event: str, listener: L) -> L: ...

    def on(self, event: str, listener: L | None = None) -> L | Callable[[L], L]:
        """Call ``listener`` whenever ``event`` is emitted; without a listener, a decorator."""
        return self._register(event, listener, once=False)

    @overload
    def once(self, event: str) -> Callable[[L], L]: ...
    @overload
    def once(self, event: str, listener: L) -> L: ...

    def once(self, event: str, listener: L | None = None) -> L | Callable[[L], L]:
        """As `on`, for the next emit only, however many emits run at the same time."""
        return self._register(event, listener, once=True)

    def _register(self, event: str, listener: L | None, *, once: bool) -> L | Callable[[L], L]:
        _check_name(event)
        if listener is None:
            return lambda listener: self._add(event, listener, once)
        return self._add(event, listener, once)

    def _add(self, event: str, listener: L, once: bool) -> L:
        if not callable(listener):
            raise WrongTypeError(f"a listener is a function, not {type(listener).__name__}")
        self._listeners.setdefault(event, []).append((listener, once))
        return listener

    def off(self, event: str, listener: Callable[..., Any] | None = None) -> bool:
        """Forget one listener of ``event``, or all of them; returns whether there was one."""
        _check_name(event)
        before = self._listeners.pop(event, [])
        after = [] if listener is None else [pair for pair in before if pair[0] != listener]
        if after:
            self._listeners[event] = after
        return len(after) < len(before)

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """The listeners of ``event`` in the order of registration."""
        return [listener for listener, _ in self._listeners.get(event, ())]

    async def emit(self, event: str, *args: Any, **kwargs: Any) -> int:
        """Call every listener of ``event`` and wait for all; returns how many ended without an error.

        A checkpoint. Cancelled, it cancels the listeners that still run.
        """
        _check_name(event)
        await trio.lowlevel.checkpoint()
        called = list(self._listeners.get(event, ()))
        for pair in called:
            if pair[1]:
                self._listeners[event].remove(pair)
        if not self._listeners.get(event, True):
            del self._listeners[event]
        done = 0

        async def call(listener: Callable[..., Any]) -> None:
            nonlocal done
            try:
                with self._around():
                    result = listener(*args, **kwargs)
                    if inspect.isawaitable(result):
                        await result
            except* Exception as group:
                error = group.exceptions[0] if len(group.exceptions) == 1 else group
                logger.error("a listener of %r failed: %r", event, listener, exc_info=error)
            else:
                done += 1

        if len(called) == 1:
            await call(called[0][0])
        elif called:
            async with trio.open_nursery() as nursery:
                for listener, _ in called:
                    nursery.start_soon(call, listener)
        return done

    def namespace(self, name: str) -> EventNamespace:
        """The same emitter with ``name:`` before each event name."""
        _check_name(name)
        return EventNamespace(self, name)


class EventNamespace:
    """What `EventEmitter.namespace` returns: the same methods, each event name prefixed."""

    def __init__(self, emitter: EventEmitter, name: str) -> None:
        self._emitter = emitter
        self.name = name

    @overload
    def on(self, event: str) -> Callable[[L], L]: ...
    @overload
    def on(self, event: str, listener: L) -> L: ...

    def on(self, event: str, listener: L | None = None) -> L | Callable[[L], L]:
        """See `EventEmitter.on`."""
        return self._emitter._register(self._full(event), listener, once=False)

    @overload
    def once(self, event: str) -> Callable[[L], L]: ...
    @overload
    def once(self, event: str, listener: L) -> L: ...

    def once(self, event: str, listener: L | None = None) -> L | Callable[[L], L]:
        """See `EventEmitter.once`."""
        return self._emitter._register(self._full(event), listener, once=True)

    def off(self, event: str, listener: Callable[..., Any] | None = None) -> bool:
        """See `EventEmitter.off`."""
        return self._emitter.off(self._full(event), listener)

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """See `EventEmitter.listeners`."""
        return self._emitter.listeners(self._full(event))

    async def emit(self, event: str, *args: Any, **kwargs: Any) -> int:
        """See `EventEmitter.emit`."""
        return await self._emitter.emit(self._full(event), *args, **kwargs)

    def namespace(self, name: str) -> EventNamespace:
        """A namespace inside this one: ``outer:inner:event``."""
        return self._emitter.namespace(self._full(name))

    def _full(self, event: str) -> str:
        _check_name(event)
        return f"{self.name}:{event}"


def _check_name(event: object) -> None:
    if not isinstance(event, str) or not event:
        raise WrongTypeError(f'an event name is a str such as "user.joined", not {event!r}')
