"""What reverse proxies say of a client, and whom to believe; which hosts this app is.

A proxy in front hides the client: the TCP peer is the proxy, TLS ends there, and the Host may be rewritten.
It says what it saw in headers, which any client can send too. So a header is believed only as far as
machines that are known have written it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from attrs import Factory, field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.security.origin import (
    ANY_PORT,
    HostTable,
    Patterns,
    header_values,
    parse_authority,
    parse_port,
)
from nexios_trio.types import Scope

__all__ = ["HostPolicy", "Proxy", "address_key"]

Address: TypeAlias = IPv4Address | IPv6Address

_BLANK: Final = " \t"  # OWS, RFC 9110 §5.6.3
_TOKEN: Final = frozenset(  # RFC 9110 §5.6.2
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_PRIVATE: Final = ("127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
_SHOWN: Final = 200


def parse_address(text: str) -> Address | None:
    """An IP address, IPv4-mapped ones (RFC 4291 §2.5.5.2) as IPv4 and without a scope id; None: is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv6Address(int(address)) if address.scope_id else address


class _Node(NamedTuple):
    address: Address
    port: int


def _parse_node(text: str) -> _Node | None:
    """``1.2.3.4``, ``1.2.3.4:567``, ``::1``, ``[::1]``, ``[::1]:567``; the port may be hidden (``:_x``)."""
    if text.startswith("["):
        host, bracket, port_text = text[1:].partition("]")
        if not bracket or ":" not in host:
            return None
    elif text.count(":") == 1:
        host, colon, port_text = text.partition(":")
        port_text = colon + port_text
    else:
        host, port_text = text, ""
    address = parse_address(host)
    if address is None:
        return None
    if not port_text or port_text.startswith(":_"):  # RFC 7239 §6.3, an obfuscated port
        return _Node(address, 0)
    port = parse_port(port_text[1:]) if port_text[0] == ":" else None
    return None if port is None else _Node(address, port)


class _Trust:
    """Who is believed: a look-up per length of a network's prefix, so a long list costs no more."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self.everyone = self.unix = False
        self._networks: set[tuple[int, int, int]] = set()
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        for item in trusted:
            if item == "*":
                self.everyone = True
            elif item == "unix":
                self.unix = True
            else:
                for network in map(_network, _PRIVATE if item == "private" else (item,)):
                    start = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
                    self._networks.add((network.version, network.prefixlen, start))
                    self._lengths[network.version].add(network.prefixlen)

    def address(self, address: Address) -> bool:
        if self.everyone:
            return True
        value, bits, version = int(address), address.max_prefixlen, address.version
        return any(
            (version, length, value >> (bits - length)) in self._networks for length in self._lengths[version]
        )

    def peer(self, client: Any) -> bool:
        host = client[0] if client else ""
        if self.everyone or not host:
            return self.everyone or self.unix
        address = parse_address(host)
        return address is not None and self.address(address)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        cure = (
            'write addresses and networks such as "127.0.0.1", "10.0.0.0/8", "::1", or "private", "unix", "*"'
        )
        node = _parse_node(text)
        if node is not None:
            cure = f'a proxy is known by its address alone: write "{node.address}"'
        elif text and _TOKEN.issuperset(text) and "/" not in text:
            cure = f"names are not looked up; {cure}"
        raise WrongValueError(f"Proxy.trusted: {text!r} is no address or network; {cure}") from None
    # Refused rather than rounded down: one proxy was meant, or sixteen million machines.
    address, slash, _length = text.partition("/")
    if slash and parse_address(address) != parse_address(str(network.network_address)):
        raise WrongValueError(
            f'Proxy.trusted: {text!r} is an address inside a network: write "{network}" for the whole '
            f'network, or "{address}" for this machine'
        )
    if "%" in text:
        raise WrongValueError(
            f'Proxy.trusted: {text!r} has a scope id, which is not compared: write "{address.split("%")[0]}"'
        )
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None:  # then its prefix has the 96 bits of the mapping and more
        return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _as_list(trusted: Iterable[str]) -> tuple[str, ...]:
    if isinstance(trusted, str | bytes) or not isinstance(trusted, Iterable):
        raise WrongTypeError(
            f'Proxy.trusted is a list of str: write Proxy(trusted=["127.0.0.1"]), not {trusted!r}'
        )
    items = tuple(trusted)
    for item in items:
        if not isinstance(item, str):
            raise WrongTypeError(f'Proxy.trusted is a list of str: write "{item}", not {item!r}')
    return items


def _known_headers(_instance: object, _attribute: object, value: object) -> None:
    if value not in ("x-forwarded", "forwarded"):
        raise WrongValueError(f'Proxy.headers is "x-forwarded" or "forwarded", not {value!r}')


@frozen
class Proxy:
    """Which reverse proxies stand in front, and are believed.

    ``trusted`` are addresses and networks (``"127.0.0.1"``, ``"10.0.0.0/8"``, ``"::1"``), and

    | word | stands for |
    |---|---|
    | ``"private"`` | loopback, the private networks of RFC 1918 and RFC 4193 (``fc00::/7``) |
    | ``"unix"`` | whoever connects by a Unix socket, or by anything else that has no address |
    | ``"*"`` | everyone: only where nobody but a proxy that overwrites the headers can connect |

    Who has a trusted address can name any client he likes, so trust no network that clients are in.

    ``headers`` are those that the proxies write: ``"x-forwarded"``, the usual X-Forwarded-For, -Proto and
    -Host, or ``"forwarded"`` (RFC 7239). The others are not read: a proxy passes on what it does not know,
    and then it would be the client's.

    Raises `WrongTypeError` or `WrongValueError` for what is no address.
    """

    trusted: tuple[str, ...] = field(converter=_as_list)
    headers: Literal["x-forwarded", "forwarded"] = field(default="x-forwarded", validator=_known_headers)
    _trust: _Trust = field(
        default=Factory(lambda self: _Trust(self.trusted), takes_self=True),
        init=False,
        repr=False,
        eq=False,
    )

    def apply(self, scope: Scope) -> None:
        """Put the client's address, scheme and Host into ``scope``, if the TCP peer is trusted. Never raises.

        The headers name a chain of machines, each written by the one to its right, the last by the TCP
        peer. It is walked from the right past trusted machines. The client is the first that is not
        trusted; if all are, the leftmost. It has the port that the header gives, or 0.

        Proto and host are believed of the TCP peer only, which wrote the last of them: a chain of proxies
        must hand on what the outermost saw. An unknown proto and a malformed host are ignored.
        ``scope["headers"]`` becomes a new list with the host as its only Host header.
        """
        if not self._trust.peer(scope.get("client")):
            return
        said = _forwarded(scope) if self.headers == "forwarded" else _x_forwarded(scope)
        client: _Node | None = None
        for text in said.nodes:
            node = _parse_node(text)
            # Junk, "unknown" or a pseudonym (RFC 7239 §6): whoever that is wrote what is to its left, and we
            # cannot tell whether to believe it. The last address is the nearest to the client that we know.
            if node is None:
                break
            client = node
            if not self._trust.address(node.address):
                break
        if client is not None:
            scope["client"] = (str(client.address), client.port)
        kind = "ws" if scope.get("type") == "websocket" else "http"
        if said.proto.lower() in ("https", "wss"):  # Traefik names the socket's scheme, others the page's
            scope["scheme"] = f"{kind}s"
        elif said.proto.lower() in ("http", "ws"):
            scope["scheme"] = kind
        if said.host and parse_authority(said.host) is not None:
            others = [(name, value) for name, value in scope["headers"] if name.lower() != b"host"]
            scope["headers"] = [(b"host", said.host.encode("ascii")), *others]


class _Said(NamedTuple):
    """What the headers say; ``nodes`` from the nearest to the farthest, empty strings: nothing."""

    nodes: Iterator[str]
    proto: str
    host: str


def _x_forwarded(scope: Scope) -> _Said:
    def last(name: bytes) -> str:
        return next(_items(scope, name), "")

    return _Said(_items(scope, b"x-forwarded-for"), last(b"x-forwarded-proto"), last(b"x-forwarded-host"))


def _items(scope: Scope, name: bytes) -> Iterator[str]:
    """The elements of a list header, from the last; empty ones do not count (RFC 9110 §5.6.1.2)."""
    for line in reversed(header_values(scope, name)):
        for item in reversed(line.decode("latin-1").split(",")):
            if stripped := item.strip(_BLANK):
                yield stripped


def _forwarded(scope: Scope) -> _Said:
    elements = (
        _parse_element(element)
        for line in reversed(header_values(scope, b"forwarded"))
        for element in _split_from_right(line.decode("latin-1"), ",")
    )
    last = next(elements, None) or {}

    def nodes() -> Iterator[str]:
        yield last.get("for", "")
        for element in elements:
            yield (element or {}).get("for", "")

    return _Said(nodes(), last.get("proto", ""), last.get("host", ""))


def _split_from_right(text: str, separator: str) -> Iterator[str]:
    """Stripped parts that are not empty, from the last one; a separator in a quoted string is none.

    From the right, because the left is the client's: it may open a quote and leave it open, and read from
    there all that our proxy appends would be inside the string. What the proxy appends is well-formed,
    so from its end the quotes pair up; in a well-formed header both directions agree.
    """
    end = len(text)
    quoted = False
    for at in range(end - 1, -1, -1):
        if text[at] == '"':
            escapes = at
            while escapes and text[escapes - 1] == "\\":
                escapes -= 1
            if (at - escapes) % 2 == 0:
                quoted = not quoted
        elif text[at] == separator and not quoted:
            if part := text[at + 1 : end].strip(_BLANK):
                yield part
            end = at
    if part := text[:end].strip(_BLANK):
        yield part


def _parse_element(text: str) -> dict[str, str] | None:
    """A forwarded-element (RFC 7239 §4); None: malformed."""
    pairs: dict[str, str] = {}
    for pair in _split_from_right(text, ";"):
        name, _equals, raw = pair.partition("=")
        value = _unquote(raw)
        name = name.lower()
        if not name or not _TOKEN.issuperset(name) or value is None or name in pairs:
            return None
        pairs[name] = value
    return pairs


def _unquote(text: str) -> str | None:
    """A token or a quoted string (RFC 9110 §5.6.4); None: neither."""
    if not text.startswith('"'):
        return text if text and _TOKEN.issuperset(text) else None
    inner = text[1:-1]
    rest = _ESCAPED.sub("", inner)
    if len(text) < 2 or text[-1] != '"' or '"' in rest or "\\" in rest:
        return None
    return _ESCAPED.sub(r"\1", inner)


def address_key(host: str | None) -> str:
    """What limits per address count by.

    An IPv4 address as it is, also where it is mapped into IPv6. An IPv6 address as its /64 network
    (``"2001:db8::/64"``): that is the least that one customer has (RFC 6177), so one address says
    nothing. None or an empty host, a peer on a Unix socket, as ``"unix"``; anything else as itself, cut
    to 64 characters.
    """
    return _address_key(host[:64]) if host else "unix"


@lru_cache(maxsize=4096)
def _address_key(host: str) -> str:
    address = parse_address(host)
    if address is None:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


_PATTERNS: Final = Patterns("trusted_hosts", '"example.org", "*.example.org", "example.org:8000", "[::1]"')


class HostPolicy:
    """Which Host headers this app answers to: ``hosts`` is a list, or None for any.

    Where it is not checked, a page of another site that has its name point to this server is of the same
    origin as this app (DNS rebinding), and links that the app builds from the header lead where the
    client likes (cache poisoning).

    | item | lets in |
    |---|---|
    | ``"example.org"``, ``"127.0.0.1"``, ``"[::1]"`` | this host, any port |
    | ``"*.example.org"`` | its subdomains of any depth, not ``example.org`` |
    | ``"example.org:8000"`` | this port |
    | ``"*"`` | everything |

    A Host without a port has that of the scheme; with ``ws`` it may be 80 or 443, because TLS may
    end at a proxy in front. Several Host headers, a malformed one and none at all are refused.

    Raises `WrongTypeError` or `WrongValueError` for an item that it does not understand.
    """

    def __init__(self, hosts: Iterable[str] | None) -> None:
        self._everyone = hosts is None
        self._table: HostTable[int] = HostTable()
        if hosts is None:
            return
        patterns = _PATTERNS.strings(hosts)
        if not patterns:
            raise WrongValueError(
                f"trusted_hosts is empty, nobody could come in: write [{_PATTERNS.forms}], or None for any"
            )
        for pattern in patterns:
            if pattern == "*":
                self._everyone = True
                continue
            _scheme, separator, rest = pattern.partition("://")
            if separator:
                raise _PATTERNS.wrong(pattern, f'has a scheme, a Host header has none: write "{rest}"')
            host, port = _PATTERNS.host(pattern, pattern)
            self._table.add(host, ANY_PORT if port is None else port)

    def problem(self, scope: Scope) -> str | None:
        """None if the request may come in; else why not, for the log: it quotes the client's header raw."""
        if self._everyone:
            return None
        values = header_values(scope, b"host")
        if len(values) > 1:  # RFC 9112 §3.2
            return "several Host headers"
        if not values or not values[0]:
            return "no Host header"
        text = values[0].decode("latin-1")
        parsed = parse_authority(text)
        if parsed is None:
            return f"malformed Host {text[:_SHOWN]}"
        host, port = parsed
        ports = (port,) if port else (443,) if scope.get("scheme") in ("wss", "https") else (80, 443)
        if self._table.matches(host, (*ports, ANY_PORT)):
            return None
        return f"Host {text} is not in trusted_hosts"
