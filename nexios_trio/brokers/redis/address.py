"""Where Redis is and how one gets in, as one frozen value that shows no secret."""

from __future__ import annotations

import ssl
from typing import Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["Address", "Credentials"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_TLS: Final = frozenset({"rediss", "rediss+sentinel"})
_SENTINEL: Final = frozenset({"redis+sentinel", "rediss+sentinel"})
_UNIX: Final = frozenset({"unix", "redis+unix"})
_FORMS: Final = (
    "redis://[user:password@]host[:6379][/database], rediss://… for TLS, "
    "redis+unix:///path/to/socket[?db=0], "
    "redis+sentinel://[user:password@]host[:26379],host…/service[/database]"
)
_TLS_OPTIONS: Final = frozenset({"tls_ca", "tls_cert", "tls_key"})
_OPTIONS: Final = frozenset({"db", "client_name", "sentinel_username", "sentinel_password"}) | _TLS_OPTIONS


@frozen
class Credentials:
    """A user and a password; neither is shown."""

    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@frozen
class Address:
    """What a URL of Redis says; made by `parse`."""

    kind: Literal["tcp", "unix", "sentinel"]
    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port: of Redis, or of each Sentinel."""
    path: str = ""
    """Of the Unix socket."""
    service: str = ""
    """What the Sentinels call the master."""
    database: int = 0
    credentials: Credentials = Credentials()
    sentinel_credentials: Credentials = Credentials()
    client_name: str = "nexios_trio"
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """As a URL, without credentials."""
        scheme = "redis" if self.tls is None else "rediss"
        if self.kind == "unix":
            return f"redis+unix://{quote(self.path)}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        if self.kind == "sentinel":
            return f"{scheme}+sentinel://{hosts}/{quote(self.service)}/{self.database}"
        return f"{scheme}://{hosts}/{self.database}"

    @classmethod
    def parse(cls, url: str, *, tls: ssl.SSLContext | None = None) -> tuple[Address, dict[str, str]]:
        """Read a URL; what its query says beyond the address comes back as well.

        ``tls`` is the context for ``rediss://``; default: one that trusts what the machine trusts, or
        ``tls_ca`` of the query, and presents ``tls_cert`` with ``tls_key``. Raises `WrongValueError` and
        `WrongTypeError`, which never repeat the URL: it may hold a password.
        """
        if not isinstance(url, str):
            raise WrongTypeError(f"the address of Redis is a str, not {type(url).__name__}; write {_FORMS}")
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise WrongValueError(f"this is no URL; write {_FORMS}") from None
        if parts.fragment:
            raise WrongValueError(
                f'the URL of Redis has a "#"; in a password, write it as %23. The form is {_FORMS}'
            )
        if parts.scheme not in _UNIX and "@" in parts.path:
            raise WrongValueError(
                f'the URL of Redis has a "/" before the "@"; in a password, write it as %2F. Write {_FORMS}'
            )
        if "@" in parts.query and "@" not in parts.netloc:
            raise WrongValueError(
                f'the URL of Redis has a "?" before the "@"; in a password, write it as %3F. Write {_FORMS}'
            )
        ours = {name: options.pop(name) for name in _OPTIONS & options.keys()}
        known: dict[str, Any] = {
            "credentials": _credentials(parts.netloc),
            "tls": _context(parts.scheme in _TLS, ours, tls),
        }
        if (name := ours.get("client_name")) is not None:
            known["client_name"] = _client_name(name)
        if parts.scheme in _UNIX:
            if not parts.path or parts.netloc.rpartition("@")[2]:
                raise WrongValueError(f"a Unix socket has a path and no host; write {_FORMS}")
            address = cls("unix", path=unquote(parts.path), database=_database(ours.get("db", "")), **known)
        elif parts.scheme in _SENTINEL:
            address = _sentinel(cls, parts, ours, known)
        elif parts.scheme in ("redis", "rediss"):
            (host,) = _hosts(parts.netloc, PORT, most=1)
            database = _database(ours.get("db") or parts.path.strip("/"))
            address = cls("tcp", (host,), database=database, **known)
        else:
            raise WrongValueError(f"{parts.scheme[:20]!r} is no scheme of Redis; write {_FORMS}")
        if address.kind != "sentinel" and {"sentinel_username", "sentinel_password"} & ours.keys():
            raise WrongValueError("sentinel_username and sentinel_password go with redis+sentinel://")
        return address, options


def _sentinel(cls: type[Address], parts: SplitResult, ours: dict[str, str], known: dict[str, Any]) -> Address:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise WrongValueError(f"the Sentinels want the name of a service behind them; write {_FORMS}")
    return cls(
        "sentinel",
        _hosts(parts.netloc, SENTINEL_PORT),
        service=unquote(service),
        database=_database(ours.get("db") or database),
        sentinel_credentials=Credentials(ours.get("sentinel_username"), ours.get("sentinel_password")),
        **known,
    )


def _credentials(netloc: str) -> Credentials:
    before, at, _ = netloc.rpartition("@")
    if not at:
        return Credentials()
    user, _, password = before.partition(":")
    return Credentials(unquote(user) or None, unquote(password) or None)


def _hosts(netloc: str, port: int, most: int | None = None) -> tuple[tuple[str, int], ...]:
    names = netloc.rpartition("@")[2].split(",")
    if most is not None and len(names) > most:
        raise WrongValueError(f"one Redis has one host; for several Sentinels write {_FORMS}")
    hosts: list[tuple[str, int]] = []
    for name in names:
        try:
            parts = urlsplit(f"//{name}")
            host = parts.hostname or "127.0.0.1"
            host.encode("idna")  # what resolves it does so too, and raises what is no OSError
            hosts.append((host, port if parts.port is None else parts.port))
        except ValueError:  # UnicodeError is one
            raise WrongValueError(f"a host or port of this URL is none; write {_FORMS}") from None
    return tuple(hosts)


def _database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise WrongValueError(f"a database of Redis is a number such as 0, not {text[:20]!r}")
    return int(text)


def _client_name(name: str) -> str:
    if not name or not all("!" <= sign <= "~" for sign in name):
        raise WrongValueError(f"client_name is made of ASCII letters and signs without spaces, not {name!r}")
    return name


def _context(wanted: bool, ours: dict[str, str], given: ssl.SSLContext | None) -> ssl.SSLContext | None:
    named = _TLS_OPTIONS & ours.keys()
    if not wanted:
        if named or given is not None:
            raise WrongValueError("TLS has to be asked for by the scheme; write rediss://")
        return None
    if given is not None:
        if named:
            raise WrongValueError(f"{', '.join(sorted(named))} and an SSL context exclude each other")
        return given
    if "tls_key" in named and "tls_cert" not in named:
        raise WrongValueError("tls_key goes with tls_cert")
    try:
        context = ssl.create_default_context(cafile=ours.get("tls_ca"))
        if "tls_cert" in ours:
            context.load_cert_chain(ours["tls_cert"], ours.get("tls_key"))
    except OSError as error:  # SSLError is one
        raise WrongValueError(f"cannot read tls_ca, tls_cert or tls_key: {error}") from error
    return context
