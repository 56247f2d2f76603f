"""`SyncPublisher`: sends to the groups of an app from code without Trio, such as Django, Celery or cron."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import hiredis

from nexios_trio.brokers.base import Message
from nexios_trio.brokers.redis.address import Address, Credentials
from nexios_trio.brokers.redis.connection import Command, check_hello, greeting, judge, pack
from nexios_trio.brokers.redis.scripts import PUBLISH, Keys
from nexios_trio.brokers.redis.settings import RedisSettings
from nexios_trio.brokers.redis.store import Publishing, Store
from nexios_trio.config import HistoryLimits, Limits
from nexios_trio.exceptions import BrokerError, BrokerRefused, BrokerUnavailable
from nexios_trio.websockets.payloads import check_group_name, draft_of

__all__ = ["SyncPublisher"]


class SyncPublisher:
    """``SyncPublisher("redis://…").send("news", payload)``; a blocking socket, no event loop.

    ``url`` is that of the app's broker, with the same ``prefix``; ``history`` are the app's `HistoryLimits`:
    whoever sends, trims. It connects with the first send, and again when the connection was lost or the
    process has forked. Threads may share one; their sends take turns.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1",
        history: HistoryLimits | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address, query = Address.parse(url, tls=tls)
        self.settings = RedisSettings.of(query, prefix=prefix, timeout=timeout)
        keys = Keys.of(self.settings.prefix, self.address.database)
        self._store = Store(keys, history or HistoryLimits(), self.settings.once)
        self._lock = threading.Lock()
        self._wire: _Wire | None = None
        _publishers.add(self)

    def __repr__(self) -> str:
        return f"<SyncPublisher {self.address} prefix={self.settings.prefix!r}>"

    def __enter__(self) -> SyncPublisher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later send opens one again."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def send(
        self, group: str, payload: Any, *, save_history: bool = True, message_id: str | None = None
    ) -> Message:
        """Send to all members of a group; see `Group.send`.

        Blocks for up to twice ``timeout`` seconds, beside what it takes to look up the name of the host. A
        connection that turns out to be lost is made again, once; a message that was on its way is not sent a
        second time by that. Raises `BrokerUnavailable`, `BrokerRefused` and `BrokerCommandError`.
        """
        check_group_name(group, Limits().group_name_length)
        draft = draft_of(payload, message_id=message_id)
        with self._lock:
            publishing = self._store.publishing(group, draft, keep=save_history)
            try:
                return self._published(group, publishing)
            except BrokerUnavailable:
                pass
            return self._published(group, publishing)

    def _published(self, group: str, publishing: Publishing) -> Message:
        deadline = time.monotonic() + self.settings.timeout
        try:
            if self._wire is None:
                self._wire = _connect(self.address, deadline)
            self._wire.deadline = deadline
            (reply,) = self._wire.ask([publishing.command])
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                (reply,) = self._wire.ask([("EVAL", PUBLISH.source, *publishing.command[2:])])
            if isinstance(reply, hiredis.ReplyError):
                raise judge(self._wire.where, reply)
        except BaseException:
            # Also for what a signal raises, such as the time limit of a task: the answer is still to come,
            # and is not that of the next message.
            self._drop()
            raise
        return self._store.published(group, publishing, reply)[0]

    def _forked(self) -> None:
        # The socket is the parent's, and so are its numbers; a thread that held the lock is not here.
        self._lock = threading.Lock()
        self._wire = None
        self._store.node = secrets.token_urlsafe(6)


_publishers: weakref.WeakSet[SyncPublisher] = weakref.WeakSet()


def _after_fork() -> None:
    for publisher in _publishers:
        publisher._forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class _Wire:
    """A blocking connection. ``deadline``: when it is to have done all, by `time.monotonic`."""

    def __init__(self, where: str, stream: socket.socket, deadline: float) -> None:
        self.where = where
        self.deadline = deadline
        self._stream = stream
        self._reader = hiredis.Reader()

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Replies, which may be errors. Raises `BrokerUnavailable`."""
        replies: list[Any] = []
        try:
            self._stream.settimeout(_left(self.deadline))
            self._stream.sendall(b"".join(pack(*command) for command in commands))
            while len(replies) < len(commands):
                reply = self._reader.gets()
                if reply is not False:
                    replies.append(reply)
                    continue
                self._stream.settimeout(_left(self.deadline))
                data = self._stream.recv(65536)
                if not data:
                    raise BrokerUnavailable(self.where, "closed the connection", uncertain=True)
                self._reader.feed(data)
        except TimeoutError:
            raise BrokerUnavailable(self.where, "no answer in time", uncertain=True) from None
        except (OSError, hiredis.ProtocolError) as error:
            raise BrokerUnavailable(self.where, f"the connection is lost: {error}", uncertain=True) from error
        return replies

    def close(self) -> None:
        """Close at once."""
        with contextlib.suppress(OSError):
            self._stream.close()


def _left(deadline: float) -> float:
    """Seconds, more than 0. Raises TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _dial(host: str, port: int, deadline: float) -> socket.socket:
    """As `socket.create_connection`, but all addresses of a host share the time. Raises OSError."""
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        stream = socket.socket(family, kind, protocol)
        try:
            stream.settimeout(_left(deadline))
            stream.connect(where)
        except OSError as error:
            stream.close()
            problem = error
        except BaseException:
            stream.close()
            raise
        else:
            return stream
    raise problem


def _open(address: Address, host: str, port: int, deadline: float) -> _Wire:
    where = f"{host}:{port}" if address.kind != "unix" else f"unix:{address.path}"
    stream: socket.socket | None = None
    try:
        if address.kind == "unix":
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.settimeout(_left(deadline))
            stream.connect(address.path)
        else:
            stream = _dial(host, port, deadline)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls is not None:
                stream.settimeout(_left(deadline))
                stream = address.tls.wrap_socket(stream, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise BrokerRefused(where, f"its certificate is not trusted: {error.verify_message}") from error
    except OSError as error:
        if stream is not None:
            stream.close()
        raise BrokerUnavailable(where, f"cannot connect: {error.strerror or error}") from error
    return _Wire(where, stream, deadline)


def _greet(wire: _Wire, address: Address, credentials: Credentials, *, sentinel: bool) -> None:
    commands = greeting(address, credentials, name=not sentinel)
    for command, reply in zip(commands, wire.ask(commands), strict=True):
        if command[0] == "HELLO":
            check_hello(wire.where, reply, mode=b"sentinel" if sentinel else b"standalone")
        elif isinstance(reply, hiredis.ReplyError):
            if command[0] == "SELECT":
                raise BrokerRefused(wire.where, f"has no database {address.database}")
            error = judge(wire.where, reply)
            if not isinstance(error, BrokerUnavailable):
                raise BrokerRefused(wire.where, "does not know this user and password")
            raise error


def _master(address: Address, deadline: float) -> tuple[str, int]:
    problems: list[str] = []
    for host, port in address.hosts:
        try:
            wire = _open(address, host, port, min(deadline, time.monotonic() + 1.0))
            with contextlib.closing(wire):
                _greet(wire, address, address.sentinel_credentials, sentinel=True)
                (found,) = wire.ask([("SENTINEL", "get-master-addr-by-name", address.service)])
        except BrokerError as error:
            problems.append(str(error))
            continue
        if isinstance(found, list) and len(found) == 2:
            return found[0].decode(), int(found[1])
        problems.append(f"{host}:{port} knows no service {address.service!r}")
    raise BrokerUnavailable(str(address), f"no Sentinel names a master: {'; '.join(problems)}")


def _connect(address: Address, deadline: float) -> _Wire:
    host, port = ("", 0)
    if address.kind == "sentinel":
        host, port = _master(address, deadline)
    elif address.kind == "tcp":
        ((host, port),) = address.hosts
    wire = _open(address, host, port, deadline)
    try:
        _greet(wire, address, address.credentials, sentinel=False)
    except BaseException:
        wire.close()
        raise
    return wire
