"""Metrics for Prometheus, of one worker or of several that share a directory. Needs the extra ``metrics``."""

from __future__ import annotations

import logging
import math
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from nexios_trio.application import NexiosApp
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.monitoring.families import Family, merged, read, written
from nexios_trio.monitoring.health import broker_available, is_leaving
from nexios_trio.monitoring.recorder import Recorder
from nexios_trio.types import Receive, Scope, Send

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as missing:
    raise ImportError(
        f'Metrics needs prometheus-client: pip install "nexios-trio[metrics]" ({missing})', name=missing.name
    ) from missing

__all__ = ["Metrics"]

logger = logging.getLogger("nexios_trio.metrics")

EVERY: Final = 1.0
"""Seconds between two writes of what the other workers read."""

DEAD_AFTER: Final = 10.0
"""Seconds after its last write until a worker counts as gone."""


class Metrics(Collector):
    """An ASGI app that answers GET with the numbers of ``app``, in the formats of Prometheus and OpenMetrics.

    ``directory`` is shared by the workers of one service, on one machine: each writes its numbers there once
    a second, and whichever is asked answers for all. It is made if it is not there; the app does not start if
    it belongs to another user, or all users may write there. Counters of workers that have ended stay in the
    sum, so the directory is to be emptied when the service starts.

    ``groups`` is how many groups are named, the largest of this moment; 0: none. ``registry`` takes the
    numbers in, and is answered whole: give `prometheus_client.REGISTRY` to have the process's and your own
    metrics on the same page (of the worker that is asked).

    Anybody who can ask may read them: let no proxy pass the path on to the outside.
    """

    def __init__(
        self,
        app: NexiosApp,
        *,
        directory: str | os.PathLike[str] | None = None,
        groups: int = 10,
        prefix: str = "nexios_",
        registry: CollectorRegistry | None = None,
    ) -> None:
        if not isinstance(app, NexiosApp):
            raise WrongTypeError(f"Metrics(app) takes a NexiosApp, not {type(app).__name__}")
        if isinstance(groups, bool) or not isinstance(groups, int) or not 0 <= groups <= 1000:
            raise WrongValueError(f"groups is a number of groups to name, 0 to 1000, not {groups!r}")
        self.recorder = Recorder.of(app)
        self.directory = None if directory is None else Path(directory)
        self._app = app
        self._groups = groups
        self._prefix = prefix
        self._name = ""
        self._registry = CollectorRegistry() if registry is None else registry
        self._registry.register(self)
        if self.directory is not None:
            app.on_startup(self._make_directory)
            app.start_soon(self._keep_writing, name="metrics for the other workers")
            app.on_shutdown(self._last_write)

    # What there is

    def families(self) -> list[Family]:
        """The numbers of this worker."""
        return [*self._of_routes(), *self._of_outboxes(), *self._of_guard(), *self._of_process()]

    def _of_routes(self) -> list[Family]:
        route = ("route",)
        live = Family("connections", "gauge", "WebSocket connections that are open.", route)
        opened = Family("connections_opened", "counter", "Connections accepted.", route)
        closed = Family(
            *("connections_closed", "counter", "Connections that are over, by close code and by who closed."),
            ("route", "code", "by"),
        )
        rejected = Family("connections_rejected", "counter", "Handshakes that a handler turned down.", route)
        received = Family("messages_received", "counter", "Messages from clients.", route)
        sent = Family("messages_sent", "counter", "Messages to clients, those of groups once each.", route)
        bytes_in = Family("received_bytes", "counter", "Payloads from clients; of text, characters.", route)
        bytes_out = Family("sent_bytes", "counter", "Payloads to clients; of text, characters.", route)
        length = Family("connection_seconds", "histogram", "How long a handler had its connection.", route)
        latency = Family(
            "latency_seconds", "histogram", "From a message's coming to the next one's going.", route
        )
        for name, account in self.recorder.routes.items():
            totals = account.totals()
            live.put(len(account.live), name)
            opened.put(totals.opened, name)
            rejected.put(account.rejected, name)
            received.put(totals.messages_in, name)
            sent.put(totals.messages_out, name)
            bytes_in.put(totals.bytes_in, name)
            bytes_out.put(totals.bytes_out, name)
            length.put_histogram(account.durations, name)
            latency.put_histogram(account.latency, name)
            for (code, by), count in account.closed.items():
                closed.put(count, name, code, by)
        return [live, opened, closed, rejected, received, sent, bytes_in, bytes_out, length, latency]

    def _of_outboxes(self) -> list[Family]:
        messages = Family("outbox_messages", "gauge", "Messages that wait for slow clients.")
        size = Family("outbox_bytes", "gauge", "Their payloads, and what the kernel has not taken.")
        longest = Family("outbox_longest_messages", "gauge", "The fullest outbox.", join="max")
        drops = Family("dropped", "counter", "Messages that an overflow rule took out.", ("rule",))
        backlogs = [connection.backlog for connection in self.recorder.connections()]
        messages.put(sum(backlog.waiting for backlog in backlogs))
        size.put(sum(backlog.size for backlog in backlogs))
        longest.put(max((backlog.waiting for backlog in backlogs), default=0))
        totals = [route.totals() for route in self.recorder.routes.values()]
        drops.put(sum(total.dropped_oldest for total in totals), "drop_oldest")
        drops.put(sum(total.dropped_newest for total in totals), "drop_newest")
        drops.put(sum(total.conflated for total in totals), "conflate")
        return [messages, size, longest, drops]

    def _of_guard(self) -> list[Family]:
        refused = Family("refused", "counter", "What clients were refused, by cause.", ("cause",))
        limited = Family("rate_limited", "counter", "Messages that a rate limit held up.", ("action",))
        for cause, count in self._app.guard.counts.items():
            if cause.startswith("rate_limit."):
                limited.put(count, cause.removeprefix("rate_limit."))
            else:
                refused.put(count, cause)
        return [refused, limited]

    def _of_process(self) -> list[Family]:
        groups = Family("groups", "gauge", "Groups with members, counted by each worker.")
        groups.put(len(self._app.channels.hub.groups))
        members = Family("group_members", "gauge", "Members of the largest groups.", ("group",))
        for name, size in self.recorder.largest_groups(self._groups):
            members.put(size, name)
        lag = Family("broker_lag_seconds", "histogram", "From the sending of a group message to its arrival.")
        lag.put_histogram(self.recorder.broker_lag)
        loop = Family("loop_lag_seconds", "histogram", "How late the event loop comes round.")
        loop.put_histogram(self.recorder.loop_lag)
        broker = Family("broker_available", "gauge", "1: every worker reaches its broker.", join="min")
        broker.put(float(broker_available(self._app)))
        draining = Family("draining_workers", "gauge", "Workers that are about to end.")
        draining.put(float(is_leaving(self._app)))
        workers = Family("workers", "gauge", "Workers that these numbers are of.")
        workers.put(1)
        return [groups, members, lag, loop, broker, draining, workers]

    # Several workers

    def _make_directory(self) -> None:
        assert self.directory is not None
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            link, folder = self.directory.lstat(), self.directory.stat()
        except OSError as error:
            logger.warning("cannot make the directory of metrics: %s", error)
            return
        if not hasattr(os, "geteuid"):  # Windows
            return
        if {link.st_uid, folder.st_uid} - {os.geteuid(), 0} or folder.st_mode & stat.S_IWOTH:
            raise WrongValueError(
                f"{self.directory} can be written by other users, who could forge numbers there: name a "
                "directory of the service's own, such as one below it that is not there yet"
            )

    async def _keep_writing(self) -> None:
        while True:
            self._write_if_possible()
            await trio.sleep(EVERY)

    def _last_write(self) -> None:
        self._write_if_possible()

    def _write_if_possible(self) -> None:
        try:
            self._write()
        except OSError as error:  # a full disk shall not end what is watched
            logger.warning("cannot write metrics for the other workers: %s", error)

    def _write(self) -> None:
        assert self.directory is not None
        if not self._name:  # not before: a worker may be a copy of the process that imported the app
            self._name = f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = written(self.families(), time.time())
        target, draft = self.directory / self._name, self.directory / f"{self._name}.part"
        draft.write_text(text, "utf-8")
        draft.replace(target)  # whoever reads finds the old or the new one

    def _others(self) -> Iterator[tuple[list[Family], bool]]:
        if self.directory is None:
            return
        for path in sorted(self.directory.glob("*.json")):
            if path.name == self._name:
                continue
            try:
                families, at = read(path.read_text("utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, LookupError) as error:
                logger.warning("cannot read the metrics of another worker, %s: %a", path.name, error)
                continue
            yield families, time.time() - at < DEAD_AFTER

    # prometheus-client

    def collect(self) -> Iterable[Metric]:
        """For a registry of prometheus-client: the numbers of all workers."""
        for family in merged(self.families(), self._others()):
            yield _metric(self._prefix, family)

    def describe(self) -> Iterable[Metric]:
        """For a registry: names, without looking at anything."""
        return [_metric(self._prefix, family) for family in self.families()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app: HTTP GET and HEAD."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            return
        response: Response
        if scope["method"] not in ("GET", "HEAD"):
            response = PlainTextResponse("metrics are for GET\n", 405, {"allow": "GET, HEAD"})
        else:
            encode, content_type = choose_encoder(Request(scope).headers.get("accept", ""))
            response = Response(encode(self._registry), headers={"content-type": content_type})
        await response(scope, receive, send)


def _bound(bound: float) -> str:
    return "+Inf" if bound == math.inf else repr(bound)


def _metric(prefix: str, family: Family) -> Metric:
    name = prefix + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, counts in family.counts.items():
            buckets, below = [], 0
            for bound, count in zip((*family.bounds, math.inf), counts, strict=True):
                below += count
                buckets.append((_bound(bound), float(below)))
            histogram.add_metric(labels, buckets, family.values[labels])
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, value in family.values.items():
        metric.add_metric(labels, value)
    return metric
