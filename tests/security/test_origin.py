"""Which pages may open a connection: tables of cases, and a slow, plain matcher to compare with."""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexios_trio.exceptions import UsageError, WrongTypeError, WrongValueError
from nexios_trio.security.origin import OriginPolicy, parse_origin
from nexios_trio.types import Scope


def scope_of(
    *origins: str | bytes | None, host: str | bytes | None = "example.org", scheme: str = "ws"
) -> dict[str, Any]:
    headers = [(b"user-agent", b"test")]
    if host is not None:
        headers.append((b"host", host if isinstance(host, bytes) else host.encode()))
    for origin in origins:
        if origin is not None:
            headers.append((b"origin", origin if isinstance(origin, bytes) else origin.encode()))
    return {"type": "websocket", "scheme": scheme, "headers": headers}


def passes(allowed: Any, scope: Scope) -> bool:
    return OriginPolicy(allowed).problem(scope) is None


# Same origin


@pytest.mark.parametrize("allowed", [None, "same-origin", ["same-origin"]])
@pytest.mark.parametrize(
    ("scheme", "origin", "host", "expected"),
    [
        ("ws", "http://example.org", "example.org", True),
        ("wss", "https://example.org", "example.org", True),
        ("https", "https://example.org", "example.org", True),
        ("http", "http://example.org", "example.org", True),
        # TLS may end at a proxy in front, never behind us
        ("ws", "https://example.org", "example.org", True),
        ("wss", "http://example.org", "example.org", False),
        ("https", "http://example.org", "example.org", False),
        ("wss", "http://example.org:443", "example.org:443", False),
        # ports
        ("ws", "http://example.org:80", "example.org", True),
        ("ws", "http://example.org", "example.org:80", True),
        ("wss", "https://example.org:443", "example.org", True),
        ("wss", "https://example.org", "example.org:443", True),
        ("ws", "https://example.org", "example.org:80", False),
        ("ws", "http://example.org", "example.org:443", False),
        ("ws", "http://localhost:8000", "localhost:8000", True),
        ("ws", "http://localhost:8001", "localhost:8000", False),
        ("ws", "http://localhost:8000", "localhost", False),
        ("ws", "http://localhost", "localhost:8000", False),
        ("wss", "https://example.org:0443", "example.org:443", False),
        ("wss", "https://example.org:443", "example.org:0443", False),
        # names
        ("ws", "HTTP://EXAMPLE.ORG", "example.org", True),
        ("ws", "http://example.org", "Example.ORG:80", True),
        ("ws", "http://my_service:8000", "my_service:8000", True),
        ("ws", "http://evil.com", "example.org", False),
        ("ws", "http://www.example.org", "example.org", False),
        ("ws", "http://evilexample.org", "example.org", False),
        ("ws", "http://example.org.evil.com", "example.org", False),
        ("ws", "http://example.org.", "example.org", False),
        ("ws", "http://example.org", "example.org.", False),
        ("ws", "http://example.org.", "example.org.", True),
        # addresses
        ("ws", "http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("ws", "http://127.0.0.1:8000", "localhost:8000", False),
        ("ws", "http://[::1]:8000", "[::1]:8000", True),
        ("ws", "http://[0:0:0:0:0:0:0:1]", "[::1]", True),
        ("ws", "http://[2001:DB8::1]", "[2001:db8:0::1]", True),
        ("ws", "http://[::ffff:127.0.0.1]", "[::ffff:7f00:1]", True),
        ("ws", "http://[::ffff:127.0.0.1]", "127.0.0.1", False),
        ("ws", "http://[::2]", "[::1]", False),
        ("ws", "http://[fe80::1%25eth0]", "[fe80::1%25eth0]", False),
        ("ws", "http://[fe80::1%eth0]", "[fe80::1%eth0]", False),
        # no origin of a site
        ("ws", "null", "example.org", False),
        ("ws", "chrome-extension://example.org", "example.org", False),
        ("ws", "ws://example.org", "example.org", False),
        ("ws", "file://", "example.org", False),
        # nothing to compare with
        ("ws", "http://example.org", None, False),
        ("ws", "http://example.org", "", False),
        ("ws", "http://example.org", "user@example.org", False),
        ("ws", "http://example.org", "example.org, example.org", False),
        ("ws", "http://example.org", "example.org:", False),
        ("ws", "http://example.org", b"example.org\xff", False),
    ],
)
def test_same_origin_compares_host_and_port(
    allowed: Any, scheme: str, origin: str, host: str | bytes | None, expected: bool
) -> None:
    assert passes(allowed, scope_of(origin, host=host, scheme=scheme)) is expected


MALFORMED: list[bytes] = [
    b"",
    b" ",
    b"example.org",
    b"//example.org",
    b"http:example.org",
    b"http:/example.org",
    b"http://",
    b"https://",
    b"https://:443",
    b"://example.org",
    b"1http://example.org",
    b"ht tp://example.org",
    b"http ://example.org",
    b"http://example.org ",
    b" http://example.org",
    b"http://example.org\t",
    b"http://exam\tple.org",
    b"http://example.org\n",
    b"http://example.org\x00",
    b"http://example.org/",
    b"http://example.org/chat",
    b"http://example.org?x",
    b"http://example.org#x",
    b"http://example.org\\",
    b"http://evil.com\\@example.org",
    b"http://user@example.org",
    b"http://user:password@example.org",
    b"http://example.org@evil.com",
    b"http://evil.com#example.org",
    b"http://evil.com?.example.org",
    b"http://evil.com/.example.org",
    b"http://example.org http://evil.com",
    b"http://example.org,http://evil.com",
    b"http://example.org, http://example.org",
    b"http://.example.org",
    b"http://www..example.org",
    b"http://example.org..",
    b"http://*.example.org",
    b"http://ex%61mple.org",
    b"http://example.org:",
    b"http://example.org:0",
    b"http://example.org:080",
    b"http://example.org:65536",
    b"http://example.org:99999",
    b"http://example.org:800000",
    b"http://example.org:-80",
    b"http://example.org:+80",
    b"http://example.org:8_0",
    b"http://example.org: 80",
    b"http://example.org:80:80",
    b"http://example.org:http",
    "http://example.org:٨٠".encode(),
    "http://example。org".encode(),
    "http://bücher.example".encode(),
    "http://bücher.example".encode("latin-1"),
    "http://\u212aexample.org".encode(),  # the Kelvin sign, a k in lower case
    b"http://::1",
    b"http://[::1",
    b"http://::1]",
    b"http://[]",
    b"http://[::1]8000",
    b"http://[::1].example.org",
    b"http://[example.org]",
    b"http://[1.2.3.4]",
    b"http://[::1]:",
    b"http://[::g]",
    b"http://" + b"a" * 255,
    b"http://" + b"a." * 4000 + b"org",
    b"a" * 65 + b"://x",
    b"Null",
    b"NULL",
    b"null ",
    b"null null",
]


@pytest.mark.parametrize("origin", MALFORMED, ids=lambda origin: repr(origin[:40]))
def test_a_malformed_origin_is_refused_by_all_but_everything(origin: bytes) -> None:
    scope = scope_of(origin)
    assert parse_origin(origin.decode("latin-1")) is None
    everything_but = ["same-origin", "null", "example.org:*", "*.example.org:*", "file://"]
    assert not passes(None, scope)
    assert not passes(everything_but, scope)
    assert not passes(lambda _origin, _scope: True, scope)
    assert passes("*", scope)
    assert passes([*everything_but, "*"], scope)


@pytest.mark.parametrize("origin", ["http://\u212aexample.org", "\u212a://x", "http://[::\u0661]"])
def test_what_only_becomes_ascii_in_lower_case_is_malformed(origin: str) -> None:
    assert parse_origin(origin) is None


@pytest.mark.parametrize("allowed", [None, ["https://example.org"], [], lambda _origin, _scope: False])
def test_a_request_without_an_origin_is_no_browser_and_passes(allowed: Any) -> None:
    assert passes(allowed, scope_of())
    assert passes(allowed, scope_of(host=None))
    assert passes(allowed, {"type": "websocket"})


@pytest.mark.parametrize("allowed", [None, ["http://example.org", "null"], lambda _origin, _scope: True])
def test_several_origin_or_host_headers_are_refused(allowed: Any) -> None:
    several = scope_of("http://example.org", "http://example.org")
    assert OriginPolicy(allowed).problem(several) == "several Origin headers"
    assert not passes(allowed, scope_of("null", "null"))
    twice = scope_of("http://example.org")
    twice["headers"].append((b"host", b"example.org"))
    assert OriginPolicy(allowed).problem(twice) == "several Host headers"
    assert passes("*", several)
    assert passes("*", twice)


def test_names_of_headers_are_read_in_any_case_and_a_missing_scheme_is_ws() -> None:
    scope: Scope = {"headers": [(b"Origin", b"https://evil.com"), (b"Host", b"example.org")]}
    assert not passes(None, scope)
    assert passes(None, {"headers": [(b"ORIGIN", b"https://example.org"), (b"HOST", b"example.org")]})


def test_null_passes_only_where_it_is_listed() -> None:
    assert not passes(None, scope_of("null"))
    assert not passes(["https://example.org"], scope_of("null"))
    assert passes(["null"], scope_of("null"))
    assert not passes(["null"], scope_of("http://example.org"))
    assert passes("*", scope_of("null"))


# Lists


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "https://example.org",
            ["https://example.org", "https://example.org:443", "HTTPS://Example.Org"],
            [
                "http://example.org",
                "https://example.org:8443",
                "https://www.example.org",
                "https://evilexample.org",
                "https://example.org.evil.com",
                "https://example.org.",
                "https://example.org@evil.com",
                "https://evil.com#example.org",
                "https://example.org:0443",
                "https://example.org:80",
                "https://example",
                "https://org",
            ],
        ),
        ("HTTPS://Example.ORG:443", ["https://example.org"], ["http://example.org"]),
        ("http://example.org:443", ["http://example.org:443"], ["https://example.org", "http://example.org"]),
        ("https://example.org:8443", ["https://example.org:8443"], ["https://example.org"]),
        ("https://example.org.", ["https://example.org."], ["https://example.org"]),
        (
            "https://*.example.org",
            ["https://www.example.org", "https://a.b.c.example.org", "https://A.EXAMPLE.ORG:443"],
            [
                "https://example.org",
                "http://www.example.org",
                "https://evilexample.org",
                "https://www.evilexample.org",
                "https://www.example.org.evil.com",
                "https://www.example.org:8443",
                "https://www.example.org.",
                "https://.example.org",
                "https://a..example.org",
                "https://evil.com/.example.org",
            ],
        ),
        ("https://*.example.org:8443", ["https://a.example.org:8443"], ["https://a.example.org"]),
        (
            "https://*.example.org:*",
            ["https://a.example.org:8443", "https://a.example.org"],
            ["http://a.example.org", "https://example.org:8443"],
        ),
        (
            "example.org",
            ["http://example.org", "https://example.org", "http://example.org:80", "https://example.org:443"],
            [
                "http://example.org:443",
                "https://example.org:80",
                "app://example.org",
                "http://www.example.org",
            ],
        ),
        (
            "example.org:8443",
            ["http://example.org:8443", "https://example.org:8443"],
            ["https://example.org", "http://example.org"],
        ),
        ("*.example.org", ["http://a.example.org", "https://a.b.example.org"], ["https://example.org"]),
        (
            "http://localhost:*",
            ["http://localhost", "http://localhost:3000", "http://localhost:65535"],
            ["https://localhost:3000", "http://localhost.evil.com:3000", "http://a.localhost:3000"],
        ),
        ("localhost:*", ["http://localhost:3000", "https://localhost"], ["app://localhost"]),
        ("127.0.0.1:8000", ["http://127.0.0.1:8000"], ["http://127.0.0.1", "http://127.0.0.01:8000"]),
        (
            "http://[0:0::1]:8000",
            ["http://[::1]:8000", "http://[0:0:0:0:0:0:0:1]:8000"],
            ["http://[::2]:8000", "http://[::1]"],
        ),
        ("[::1]:*", ["http://[::1]:8000", "https://[::1]"], ["http://[::]"]),
        (
            "chrome-extension://abcdef",
            ["chrome-extension://abcdef"],
            ["chrome-extension://abcdeg", "http://abcdef", "moz-extension://abcdef"],
        ),
        ("app://x", ["app://x"], ["app://x:80", "app://y", "http://x"]),
        ("capacitor://localhost", ["capacitor://localhost"], ["ionic://localhost", "http://localhost"]),
        ("file://", ["file://"], ["http://file", "app://", "null"]),
        ("null", ["null"], ["http://null"]),
        (
            "https://bücher.example",
            ["https://xn--bcher-kva.example"],
            ["https://bcher.example", "https://bucher.example"],
        ),
        ("https://bu\u0308cher.example", ["https://xn--bcher-kva.example"], ["https://bucher.example"]),
        (
            "*.Bücher.example:8000",
            ["http://a.xn--bcher-kva.example:8000"],
            ["http://xn--bcher-kva.example:8000"],
        ),
        ("https://xn--strae-oqa.de", ["https://xn--strae-oqa.de"], ["https://strasse.de"]),
        ("same-origin", ["http://host.example"], ["http://example.org"]),
    ],
)
def test_what_an_item_lets_in(pattern: str, allowed: list[str], refused: list[str]) -> None:
    policy = OriginPolicy([pattern])
    for origin in allowed:
        assert policy.problem(scope_of(origin, host="host.example")) is None, origin
    for origin in refused:
        assert policy.problem(scope_of(origin, host="host.example")) is not None, origin


def test_a_list_replaces_same_origin_unless_it_asks_for_it() -> None:
    # DNS rebinding: the page's host and ours are one and the same name
    rebound = scope_of("http://evil.example", host="evil.example")
    assert passes(None, rebound)
    assert not passes(["https://example.org"], rebound)
    assert not passes([], rebound)
    assert passes(["https://example.org", "same-origin"], rebound)
    assert passes(
        ("https://example.org", "same-origin"), scope_of("https://example.org", host="evil.example")
    )
    assert passes((pattern for pattern in ["http://evil.example"]), rebound)


def test_a_list_does_not_need_a_host_header() -> None:
    assert passes(["https://example.org"], scope_of("https://example.org", host=None))
    assert not passes(["https://example.com", "same-origin"], scope_of("https://example.org", host=None))


def test_the_problem_says_what_does_not_fit() -> None:
    policy = OriginPolicy()
    assert policy.problem(scope_of("https://evil.com")) == (
        "cross-origin: Origin https://evil.com, Host example.org"
    )
    assert policy.problem(scope_of("http://example.org", scheme="wss")) == (
        "Origin http://example.org came without TLS, the request with it"
    )
    assert policy.problem(scope_of("https://evil.com", host=None)) == (
        "no Host header to compare Origin https://evil.com with"
    )
    assert policy.problem(scope_of("https://evil.com", host="a b")) == "malformed Host a b"
    assert policy.problem(scope_of("null")) == "Origin null, and allowed_origins has no null"
    assert OriginPolicy(["a.example"]).problem(scope_of("https://evil.com:443")) == (
        "Origin https://evil.com is not in allowed_origins"
    )
    huge = policy.problem(scope_of(b"\xff" * 10_000))
    assert huge is not None
    assert len(huge) < 250


# Settings that are wrong


@pytest.mark.parametrize(
    ("allowed", "error", "cure"),
    [
        ("https://example.org", WrongValueError, 'write ["https://example.org"]'),
        ("null", WrongValueError, 'write ["null"]'),
        ("", WrongValueError, "allowed_origins is a list"),
        (b"*", WrongTypeError, 'write ["https://example.org"'),
        (1, WrongTypeError, 'write ["https://example.org"'),
        ([b"https://example.org"], WrongTypeError, "has b'https://example.org' in it"),
        ([None], WrongTypeError, "has None in it"),
        (
            ["https://example.org/"],
            WrongValueError,
            'ends in a slash, which no browser sends: write "https://example.org"',
        ),
        (
            ["example.org:80/"],
            WrongValueError,
            'ends in a slash, which no browser sends: write "example.org:80"',
        ),
        (
            ["https://example.org/chat"],
            WrongValueError,
            'has a path, which no browser sends: write "https://example.org"',
        ),
        (
            ["https://example.org?x=1"],
            WrongValueError,
            'has a path, which no browser sends: write "https://example.org"',
        ),
        (
            ["https://example.org#/"],
            WrongValueError,
            'has a path, which no browser sends: write "https://example.org"',
        ),
        (["https:/example.org"], WrongValueError, 'write "https://example.org"'),
        (["/chat"], WrongValueError, 'write "https://example.org"'),
        (["https://me@example.org"], WrongValueError, "leave out all up to the @"),
        (["wss://example.org"], WrongValueError, 'write "https://example.org"'),
        (["WS://example.org:80"], WrongValueError, 'write "http://example.org:80"'),
        (["*://example.org"], WrongValueError, 'for http and https write "example.org"'),
        (["https://*"], WrongValueError, "or alone for everything"),
        (["https://*:8000"], WrongValueError, "or alone for everything"),
        (["*:*"], WrongValueError, "or alone for everything"),
        (["*example.org"], WrongValueError, "out of place"),
        (["https://www.*.org"], WrongValueError, "out of place"),
        (["https://*.*.org"], WrongValueError, "out of place"),
        (["http*://example.org"], WrongValueError, 'write "https://example.org"'),
        (["example.org:8*"], WrongValueError, "out of place"),
        (["example.org:80:*"], WrongValueError, "is not understood"),
        (["chrome-extension://*"], WrongValueError, "out of place"),
        (["*.127.0.0.1"], WrongValueError, "asks for subdomains, but an address has none"),
        (["*.[::1]"], WrongValueError, "asks for subdomains, but an address has none"),
        (["::1"], WrongValueError, 'without brackets: write "[::1]"'),
        (["http://::1:8000"], WrongValueError, "without brackets"),
        ([""], WrongValueError, "is not understood"),
        (["*."], WrongValueError, "is not understood"),
        (["https://"], WrongValueError, "is not understood"),
        (["https://a, https://b"], WrongValueError, "is not understood"),
        (["a.example,b.example"], WrongValueError, "is not understood"),
        ([" example.org"], WrongValueError, "is not understood"),
        (["example.org:99999"], WrongValueError, "is not understood"),
        (["example.org:0443"], WrongValueError, "is not understood"),
        (["1://x"], WrongValueError, "is not understood"),
        (["\u212a://x"], WrongValueError, "is not understood"),
        # the codec would make somebody else's domain of these
        (["https://straße.de"], WrongValueError, 'new URL("https://straße.de").host'),
        (["https://*.straße.de"], WrongValueError, 'new URL("https://straße.de").host'),
        (["βόλος.com"], WrongValueError, '"xn--" form'),
        (["example。org"], WrongValueError, '"xn--" form'),
        (["\U0001fae0.example"], WrongValueError, '"xn--" form'),
        (["ü" * 64 + ".example"], WrongValueError, '"xn--" form'),
    ],
)
def test_a_wrong_setting_is_refused_with_the_cure(allowed: Any, error: type[Exception], cure: str) -> None:
    with pytest.raises(error) as caught:
        OriginPolicy(allowed)
    assert str(caught.value).startswith("allowed_origins")
    assert cure in str(caught.value)


# A rule of the user's own


def test_a_rule_is_asked_for_every_origin_as_a_browser_writes_it() -> None:
    asked: list[str] = []

    def rule(origin: str, scope: Scope) -> bool:
        asked.append(origin)
        return bool(scope["path"] == "/public")

    policy = OriginPolicy(rule)
    for origin in (
        "HTTPS://Example.ORG:443",
        "http://[0::1]:8000",
        "http://example.org:443",
        "app://X",
        "null",
        "file://",
    ):
        assert policy.problem({**scope_of(origin), "path": "/public"}) is None
        problem = policy.problem({**scope_of(origin), "path": "/private"})
        assert problem == f"Origin {asked[-1]} was refused by the app's rule"
    assert policy.problem(scope_of()) is None
    assert asked[::2] == [
        "https://example.org",
        "http://[::1]:8000",
        "http://example.org:443",
        "app://x",
        "null",
        "file://",
    ]


async def coroutine_function(origin: str, scope: Scope) -> bool:
    return True


class AsyncRule:
    async def __call__(self, origin: str, scope: Scope) -> bool:
        return True


class Rule:
    def __call__(self, origin: str, scope: Scope) -> bool:
        return origin == "https://example.org"


@pytest.mark.parametrize(
    "rule", [coroutine_function, AsyncRule(), AsyncRule().__call__, functools.partial(coroutine_function)]
)
def test_an_async_rule_is_refused_when_it_is_set(rule: Any) -> None:
    with pytest.raises(WrongTypeError, match="write def, not async def"):
        OriginPolicy(rule)


def test_a_callable_object_is_a_rule() -> None:
    assert passes(Rule(), scope_of("https://example.org"))
    assert not passes(Rule(), scope_of("https://evil.com"))


@pytest.mark.parametrize("verdict", [None, 1, "yes", re.match("h", "http")])
def test_a_rule_that_returns_no_bool_is_told(verdict: Any) -> None:
    policy = OriginPolicy(lambda _origin, _scope: verdict)
    with pytest.raises(WrongTypeError, match=r"write return bool\(...\)"):
        policy.problem(scope_of("https://example.org"))


def test_a_rule_that_turns_out_to_be_async_lets_nobody_in() -> None:
    policy = OriginPolicy(lambda origin, scope: coroutine_function(origin, scope))  # type: ignore[arg-type,return-value]
    with pytest.raises(WrongTypeError, match="not coroutine"):
        policy.problem(scope_of("https://example.org"))


def test_what_a_rule_raises_comes_out() -> None:
    def rule(origin: str, scope: Scope) -> bool:
        raise LookupError("asked")

    with pytest.raises(LookupError, match="asked"):
        OriginPolicy(rule).problem(scope_of("https://example.org"))


# Against a plain implementation

DEFAULTS = {"http": 80, "https": 443}


def naive_port(text: str) -> int | None:
    for number in range(1, 65536):
        if text == str(number):
            return number
    return None


def naive_authority(text: str) -> tuple[str, int | None] | None:
    """Host and port by urllib, and all that urllib is too kind to refuse."""
    if any(not 33 <= ord(character) <= 126 or character in "/?#@\\%" for character in text):
        return None
    try:
        host = urlsplit("//" + text).hostname
    except ValueError:
        return None
    if not host:
        return None
    after = text[text.index("]") + 1 :] if "[" in text and "]" in text else text[len(host) :]
    if text.startswith("["):
        try:
            host = "[" + str(ipaddress.IPv6Address(host)) + "]"
        except ValueError:
            return None
    else:
        for label in host.removesuffix(".").split("."):
            if not label or any(not (c.isalnum() or c in "-_") for c in label):
                return None
        if len(host) > 254:
            return None
    if not after:
        return host, None
    port = naive_port(after[1:]) if after.startswith(":") else None
    return None if port is None else (host, port)


def naive_origin(text: str) -> tuple[str, str, int | None] | None:
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    letters = "abcdefghijklmnopqrstuvwxyz"
    if not separator or not scheme or len(scheme) > 64 or scheme[0] not in letters:
        return None
    if any(character not in letters + "0123456789+-." for character in scheme):
        return None
    if not rest and scheme not in DEFAULTS:
        return scheme, "", None
    authority = naive_authority(rest)
    if authority is None:
        return None
    host, port = authority
    return scheme, host, DEFAULTS.get(scheme) if port is None else port


def naive_item(item: str, origin: tuple[str, str, int | None]) -> bool:
    scheme, host, port = origin
    wanted_scheme, separator, rest = item.rpartition("://")
    if separator and wanted_scheme != scheme:
        return False
    if not separator and scheme not in DEFAULTS:
        return False
    if not rest:
        return not host
    name, colon, wanted_port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        name, wanted_port = rest, str(DEFAULTS.get(scheme))
    if wanted_port not in ("*", str(port)):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) > len(name[1:])
    if name.startswith("["):
        return host.startswith("[") and ipaddress.ip_address(name[1:-1]) == ipaddress.ip_address(host[1:-1])
    return name == host


def naive_passes(items: list[str], origin: bytes | None, host: bytes | None, scheme: str) -> bool:
    if origin is None or "*" in items:
        return True
    text = origin.decode("latin-1")
    if text == "null":
        return "null" in items
    parsed = naive_origin(text)
    if parsed is None:
        return False
    for item in items:
        if item not in ("null", "same-origin") and naive_item(item, parsed):
            return True
    if "same-origin" not in items or host is None:
        return False
    authority = naive_authority(host.decode("latin-1"))
    if authority is None or parsed[0] not in DEFAULTS:
        return False
    if parsed[0] == "http" and scheme in ("https", "wss"):
        return False
    default = DEFAULTS[parsed[0]]
    return (parsed[1], parsed[2]) == (authority[0], default if authority[1] is None else authority[1])


hosts = st.sampled_from(
    [
        "example.org",
        "a.example.org",
        "a.b.example.org",
        "evilexample.org",
        "example.org.evil.com",
        "example.org.",
        "org",
        "localhost",
        "my_host",
        "127.0.0.1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[2001:db8::1]",
    ]
) | st.lists(st.sampled_from(["a", "b", "example", "org"]), min_size=1, max_size=4).map(".".join)
ports = st.sampled_from(["", "", ":80", ":443", ":8443"])
schemes = st.sampled_from(["http", "https", "app"])
broken = st.sampled_from(
    [
        "",
        " ",
        ".",
        "..",
        "@",
        "/",
        "#",
        "?",
        "\\",
        "%",
        ":",
        ":0",
        ":0443",
        ":99999",
        "]",
        "[",
        "*",
        ",",
        "é",
        "。",
        "\x00",
        "\t",
        "null",
        "::1",
        "%25eth0",
        "evil.com",
        "://",
    ]
)


@st.composite
def spoiled(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> bytes:
    text = draw(texts)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(broken) + text[at:]
    if draw(st.booleans()):
        text = text.swapcase()
    return text.encode()


origins = st.builds("{}://{}{}".format, schemes, hosts, ports) | st.sampled_from(["null", "file://", ""])
authorities = st.builds("{}{}".format, hosts, ports)
domains = st.sampled_from(["*.example.org", "*.org", "*.a.example.org"])
items = st.one_of(
    st.builds("{}://{}{}".format, schemes, hosts | domains, ports | st.just(":*")),
    st.builds("{}{}".format, hosts | domains, ports | st.just(":*")),
    st.sampled_from(["null", "same-origin", "file://", "*"]),
)
item_lists = st.lists(items, max_size=4) | st.just(["same-origin"])


@given(
    item_lists,
    st.none() | spoiled(origins) | st.binary(max_size=30),
    st.none() | spoiled(authorities) | st.binary(max_size=20),
    st.sampled_from(["ws", "wss", "http", "https"]),
)
@example(["same-origin"], b"http://[::1]", b"[0::1]", "ws")
@example(["*.example.org"], b"http://.example.org", None, "ws")
@example(["example.org"], b"http://example.org%", None, "ws")
def test_the_policy_decides_as_a_plain_implementation_does(
    allowed: list[str], origin: bytes | None, host: bytes | None, scheme: str
) -> None:
    scope = scope_of(origin, host=host, scheme=scheme)
    assert passes(allowed, scope) is naive_passes(allowed, origin, host, scheme)


@given(hosts, ports, schemes.filter(lambda scheme: scheme != "app"))
def test_a_page_of_the_same_url_passes_same_origin(host: str, port: str, scheme: str) -> None:
    scope = scope_of(f"{scheme}://{host}{port}", host=host + port, scheme="ws")
    assert passes(None, scope)
    assert passes(None, {**scope, "scheme": "wss"}) is (scheme == "https")


@given(st.lists(st.tuples(st.sampled_from([b"origin", b"host", b"Origin", b"x"]), st.binary(max_size=300))))
def test_arbitrary_headers_never_raise(headers: list[tuple[bytes, bytes]]) -> None:
    for allowed in (None, ["*.example.org", "same-origin"], "*", lambda _origin, _scope: True):
        problem = OriginPolicy(allowed).problem({"type": "websocket", "headers": headers})
        assert problem is None or (problem and len(problem) < 1000)


@given(st.text(max_size=30) | items.flatmap(lambda item: spoiled(st.just(item)).map(bytes.decode)))
def test_an_arbitrary_item_is_taken_or_refused_as_a_usage_error(item: str) -> None:
    try:
        OriginPolicy([item])
    except UsageError as error:
        assert repr(item) in str(error)
