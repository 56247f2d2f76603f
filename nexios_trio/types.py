"""ASGI's types and the Protocols that floors use to meet without importing each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol, TypeAlias

from attrs import frozen

__all__ = ["RULES_MARK", "ASGIApp", "Drainable", "Message", "Receive", "RouteSpec", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

RULES_MARK: Final = "__nexios_trio_rules__"
"""The attribute of a handler, or of a consumer's class, in which decorators leave their rules."""


class Drainable(Protocol):
    """A connection as seen by whoever shuts the server down."""

    def begin_shutdown(self) -> None:
        """Start to close with 1012; returns at once and never raises."""


@frozen
class RouteSpec:
    """A path and its handler, for ``add_ws_route``: made below the floor that knows routes."""

    path: str
    handler: Callable[..., Awaitable[None]]
    name: str | None = None
    middleware: tuple[Any, ...] = ()
    rules: Mapping[str, Any] = {}
    """Further keyword arguments of the route."""
