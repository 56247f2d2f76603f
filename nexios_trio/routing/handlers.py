"""What may handle a route, and how its path parameters reach it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from nexios_trio.exceptions import RoutingError, WrongTypeError

__all__ = ["Handler", "check_handler", "extra_parameters", "name_of"]

Handler: TypeAlias = Callable[..., Awaitable[None]]
"""``async def handler(ws)``; further parameters are filled from the path by name."""


def name_of(handler: object) -> str:
    """The name of a handler for people: in tables, logs and `url_path_for`."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(handler, "__name__", None) or type(handler).__name__


def check_handler(handler: object) -> None:
    """Raise unless ``handler`` is an async callable that takes a WebSocket."""
    name = name_of(handler)
    if inspect.isclass(handler):
        raise WrongTypeError(f"{name} is a class; register an instance of it, or an `async def` function")
    if not callable(handler):
        raise WrongTypeError(f"a handler is an `async def` function, not {type(handler).__name__}")
    target: Any = handler
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.iscoroutinefunction(target) and not inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004 - an instance with an async __call__
    ):
        raise WrongTypeError(
            f"the handler {name} is not async; write `async def {name}(ws)`. Blocking work goes through "
            "`await trio.to_thread.run_sync(...)`"
        )
    parameters = [
        parameter
        for parameter in inspect.signature(handler).parameters.values()
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if not parameters:
        raise WrongTypeError(f"the handler {name} takes no WebSocket; write `async def {name}(ws)`")


def extra_parameters(handler: Handler, available: set[str], path: str) -> frozenset[str] | None:
    """Which path parameters the handler wants as arguments, besides the WebSocket.

    None stands for all (a ``**kwargs``). Raises `RoutingError` for an argument that is not in the path, or
    that stands for the WebSocket and for a path parameter at once.
    """
    first, *others = inspect.signature(handler).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in others)
    if takes_all and first.kind is first.POSITIONAL_OR_KEYWORD and first.name in available:
        raise RoutingError(
            f"the handler {name_of(handler)} calls the WebSocket {first.name!r}, and the path {path!r} has a "
            "parameter of that name; rename one of them"
        )
    wanted = set()
    for parameter in others:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in available and parameter.kind is not parameter.POSITIONAL_ONLY:
            wanted.add(parameter.name)
        elif parameter.default is parameter.empty:
            raise RoutingError(
                f"the handler {name_of(handler)} wants an argument {parameter.name!r}, but the path {path!r} "
                f"has no parameter {{{parameter.name}}}"
            )
    return None if takes_all else frozenset(wanted)
