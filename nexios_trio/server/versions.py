"""Which hypercorn this is, and what of it serves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hypercorn.trio.run

__all__ = ["WorkerServe", "plain_worker_serve", "tried", "version"]

WorkerServe = Callable[..., Awaitable[None]]
"""The type of hypercorn's ``worker_serve``."""

_TRIED: Final = ("0.18.",)


def version() -> str:
    """Of hypercorn."""
    return importlib.metadata.version("hypercorn")


def tried() -> bool:
    """Whether its internals are known to be as we take them."""
    return version().startswith(_TRIED)


def plain_worker_serve() -> Any:
    """Hypercorn's own function that serves in a worker, also where `install_fast_lane` has put another one in
    its place."""
    found = hypercorn.trio.run.worker_serve
    return getattr(found, "plain", found)
