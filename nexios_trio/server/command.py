"""The command: hypercorn's own command line and process management around our worker."""

from __future__ import annotations

import copy
import gc
import logging
import logging.config
import os
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from multiprocessing.process import parent_process
from multiprocessing.synchronize import Event as ProcessEvent
from typing import Any, Final

import hypercorn.__main__
import hypercorn.run
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.logging import Logger

from nexios_trio.server.loading import AppLoadError, load_app
from nexios_trio.server.log import LineFormatter, printable
from nexios_trio.server.processes import KILLED, Workers, say
from nexios_trio.server.work import HANGUP, ending_signals, problem_of, work

__all__ = ["run", "worker"]

logger = logging.getLogger("nexios_trio.server")

POLL: Final = 0.1
"""Seconds between two looks at whether a worker is to end."""


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
    workers = Workers()
    populate = partial(workers.populate, getattr(hypercorn.run, "_populate", None))
    join_exited = partial(workers.join_exited, getattr(hypercorn.run, "_join_exited", None))
    with (
        _replaced(hypercorn.trio.run, "trio_worker", worker),
        _replaced(hypercorn.run, "_populate", populate),
        _replaced(hypercorn.run, "_join_exited", join_exited),
        _replaced(hypercorn.run, "signal", workers.signals()),
        _replaced(Config, "create_sockets", partialmethod(_create_sockets, Config.create_sockets)),
    ):
        try:
            code = hypercorn.run.run(config)
        except _StartError as error:
            return _refuse(str(error))
    _hear_nothing()
    code = code or next(iter(workers.codes), 0)
    return code if code >= 0 else KILLED - code


class _StartError(Exception):
    """Something that serving needs cannot be had; says what and why."""


def _create_sockets(config: Config, create: Callable[[Config], Sockets]) -> Sockets:
    try:
        return create(config)
    except (OSError, OverflowError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        problem = f"cannot listen on {', '.join(config.bind)}: {why}; give another --bind"
        raise _StartError(problem) from error


def _hear_nothing() -> None:
    """All is over but the end of the process: a signal that comes now shall not change its exit code."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _problem(config: Config) -> str | None:
    if (problem := problem_of(config)) is not None:
        return problem
    if not isinstance(config.workers, int) or config.workers < 0:
        return f"workers is how many processes serve, 0 or more, not {config.workers!r}"
    for name in ("certfile", "keyfile", "ca_certs"):
        path = getattr(config, name)
        if path is not None and not os.access(path, os.R_OK):
            return f"{name} is a file, and {path} cannot be read"
    return _log_problem(config) or _reload_problem(config)


def _log_problem(config: Config) -> str | None:
    levels = logging.getLevelNamesMapping()
    if not isinstance(config.loglevel, str) or config.loglevel.upper() not in levels:
        return f"loglevel is one of {', '.join(levels).lower()}, not {config.loglevel!r}"
    for name in ("accesslog", "errorlog", "pid_path"):
        path = getattr(config, name)
        if not isinstance(path, str) or path == "-":
            continue
        try:
            with open(path, "a"):
                pass
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            return f"{name} is a file, and {path} cannot be written: {why}"
    if config.logconfig is None:
        return None
    path = re.sub("^(json|toml):", "", config.logconfig)
    if not os.access(path, os.R_OK):
        return f"logconfig is a file, and {path} cannot be read"
    try:
        _configure_logging(config)  # as each worker will
    except Exception as error:  # of whatever class a handler that it names may raise
        why = printable(str(error).partition("\n")[0])
        return f"{path} is no configuration of logging: {type(error).__name__}: {why}"
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # closes its files
    return None


def _configure_logging(config: Config) -> None:
    quiet = copy.copy(config)
    quiet.accesslog = quiet.errorlog = None  # hypercorn opens those
    Logger(quiet)


def _reload_problem(config: Config) -> str | None:
    if config.use_reloader:
        if not config.workers:
            return "--reload restarts worker processes and there are none; leave --workers 0 away"
        try:
            load_app(config.application_path)  # as hypercorn will, to know which files to watch
        except AppLoadError as error:
            return str(error)
    return None


def _refuse(problem: str) -> int:
    say(problem)
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
    config: Config,
    sockets: Sockets | None = None,
    shutdown_event: ProcessEvent | None = None,
    *,
    delay: float = 0.0,
) -> None:
    """One server process: what hypercorn's ``trio_worker`` does, by `serve_hypercorn`, ``delay`` seconds from
    now.

    SIGTERM, SIGHUP and the first SIGINT drain; a second SIGINT cuts it short. After SIGHUP a worker that has
    a parent ends with 129, so that this can tell a terminal that was closed from a signal to one worker.
    """
    if config.logconfig is not None:  # hypercorn does so later, and a handler of ours would be one too many
        _configure_logging(config)
    ours = logging.getLogger("nexios_trio")
    if not ours.hasHandlers():  # the root is left alone: hypercorn's loggers have handlers of their own
        handler = logging.StreamHandler()
        form = "[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s"
        handler.setFormatter(LineFormatter(logging.Formatter(form)))
        ours.addHandler(handler)
        ours.setLevel(config.loglevel.upper())
    # At DEBUG it writes every header of HTTP/2, tokens and all.
    logging.getLogger("hpack").setLevel(logging.INFO)
    begin = time.monotonic() + delay
    while (left := begin - time.monotonic()) > 0:
        if shutdown_event is not None and _is_over(shutdown_event):
            return
        time.sleep(min(left, POLL))  # who sleeps in Event.wait() and is killed has Event.set() hang for good
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
    heard: list[int] = []
    for number in ending_signals():
        if number != signal.SIGINT:  # Trio's own
            signal.signal(number, lambda number, _frame: heard.append(number))
    fast_lane = getattr(config, "fast_lane", False)
    trio.run(partial(work, app, config, sockets, shutdown, fast_lane=fast_lane, heard=heard))
    _hear_nothing()
    if shutdown_event is not None and HANGUP is not None and HANGUP in heard:
        sys.exit(KILLED + HANGUP)


async def _poll(shutdown_event: ProcessEvent) -> None:
    """Block until the parent says so, or is there no longer: nobody else would ever end this worker."""
    while not _is_over(shutdown_event):  # noqa: ASYNC110  # a multiprocessing Event can only be polled
        await trio.sleep(POLL)


def _is_over(shutdown_event: ProcessEvent) -> bool:
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        logger.error("the parent process has been killed; this worker ends too")
        return True
    return shutdown_event.is_set()
