"""What may be started as a task of a connection or an app."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from nexios_trio.exceptions import WrongTypeError

__all__ = ["check_async_fn", "checked_awaitable"]


def check_async_fn(async_fn: object, owner: str) -> None:
    """Raise `WrongTypeError` for what `start_soon` of ``owner`` cannot start, such as a call."""
    if callable(async_fn):
        return
    if inspect.iscoroutine(async_fn):
        async_fn.close()
    raise WrongTypeError(
        f"start_soon() takes an async function and its arguments, not {type(async_fn).__name__}; write "
        f"{owner}.start_soon(fn, arg) instead of {owner}.start_soon(fn(arg))"
    )


def checked_awaitable(async_fn: Callable[..., Any], args: tuple[Any, ...]) -> Awaitable[object]:
    """``async_fn(*args)``; raises `WrongTypeError` if that is nothing to be awaited."""
    awaitable = async_fn(*args)
    if not inspect.isawaitable(awaitable):
        name = getattr(async_fn, "__name__", repr(async_fn))
        raise WrongTypeError(f"{name} is not async; write `async def {name}(...)`")
    return awaitable
