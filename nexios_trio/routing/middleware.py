"""Two kinds of middleware, one chain.

* Pure ASGI middleware: a class (or Starlette's ``Middleware(cls, ...)``) whose instance wraps an app.
* ``async def middleware(ws, call_next)``: runs around the handler; ``await call_next()`` goes on.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from starlette.middleware import Middleware

from nexios_trio.exceptions import WrongTypeError
from nexios_trio.types import ASGIApp, Receive, Scope, Send
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.lifetime import Connection

__all__ = ["CONNECTION", "AnyMiddleware", "CallNext", "check_middleware", "wrap"]

CONNECTION = "nexios_trio.connection"
"""The scope key under which a `Connection` travels through foreign ASGI code."""

CallNext: TypeAlias = Callable[..., Awaitable[None]]
"""``await call_next()`` or ``await call_next(ws)``: the rest of the chain, down to the handler."""

AnyMiddleware: TypeAlias = Middleware | Callable[..., Any]
"""Either kind of middleware."""


def _is_dispatch(middleware: object) -> bool:
    if inspect.isclass(middleware):
        return False
    return inspect.iscoroutinefunction(middleware) or inspect.iscoroutinefunction(
        getattr(middleware, "__call__", None)  # noqa: B004 - an instance with an async __call__
    )


def check_middleware(middlewares: Iterable[AnyMiddleware] | None) -> list[AnyMiddleware]:
    """A list of the given middleware; raises `WrongTypeError` for what is neither kind."""
    checked = list(middlewares or ())
    for middleware in checked:
        if isinstance(middleware, Middleware):
            _check_factory(middleware.cls, middleware.args, middleware.kwargs)
        elif not callable(middleware):
            raise WrongTypeError(
                "middleware is `async def mw(ws, call_next)`, an ASGI middleware class, or "
                f"Middleware(cls, ...), not {middleware!r}"
            )
        elif not _is_dispatch(middleware):
            _check_factory(middleware, (), {})
        elif not _takes(middleware, None, None):
            raise WrongTypeError(
                f"{middleware!r} does not take two arguments; write `async def mw(ws, call_next)`"
            )
    return checked


def _check_factory(factory: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """A class or function that takes the app, and makes an app around it."""
    name = getattr(factory, "__name__", repr(factory))
    if _is_dispatch(factory):
        raise WrongTypeError(
            f"{name} is `async def mw(ws, call_next)` and takes no further arguments; add it as it is, "
            "without Middleware(...)"
        )
    if _takes(factory, None, *args, **kwargs):
        return
    if inspect.isfunction(factory) and _takes(factory, None, None):
        raise WrongTypeError(f"the middleware {name} is not async; write `async def {name}(ws, call_next)`")
    raise WrongTypeError(
        f"{name} cannot be called as {name}(app, ...) with the arguments given; write "
        f"Middleware({name}, ...) with what its signature asks for: {inspect.signature(factory)}"
    )


def _takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some classes written in C have none
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def wrap(app: ASGIApp, middlewares: Iterable[AnyMiddleware]) -> ASGIApp:
    """``app`` inside ``middlewares``, the first outermost."""
    for middleware in reversed(list(middlewares)):
        if isinstance(middleware, Middleware):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        elif _is_dispatch(middleware):
            app = _dispatching(app, middleware)
        else:
            app = middleware(app)
    return app


def _dispatching(app: ASGIApp, dispatch: Callable[[WebSocket, CallNext], Awaitable[None]]) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await app(scope, receive, send)
            return
        connection: Connection = scope[CONNECTION]

        async def call_next(ws: WebSocket | None = None) -> None:
            await app(scope, receive, send)

        with connection.websocket(scope, receive, send) as ws:
            await dispatch(ws, call_next)

    return middleware
