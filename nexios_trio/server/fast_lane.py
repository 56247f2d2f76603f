"""The engine under hypercorn's own command: ``hypercorn --worker-class trio module:app``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import hypercorn.trio.run
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets

from nexios_trio.exceptions import WrongValueError
from nexios_trio.server.versions import WorkerServe, tried, version
from nexios_trio.server.work import problem_of, work

__all__ = ["install_fast_lane"]

logger = logging.getLogger("nexios_trio.server")


def install_fast_lane() -> bool:
    """Have ``hypercorn --worker-class trio module:app`` serve as ``nexios-trio run --server engine`` does.
    Returns whether it will.

    To be called at the top of ``module``. hypercorn imports it in each of its workers, and only then looks up
    ``hypercorn.trio.run.worker_serve``: this puts a function of ours in its place, for this process. So it is
    what is called monkeypatching; nothing else is replaced, and ``hypercorn.trio.serve`` is as it was. A
    second call changes nothing. With a version of hypercorn that was not tried, nothing is replaced, and a
    warning says so once.
    """
    plain = getattr(hypercorn.trio.run, "worker_serve", None)
    if isinstance(plain, _Serve):
        return True
    if plain is None or not tried():
        _warn(version())
        return False
    hypercorn.trio.run.worker_serve = _Serve(plain)
    return True


@cache
def _warn(unknown: str) -> None:
    logger.warning(
        "hypercorn %s has not been tried; install_fast_lane() leaves all connections to it", unknown
    )


class _Serve:
    """In the place of hypercorn's ``worker_serve``."""

    def __init__(self, plain: WorkerServe) -> None:
        self.plain = plain

    async def __call__(
        self,
        app: Any,
        config: Config,
        *,
        sockets: Sockets | None = None,
        shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See hypercorn. A WSGI app, which has no WebSockets, is served by the function that was there."""
        if not isinstance(app, ASGIWrapper):
            await self.plain(
                app, config, sockets=sockets, shutdown_trigger=shutdown_trigger, task_status=task_status
            )
            return
        if (problem := problem_of(config)) is not None:
            raise WrongValueError(problem)
        await work(app.app, config, sockets, shutdown_trigger, fast_lane=True, task_status=task_status)  # type: ignore[arg-type]
