"""ASGI's lifespan protocol from the server's side, with the app's own errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from nexios_trio.exceptions import NexiosTrioError, WrongStateError
from nexios_trio.types import ASGIApp, Message

__all__ = ["Lifespan", "LifespanFailed"]


class LifespanFailed(NexiosTrioError):
    """The app said that its startup or shutdown failed, and raised nothing."""


class Lifespan:
    """One run of an app's lifespan; `run` in a task of its own, then `start_up` and `shut_down`.

    An app that returns, raises or talks of something else before it has asked for its first event knows
    no lifespan, and is left alone as servers do. Any other error is raised: by `start_up`, by `shut_down`
    or, in between, passed to ``on_crash``.
    """

    def __init__(
        self, app: ASGIApp, state: dict[str, Any], timeout: float, on_crash: Callable[[Exception], None]
    ) -> None:
        self._app = app
        self._state = state
        self._timeout = timeout
        self._on_crash = on_crash
        self._asked = 0
        self._foreign = False
        self._up = False
        self._error: Exception | None = None
        self._told: str | None = None
        self._answered = trio.Event()
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Call the app with a lifespan scope, until it returns or raises."""
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            self._told = None
            if self._up and not self._stop.is_set():
                self._on_crash(error)
            elif self._asked and not self._foreign:
                self._error = error
        finally:
            self._answered.set()
            self._ended.set()

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            await trio.lowlevel.checkpoint()
            return {"type": "lifespan.startup"}
        if self._asked > 2 or self._foreign:
            await trio.sleep_forever()
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._up = True
            self._answered.set()
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._told = message.get("message", "")
            self._answered.set()
        elif kind != "lifespan.shutdown.complete":
            self._foreign = True
            self._answered.set()
            raise WrongStateError(f"{kind!r} is no message of the lifespan protocol")

    async def start_up(self) -> None:
        """Wait until the app is up. Raises what it raised, or TooSlowError."""
        await self._wait(self._answered, "start up")
        if not self._up and not self._foreign:
            await self._wait(self._ended, "end after its failed startup")
            self._raise("startup")

    async def shut_down(self) -> None:
        """Have the app shut down, and wait for its end. Raises what it raised, or TooSlowError."""
        self._stop.set()
        if self._up:
            await self._wait(self._ended, "shut down")
            self._raise("shutdown")

    async def _wait(self, event: trio.Event, what: str) -> None:
        with trio.move_on_after(self._timeout):
            await event.wait()
            return
        raise trio.TooSlowError(f"the app's lifespan did not {what} within {self._timeout:g} s")

    def _raise(self, step: str) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._told is not None:
            raise LifespanFailed(f"the app says that its {step} failed: {self._told or 'no reason given'}")
