"""The command: hypercorn's own command line and process management around our worker."""

from __future__ import annotations

import errno
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as ProcessEvent
from typing import Any, Final

import hypercorn.__main__
import hypercorn.run
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets

from nexios_trio.server.loading import AppLoadError, load_app
from nexios_trio.server.log import LineFormatter
from nexios_trio.server.work import problem_of, work

__all__ = ["run", "worker"]

_CANNOT_BIND: Final = frozenset(
    {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT}
)


def run(
    application: str,
    arguments: list[str],
    drain_window: float | None = None,
    *,
    drain_notice: float | None = None,
    fast_lane: bool = False,
    slow_callback: float | None = None,
) -> int:
    """Serve ``application`` (``module:app``) with hypercorn's own command line ``arguments`` and process
    management; returns the exit code. Blocks.

    ``drain_window`` and ``drain_notice``: see `serve_hypercorn`.
    With ``fast_lane`` plain WebSockets are served by our engine. ``slow_callback``: see `work`.
    """
    parsed: list[Config] = []

    def take(config: Config) -> int:
        parsed.append(config)
        return 0

    with _replaced(hypercorn.__main__, "run", take):
        hypercorn.__main__.main([application, *arguments])
    (config,) = parsed
    config.worker_class = "trio"
    config.fast_lane = fast_lane  # type: ignore[attr-defined]
    if drain_window is not None:
        config.drain_window = drain_window  # type: ignore[attr-defined]
    if drain_notice is not None:
        config.drain_notice = drain_notice  # type: ignore[attr-defined]
    if slow_callback is not None:
        config.slow_callback = slow_callback  # type: ignore[attr-defined]
    if (problem := _problem(config)) is not None:
        return _refuse(problem)
    codes: list[int] = []
    join_exited = partial(_note_exits, getattr(hypercorn.run, "_join_exited", None), codes)
    with (
        _replaced(hypercorn.trio.run, "trio_worker", worker),
        _replaced(hypercorn.run, "_join_exited", join_exited),
    ):
        try:
            code = hypercorn.run.run(config)
        except OSError as error:
            if error.errno not in _CANNOT_BIND:
                raise
            return _refuse(
                f"cannot listen on {', '.join(config.bind)}: {error.strerror}; give another --bind"
            )
    failed = [*filter(None, codes)]
    return code or (failed[0] if failed else 0)


def _note_exits(join_exited: Any, codes: list[int], processes: list[BaseProcess]) -> int:
    code: int = join_exited(processes)
    codes.append(code)  # hypercorn forgets it when that worker was the last one
    return code


def _problem(config: Config) -> str | None:
    if (problem := problem_of(config)) is not None:
        return problem
    if config.use_reloader:
        if not config.workers:
            return "--reload restarts worker processes and there are none; leave --workers 0 away"
        try:
            load_app(config.application_path)  # as hypercorn will, to know which files to watch
        except AppLoadError as error:
            return str(error)
    return None


def _refuse(problem: str) -> int:
    print(f"nexios-trio: {problem}", file=sys.stderr)  # noqa: T201
    return 2


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Replace ``module.name``, if there is such a thing in this version of hypercorn."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def worker(
    config: Config, sockets: Sockets | None = None, shutdown_event: ProcessEvent | None = None
) -> None:
    """One server process: what hypercorn's ``trio_worker`` does, by `serve_hypercorn`.

    SIGTERM and the first SIGINT drain; a second SIGINT cuts it short.
    """
    ours = logging.getLogger("nexios_trio")
    if not ours.hasHandlers():  # the root is left alone: hypercorn's loggers have handlers of their own
        handler = logging.StreamHandler()
        form = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"
        handler.setFormatter(LineFormatter(logging.Formatter(form)))
        ours.addHandler(handler)
        ours.setLevel(config.loglevel.upper())
    # At DEBUG it writes every header of HTTP/2, tokens and all.
    logging.getLogger("hpack").setLevel(logging.INFO)
    if sockets is not None:
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets):
            listener.listen(config.backlog)
    try:
        app = load_app(config.application_path)
    except AppLoadError as error:
        sys.exit(_refuse(str(error)))
    # What is here by now stays. A full collection took 13 ms to walk over it, and no handler ran meanwhile.
    gc.collect()
    gc.freeze()
    shutdown = None if shutdown_event is None else partial(_poll, shutdown_event)
    trio.run(partial(work, app, config, sockets, shutdown, fast_lane=getattr(config, "fast_lane", False)))


async def _poll(shutdown_event: ProcessEvent) -> None:
    while not shutdown_event.is_set():  # noqa: ASYNC110 - a multiprocessing Event can only be polled
        await trio.sleep(0.1)
