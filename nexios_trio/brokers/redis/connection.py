"""One connection to Redis: opened, logged in, RESP3 spoken. Foreign errors end here."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import hiredis
import trio
from attrs import define, field

from nexios_trio.brokers.redis.address import Address, Credentials
from nexios_trio.exceptions import (
    BrokerCommandError,
    BrokerError,
    BrokerOverloaded,
    BrokerRefused,
    BrokerUnavailable,
)

__all__ = ["Argument", "Command", "Connection", "check_hello", "connect", "greeting", "judge", "pack"]

Argument: TypeAlias = str | bytes | int | float
Command: TypeAlias = Sequence[Argument]

CHUNK: Final = 65536
OLDEST: Final = (7, 0)
_OVERLOADED: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "BUSY"})
_AWAY: Final = frozenset({"LOADING", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED"})


def pack(*command: Argument) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def judge(address: str, error: hiredis.ReplyError) -> BrokerError:
    """What an error reply means to us. Redis' errors may quote arguments, so only the first word is kept
    where it says enough."""
    text = str(error)
    code, _, rest = text.partition(" ")
    if code == "NOAUTH":
        return BrokerRefused(address, "wants a password; write redis://:password@host or user:password@host")
    if code == "WRONGPASS" or "AUTH <password> called without any password" in text:
        return BrokerRefused(address, "does not know this user and password")
    if code == "NOPERM" or rest.startswith("The user executing the script can't"):
        return BrokerRefused(address, f"this user may not do what is needed: {rest[:200]}")
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return BrokerRefused(address, _CLUSTER)
    if code in _AWAY:
        return BrokerUnavailable(address, f"cannot serve now ({code})")
    kind = BrokerOverloaded if code in _OVERLOADED else BrokerCommandError
    return kind(address, code, f"answered {text[:200]}")


_CLUSTER: Final = (
    "is a node of a Redis Cluster, which is not supported; give the address of a single Redis, or of "
    "Sentinels (redis+sentinel://), and split groups over several Redis by prefix if one is not enough"
)


def greeting(address: Address, credentials: Credentials, *, name: bool) -> list[Command]:
    """What is said first, in one write: AUTH stands alone, since HELLO takes no password without a user."""
    commands: list[Command] = []
    if credentials.password is not None:
        user = () if credentials.user is None else (credentials.user,)
        commands.append(("AUTH", *user, credentials.password))
    commands.append(("HELLO", "3"))
    if name:
        commands.append(("CLIENT", "SETNAME", address.client_name))
        if address.database:
            commands.append(("SELECT", address.database))
    return commands


def check_hello(where: str, reply: Any, *, mode: bytes) -> None:
    """Raises `BrokerRefused` for what we cannot work with, `BrokerUnavailable` for a replica."""
    if isinstance(reply, hiredis.ReplyError):
        if str(reply).startswith(("ERR unknown command", "NOPROTO", "ERR Protocol")):
            raise BrokerRefused(where, "does not speak RESP3; Redis 7.0 or later, or Valkey, is needed")
        raise judge(where, reply)
    facts: dict[bytes, Any] = reply if isinstance(reply, dict) else {}
    found = facts.get(b"mode", b"?")
    if mode == b"standalone" and found == b"cluster":
        raise BrokerRefused(where, _CLUSTER)
    if found != mode:
        raise BrokerRefused(where, f"is no {mode.decode()} server but says mode {str(found)[:30]}")
    version = facts.get(b"version", b"0").decode("ascii", "replace")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise BrokerRefused(where, f"is version {version[:20]}; Redis 7.0 or later, or Valkey, is needed")
    if mode == b"standalone" and facts.get(b"role") != b"master":
        raise BrokerUnavailable(where, "is a replica and takes no writes")


@define(eq=False)
class Connection:
    """A stream and a parser. One task may send and another one receive; after an error it is of no use."""

    where: str
    """For errors; no credentials."""
    stream: trio.abc.Stream = field(repr=False)
    _reader: hiredis.Reader = field(factory=hiredis.Reader, repr=False)

    async def send(self, data: bytes) -> None:
        """Send all of it. A checkpoint; cancelled, it is of no use any more. Raises `BrokerUnavailable`."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise BrokerUnavailable(self.where, "the connection is lost", uncertain=True) from error

    async def receive(self) -> list[Any]:
        """Whatever replies have come, at least one; pushes are `hiredis.PushNotification`.

        A checkpoint; cancelled, nothing is lost. Raises `BrokerUnavailable`.
        """
        while True:
            replies = self._parsed()
            if replies:
                await trio.lowlevel.checkpoint_if_cancelled()
                return replies
            try:
                data = await self.stream.receive_some(CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise BrokerUnavailable(self.where, "the connection is lost", uncertain=True) from error
            if not data:
                raise BrokerUnavailable(self.where, "closed the connection", uncertain=True)
            self._reader.feed(bytes(data))

    def _parsed(self) -> list[Any]:
        replies: list[Any] = []
        try:
            while (reply := self._reader.gets()) is not False:
                replies.append(reply)
        except hiredis.ProtocolError as error:
            raise BrokerUnavailable(self.where, "sent what is not Redis' protocol", uncertain=True) from error
        return replies

    async def ask(
        self, commands: Sequence[Command], *, needed: int | None = None, timeout: float = math.inf
    ) -> list[Any]:
        """Send commands and wait for their replies, which may be errors; for setting up.

        ``needed``: how many come, if some are answered by a push. Raises `BrokerUnavailable` after
        ``timeout`` seconds.
        """
        replies: list[Any] = []
        with trio.move_on_after(timeout):
            await self.send(b"".join(pack(*command) for command in commands))
            while len(replies) < (len(commands) if needed is None else needed):
                replies += [
                    reply for reply in await self.receive() if not isinstance(reply, hiredis.PushNotification)
                ]
            return replies
        raise BrokerUnavailable(self.where, f"no answer within {timeout:g} s")

    async def aclose(self) -> None:
        """Close at once, without a farewell. Cancelled, it is closed too."""
        await trio.aclose_forcefully(self.stream)


async def _open(address: Address, host: str, port: int) -> tuple[str, trio.abc.Stream]:
    where = f"{host}:{port}" if address.kind != "unix" else f"unix:{address.path}"
    try:
        if address.kind == "unix":
            return where, await trio.open_unix_socket(address.path)
        tcp = await trio.open_tcp_stream(host, port)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        raise BrokerUnavailable(where, f"cannot connect: {error.strerror or error}") from error
    if address.tls is None:
        return where, tcp
    stream = trio.SSLStream(tcp, address.tls, server_hostname=host, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(tcp)
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise BrokerRefused(where, f"its certificate is not trusted: {cause.verify_message}") from error
        if isinstance(error, trio.BrokenResourceError):
            raise BrokerUnavailable(where, "no TLS handshake; is this a port for rediss://?") from error
        raise
    return where, stream


async def _greeted(address: Address, host: str, port: int) -> Connection:
    where, stream = await _open(address, host, port)
    connection = Connection(where, stream)
    try:
        commands = greeting(address, address.credentials, name=True)
        replies = await connection.ask(commands)
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "HELLO":
                check_hello(where, reply, mode=b"standalone")
            elif isinstance(reply, hiredis.ReplyError):
                if command[0] == "SELECT":
                    raise BrokerRefused(where, f"has no database {address.database}")
                error = judge(where, reply)
                if command[0] == "AUTH" and not isinstance(error, BrokerUnavailable):
                    error = BrokerRefused(where, "does not know this user and password")
                raise error
    except BaseException:
        await connection.aclose()
        raise
    return connection


async def _master(address: Address) -> tuple[str, int]:
    """Ask one Sentinel after the other who is the master. Raises `BrokerUnavailable` if none knows."""
    problems: list[str] = []
    for host, port in address.hosts:
        where = f"{host}:{port}"
        try:
            with trio.fail_after(1.0):
                where, stream = await _open(address, host, port)
                connection = Connection(where, stream)
                try:
                    commands = greeting(address, address.sentinel_credentials, name=False)
                    commands.append(("SENTINEL", "get-master-addr-by-name", address.service))
                    *first, hello, found = await connection.ask(commands)
                    for reply in first:
                        if isinstance(reply, hiredis.ReplyError):
                            raise BrokerRefused(where, "does not know sentinel_username and _password")
                    check_hello(where, hello, mode=b"sentinel")
                finally:
                    await connection.aclose()
            if isinstance(found, list) and len(found) == 2:
                return found[0].decode(), int(found[1])
            problems.append(f"{where} knows no service {address.service!r}")
        except trio.TooSlowError:
            problems.append(f"{where} does not answer")
        except BrokerError as error:
            problems.append(str(error))
    raise BrokerUnavailable(str(address), f"no Sentinel names a master: {'; '.join(problems)}")


async def connect(address: Address, timeout: float) -> Connection:
    """Connect, log in and look whom we have met, within ``timeout`` seconds.

    Raises `BrokerUnavailable` if trying again may help, else `BrokerRefused`. Cancelled, nothing is left.
    """
    try:
        with trio.fail_after(timeout):
            host, port = ("", 0)
            if address.kind == "sentinel":
                host, port = await _master(address)
            elif address.kind == "tcp":
                ((host, port),) = address.hosts
            return await _greeted(address, host, port)
    except trio.TooSlowError:
        cure = "" if address.tls is None else "; is this a port for TLS?"
        raise BrokerUnavailable(str(address), f"no answer within {timeout:g} s{cure}") from None
