"""The tasks of a connection, as a tree that can be shown."""

from __future__ import annotations

from types import FrameType
from typing import Any, Final

import trio

__all__ = ["task_tree"]

MOST_TASKS: Final = 200
"""Tasks that are shown of one connection."""

_MACHINERY: Final = frozenset({"contextlib", "hypercorn", "nexios_trio", "outcome", "starlette", "trio"})
"""Packages whose frames say less than those that called them."""


def task_tree(root: trio.lowlevel.Task) -> list[dict[str, Any]]:
    """``root`` and all tasks below it, parents first, at most `MOST_TASKS`.

    Of each its ``name``, ``depth``, and ``where`` it waits, as ``function (file.py:line)``.
    """
    found: list[dict[str, Any]] = []

    def visit(task: trio.lowlevel.Task, depth: int) -> None:
        if len(found) >= MOST_TASKS:
            return
        found.append({"name": task.name, "depth": depth, "where": _where(task)})
        for nursery in task.child_nurseries:
            for child in sorted(nursery.child_tasks, key=lambda child: child.name):
                visit(child, depth + 1)

    visit(root, 0)
    return found


def _where(task: trio.lowlevel.Task) -> str:
    """The innermost frame that is the user's; if there is none, the innermost one of all."""
    innermost: FrameType | None = None
    users: FrameType | None = None
    waiting: Any = task.coro
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        frame = frame or getattr(waiting, "ag_frame", None)
        if frame is not None:
            innermost = frame
            if frame.f_globals.get("__name__", "").partition(".")[0] not in _MACHINERY:
                users = frame
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    shown = users or innermost
    if shown is None:
        return ""
    code = shown.f_code
    return f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{shown.f_lineno})"
