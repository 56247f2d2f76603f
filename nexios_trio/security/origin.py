"""Which pages may open a connection: the guard against cross-site WebSocket hijacking (RFC 6455 §10.2).

A browser lets any page open a WebSocket to any server, and sends that server's cookies along. What the page
cannot forge is the Origin header (RFC 6454 §7), so that is what `OriginPolicy` looks at. Who is no browser
can send any Origin, or none: this is no authentication.

Here too is how hosts are read and matched, for `nexios_trio.security.proxy`. A trailing dot is part of a
host, as it is for browsers: a page at ``https://example.org.`` is of another origin than one at
``https://example.org``, so neither stands for the other in a list.
"""

from __future__ import annotations

import inspect
import ipaddress
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.types import Scope

__all__ = ["OriginPolicy", "OriginRule"]

OriginRule: TypeAlias = Callable[[str, Scope], bool]
"""A rule of your own: the origin (lower-case, without a default port) and the ASGI scope → may it come in?"""

K = TypeVar("K", bound=Hashable)

ANY_PORT: Final = -1
DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_SCHEME: Final = _LETTERS | frozenset("0123456789+-.")  # RFC 3986 §3.1
# Narrower than a reg-name (RFC 3986 §3.2.2), wider than a host name (RFC 1123 §2.1): browsers and containers
# have underscores, and nobody has percent signs.
_HOST: Final = _LETTERS | frozenset("0123456789-._")
_HOST_LENGTH: Final = 254  # RFC 1035 §2.3.4, and a trailing dot
_SHOWN: Final = 200  # characters of a header in the log


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """The values of all lines of a header; ``name`` is lower-case, the scope's names need not be."""
    return [value for key, value in scope.get("headers") or () if key.lower() == name]


def parse_port(text: str) -> int | None:
    """0 to 65535; None for what no browser or server writes, such as ``+1``, ``0443`` or other digits."""
    if not 1 <= len(text) <= 5 or not text.isascii() or not text.isdigit() or (text[0] == "0" != text):
        return None
    port = int(text)
    return port if port <= 65535 else None


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """``host[:port]`` (RFC 9110 §7.2) → the host, lower-case, and the port if there is one; None: malformed.

    An IPv6 address keeps its brackets and is written in its short form (RFC 5952).
    """
    if len(text) > _HOST_LENGTH + len(":65535") or not text.isascii():
        return None
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        try:
            host = f"[{ipaddress.IPv6Address(inner).compressed}]"
        except ValueError:
            return None
        if not bracket or "%" in inner:  # a zone is of one machine only: no URL has one in a browser
            return None
    else:
        name, colon, port_text = text.partition(":")
        host, rest = name.lower(), colon + port_text
        if not 0 < len(host) <= _HOST_LENGTH or not _HOST.issuperset(host) or host[0] == "." or ".." in host:
            return None
    if not rest:
        return host, None
    port = parse_port(rest[1:]) if rest[0] == ":" else None
    return (host, port) if port else None


class Origin(NamedTuple):
    """Scheme and host in lower case; port 0 where there is none and the scheme has no default."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:  # RFC 6454 §6.2
        default = DEFAULT_PORTS.get(self.scheme, 0)
        return f"{self.scheme}://{self.host}{f':{self.port}' if self.port != default else ''}"


def parse_origin(text: str) -> Origin | None:
    """One serialized origin (RFC 6454 §6.2); None for anything else, ``null`` and lists included."""
    scheme, separator, authority = text.partition("://")
    scheme = scheme.lower() if scheme.isascii() else ""
    if not separator or not _is_scheme(scheme):
        return None
    if not authority and scheme not in DEFAULT_PORTS:
        return Origin(scheme, "", 0)  # file://, as Android's WebView and Electron send it
    parsed = parse_authority(authority)
    if parsed is None:
        return None
    host, port = parsed
    return Origin(scheme, host, port or DEFAULT_PORTS.get(scheme, 0))


def _is_scheme(text: str) -> bool:
    return 0 < len(text) <= 64 and text[0] in _LETTERS and _SCHEME.issuperset(text)


class HostTable(Generic[K]):
    """Hosts and ``*.`` domains, each with keys: a look-up for a host, and one for each domain above it."""

    def __init__(self) -> None:
        self._exact: dict[str, set[K]] = {}
        self._below: dict[str, set[K]] = {}

    def add(self, host: str, key: K) -> None:
        table = self._below if host.startswith("*.") else self._exact
        table.setdefault(host.removeprefix("*."), set()).add(key)

    def matches(self, host: str, keys: Collection[K]) -> bool:
        found = self._exact.get(host)
        if found is not None and not found.isdisjoint(keys):
            return True
        dot = host.find(".") if self._below else -1
        while dot >= 0:
            found = self._below.get(host[dot + 1 :])
            if found is not None and not found.isdisjoint(keys):
                return True
            dot = host.find(".", dot + 1)
        return False


@frozen
class Patterns:
    """Reads the hosts in a setting, and says what to write instead."""

    setting: str
    forms: str = field(repr=False)

    def strings(self, patterns: object) -> list[str]:
        """The items of a list of str."""
        if isinstance(patterns, str | bytes) or not isinstance(patterns, Iterable):
            raise WrongTypeError(f"{self.setting} is a list of str, not {patterns!r}: write [{self.forms}]")
        items = list(patterns)
        for item in items:
            if not isinstance(item, str):
                raise WrongTypeError(
                    f"{self.setting} is a list of str, but has {item!r} in it: write [{self.forms}]"
                )
        return items

    def wrong(self, pattern: str, problem: str) -> WrongValueError:
        return WrongValueError(f"{self.setting}: {pattern!r} {problem}")

    def host(self, pattern: str, text: str) -> tuple[str, int | None]:
        """``text``, the end of ``pattern``, as a host or ``*.`` domain, and a port, `ANY_PORT` or None."""
        self._no_path(pattern, text)
        if "@" in text:
            raise self.wrong(pattern, "has a user name, which no browser sends: leave out all up to the @")
        wildcard, rest = ("*.", text[2:]) if text.startswith("*.") else ("", text)
        any_port = rest.endswith(":*")
        rest = rest.removesuffix(":*")
        if "*" in rest:
            raise self.wrong(
                pattern,
                'has a "*" out of place: it stands for subdomains ("*.example.org"), for any port '
                '("localhost:*"), or alone for everything',
            )
        if "[" not in rest and rest.count(":") > 1:
            raise self.wrong(pattern, 'has an IPv6 address without brackets: write "[::1]" or "[::1]:8000"')
        parsed = parse_authority(rest if rest.isascii() else self._to_ascii(pattern, rest))
        if parsed is None or (any_port and parsed[1] is not None):
            raise self.wrong(pattern, f"is not understood: write {self.forms}")
        host, port = parsed
        if wildcard and (host[0] == "[" or host.rpartition(".")[2].isdigit()):
            raise self.wrong(pattern, "asks for subdomains, but an address has none: write the address")
        return wildcard + host, ANY_PORT if any_port else port

    def _no_path(self, pattern: str, text: str) -> None:
        ends = [at for at in map(text.find, "/?#\\") if at >= 0]
        if not ends:
            return
        bare = text[: min(ends)]
        if not bare or bare.endswith(":"):
            raise self.wrong(pattern, f"is not understood: write {self.forms}")
        what = "ends in a slash" if text == f"{bare}/" else "has a path"
        cure = pattern.removesuffix(text) + bare
        raise self.wrong(pattern, f'{what}, which no browser sends: write "{cure}"')

    def _to_ascii(self, pattern: str, text: str) -> str:
        """Punycode, as browsers send it.

        The standard library's codec is IDNA 2003 with Unicode 3.2. Where browsers (UTS #46) differ, it
        silently yields *another domain*, somebody else's: ``straße`` becomes ``strasse``. So what does not
        come back as it went in is refused, and so are characters that it is too old to know.
        """
        name, colon, port = text.partition(":")
        known = all(unicodedata.ucd_3_2_0.category(character) != "Cn" for character in name)
        try:
            encoded = name.encode("idna")
            same = encoded.decode("idna").lower() == unicodedata.normalize("NFC", name).lower()
        except UnicodeError:
            same = False
        if not (known and same):
            raise self.wrong(
                pattern,
                'has characters whose "xn--" form is not certain: write that form; a browser\'s console '
                f'shows it for new URL("https://{name.removeprefix(".")}").host',
            )
        return encoded.decode("ascii") + colon + port


_PATTERNS: Final = Patterns(
    "allowed_origins",
    '"https://example.org", "https://*.example.org", "example.org:8443", "http://localhost:*"',
)


class OriginPolicy:
    """Whether a request may come in, by its Origin header. One without it always may: that is no browser.

    ``allowed`` is

    * ``None`` or ``"same-origin"``: only pages of the host and port that the request is for (its Host
      header). To a ``wss`` scope they come by ``https``; to a ``ws`` scope by either, because TLS may end
      at a proxy in front that this scope knows nothing of (see `Proxy`).
    * a list, which *replaces* same-origin. That is what stops DNS rebinding: there a page of
      ``http://evil.example`` has its name point to this server, and is of the same origin. An empty
      list lets no browser in.
    * a function of the origin and the scope that returns True or False.
    * ``"*"``: pages of all sites, whatever their Origin looks like.

    | item of the list | lets in |
    |---|---|
    | ``"https://example.org"`` | this scheme, host and port (here 443, the scheme's default) |
    | ``"https://example.org:8443"`` | the same with another port |
    | ``"https://*.example.org"`` | its subdomains of any depth, not ``example.org`` |
    | ``"example.org"``, ``"*.example.org:8443"`` | ``http`` and ``https`` |
    | ``"http://localhost:*"`` | any port |
    | ``"app://x"``, ``"chrome-extension://…"``, ``"file://"`` | other schemes |
    | ``"null"`` | sandboxed frames, local files …, of *any* site |
    | ``"same-origin"`` | what None lets in |
    | ``"*"`` | everything |

    Domains may be written in Unicode; where punycode is not certain, the error asks for the ``xn--`` form.

    Refused, unless by ``"*"``: several Origin or Host headers, a malformed Origin (RFC 6454 §7.1 allows
    a list of origins, but RFC 6455 §4.1 and browsers have one), ``null`` where it is not listed, and by
    same-origin a request without a Host header. A function is not asked about those but ``null``.

    Raises `WrongTypeError` or `WrongValueError` for an item that it does not understand.
    """

    def __init__(self, allowed: Iterable[str] | str | OriginRule | None = None) -> None:
        self._rule: OriginRule | None = None
        self._table: HostTable[tuple[str, int]] = HostTable()
        self._everyone = self._null = self._same = False
        if allowed is None or allowed == "same-origin":
            self._same = True
        elif allowed == "*":
            self._everyone = True
        elif isinstance(allowed, str):
            raise WrongValueError(f'allowed_origins is a list: write ["{allowed}"], not "{allowed}"')
        elif callable(allowed):
            self._rule = _checked_rule(allowed)
        else:
            for pattern in _PATTERNS.strings(allowed):
                self._add(pattern)

    def _add(self, pattern: str) -> None:
        if pattern == "*":
            self._everyone = True
        elif pattern == "null":
            self._null = True
        elif pattern == "same-origin":
            self._same = True
        else:
            for host, scheme, port in _read_pattern(pattern):
                self._table.add(host, (scheme, port))

    def problem(self, scope: Scope) -> str | None:
        """None if the request may come in; else why not, for the log: it quotes the client's headers raw.

        What a function of the user raises comes out, and `WrongTypeError` if it returns no bool.
        """
        if self._everyone:
            return None
        origins = header_values(scope, b"origin")
        if not origins:
            return None
        if len(origins) > 1:  # RFC 6454 §7.3: at most one
            return "several Origin headers"
        hosts = header_values(scope, b"host")
        if len(hosts) > 1:  # RFC 9112 §3.2: to be answered 400
            return "several Host headers"
        text = origins[0].decode("latin-1")
        origin = parse_origin(text)
        if origin is None and text != "null":
            return f"malformed Origin {text[:_SHOWN]}"
        if self._rule is not None:
            return _ask(self._rule, "null" if origin is None else str(origin), scope)
        if origin is None:
            return None if self._null else "Origin null, and allowed_origins has no null"
        if self._table.matches(origin.host, ((origin.scheme, origin.port), (origin.scheme, ANY_PORT))):
            return None
        if self._same:
            return _cross_origin(origin, hosts, scope)
        return f"Origin {origin} is not in allowed_origins"


def _cross_origin(origin: Origin, hosts: list[bytes], scope: Scope) -> str | None:
    if not hosts or not hosts[0]:
        return f"no Host header to compare Origin {origin} with"
    text = hosts[0].decode("latin-1")
    host = parse_authority(text)
    if host is None:
        return f"malformed Host {text[:_SHOWN]}"
    # The Host header leaves out the port that is the default of the URL's scheme (RFC 9110 §4.2.3), which
    # behind a TLS proxy is not the scope's; the page's own scheme tells it.
    default = DEFAULT_PORTS.get(origin.scheme)
    if default is None or (origin.host, origin.port) != (host[0], host[1] or default):
        return f"cross-origin: Origin {origin}, Host {text[:_SHOWN]}"
    if origin.scheme == "http" and scope.get("scheme") in ("wss", "https"):
        return f"Origin {origin} came without TLS, the request with it"
    return None


def _read_pattern(pattern: str) -> Iterable[tuple[str, str, int]]:
    scheme, separator, rest = pattern.partition("://")
    if not separator:
        scheme, rest = "", pattern
    elif scheme.lower() in ("ws", "wss"):
        cure = f"http{scheme[2:].lower()}://{rest}"
        raise _PATTERNS.wrong(pattern, f'names the socket; the origin is that of the page: write "{cure}"')
    elif scheme == "*":
        raise _PATTERNS.wrong(pattern, f'has "*" as its scheme: for http and https write "{rest}"')
    elif not scheme.isascii() or not _is_scheme(scheme.lower()):
        raise _PATTERNS.wrong(pattern, f"is not understood: write {_PATTERNS.forms}")
    scheme = scheme.lower()
    if scheme and scheme not in DEFAULT_PORTS and not rest:
        return [("", scheme, 0)]  # file://
    host, port = _PATTERNS.host(pattern, rest)
    return [
        (host, each, DEFAULT_PORTS.get(each, 0) if port is None else port)
        for each in ([scheme] if scheme else DEFAULT_PORTS)
    ]


def _checked_rule(rule: OriginRule) -> OriginRule:
    called = getattr(type(rule), "__call__", None)  # noqa: B004 - of an instance with an async __call__
    if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(called):
        raise WrongTypeError(
            "the origin rule is an ordinary function: write def, not async def; ask a database in the "
            "handler, before accept()"
        )
    return rule


def _ask(rule: OriginRule, origin: str, scope: Scope) -> str | None:
    verdict: object = rule(origin, scope)
    if not isinstance(verdict, bool):  # a match object or a coroutine is true, whatever was meant
        if inspect.iscoroutine(verdict):
            verdict.close()
        raise WrongTypeError(
            f"the origin rule returns True or False, not {type(verdict).__name__}: write "
            "return bool(...) in an ordinary function"
        )
    return None if verdict else f"Origin {origin} was refused by the app's rule"
