"""ASGI's lifespan protocol: ours, and on behalf of the apps mounted in ours."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import trio

from nexios_trio.exceptions import NexiosTrioError, WrongTypeError
from nexios_trio.supervision import Supervisor
from nexios_trio.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Hook", "LifespanContext", "MountedAppError", "check_lifespan", "run_lifespan"]

logger = logging.getLogger("nexios_trio.app")

LifespanContext: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
"""``@asynccontextmanager async def lifespan(app): ...; yield {...}; ...``"""
Hook: TypeAlias = Callable[[], object] | Callable[[], Awaitable[object]]


class MountedAppError(NexiosTrioError):
    """A mounted app said that its startup or shutdown failed, without raising an error itself."""

    def __init__(self, app: object, message: str) -> None:
        self.app = app
        self.message = message
        super().__init__(f"the mounted app {app!r} sent {message}")


def check_lifespan(lifespan: LifespanContext | None) -> LifespanContext | None:
    """``lifespan``, unless it is a function that lacks its decorator."""
    if lifespan is None or (
        callable(lifespan)
        and not inspect.isasyncgenfunction(lifespan)
        and not inspect.isgeneratorfunction(lifespan)
        and not inspect.iscoroutinefunction(lifespan)
    ):
        return lifespan
    name = getattr(lifespan, "__name__", "lifespan")
    raise WrongTypeError(
        "lifespan is a function that takes the app and gives an async context manager; write "
        f"`@contextlib.asynccontextmanager async def {name}(app): ...; yield; ...`"
    )


async def run_lifespan(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    up: Callable[[dict[str, Any]], AbstractAsyncContextManager[Supervisor]],
) -> None:
    """Answer the lifespan protocol: ``up`` is entered at startup and left at shutdown.

    A background task that stops the app ends the protocol with ``lifespan.shutdown.failed``, upon which
    hypercorn ends the worker; the error is then raised to the server.
    """
    await receive()
    started = False
    try:
        async with up(scope.setdefault("state", {})) as supervisor:
            await send({"type": "lifespan.startup.complete"})
            started = True
            await receive()
    except* Exception as group:
        error = group.exceptions[0] if len(group.exceptions) == 1 else group
        kind = "shutdown" if started else "startup"
        text = "".join(traceback.format_exception(error))
        await send({"type": f"lifespan.{kind}.failed", "message": text})
        raise error from None
    if supervisor.failure is not None:
        text = "".join(traceback.format_exception(supervisor.failure))
        await send({"type": "lifespan.shutdown.failed", "message": text})
        raise supervisor.failure
    await send({"type": "lifespan.shutdown.complete"})


async def call_hooks(hooks: Sequence[Hook]) -> None:
    """Call each hook, one after the other, and await what is awaitable. The first error ends it."""
    for hook in hooks:
        result = hook()
        if inspect.isawaitable(result):
            await result


async def call_all_hooks(hooks: Sequence[Hook]) -> None:
    """As `call_hooks`, but every hook is called; errors are raised at the end."""
    errors: list[Exception] = []
    for hook in hooks:
        try:
            await call_hooks([hook])
        except Exception as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("several shutdown hooks failed", errors)


@asynccontextmanager
async def mounted_lifespans(apps: Sequence[ASGIApp], state: dict[str, Any]) -> AsyncIterator[None]:
    """Run the lifespans of mounted apps, started in this order and ended in reverse; an app that knows
    none is left alone."""
    async with AsyncExitStack() as stack:
        for app in apps:
            await stack.enter_async_context(_mounted_lifespan(app, state))
        yield


@asynccontextmanager
async def _mounted_lifespan(app: ASGIApp, state: dict[str, Any]) -> AsyncIterator[None]:
    stop = trio.Event()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_mounted, app, state, stop)
        try:
            yield
        except Exception as error:  # raised below, so that the app shuts down in order
            failure = error
        stop.set()
    if failure is not None:
        raise failure


async def _run_mounted(
    app: ASGIApp,
    state: dict[str, Any],
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    asked = started = False
    failed: str | None = None

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await stop.wait()
            return {"type": "lifespan.shutdown"}
        asked = True
        await trio.lowlevel.checkpoint()
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        nonlocal started, failed
        await trio.lowlevel.checkpoint()
        if message["type"] == "lifespan.startup.complete":
            started = True
            task_status.started()
        elif message["type"].endswith(".failed"):
            failed = f"{message['type']}: {message.get('message', '')}"
            scope.cancel()  # Quart would wait for the next message

    try:
        with trio.CancelScope() as scope:
            await app(
                {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state},
                receive,
                send,
            )
    except Exception:
        if started or failed is not None:
            raise
        logger.debug("the mounted app %r has no lifespan", app, exc_info=True)
    if failed is not None:
        raise MountedAppError(app, failed)
    if not started:
        task_status.started()
