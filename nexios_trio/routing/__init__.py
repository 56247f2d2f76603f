"""Paths to handlers. The names are those of Nexios."""

from starlette.convertors import Convertor

from nexios_trio.routing.router import WebsocketRoutes, WSRouter

__all__ = ["Convertor", "WSRouter", "WebsocketRoutes"]
