"""The dashboard as an ASGI app: a page of static files, and a WebSocket that everything else goes over."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nexios_trio.application import NexiosApp
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.monitoring.dashboard.samples import Sampler
from nexios_trio.monitoring.dashboard.view import View
from nexios_trio.monitoring.recorder import OWN_KEY
from nexios_trio.routing.middleware import CONNECTION
from nexios_trio.security.auth import Authenticator, FirstMessage
from nexios_trio.security.origin import OriginRule
from nexios_trio.types import Receive, Scope, Send
from nexios_trio.websockets.base import WebSocket
from nexios_trio.websockets.lifetime import Connection

__all__ = ["Dashboard"]

logger = logging.getLogger("nexios_trio.dashboard")

LIVE: Final = "/dashboard-live"
"""The path of the WebSocket below the dashboard's own."""

PROTOCOL: Final = "nexios.dashboard"
"""What the page offers, so that a token may stand beside it."""

DRAIN_WINDOW: Final = 5.0
"""Seconds over which the button drains."""

REASON: Final = "disconnected by the operator"

FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS: Final = {
    # No 'unsafe-inline': what is drawn is set by properties, and SVG's attributes are no styles.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Command(msgspec.Struct, forbid_unknown_fields=True):
    """What a viewer asks for."""

    do: Literal["show", "find", "trace", "disconnect", "disconnect_user", "drain"]
    connection: str | None = None
    group: str | None = None
    text: str = ""
    on: bool = False


class Dashboard:
    """An ASGI app to mount in ``app``, whose state it shows: ``app.mount("/ops", Dashboard(app, ...))``.

    ``authenticate`` says who may see it, and ``requires`` which scopes he must have, as for a route; what
    ``app`` itself asks for holds as well. The page and its files have no data and are given to anybody: all
    data and all commands go over one WebSocket, which is guarded. ``allowed_origins`` are the pages that may
    open it, by default only the dashboard's own, whatever ``app`` allows: nobody else's page can press a
    button. Cookies are sent by browsers themselves; for `SubprotocolToken` the page asks for the token.

    ``control`` shows the buttons that disconnect and drain. ``trace`` lets a viewer watch the frames of one
    connection, from when he asks for it; of payloads he sees type and size, with ``payloads`` the beginning.
    """

    def __init__(
        self,
        app: NexiosApp,
        *,
        authenticate: Authenticator,
        requires: Iterable[str] | str | None = None,
        allowed_origins: Iterable[str] | Literal["*", "same-origin"] | OriginRule = "same-origin",
        control: bool = True,
        trace: bool = False,
        payloads: bool = False,
    ) -> None:
        if not isinstance(app, NexiosApp):
            raise WrongTypeError(f"Dashboard(app) takes a NexiosApp, not {type(app).__name__}")
        if authenticate is None:
            raise WrongTypeError(
                "a dashboard shows who is connected, and its buttons end connections: say who may see it, "
                "authenticate=... as for a route"
            )
        if isinstance(authenticate, FirstMessage):
            raise WrongTypeError(
                "the dashboard's page sends no first message: use SessionUser, or SubprotocolToken, for "
                "whose token it asks"
            )
        self._app = app
        self._control = control
        self._trace = trace or payloads
        self._payloads = payloads
        self._sampler = Sampler(app)
        folder = resources.files(__package__) / "static"
        self._files = {
            path: ((folder / name).read_bytes(), content_type) for path, (name, content_type) in FILES.items()
        }
        inner = self._inner = NexiosApp(limits=app.guard.limits, allowed_origins=allowed_origins)
        inner.add_ws_route(LIVE, self._live, authenticate=authenticate, requires=requires)
        inner.add_route("/{file:path}", self._file)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app."""
        if CONNECTION in scope:
            scope[CONNECTION].scope[OWN_KEY] = True
        await self._inner(scope, receive, send)

    async def _file(self, request: Request) -> Response:
        file = self._files.get(request.path_params["file"])
        if file is None:
            return Response(b"not found\n", 404, HEADERS, "text/plain")
        content, content_type = file
        return Response(content, headers={**HEADERS, "content-type": content_type})

    async def _live(self, ws: WebSocket) -> None:
        await ws.accept(PROTOCOL if PROTOCOL in ws.subprotocols else None)
        view = View(self._app, self._sampler, payloads=self._payloads)
        self._sampler.viewers += 1
        try:
            await ws.send_json({"type": "hello", "control": self._control, "trace": self._trace})
            ws.start_soon(self._feed, ws, view)
            async for command in ws.iter_json(Command):
                answer = await self._obey(command, view, ws)
                if answer:
                    await ws.send_json({"type": "told", "text": answer})
                await ws.send_json(view.state(first=False))
        finally:
            self._sampler.viewers -= 1
            view.close()

    async def _feed(self, ws: WebSocket, view: View) -> None:
        """Send the state whenever there is a new point. A viewer that reads slowly misses some."""
        taken = self._sampler.taken
        self._sampler.rush()
        first = True
        while True:
            await taken.wait()
            taken = self._sampler.taken
            await ws.send_json(view.state(first=first))
            first = False

    async def _obey(self, command: Command, view: View, ws: WebSocket) -> str:
        """Do it; what the viewer is to be told of it."""
        match command.do:
            case "show":
                view.choose(command.connection, command.group)
                return ""
            case "find":
                view.find(command.text)
                return ""
            case "trace":
                view.trace(command.on and self._trace)
                return ""
        if not self._control:
            return "This dashboard is for looking only."
        about = {"disconnect": command.connection, "disconnect_user": command.text}.get(command.do)
        logger.warning("%a on the dashboard: %s %a", _name(ws), command.do, about)
        if command.do == "drain":
            self._app.start_soon(
                self._app.drain, DRAIN_WINDOW, on_crash="stop", name="drain by the dashboard"
            )
            return "The worker drains: every connection is closed, this one too."
        if command.do == "disconnect_user":
            count = await self._app.channels.disconnect_user(command.text, 1008, REASON)
            return f"Closed {count} connections of {command.text}."
        connection = self._sampler.recorder.live.get(command.connection or "")
        if not isinstance(connection, Connection):
            return "That connection is over already."
        connection.close_soon(1008, REASON)
        return "The connection is closed."


def _name(ws: WebSocket) -> str:
    user: Any = ws.scope.get("user")
    return str(getattr(user, "display_name", "") or getattr(user, "id", "") or user)
