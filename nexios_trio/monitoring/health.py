"""Whether a worker is alive, and whether it wants more clients: for load balancers and orchestrators."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import trio
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nexios_trio.application import NexiosApp
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.transports.connections import SERVER_CONNECTIONS, Connections
from nexios_trio.types import Drainable, Receive, Scope, Send

__all__ = ["Health", "Probe", "broker_available", "is_leaving"]

logger = logging.getLogger("nexios_trio.health")

Probe: TypeAlias = Callable[[], bool | Awaitable[bool]]
"""Whether something that the app needs is there."""

OWN_CHECKS: Final = ("accepting", "broker")

HEADERS: Final = {"cache-control": "no-store"}


def broker_available(app: NexiosApp) -> bool:
    """What the broker says of itself; one that says nothing is there, as the embedded one always is."""
    return bool(getattr(app.channels.hub.broker, "available", True))


def is_leaving(app: NexiosApp, scope: Scope | None = None) -> bool:
    """Whether this app, its server, or the one that the request of ``scope`` came through is about to end."""
    if app.leaving:
        return True
    server: Connections[Drainable] | None = ((scope or {}).get("extensions") or {}).get(SERVER_CONNECTIONS)
    return server is not None and server.leaving


class Health:
    """An ASGI app with two paths: ``/healthz``, 200 for as long as the event loop answers, and ``/readyz``.

    That is 200 if the worker wants new clients and 503 if not: while it drains, while its broker cannot be
    reached, and while one of ``probes`` says no, raises, or takes longer than ``timeout`` seconds.

    Answers name what failed, never why: they may be seen from outside. Mounted at "", the paths are those; at
    "/health" they are below it.
    """

    def __init__(
        self, app: NexiosApp, *, probes: Mapping[str, Probe] | None = None, timeout: float = 2.0
    ) -> None:
        if not isinstance(app, NexiosApp):
            raise WrongTypeError(f"Health(app) takes a NexiosApp, not {type(app).__name__}")
        for name, probe in (probes or {}).items():
            if name in OWN_CHECKS:
                raise WrongValueError(f"{name!r} is a check that there is anyhow; name the probe otherwise")
            if not callable(probe):
                raise WrongTypeError(
                    f"the probe {name!r} is a function that gives True or False, not {probe!r}"
                )
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise WrongValueError(f"timeout is a number of seconds, more than 0, not {timeout!r}")
        self._app = app
        self._probes = dict(probes or {})
        self._timeout = timeout

    async def checks(self, scope: Scope | None = None) -> dict[str, bool]:
        """What `/readyz` looks at, and whether it is well. A checkpoint."""
        results = {"accepting": not is_leaving(self._app, scope), "broker": broker_available(self._app)}
        async with trio.open_nursery() as nursery:
            for name, probe in self._probes.items():
                nursery.start_soon(self._ask, name, probe, results)
        return results

    async def _ask(self, name: str, probe: Probe, results: dict[str, bool]) -> None:
        results[name] = False
        with trio.move_on_after(self._timeout):
            try:
                answer = probe()
                results[name] = bool(await answer if inspect.isawaitable(answer) else answer)
            except Exception:
                logger.warning("the probe %r failed", name, exc_info=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app: HTTP GET and HEAD."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            return
        await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        path = scope["path"].rstrip("/")
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("health is for GET\n", 405, {"allow": "GET, HEAD"})
        if path.endswith("/healthz"):
            return PlainTextResponse("ok\n", headers=HEADERS)
        if not path.endswith("/readyz"):
            return PlainTextResponse("there are /healthz and /readyz\n", 404)
        checks = await self.checks(scope)
        ready = all(checks.values())
        return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503, HEADERS)
