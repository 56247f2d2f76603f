"""Who may open a connection at all: decided from the request, before anything of the app runs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import trio
from attrs import frozen

from nexios_trio.config import Limits, Rate
from nexios_trio.security.buckets import Bucket, BucketTable
from nexios_trio.security.origin import OriginPolicy, OriginRule
from nexios_trio.security.proxy import HostPolicy, Proxy, address_key
from nexios_trio.security.ratelimit import RateLimit
from nexios_trio.types import Receive, Scope, Send
from nexios_trio.websockets import codec

__all__ = ["Guard", "Refusal"]

logger = logging.getLogger("nexios_trio.guard")

MAX_TABLES: Final = 1_000
"""Kinds of shared rate limits that an app keeps account of."""

_LOGGED: Final = Rate(10, burst=50)
"""Refusals that are logged; more are counted only, so that nobody can fill a disk."""


_CURES: Final = {
    "allowed_origins": (
        "; if it is a page of yours, name it: NexiosApp(allowed_origins=[...]), and if a proxy stands "
        "between, have it pass the Host on"
    ),
}
"""What to write where a refusal was not meant."""


@frozen
class Refusal:
    """An HTTP answer to an opening handshake that nobody asked the app about."""

    cause: str
    """What it is counted as: the name of the setting that refused."""
    status: int
    problem: str
    """For the log."""
    public: str
    """For the client."""
    retry_after: int | None = None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it: over a WebSocket's scope (a bare 403 where the server has no
        ``websocket.http.response``), or over a plain HTTP one."""
        kind = "http.response"
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
            kind = "websocket.http.response"
            if kind not in (scope.get("extensions") or {}):
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
                return
        body = codec.encode({"error": self.public})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        await send({"type": f"{kind}.start", "status": self.status, "headers": headers})
        await send({"type": f"{kind}.body", "body": body})


class Guard:
    """The bounds of one app that lie outside of any connection, and the account of what was refused."""

    def __init__(
        self,
        limits: Limits,
        *,
        allowed_origins: Iterable[str] | str | OriginRule | None = None,
        trusted_hosts: Iterable[str] | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.limits = limits
        self.origins = OriginPolicy(allowed_origins)
        self.checks_origin_when_mounted = allowed_origins is not None
        self.hosts = HostPolicy(trusted_hosts)
        self.proxy = proxy
        self.counts: Counter[str] = Counter()
        """How often a client was refused something since the app was made, by cause."""
        self._run: trio.lowlevel.TrioToken | None = None
        self._connections = 0
        self._by_address: Counter[str] = Counter()
        self._unlogged = 0
        self._told_of_proxy = False
        self._begin()

    def _begin(self) -> None:
        """Start the accounts that hold times."""
        rate = self.limits.handshakes_per_address
        self._handshakes = None if rate is None else BucketTable(rate)
        self._tables: dict[tuple[RateLimit, str], tuple[BucketTable | None, BucketTable | None]] = {}
        self._log_bucket = Bucket(_LOGGED)

    def now(self) -> float:
        """`trio.current_time`. In another run of Trio the clock stands elsewhere: what was noted by the last
        one's is forgotten."""
        run = trio.lowlevel.current_trio_token()
        if run is not self._run:
            self._run = run
            self._begin()
        return trio.current_time()

    # Handshakes

    def admit(self, scope: Scope, now: float) -> Refusal | str:
        """Whether a client may open a connection. If he may, gives what `leave` is to be called with once it
        has ended. Puts what a trusted proxy says into ``scope``."""
        self.rewrite(scope)
        address = _address(scope)
        refusal = self._check(scope, address, now)
        if refusal is not None:
            self.refused(refusal, scope, now)
            return refusal
        self._connections += 1
        self._by_address[address] += 1
        return address

    def leave(self, address: str) -> None:
        """A connection that was admitted has ended."""
        self._connections -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def admit_http(self, scope: Scope, now: float) -> Refusal | None:
        """The same for a plain HTTP request, of which only the Host is ours to judge."""
        self.rewrite(scope)
        refusal = self._check_host(scope)
        if refusal is not None:
            self.refused(refusal, scope, now)
        return refusal

    def rewrite(self, scope: Scope) -> None:
        """Put what a trusted proxy says of the client into ``scope``."""
        if self.proxy is not None:
            self.proxy.apply(scope)
        elif not self._told_of_proxy and any(
            name in (b"x-forwarded-for", b"forwarded") for name, _ in scope["headers"]
        ):
            self._told_of_proxy = True
            logger.warning(
                "a request says that it was forwarded, and no proxy is trusted: limits per address count the "
                "proxy as one client. If there is one, write NexiosApp(proxy=Proxy([its address])); this is "
                "said once"
            )

    def _check(self, scope: Scope, address: str, now: float) -> Refusal | None:
        limits = self.limits
        if self._handshakes is not None and not self._handshakes.take(address, 1, now):
            pause = max(1, math.ceil(self._handshakes.wait(address, 1, now)))
            return Refusal("handshakes_per_address", 429, "too many handshakes", "too many handshakes", pause)
        if limits.connections is not None and self._connections >= limits.connections:
            problem = f"{self._connections} connections are open"
            return Refusal("connections", 503, problem, "the server is full", 5)
        most = limits.connections_per_address
        if most is not None and self._by_address.get(address, 0) >= most:
            problem = f"{most} connections of this address are open"
            return Refusal("connections_per_address", 429, problem, "too many connections", 5)
        if limits.query_bytes is not None and len(scope.get("query_string", b"")) > limits.query_bytes:
            problem = f"a query of {len(scope['query_string'])} bytes"
            return Refusal("query_bytes", 414, problem, f"a query has at most {limits.query_bytes} bytes")
        if limits.header_bytes is not None:
            size = sum([len(name) + len(value) for name, value in scope["headers"]])
            if size > limits.header_bytes:
                public = f"the headers have at most {limits.header_bytes} bytes"
                return Refusal("header_bytes", 431, f"{size} bytes of headers", public)
        return self._check_host(scope) or self.check_origin(scope)

    def _check_host(self, scope: Scope) -> Refusal | None:
        problem = self.hosts.problem(scope)
        return None if problem is None else Refusal("trusted_hosts", 400, problem, "unknown host")

    def check_origin(self, scope: Scope) -> Refusal | None:
        """Whether the page that opens the connection may (RFC 6455 §10.2)."""
        problem = self.origins.problem(scope)
        return None if problem is None else Refusal("allowed_origins", 403, problem, "origin not allowed")

    def refused(self, refusal: Refusal, scope: Scope, now: float) -> None:
        """Count a refusal, and log it."""
        self.counts[refusal.cause] += 1
        if not self._log_bucket.take(1, now):
            self._unlogged += 1
            return
        client = scope.get("client")
        unlogged, self._unlogged = self._unlogged, 0
        logger.warning(
            "refused %a from %s with %d, %s: %a%s",
            scope["path"],
            client[0] if client else "unknown peer",
            refusal.status,
            refusal.cause,
            refusal.problem,
            _CURES.get(refusal.cause, "") + (f" ({unlogged} more since were not logged)" if unlogged else ""),
        )

    # Rate limits

    def rate_limit(self, limit: Any) -> RateLimit:
        """See `RateLimit.of`."""
        return RateLimit.of(limit)

    def tables(self, limit: RateLimit, name: str) -> tuple[BucketTable | None, BucketTable | None]:
        """The account of a rate limit that connections share: of messages, and of bytes."""
        tables = self._tables.pop((limit, name), None)
        if tables is None:
            tables = (
                None if limit.messages is None else BucketTable(limit.messages),
                None if limit.bytes is None else BucketTable(limit.bytes),
            )
            if len(self._tables) >= MAX_TABLES:  # limits made up per connection: the one used least recently
                del self._tables[next(iter(self._tables))]
        self._tables[limit, name] = tables
        return tables


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return address_key(client[0] if client else None)
