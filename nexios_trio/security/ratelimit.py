"""Rate limits: what a client may send, in messages and bytes, and what happens beyond it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, cast
from uuid import UUID

import trio
from attrs import field, frozen

from nexios_trio.brokers.base import Quotas
from nexios_trio.config import Rate
from nexios_trio.exceptions import WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.security.buckets import Bucket, BucketTable
from nexios_trio.security.proxy import address_key
from nexios_trio.websockets.base import SERVICES, WebSocket
from nexios_trio.websockets.metering import Action

if TYPE_CHECKING:
    from nexios_trio.security.guard import Guard

__all__ = ["Per", "RateLimit"]

Scope: TypeAlias = Literal["connection", "user", "address", "route"]
Per: TypeAlias = Scope | tuple[Scope, ...] | Callable[[WebSocket], Hashable]

_SCOPES: Final = ("connection", "user", "address", "route")
_ACTIONS: Final = ("delay", "drop", "close")
LONGEST: Final = 200
"""Characters of a name that is not shortened."""


def _rate(rate: Rate | str | None) -> Rate | None:
    return None if rate is None else Rate.parse(rate)


def _per(per: Any) -> Any:
    scopes = (per,) if isinstance(per, str) else per
    if callable(per) or (isinstance(scopes, tuple) and scopes and all(scope in _SCOPES for scope in scopes)):
        return per if callable(per) else tuple(dict.fromkeys(scopes))
    raise WrongValueError(
        'per is "connection", "user", "address" or "route", a tuple of these, or a function of the WebSocket '
        f"that gives a key, not {per!r}"
    )


def _names(types: Iterable[str]) -> frozenset[str]:
    names = None if isinstance(types, str) or not isinstance(types, Iterable) else frozenset(types)
    if names is None or not all(isinstance(name, str) for name in names):
        raise WrongTypeError(f'types are names of message types, such as {{"move", "chat"}}, not {types!r}')
    return names


@frozen
class RateLimit:
    """So many messages, or bytes, from one client (or whatever ``per`` says) in a time.

    ``RateLimit("10/s")``; ``RateLimit(Rate(100, per=60, burst=20), bytes="64KiB/s", per="user",
    action="close")``. One limit given to several routes counts for each route by itself, unless it has a
    ``name``; one given to an app or a router counts for all its routes together.
    """

    messages: Rate | None = field(default=None, converter=_rate)
    """A `Rate`, or a str such as ``"10/s"``."""
    bytes: Rate | None = field(default=None, kw_only=True, converter=_rate)
    """The same for the bytes of messages, text as UTF-8. A message larger than the burst never passes."""
    per: Per = field(default="connection", kw_only=True, converter=_per)
    """Whose messages are counted together: those of a connection, of a user (`WebSocket.user_id`; of the
    address, for who has none), of a client address (IPv6: a /64 network), of the route, of a combination
    (``("user", "route")``), or what a function of the WebSocket says; messages for which it gives None are
    not limited."""
    types: frozenset[str] = field(default=frozenset(), kw_only=True, converter=_names)
    """Count only JSON messages of these types, each type by itself: a dict's ``"type"``, a Struct's tag.
    Known only to `receive_json`, `iter_json` and consumers with ``encoding = "json"``."""
    action: Action = field(default="delay", kw_only=True)
    """Beyond the rate: ``"delay"``, the handler gets the message later, and the client is slowed down by
    backpressure; ``"drop"``, the handler never gets it; ``"close"``, with 1008. Delayed, what can never pass
    closes."""
    name: str | None = field(default=None, kw_only=True)
    """Limits of the same name and values count together, whatever their routes."""
    shared: bool = field(default=False, kw_only=True)
    """Count what comes to all servers that share the app's broker; needs a ``name``. Each server decides by
    what it knows, and hears a moment later what the others have let through. A function ``per`` gives text,
    numbers, bytes, UUIDs, or tuples of these, and is known by the ``name`` alone."""

    def __attrs_post_init__(self) -> None:
        if self.messages is None and self.bytes is None:
            raise WrongValueError('a RateLimit limits something: write RateLimit("10/s") or bytes="64KiB/s"')
        if self.messages is not None and self.messages.burst < 1:
            raise WrongValueError(f"a burst of {self.messages.burst:g} lets no message pass; give 1 or more")
        if self.action not in _ACTIONS:
            raise WrongValueError(f'action is "delay", "drop" or "close", not {self.action!r}')
        if not isinstance(self.shared, bool):
            raise WrongTypeError(f"shared is True or False, not {self.shared!r}")
        if self.shared and not callable(self.per) and "connection" in self.per:
            raise WrongValueError(
                'a connection is on one server, so there is nothing to share; give per="user", "address", '
                '"route" or a function of the WebSocket'
            )
        if self.shared and self.name is None:
            raise WrongValueError('a shared rate limit is known to all servers by its name; give name="..."')

    @classmethod
    def of(cls, limit: RateLimit | Rate | str) -> RateLimit:
        """``"10/s"`` or a `Rate` as a limit of messages per connection; a RateLimit as it is."""
        if isinstance(limit, RateLimit):
            return limit
        if isinstance(limit, str | Rate):
            return cls(limit)
        raise WrongTypeError(f'a rate limit is a RateLimit or a str such as "10/s", not {limit!r}')

    def meter(self, websocket: object) -> _Meter:
        """The limit as it holds for one connection; see `WebSocket.rate_limit`."""
        assert isinstance(websocket, WebSocket)
        if self.per == ("connection",):
            make: Callable[[Rate], Counter] = _own if not self.types else BucketTable
            own = [None if rate is None else make(rate) for rate in (self.messages, self.bytes)]
            return _Meter(self, own[0], own[1], _one)
        guard: Guard = websocket.scope[SERVICES].guard
        tables = guard.tables(self, self.name or f"route {websocket._connection.route}")
        broker = websocket._hub().broker
        if not self.shared or not broker.shared:
            return _Meter(self, *tables, _key_of(self.per, websocket))
        if broker.quotas is None:
            raise WrongStateError(
                "a shared rate limit needs a broker that counts for all servers, such as redis://, not "
                f"{broker!r}"
            )
        messages, volume = (
            None
            if table is None or rate is None
            else _Shared(table, rate, f"{unit} of {self._title}", broker.quotas)
            for table, rate, unit in zip(
                tables, (self.messages, self.bytes), ("messages", "bytes"), strict=True
            )
        )
        return _Meter(self, messages, volume, _key_of(self.per, websocket))

    @property
    def _title(self) -> str:
        """The same for equal limits on all servers, as far as a function can be told, and for no others."""
        per = "a function" if callable(self.per) else "+".join(self.per)
        rates = [
            None if rate is None else (float(rate.amount), float(rate.per), float(rate.burst))
            for rate in (self.messages, self.bytes)
        ]
        return f"{self.name} {rates} {per} {sorted(self.types)} {self.action}"


class Counter(Protocol):
    """A `BucketTable`, or a bucket that needs no key."""

    def wait(self, key: Hashable, amount: float, now: float) -> float: ...

    def take(self, key: Hashable, amount: float, now: float) -> bool: ...


class _Own:
    __slots__ = ("_bucket",)

    def __init__(self, rate: Rate) -> None:
        self._bucket = Bucket(rate)

    def wait(self, _key: Hashable, amount: float, now: float) -> float:
        return self._bucket.wait(amount, now)

    def take(self, _key: Hashable, amount: float, now: float) -> bool:
        return self._bucket.take(amount, now)


_own = cast("Callable[[Rate], Counter]", _Own)


def _one() -> Hashable:
    return 1


def _key_of(per: Per, ws: WebSocket) -> Callable[[], Hashable]:
    if callable(per):
        return lambda: per(ws)
    connection = ws._connection
    address = address_key(ws.scope["client"][0] if ws.scope.get("client") else None)
    facts: dict[str, Callable[[], Hashable]] = {
        "connection": lambda: connection.id,
        # the user may become known, or another one, while the connection lives
        "user": lambda: ("user", connection.user_id) if connection.user_id else ("address", address),
        "address": lambda: address,
        "route": lambda: connection.route,
    }
    parts = [facts[scope] for scope in per]
    return parts[0] if len(parts) == 1 else lambda: tuple(part() for part in parts)


@frozen
class _Told:
    """Where it is noted what is owed."""

    table: BucketTable
    key: Hashable

    def __call__(self, owed: float) -> None:
        self.table.owe(self.key, owed, trio.current_time())


class _Shared:
    """A table that hears what other servers have let through, and lets them hear what it has."""

    __slots__ = ("_name", "_quotas", "_rate", "_table")

    def __init__(self, table: BucketTable, rate: Rate, name: str, quotas: Quotas) -> None:
        self._table = table
        self._rate = rate
        self._name = name
        self._quotas = quotas

    def wait(self, key: Hashable, amount: float, now: float) -> float:
        return self._table.wait(key, amount, now)

    def take(self, key: Hashable, amount: float, now: float) -> bool:
        bucket = f"{self._name}: {_stable(key)}"
        if not self._table.take(key, amount, now):
            return False
        if amount > 0:
            if len(bucket) > LONGEST or not bucket.isprintable():
                bucket = hashlib.blake2b(bucket.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
            self._quotas.charge(bucket, amount, self._rate, _Told(self._table, key))
        return True


def _stable(key: Hashable) -> str:
    """The same in every process, and for equal keys."""
    if isinstance(key, tuple):
        return f"({','.join(map(_stable, key))})"
    if isinstance(key, str):
        return str.__repr__(key)
    if isinstance(key, int | float):
        return repr(int(key) if key == key // 1 and math.isfinite(key) else key)
    if key is None or isinstance(key, bytes | UUID):
        return repr(key)
    raise WrongTypeError(
        "the key of a shared rate limit is a str, a number, bytes, a UUID, or a tuple of these, not "
        f"{type(key).__name__}"
    )


class _Meter:
    """See `nexios_trio.websockets.metering.Meter`."""

    def __init__(
        self,
        limit: RateLimit,
        messages: Counter | None,
        volume: Counter | None,
        key: Callable[[], Hashable],
    ) -> None:
        self.action = limit.action
        self.typed = bool(limit.types)
        self._types = limit.types
        self._counters = (messages, volume)
        self._key = key

    def wait(self, size: int, kind: str | None, now: float) -> float:
        wait, key = 0.0, self._key_for(kind)
        for counter, amount in zip(self._counters, (1, size), strict=True):
            if key is not None and counter is not None and (needed := counter.wait(key, amount, now)) > 0:
                wait = max(wait, needed)
                counter.take(key, amount, now)  # refused, and so remembered for as long as it asks
        return wait

    def count(self, size: int, kind: str | None, now: float) -> None:
        key = self._key_for(kind)
        for counter, amount in zip(self._counters, (1, size), strict=True):
            if key is not None and counter is not None:
                counter.take(key, amount, now)

    def _key_for(self, kind: str | None) -> Hashable:
        """None: this limit does not hold for the message."""
        if not self.typed:
            return self._key()
        key = self._key() if kind in self._types else None
        return None if key is None else (key, kind)
