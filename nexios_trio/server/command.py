"""The command: hypercorn's own command line and process management around our worker."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from multiprocessing.process import BaseProcess, parent_process
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

logger = logging.getLogger("nexios_trio.server")

KILLED: Final = 128
"""With the number of a signal it is the exit code for a worker that was killed by it, as in a shell."""


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

    try:
        with _replaced(hypercorn.__main__, "run", take):
            hypercorn.__main__.main([application, *arguments])
    except FileNotFoundError as error:
        return _refuse(f"there is no file {error.filename}")
    except tomllib.TOMLDecodeError as error:
        return _refuse(f"the configuration file is no TOML: {error}")
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
        _replaced(Config, "create_sockets", partialmethod(_create_sockets, Config.create_sockets)),
    ):
        try:
            code = hypercorn.run.run(config)
        except _ListenError as error:
            return _refuse(f"cannot listen on {', '.join(config.bind)}: {error}; give another --bind")
    code = code or next(filter(None, codes), 0)
    return code if code >= 0 else KILLED - code


class _ListenError(Exception):
    """Some address of ``bind`` cannot be had; says why."""


def _create_sockets(config: Config, create: Callable[[Config], Sockets]) -> Sockets:
    try:
        return create(config)
    except (OSError, OverflowError, ValueError) as error:
        raise _ListenError(getattr(error, "strerror", None) or error) from error


def _note_exits(join_exited: Any, codes: list[int], processes: list[BaseProcess]) -> int:
    """What ``_join_exited`` of hypercorn says: how a worker has ended. By 0 it is replaced, by all else the
    others end too, since an app that does not start would fail for good. A worker that was killed (by the
    kernel for want of memory, by a fault in C) is no reason to end the others."""
    for process in processes:
        if process.exitcode:
            _say(f"worker {process.pid} {_how(process.exitcode)}")
    code: int = join_exited(processes)
    codes.append(code)  # hypercorn forgets it when that worker was the last one
    killed = code < 0 and code != -signal.SIGHUP  # which a terminal sends to all when it is closed
    return 0 if killed else code


def _how(code: int) -> str:
    """How a process has ended that did not end well."""
    if code > 0:
        return f"has failed with exit code {code}; the others drain"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of real time
        name = f"signal {-code}"
    return f"was killed by {name}"


def _problem(config: Config) -> str | None:
    if (problem := problem_of(config)) is not None:
        return problem
    if not isinstance(config.workers, int) or config.workers < 0:
        return f"workers is how many processes serve, 0 or more, not {config.workers!r}"
    for name in ("certfile", "keyfile", "ca_certs"):
        path = getattr(config, name)
        if path is not None and not os.access(path, os.R_OK):
            return f"{name} is a file, and {path} cannot be read"
    if config.use_reloader:
        if not config.workers:
            return "--reload restarts worker processes and there are none; leave --workers 0 away"
        try:
            load_app(config.application_path)  # as hypercorn will, to know which files to watch
        except AppLoadError as error:
            return str(error)
    return None


def _refuse(problem: str) -> int:
    _say(problem)
    return 2


def _say(text: str) -> None:
    print(f"nexios-trio: {text}", file=sys.stderr, flush=True)  # noqa: T201


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
    """Block until the parent says so, or is there no longer: nobody else would ever end this worker."""
    parent = parent_process()
    while not shutdown_event.is_set():  # a multiprocessing Event can only be polled
        if parent is not None and not parent.is_alive():
            logger.error("the parent process has been killed; this worker ends too")
            return
        await trio.sleep(0.1)
