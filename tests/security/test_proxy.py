"""Whom a request comes from, and for which host: tables of cases, and slow, plain readers to compare with."""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexios_trio.exceptions import UsageError, WrongTypeError, WrongValueError
from nexios_trio.security.proxy import HostPolicy, Proxy, address_key

PROXY = "10.0.0.1"
ELSEWHERE = "198.51.100.1"


def scope_of(
    *headers: tuple[str, str | bytes],
    client: Any = (PROXY, 5000),
    scheme: str = "ws",
    type: str = "websocket",
) -> dict[str, Any]:
    lines = [(b"host", b"inside:8000"), (b"x-other", b"1")]
    lines += [
        (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers
    ]
    return {"type": type, "scheme": scheme, "client": client, "headers": lines}


def applied(proxy: Proxy, scope: dict[str, Any]) -> dict[str, Any]:
    proxy.apply(scope)
    return scope


def host_of(scope: dict[str, Any]) -> bytes:
    (host,) = [value for name, value in scope["headers"] if name.lower() == b"host"]
    assert isinstance(host, bytes)
    return host


# X-Forwarded-For


@pytest.mark.parametrize(
    ("trusted", "header", "expected"),
    [
        ([PROXY], "1.2.3.4", ("1.2.3.4", 0)),
        ([PROXY], "1.2.3.4:567", ("1.2.3.4", 567)),
        ([PROXY], "1.2.3.4:0", ("1.2.3.4", 0)),
        ([PROXY], "2001:db8::1", ("2001:db8::1", 0)),
        ([PROXY], "2001:DB8:0::1", ("2001:db8::1", 0)),
        ([PROXY], "[2001:db8::1]", ("2001:db8::1", 0)),
        ([PROXY], "[2001:db8::1]:567", ("2001:db8::1", 567)),
        ([PROXY], "::ffff:1.2.3.4", ("1.2.3.4", 0)),
        ([PROXY], "[::ffff:102:304]:567", ("1.2.3.4", 567)),
        ([PROXY], "fe80::1%eth0", ("fe80::1", 0)),
        ([PROXY], " \t1.2.3.4 ", ("1.2.3.4", 0)),
        # the client's own part is to the left of what the proxy has seen
        ([PROXY], "6.6.6.6, 1.2.3.4", ("1.2.3.4", 0)),
        ([PROXY], "127.0.0.1,10.0.0.1,1.2.3.4", ("1.2.3.4", 0)),
        ([PROXY], "junk, 1.2.3.4", ("1.2.3.4", 0)),
        # a chain of proxies
        (["10.0.0.0/8"], "6.6.6.6, 1.2.3.4, 10.0.0.9, 10.0.0.8", ("1.2.3.4", 0)),
        (["10.0.0.0/8"], "1.2.3.4, ::ffff:10.0.0.8", ("1.2.3.4", 0)),
        (["::ffff:10.0.0.0/104"], "1.2.3.4, 10.0.0.8", ("1.2.3.4", 0)),
        ([PROXY, "2001:db8::/32"], "1.2.3.4, 2001:db8:1::1", ("1.2.3.4", 0)),
        ([PROXY, "2001:db8::/32"], "1.2.3.4, 2001:db9::1", ("2001:db9::1", 0)),
        ([PROXY], "1.2.3.4, 10.0.0.9", ("10.0.0.9", 0)),
        # all are trusted: the leftmost
        (["10.0.0.0/8"], "10.0.0.7:70, 10.0.0.8:80", ("10.0.0.7", 70)),
        (["*"], "6.6.6.6, 1.2.3.4", ("6.6.6.6", 0)),
        (["*", PROXY], "6.6.6.6", ("6.6.6.6", 0)),
        # what cannot be read ends the walk at the last that could
        (["10.0.0.0/8"], "1.2.3.4, junk, 10.0.0.8:80", ("10.0.0.8", 80)),
        (["10.0.0.0/8"], "1.2.3.4, unknown", (PROXY, 5000)),
        (["*"], "6.6.6.6, unknown, 1.2.3.4", ("1.2.3.4", 0)),
        ([PROXY], "unix:", (PROXY, 5000)),
        ([PROXY], "localhost", (PROXY, 5000)),
        ([PROXY], "1.2.3", (PROXY, 5000)),
        ([PROXY], "1.2.3.4.5", (PROXY, 5000)),
        ([PROXY], "01.2.3.4", (PROXY, 5000)),
        ([PROXY], "1.2.3.4:65536", (PROXY, 5000)),
        ([PROXY], "1.2.3.4:080", (PROXY, 5000)),
        ([PROXY], "1.2.3.4:", (PROXY, 5000)),
        ([PROXY], "1.2.3.4:x", (PROXY, 5000)),
        ([PROXY], "[1.2.3.4]", (PROXY, 5000)),
        ([PROXY], "[::1", (PROXY, 5000)),
        ([PROXY], "[::1]80", (PROXY, 5000)),
        ([PROXY], "[::1]:", (PROXY, 5000)),
        ([PROXY], '"1.2.3.4"', (PROXY, 5000)),
        ([PROXY], "1.2.3.4 5.6.7.8", (PROXY, 5000)),
        ([PROXY], "\u0661.2.3.4", (PROXY, 5000)),
        # nothing at all
        ([PROXY], "", (PROXY, 5000)),
        ([PROXY], " , ,", (PROXY, 5000)),
        ([PROXY], "1.2.3.4, ,", ("1.2.3.4", 0)),
    ],
)
def test_the_client_is_the_last_that_is_not_trusted(
    trusted: list[str], header: str, expected: tuple[str, int]
) -> None:
    assert applied(Proxy(trusted), scope_of(("x-forwarded-for", header)))["client"] == expected


def test_several_lines_are_one_list_in_their_order() -> None:
    scope = scope_of(
        ("x-forwarded-for", "6.6.6.6"),
        ("X-Forwarded-For", "1.2.3.4, 10.0.0.9"),
        ("x-forwarded-for", "10.0.0.8"),
    )
    assert applied(Proxy(["10.0.0.0/8"]), scope)["client"] == ("1.2.3.4", 0)


@pytest.mark.parametrize(
    ("trusted", "client", "believed"),
    [
        (["10.0.0.1"], ("10.0.0.1", 1), True),
        (["10.0.0.1"], ("10.0.0.2", 1), False),
        (["10.0.0.1"], ("::ffff:10.0.0.1", 1), True),
        (["::ffff:10.0.0.1"], ("10.0.0.1", 1), True),
        (["10.0.0.0/8"], ("10.255.255.255", 1), True),
        (["10.0.0.0/8"], ("11.0.0.0", 1), False),
        (["10.0.0.0/255.0.0.0"], ("10.1.2.3", 1), True),
        (["0.0.0.0/0"], ("11.0.0.0", 1), True),
        (["0.0.0.0/0"], ("::1", 1), False),
        (["::/0"], ("11.0.0.0", 1), False),
        (["::/0"], ("2001:db8::1", 1), True),
        (["::1"], ("::1", 1), True),
        (["fe80::/10"], ("fe80::1%eth0", 1), True),
        (["fe80::1"], ("fe80::1%eth0", 1), True),
        (["private"], ("127.0.0.1", 1), True),
        (["private"], ("::1", 1), True),
        (["private"], ("10.1.2.3", 1), True),
        (["private"], ("172.31.0.1", 1), True),
        (["private"], ("172.32.0.1", 1), False),
        (["private"], ("192.168.0.1", 1), True),
        (["private"], ("fd00::1", 1), True),
        (["private"], ("169.254.169.254", 1), False),
        (["private"], ("fe80::1", 1), False),
        (["private"], ("100.64.0.1", 1), False),
        (["private"], None, False),
        (["unix"], None, True),
        (["unix"], ("", 0), True),
        (["unix"], ("", None), True),
        (["unix"], (), True),
        (["unix"], ("10.0.0.1", 1), False),
        (["unix", "10.0.0.1"], ("10.0.0.1", 1), True),
        (["10.0.0.1"], None, False),
        (["10.0.0.1"], ("testclient", 1), False),
        (["*"], ("testclient", 1), True),
        (["*"], ("1.2.3.4", 1), True),
        (["*"], None, True),
        ([], ("127.0.0.1", 1), False),
        ([], None, False),
    ],
)
def test_only_a_trusted_peer_is_believed(trusted: list[str], client: Any, believed: bool) -> None:
    for headers, lines in [
        (
            "x-forwarded",
            [
                ("x-forwarded-for", "8.8.8.8"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "a.example"),
            ],
        ),
        ("forwarded", [("forwarded", "for=8.8.8.8;proto=https;host=a.example")]),
    ]:
        scope = scope_of(*lines, client=client)
        before = copy.deepcopy(scope)
        Proxy(trusted, headers=headers).apply(scope)  # type: ignore[arg-type]
        if believed:
            assert scope["client"] == ("8.8.8.8", 0)
            assert scope["scheme"] == "wss"
            assert host_of(scope) == b"a.example"
        else:
            assert scope == before


def test_a_scope_without_a_client_or_headers_is_left_alone() -> None:
    lifespan = {"type": "lifespan", "asgi": {}}
    Proxy(["*", "unix"]).apply(lifespan)
    assert lifespan == {"type": "lifespan", "asgi": {}}
    bare: dict[str, Any] = {"type": "websocket", "headers": []}
    Proxy(["unix"]).apply(bare)
    assert bare == {"type": "websocket", "headers": []}


# X-Forwarded-Proto and X-Forwarded-Host


@pytest.mark.parametrize(
    ("type", "scheme", "proto", "expected"),
    [
        ("websocket", "ws", "https", "wss"),
        ("websocket", "ws", "wss", "wss"),
        ("websocket", "wss", "http", "ws"),
        ("websocket", "wss", "ws", "ws"),
        ("http", "http", "https", "https"),
        ("http", "http", "wss", "https"),
        ("http", "https", "http", "http"),
        ("http", "https", "ws", "http"),
        ("websocket", "ws", "HTTPS", "wss"),
        ("websocket", "ws", "http, https", "wss"),
        ("websocket", "ws", "https, http", "ws"),
        ("websocket", "ws", "https, gopher", "ws"),
        ("websocket", "wss", "gopher", "wss"),
        ("websocket", "ws", "https;", "ws"),
        ("websocket", "ws", "", "ws"),
        ("websocket", "ws", b"https\xff", "ws"),
    ],
)
def test_the_scheme_is_what_the_nearest_proxy_says(
    type: str, scheme: str, proto: str | bytes, expected: str
) -> None:
    scope = scope_of(("x-forwarded-proto", proto), scheme=scheme, type=type)
    assert applied(Proxy([PROXY]), scope)["scheme"] == expected
    assert scope["client"] == (PROXY, 5000)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.org", b"example.org"),
        ("Example.org:8443", b"Example.org:8443"),
        ("[::1]:8000", b"[::1]:8000"),
        ("evil.com, example.org", b"example.org"),
        (" example.org ", b"example.org"),
        ("example.org, evil com", b"inside:8000"),
        ("evil.com/", b"inside:8000"),
        ("evil.com@example.org", b"inside:8000"),
        ("http://evil.com", b"inside:8000"),
        ("example.org:0", b"inside:8000"),
        ("", b"inside:8000"),
        (b"example.org\xff", b"inside:8000"),
        (b"example.org\r\nx: y", b"inside:8000"),
    ],
)
def test_the_host_is_what_the_nearest_proxy_says(host: str | bytes, expected: bytes) -> None:
    scope = scope_of(("x-forwarded-host", host))
    before = scope["headers"]
    kept = list(before)
    assert host_of(applied(Proxy([PROXY]), scope)) == expected
    assert before == kept  # the server may hold on to its list
    assert [pair for pair in scope["headers"] if pair[0] != b"host"] == kept[1:]


def test_the_new_host_replaces_all_others() -> None:
    scope = scope_of(
        ("Host", "other.example"), ("x-forwarded-host", "evil.com"), ("x-forwarded-host", "a.example")
    )
    assert host_of(applied(Proxy([PROXY]), scope)) == b"a.example"


# Forwarded (RFC 7239)


@pytest.mark.parametrize(
    ("header", "client", "scheme", "host"),
    [
        ("for=1.2.3.4", "1.2.3.4:0", "ws", "inside:8000"),
        ("for=192.0.2.60;proto=https;by=203.0.113.43", "192.0.2.60:0", "wss", "inside:8000"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17:4711", "ws", "inside:8000"),
        ('for="[2001:db8:cafe::17]"', "2001:db8:cafe::17:0", "ws", "inside:8000"),
        ('for="1.2.3.4:47011"', "1.2.3.4:47011", "ws", "inside:8000"),
        ('for="1.2.3.4:_port"', "1.2.3.4:0", "ws", "inside:8000"),
        ('for="[::ffff:1.2.3.4]:_p"', "1.2.3.4:0", "ws", "inside:8000"),
        ("for=1.2.3.4;host=example.org", "1.2.3.4:0", "ws", "example.org"),
        ('for=1.2.3.4;HOST="example.org:8443";Proto=HTTPS', "1.2.3.4:0", "wss", "example.org:8443"),
        (r'for="1.\2.3.4";proto="ht\tps"', "1.2.3.4:0", "wss", "inside:8000"),
        (" for=1.2.3.4 ; proto=https\t;", "1.2.3.4:0", "wss", "inside:8000"),
        (";;for=1.2.3.4;;", "1.2.3.4:0", "ws", "inside:8000"),
        (", ,for=1.2.3.4, ,", "1.2.3.4:0", "ws", "inside:8000"),
        (r'for=1.2.3.4;x="a,b;c=\"d\", for=6.6.6.6"', "1.2.3.4:0", "ws", "inside:8000"),
        (r'x="\\";for=1.2.3.4', "1.2.3.4:0", "ws", "inside:8000"),
        (r'for=1.2.3.4;x="\\\\"', "1.2.3.4:0", "ws", "inside:8000"),
        (r'for=1.2.3.4;x="\\\""', "1.2.3.4:0", "ws", "inside:8000"),
        ('x="";for=1.2.3.4', "1.2.3.4:0", "ws", "inside:8000"),
        # several elements
        ("for=6.6.6.6;host=evil.com, for=1.2.3.4", "1.2.3.4:0", "ws", "inside:8000"),
        ("for=6.6.6.6, for=1.2.3.4, for=10.0.0.9;proto=https", "1.2.3.4:0", "wss", "inside:8000"),
        ("for=10.0.0.7;proto=https, for=10.0.0.8", "10.0.0.7:0", "ws", "inside:8000"),
        # hidden
        ("for=unknown", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=_obfuscated;proto=https", f"{PROXY}:5000", "wss", "inside:8000"),
        ("for=1.2.3.4, for=_hidden, for=10.0.0.9", "10.0.0.9:0", "ws", "inside:8000"),
        ("for=1.2.3.4, for=unknown", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=1.2.3.4, proto=https", f"{PROXY}:5000", "wss", "inside:8000"),
        # malformed: such an element says nothing, and what is left of it is not believed
        ("for=1.2.3.4, for=10.0.0.9;for=10.0.0.8", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=1.2.3.4, junk, for=10.0.0.9", "10.0.0.9:0", "ws", "inside:8000"),
        ("for=1.2.3.4;junk;proto=https", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=1.2.3.4;proto=https;host=a b", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=1.2.3.4;host=example.org:80", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=[::1]", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for = 1.2.3.4", f"{PROXY}:5000", "ws", "inside:8000"),
        ("for=", f"{PROXY}:5000", "ws", "inside:8000"),
        ("=1.2.3.4", f"{PROXY}:5000", "ws", "inside:8000"),
        ('for="1.2.3.4', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for=1.2.3.4"', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for="1.2.3.4"x', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for="', f"{PROXY}:5000", "ws", "inside:8000"),
        (r'for="1.2.3.4\"', f"{PROXY}:5000", "ws", "inside:8000"),
        (r'for="1.2.3.4";x="\"', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for="1.2.3.4""', f"{PROXY}:5000", "ws", "inside:8000"),
        ('"for"=1.2.3.4', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for=1.2.3.4;x="a"b"c"', f"{PROXY}:5000", "ws", "inside:8000"),
        (r'x="\";for=1.2.3.4', f"{PROXY}:5000", "ws", "inside:8000"),
        # well-formed, but nonsense inside
        ('for="evil";proto=gopher;host="a/b"', f"{PROXY}:5000", "ws", "inside:8000"),
        ('for="";proto="";host=""', f"{PROXY}:5000", "ws", "inside:8000"),
        ("", f"{PROXY}:5000", "ws", "inside:8000"),
    ],
)
def test_forwarded_is_read_as_in_rfc_7239(header: str, client: str, scheme: str, host: str) -> None:
    scope = applied(Proxy(["10.0.0.0/8"], headers="forwarded"), scope_of(("forwarded", header)))
    assert "{}:{}".format(*scope["client"]) == client
    assert scope["scheme"] == scheme
    assert host_of(scope) == host.encode()


def test_only_the_headers_that_were_chosen_are_read() -> None:
    lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("forwarded", "for=2.2.2.2")]
    assert applied(Proxy([PROXY]), scope_of(*lines))["client"] == ("1.1.1.1", 0)
    scope = applied(Proxy([PROXY], headers="forwarded"), scope_of(*lines))
    assert (scope["client"], scope["scheme"]) == (("2.2.2.2", 0), "ws")


@pytest.mark.parametrize(
    "header",
    [
        'for=injected;by="',
        'for="',
        "for=6.6.6.6;x=",
        'x="\\',
        "\\",
        '"',
        'for=6.6.6.6, for="10.0.0.9;y=',
        "for=6.6.6.6, for=10.0.0.9",
    ],
)
@pytest.mark.parametrize("quoted", ["1.2.3.4", '"1.2.3.4"', '"[::ffff:1.2.3.4]:99"', r'"1.2.3.4";x="\\\"," '])
def test_a_client_cannot_break_what_the_proxy_appends(header: str, quoted: str) -> None:
    for lines in (
        [("forwarded", f"{header}, for={quoted};proto=https")],
        [("forwarded", f"{header},for={quoted};proto=https")],
        [("forwarded", header), ("forwarded", f"for={quoted};proto=https")],
    ):
        scope = applied(Proxy(["10.0.0.0/8"], headers="forwarded"), scope_of(*lines))
        assert scope["client"][0] == "1.2.3.4"
        assert scope["scheme"] == "wss"


# Settings that are wrong


@pytest.mark.parametrize(
    ("trusted", "error", "cure"),
    [
        ("127.0.0.1", WrongTypeError, 'write Proxy(trusted=["127.0.0.1"])'),
        ("*", WrongTypeError, 'write Proxy(trusted=["127.0.0.1"])'),
        (b"127.0.0.1", WrongTypeError, 'write Proxy(trusted=["127.0.0.1"])'),
        (None, WrongTypeError, 'write Proxy(trusted=["127.0.0.1"])'),
        ([ipaddress.ip_network("10.0.0.0/8")], WrongTypeError, 'write "10.0.0.0/8"'),
        (["localhost"], WrongValueError, "names are not looked up"),
        (["Unix"], WrongValueError, 'or "private", "unix", "*"'),
        ([""], WrongValueError, '"127.0.0.1", "10.0.0.0/8"'),
        (["10.0.0"], WrongValueError, '"127.0.0.1", "10.0.0.0/8"'),
        (["10.0.0.0/33"], WrongValueError, '"127.0.0.1", "10.0.0.0/8"'),
        (["10.0.0.*"], WrongValueError, '"127.0.0.1", "10.0.0.0/8"'),
        ([" 10.0.0.1"], WrongValueError, '"127.0.0.1", "10.0.0.0/8"'),
        (["127.0.0.1:8000"], WrongValueError, 'write "127.0.0.1"'),
        (["[::1]"], WrongValueError, 'write "::1"'),
        (["[::1]:80"], WrongValueError, 'write "::1"'),
        (["10.0.0.1/8"], WrongValueError, 'write "10.0.0.0/8" for the whole network, or "10.0.0.1"'),
        (["2001:db8::1/32"], WrongValueError, 'write "2001:db8::/32" for the whole network'),
        (["fe80::1%eth0"], WrongValueError, 'write "fe80::1"'),
    ],
)
def test_a_wrong_proxy_is_refused_with_the_cure(trusted: Any, error: type[Exception], cure: str) -> None:
    with pytest.raises(error) as caught:
        Proxy(trusted)
    assert str(caught.value).startswith("Proxy.trusted")
    assert cure in str(caught.value)


def test_an_unknown_set_of_headers_is_refused_with_the_cure() -> None:
    with pytest.raises(WrongValueError, match=' or "forwarded", not '):
        Proxy([PROXY], headers="X")  # type: ignore[arg-type]


def test_a_proxy_is_a_value() -> None:
    proxy = Proxy(trusted=iter([PROXY]))
    assert proxy.trusted == (PROXY,)
    assert proxy == Proxy([PROXY])
    assert hash(proxy) == hash(Proxy([PROXY]))
    assert repr(proxy) == "Proxy(trusted=('10.0.0.1',), headers='x-forwarded')"


@given(st.text(max_size=20) | st.from_regex(r"[0-9a-f.:/%\[\]]{1,20}", fullmatch=True))
def test_an_arbitrary_item_is_taken_or_refused_as_a_usage_error(item: str) -> None:
    try:
        Proxy([item])
    except UsageError as error:
        assert repr(item) in str(error)


# Against plain implementations


def naive_address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address).partition("%")[0]


def naive_trusts(trusted: list[str], address: str) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(item) for item in trusted)


def naive_port(text: str) -> int | None:
    if text.startswith(":_"):
        return 0
    digits = text.removeprefix(":")
    if digits == text or not digits or any(character not in "0123456789" for character in digits):
        return None
    return int(digits) if len(digits) < 6 and int(digits) < 65536 and str(int(digits)) == digits else None


def naive_node(text: str) -> tuple[str, int] | None:
    """Tries every place where the port might begin."""
    for end in range(1, len(text) + 1):
        host, port = text[:end], naive_port(text[end:]) if text[end:] else 0
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        address = naive_address(bare)
        if address is None or port is None or (bracketed and ":" not in bare):
            continue
        if text[end:] and ":" in bare and not bracketed:  # which colon would begin the port?
            continue
        return address, port
    return None


def naive_client(trusted: list[str], peer: tuple[str, int], nodes: list[str]) -> tuple[str, int]:
    """``nodes`` as in the headers, the TCP peer's word last."""
    chain: list[tuple[str, int] | None] = [*(naive_node(node) for node in nodes), peer]
    position = len(chain) - 1
    while position > 0:
        here, beyond = chain[position], chain[position - 1]
        assert here is not None
        address = naive_address(here[0])
        if address is None or not naive_trusts(trusted, address) or beyond is None:
            break
        position -= 1
    client = chain[position]
    assert client is not None
    return client


def fuzzy(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(texts, texts, texts, st.text(max_size=6), st.sampled_from(["unknown", "_x", "", " "]))


addresses = st.sampled_from(
    ["10.0.0.1", "10.9.9.9", "192.168.1.1", "1.2.3.4", "6.6.6.6", "::1", "2001:db8::1", "2001:db8:1::1"]
) | st.ip_addresses().map(str)
mapped = addresses.filter(lambda text: "." in text).map("::ffff:{}".format)
port_texts = st.sampled_from(["", ":0", ":80", ":65535", ":65536", ":080", ":x", ":", ":_x"])
nodes = st.one_of(
    addresses,
    mapped,
    st.builds("{}{}".format, addresses.filter(lambda text: "." in text), port_texts),
    st.builds("[{}]{}".format, addresses | mapped, port_texts),
    addresses.map("{}%eth0".format),
)
networks = st.lists(
    st.sampled_from(["10.0.0.0/8", "192.168.0.0/16", "1.2.3.4", "::1", "2001:db8::/48", "0.0.0.0/0", "::/0"]),
    max_size=3,
)
peers = st.sampled_from([("10.0.0.1", 1), ("::1", 1), ("1.2.3.4", 1), ("testclient", 1), ("2001:db8::9", 1)])


def harmless(text: str) -> str:
    """Without what splits a header, and as a header can hold it."""
    return text.replace(",", "").encode("latin-1", "ignore").decode("latin-1").strip(" \t")


@given(networks, peers, st.lists(st.lists(fuzzy(nodes), max_size=4), max_size=3))
def test_the_client_is_whom_a_plain_implementation_finds(
    trusted: list[str], peer: tuple[str, int], lines: list[list[str]]
) -> None:
    scope = scope_of(
        *(("x-forwarded-for", ", ".join(map(harmless, line)).encode("latin-1")) for line in lines)
    )
    scope["client"] = peer
    Proxy(trusted).apply(scope)
    flat = [harmless(node) for line in lines for node in line if harmless(node)]
    assert scope["client"] == naive_client(trusted, peer, flat)


HEADERS = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "host",
    "x-real-ip",
    "x-forwarded-port",
]
values = st.one_of(
    st.binary(max_size=60),
    st.text('for="\\,;=[]:._ 1236https', max_size=60).map(str.encode),
    st.sampled_from([b"1.2.3.4", b"https", b"example.org", b"for=6.6.6.6;proto=https;host=evil.com"]),
)
lines = st.lists(st.tuples(st.sampled_from([*HEADERS, "X-Forwarded-For", "Forwarded"]), values), max_size=6)
kinds = st.sampled_from(["x-forwarded", "forwarded"])


@given(lines, kinds, st.sampled_from([(ELSEWHERE, 1), ("testclient", 1), ("::ffff:1.2.3.4", 1), None]))
def test_headers_of_an_untrusted_peer_change_nothing(
    spoofed: list[tuple[str, bytes]], headers: Any, client: Any
) -> None:
    scope = scope_of(*spoofed, client=client)
    before = copy.deepcopy(scope)
    given_headers = scope["headers"]
    Proxy(["private", "2001:db8::/32"], headers=headers).apply(scope)
    assert scope == before
    assert scope["headers"] is given_headers


@given(lines, kinds, st.sampled_from([["*"], [PROXY], ["private", "unix"]]))
def test_arbitrary_headers_never_raise_and_make_a_sound_scope(
    arbitrary: list[tuple[str, bytes]], headers: Any, trusted: list[str]
) -> None:
    scope = scope_of(*arbitrary)
    Proxy(trusted, headers=headers).apply(scope)
    address, port = scope["client"]
    assert str(ipaddress.ip_address(address)) == address
    assert 0 <= port <= 65535
    assert scope["scheme"] in ("ws", "wss")
    assert all(isinstance(name, bytes) and isinstance(value, bytes) for name, value in scope["headers"])


strangers = st.sampled_from(["6.6.6.6", "2001:db8::6"]) | st.ip_addresses().map(str).filter(
    lambda text: not naive_trusts(["10.0.0.0/8"], naive_address(text) or text)
)


@given(lines, strangers, st.booleans())
def test_a_client_behind_a_proxy_cannot_choose_its_address(
    spoofed: list[tuple[str, bytes]], real: str, new_line: bool
) -> None:
    scope = scope_of(*as_a_proxy_hands_on(spoofed, "x-forwarded-for", real, new_line))
    Proxy(["10.0.0.0/8"]).apply(scope)
    assert scope["client"] == (naive_address(real), 0)


@given(
    lines,
    strangers,
    st.booleans(),
    st.sampled_from(
        ["for={}", "for={};proto=https", 'by="x,\\",;y";for={}', 'host="a\\\\";for={};by="b\\""']
    ),
)
@example([("forwarded", b'for=6.6.6.6;by="')], "1.2.3.4", False, "for={}")
@example([("forwarded", b'for=6.6.6.6;by="\\')], "2001:db8::1", False, "for={}")
def test_neither_can_it_with_forwarded(
    spoofed: list[tuple[str, bytes]], real: str, new_line: bool, element: str
) -> None:
    node = real if "." in real and ":" not in real else f'"[{real}]"'
    ours = element.format(node)
    scope = scope_of(*as_a_proxy_hands_on(spoofed, "forwarded", ours, new_line))
    Proxy(["10.0.0.0/8"], headers="forwarded").apply(scope)
    assert scope["client"] == (naive_address(real), 0)
    assert scope["scheme"] == ("wss" if "https" in ours else "ws")


def as_a_proxy_hands_on(
    received: list[tuple[str, bytes]], name: str, ours: str, new_line: bool
) -> list[tuple[str, bytes]]:
    theirs = [value for key, value in received if key.lower() == name]
    others = [(key, value) for key, value in received if key.lower() != name]
    if new_line:
        return [*received, (name, ours.encode())]
    return [*others, (name, b", ".join([*theirs, ours.encode()]))]


def naive_forwarded(text: str) -> list[dict[str, str]]:
    """A well-formed Forwarded, from the left, a character at a time."""
    elements: list[dict[str, str]] = [{}]
    name, value, state = "", "", "name"
    for character in text + ",":
        if state == "name" and character == "=":
            state = "value"
        elif state == "name" and character not in ",; ":
            name += character.lower()
        elif state == "value" and character == '"':
            state = "quoted"
        elif state == "quoted" and character == "\\":
            state = "escaped"
        elif state == "escaped":
            value, state = value + character, "quoted"
        elif state == "quoted" and character == '"':
            state = "value"
        elif state == "quoted" or (state == "value" and character not in ",; "):
            value += character
        if character in ",;" and state in ("name", "value"):
            if name:
                elements[-1][name] = value
            name, value, state = "", "", "name"
            if character == ",":
                elements.append({})
    return [element for element in elements if element]


TOKENS = set("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@st.composite
def forwarded_values(draw: st.DrawFn, text: str) -> str:
    if text and TOKENS.issuperset(text) and draw(st.booleans()):
        return text
    escaped = ["\\" + c if c in '"\\' or draw(st.integers(0, 5)) == 0 else c for c in text]
    return f'"{"".join(escaped)}"'


@st.composite
def forwarded_elements(draw: st.DrawFn) -> str:
    pairs = {
        "for": draw(nodes | st.sampled_from(["unknown", "_x", '10.0.0.9",', "1.2.3.4"])),
        "proto": draw(st.sampled_from(["http", "https", "gopher"])),
        "host": draw(st.sampled_from(["a.example", "a.example:80", "[::1]", "a b", 'a",b\\'])),
        "ext": draw(st.text('\\",;= for', max_size=8)),
    }
    names = draw(st.lists(st.sampled_from(sorted(pairs)), unique=True, min_size=1))
    return draw(st.sampled_from([";", " ; "])).join(
        f"{draw(st.sampled_from([name, name.upper()]))}={draw(forwarded_values(pairs[name]))}"
        for name in names
    )


@given(networks, peers, st.lists(st.lists(forwarded_elements(), min_size=1, max_size=3), max_size=3))
def test_a_well_formed_forwarded_is_read_as_from_the_left(
    trusted: list[str], peer: tuple[str, int], lines: list[list[str]]
) -> None:
    texts = [", ".join(line) for line in lines]
    scope = scope_of(*(("forwarded", text) for text in texts), client=peer)
    Proxy(trusted, headers="forwarded").apply(scope)
    elements = [element for text in texts for element in naive_forwarded(text)]
    assert scope["client"] == naive_client(trusted, peer, [element.get("for", "") for element in elements])
    address = naive_address(peer[0])
    last = elements[-1] if elements and address and naive_trusts(trusted, address) else {}
    assert scope["scheme"] == ("wss" if last.get("proto") == "https" else "ws")
    host = last.get("host", "")
    assert (
        host_of(scope) == (host if host in ("a.example", "a.example:80", "[::1]") else "inside:8000").encode()
    )


@pytest.mark.parametrize(
    "character", ['"', "\\", '\\"', ",", ";", " ", "=", "a", ":", "[", ".", "%", "10.0.0.9,"]
)
def test_whatever_fills_a_header_it_is_read_to_the_end(character: str) -> None:
    """What takes more than one pass over it would be noticed here."""
    filler = character * (16_000 // len(character))
    for headers, name in (("x-forwarded", "x-forwarded-for"), ("forwarded", "forwarded")):
        for text in (filler, f'for="{filler}', f'for="{filler}"', f'x="{filler}', f"{filler};{filler}"):
            scope = scope_of((name, text), (name, text), ("x-forwarded-host", text))
            Proxy(["10.0.0.0/8"], headers=headers).apply(scope)  # type: ignore[arg-type]
            assert scope["client"] in ((PROXY, 5000), ("10.0.0.9", 0))
            assert host_of(scope) in (b"inside:8000", b"10.0.0.9")


# Addresses to count by


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::FFFF:102:304", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::2%2", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        ("01.2.3.4", "01.2.3.4"),
        ("[::1]", "[::1]"),
        ("x" * 100, "x" * 64),
        ("", "unix"),
        (None, "unix"),
    ],
)
def test_what_limits_count_by(host: str | None, key: str) -> None:
    assert address_key(host) == key
    assert address_key(host) == key


MAPPED = ipaddress.ip_network("::ffff:0:0/96")


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_addresses_of_one_network_count_as_one(address: ipaddress.IPv6Address, interface: int) -> None:
    if address not in MAPPED:
        network = ipaddress.ip_network((address, 64), strict=False)
        assert address_key(str(address)) == str(network)
        neighbour = network[interface]
        assert address_key(neighbour.exploded) == str(network) or neighbour in MAPPED


@given(st.text())
def test_any_text_has_a_key_of_bounded_length(host: str) -> None:
    assert 0 < len(address_key(host)) <= 64


# Hosts


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "example.org",
            ["example.org", "EXAMPLE.org", "example.org:80", "example.org:8000"],
            ["www.example.org", "evilexample.org", "example.org.evil.com", "example.org.", "org", "evil.com"],
        ),
        ("example.org.", ["example.org."], ["example.org"]),
        (
            "*.example.org",
            ["a.example.org", "a.b.example.org:8000"],
            ["example.org", "evilexample.org", "a.example.org.evil.com", ".example.org"],
        ),
        ("localhost", ["localhost", "localhost:8000"], ["localhost.evil.com"]),
        ("127.0.0.1", ["127.0.0.1:8000"], ["127.0.0.2", "[::ffff:127.0.0.1]"]),
        ("[::1]", ["[::1]", "[0:0::1]:8000"], ["[::2]", "::1"]),
        ("[0::1]:8000", ["[::1]:8000"], ["[::1]"]),
        ("example.org:8000", ["example.org:8000"], ["example.org", "example.org:80"]),
        ("*.example.org:8000", ["a.example.org:8000"], ["a.example.org"]),
        ("example.org:*", ["example.org", "example.org:8000"], ["evil.com"]),
        ("example.org:80", ["example.org", "example.org:80"], ["example.org:443"]),
        # TLS may end in front of us: no port may mean 443
        ("example.org:443", ["example.org", "example.org:443"], ["example.org:80"]),
        ("bücher.example", ["xn--bcher-kva.example"], ["bcher.example"]),
        ("*", ["evil.com", "", "a b", "a@b"], []),
    ],
)
def test_which_hosts_an_item_lets_in(pattern: str, allowed: list[str], refused: list[str]) -> None:
    policy = HostPolicy([pattern, "other.example"])
    for host in [*allowed, "other.example"]:
        assert policy.problem({"scheme": "ws", "headers": [(b"host", host.encode())]}) is None, host
    for host in refused:
        assert policy.problem({"scheme": "ws", "headers": [(b"host", host.encode())]}) is not None, host


def test_without_a_port_it_is_that_of_the_scheme() -> None:
    headers = [(b"host", b"example.org")]
    for scheme in ("wss", "https"):
        assert HostPolicy(["example.org:443"]).problem({"scheme": scheme, "headers": headers}) is None
        assert HostPolicy(["example.org:80"]).problem({"scheme": scheme, "headers": headers}) is not None


def test_the_problem_of_a_host_says_what_does_not_fit() -> None:
    policy = HostPolicy(["example.org"])
    assert policy.problem({"headers": [(b"Host", b"evil.com")]}) == "Host evil.com is not in trusted_hosts"
    assert policy.problem({"headers": [(b"host", b"a b")]}) == "malformed Host a b"
    assert policy.problem({"headers": [(b"host", b"")]}) == "no Host header"
    assert policy.problem({"headers": []}) == "no Host header"
    assert policy.problem({"headers": [(b"host", b"example.org")] * 2}) == "several Host headers"


def test_no_list_of_hosts_lets_any_in() -> None:
    for headers in ([], [(b"host", b"\xff")], [(b"host", b"a")] * 2):
        assert HostPolicy(None).problem({"headers": headers}) is None
        assert HostPolicy(["example.org", "*"]).problem({"headers": headers}) is None


@pytest.mark.parametrize(
    ("hosts", "error", "cure"),
    [
        ("example.org", WrongTypeError, 'write ["example.org"'),
        ("*", WrongTypeError, 'write ["example.org"'),
        (1, WrongTypeError, 'write ["example.org"'),
        ([b"example.org"], WrongTypeError, "has b'example.org' in it"),
        ([], WrongValueError, "is empty, nobody could come in"),
        (["https://example.org"], WrongValueError, 'write "example.org"'),
        (["example.org/"], WrongValueError, 'ends in a slash, which no browser sends: write "example.org"'),
        (["example.org/x"], WrongValueError, 'write "example.org"'),
        (["*example.org"], WrongValueError, "out of place"),
        (["::1"], WrongValueError, 'write "[::1]"'),
        (["*.1.2.3.4"], WrongValueError, "an address has none"),
        (["a b"], WrongValueError, 'write "example.org", "*.example.org", "example.org:8000", "[::1]"'),
        ([""], WrongValueError, "is not understood"),
        (["straße.de"], WrongValueError, '"xn--" form'),
    ],
)
def test_a_wrong_host_is_refused_with_the_cure(hosts: Any, error: type[Exception], cure: str) -> None:
    with pytest.raises(error) as caught:
        HostPolicy(hosts)
    assert str(caught.value).startswith("trusted_hosts")
    assert cure in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from([b"host", b"Host"]), st.binary(max_size=300)), max_size=2))
def test_an_arbitrary_host_never_raises(headers: list[tuple[bytes, bytes]]) -> None:
    problem = HostPolicy(["*.example.org"]).problem({"headers": headers})
    assert problem is None or len(problem) < 500
