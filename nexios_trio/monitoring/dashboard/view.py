"""What one viewer of the dashboard sees: the state of the app, as JSON, and of what he has chosen."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import trio

from nexios_trio.application import NexiosApp
from nexios_trio.instrument import Direction, Observed
from nexios_trio.monitoring.dashboard.samples import Sampler
from nexios_trio.monitoring.dashboard.tasks import task_tree
from nexios_trio.monitoring.health import broker_available
from nexios_trio.monitoring.recorder import is_own
from nexios_trio.websockets.lifetime import Connection

__all__ = ["View"]

LISTED: Final = 100
"""Connections, or members of a group, that are listed."""
GROUPS: Final = 20
FRAMES: Final = 50
"""Frames of a traced connection that are kept."""
SHOWN: Final = 200
"""Characters, or bytes, of a payload that are shown."""


class View:
    """See the module. `close` is to be called at the end: a trace has to be taken off its connection."""

    def __init__(self, app: NexiosApp, sampler: Sampler, *, payloads: bool) -> None:
        self._app = app
        self._sampler = sampler
        self._payloads = payloads
        self._find = ""
        self._group: str | None = None
        self._chosen: str | None = None
        self._traced: Observed | None = None
        self._frames: deque[dict[str, Any]] = deque(maxlen=FRAMES)

    # What the viewer chooses

    def find(self, text: str) -> None:
        """List only connections in whose facts this occurs."""
        self._find = text.casefold()

    def choose(self, connection: str | None = None, group: str | None = None) -> None:
        """Show one connection, or one group, or neither."""
        if connection != self._chosen:
            self.trace(False)
        self._chosen, self._group = connection, group

    def trace(self, on: bool) -> None:
        """Keep the frames of the chosen connection from now on, or no longer."""
        self.close()
        connection = self._sampler.recorder.live.get(self._chosen or "")
        if on and connection is not None and connection.tally is not None:
            self._traced = connection
            connection.tally.watch(self._watch)

    def close(self) -> None:
        """Take the trace off."""
        if self._traced is not None and self._traced.tally is not None:
            self._traced.tally.unwatch(self._watch)
        self._traced = None
        self._frames.clear()

    def _watch(self, direction: Direction, message: str | bytes) -> None:
        frame: dict[str, Any] = {
            "time": time.time(),
            "direction": direction,
            "type": "text" if isinstance(message, str) else "binary",
            "size": len(message),
        }
        if self._payloads:
            part = message[:SHOWN]
            frame["payload"] = part if isinstance(part, str) else part.hex(" ")
        self._frames.append(frame)

    # What he sees

    def state(self, *, first: bool) -> dict[str, Any]:
        """Everything but what came with an earlier one; the history only at ``first``."""
        point = self._sampler.points[-1] if self._sampler.points else None
        newest = reversed(self._sampler.recorder.live.values())
        others: Iterator[Observed] = (connection for connection in newest if not is_own(connection))
        found = 0 if point is None else point["connections"]
        if self._find:
            matching = [connection for connection in others if self._matches(connection)]
            found, others = len(matching), iter(matching)
        return {
            "type": "state",
            "history": first,
            "points": list(self._sampler.points) if first else [point],
            "server": {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "leaving": self._app.leaving,
                "broker": broker_available(self._app),
            },
            "closed": dict(self._sampler.closed()),
            "refused": dict(self._app.guard.counts),
            "routes": self._routes(),
            "slow": [_facts(each) for each in self._sampler.slow],
            "groups": self._groups(),
            "found": found,
            "connections": [_facts(connection) for connection in islice(others, LISTED)],
            "connection": self._connection(),
            "group": self._members(),
        }

    def _matches(self, connection: Observed) -> bool:
        client = connection.scope.get("client") or ("",)
        facts = (connection.id, connection.scope["path"], connection.user_id or "", str(client[0]))
        return any(self._find in fact.casefold() for fact in facts)

    def _routes(self) -> list[dict[str, Any]]:
        rows = []
        for name, totals in self._sampler.totals.items():
            route = self._sampler.recorder.routes[name]
            rows.append(
                {
                    "name": name,
                    "open": len(route.live),
                    "opened": totals.opened,
                    "in": totals.messages_in,
                    "out": totals.messages_out,
                    "rejected": route.rejected,
                }
            )
        return rows

    def _groups(self) -> dict[str, Any]:
        largest = self._sampler.recorder.largest_groups(GROUPS)
        return {
            "count": len(self._app.channels.hub.groups),
            "largest": [{"name": name, "members": members} for name, members in largest],
        }

    def _members(self) -> dict[str, Any] | None:
        if self._group is None:
            return None
        local = self._app.channels.hub.groups.get(self._group)
        members = [] if local is None else list(local.members)
        return {
            "name": self._group,
            "count": len(members),
            "members": [_facts(member) for member in members[:LISTED]],
        }

    def _connection(self) -> dict[str, Any] | None:
        if self._chosen is None:
            return None
        connection = self._sampler.recorder.live.get(self._chosen)
        if not isinstance(connection, Connection):
            return {"id": self._chosen, "gone": True}
        task = connection.tasks
        groups = [
            name for name, local in self._app.channels.hub.groups.items() if connection in local.members
        ]
        return {
            **_facts(connection),
            "state": connection.transport.state.value,
            "subprotocol": connection.subprotocol,
            "latency": connection.transport.latency,
            "inbox": len(connection.transport.inbox),
            "groups": groups[:LISTED],
            "tasks": [] if task is None else task_tree(task),
            "traced": self._traced is connection,
            "frames": list(self._frames),
        }


def _facts(connection: Observed) -> dict[str, Any]:
    tally, backlog = connection.tally, connection.backlog
    client = connection.scope.get("client")
    return {
        "id": connection.id,
        "route": connection.route,
        "path": connection.scope["path"],
        "user": connection.user_id,
        "peer": f"{client[0]}:{client[1]}" if client else "",
        "seconds": 0.0 if tally is None else trio.current_time() - tally.opened_at,
        "in": 0 if tally is None else tally.messages_in,
        "out": 0 if tally is None else tally.messages_out,
        "bytes_in": 0 if tally is None else tally.bytes_in,
        "bytes_out": 0 if tally is None else tally.bytes_out,
        "waiting": backlog.waiting,
        "waiting_bytes": backlog.size,
        "dropped": backlog.dropped_oldest + backlog.dropped_newest + backlog.conflated,
    }
