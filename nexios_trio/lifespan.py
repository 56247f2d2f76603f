"""ASGI's lifespan protocol: ours, and on behalf of the apps mounted in ours."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import trio

from nexios_trio.supervision import Supervisor
from nexios_trio.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Hook", "LifespanContext", "run_lifespan"]

logger = logging.getLogger("nexios_trio.app")

LifespanContext: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
"""``@asynccontextmanager async def lifespan(app): ...; yield {...}; ...``"""
Hook: TypeAlias = Callable[[], object] | Callable[[], Awaitable[object]]


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
    """Call each hook, one after the other, and await what is awaitable."""
    for hook in hooks:
        result = hook()
        if inspect.isawaitable(result):
            await result


@asynccontextmanager
async def mounted_lifespans(apps: Sequence[ASGIApp], state: dict[str, Any]) -> AsyncIterator[None]:
    """Run the lifespans of mounted apps; an app that knows none is left alone."""
    if not apps:
        yield
        return
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for app in apps:
            await nursery.start(_run_mounted, app, state, stop)
        try:
            yield
        finally:
            stop.set()


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
            failed = message.get("message", "")

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    try:
        await app(scope, receive, send)
    except Exception:
        if started or failed is not None:
            raise
        logger.debug("the mounted app %r has no lifespan", app, exc_info=True)
    if not started:
        task_status.started()
