"""The URL of Redis: what it says, what it may not say, and that no password gets out of it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from nexios_trio.brokers.redis.address import Address, Credentials
from nexios_trio.exceptions import WrongTypeError, WrongValueError


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "rest"),
    [
        ("redis://", "tcp", (("127.0.0.1", 6379),), ("", "", 0)),
        ("redis://cache.example", "tcp", (("cache.example", 6379),), ("", "", 0)),
        ("redis://cache.example:7000/3", "tcp", (("cache.example", 7000),), ("", "", 3)),
        ("redis://[::1]:7000/3", "tcp", (("::1", 7000),), ("", "", 3)),
        ("redis://host?db=4", "tcp", (("host", 6379),), ("", "", 4)),
        ("redis+unix:///run/redis.sock?db=2", "unix", (), ("/run/redis.sock", "", 2)),
        ("unix:///run/a%20b.sock", "unix", (), ("/run/a b.sock", "", 0)),
        (
            "redis+sentinel://one,two:7001,[::1]:7002/main/5",
            "sentinel",
            (("one", 26379), ("two", 7001), ("::1", 7002)),
            ("", "main", 5),
        ),
    ],
)
def test_a_url_says_where_redis_is(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], rest: tuple[str, str, int]
) -> None:
    address, query = Address.parse(url)
    assert (address.kind, address.hosts, query) == (kind, hosts, {})
    assert (address.path, address.service, address.database) == rest
    assert Address.parse(str(address))[0].hosts == hosts


def test_credentials_are_read_and_never_shown() -> None:
    url = "redis://us%40er:s3cr%2Fet@host/0"
    address, _ = Address.parse(url)
    assert address.credentials == Credentials("us@er", "s3cr/et")
    assert Address.parse("redis://:only@host")[0].credentials == Credentials(None, "only")
    sentinel, _ = Address.parse("redis+sentinel://:pw1@a/main?sentinel_password=pw2&sentinel_username=u2")
    assert sentinel.sentinel_credentials == Credentials("u2", "pw2")
    for shown in (str(address), repr(address), str(sentinel), repr(sentinel), repr(sentinel.credentials)):
        for secret in ("s3cr", "us@er", "only", "pw1", "pw2", "u2"):
            assert secret not in shown


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:s3cret@host", "no scheme of Redis"),
        ("redis://user:s3cret@one,two", "one Redis has one host"),
        ("redis://user:s3cret@host/main", "a database of Redis is a number"),
        ("redis://user:s3cret@host:port", "a host or port of this URL is none"),
        ("redis://user:s3cr#et@host", "%23"),
        ("redis+sentinel://user:s3cret@host", "the name of a service"),
        ("redis+unix://user:s3cret@host/path", "a Unix socket has a path and no host"),
        ("redis+unix://", "a Unix socket has a path and no host"),
        ("redis://:s3cret@host?client_name=a%20b", "client_name is made of"),
        ("redis://:s3cret@host?sentinel_password=s3cret", "go with redis\\+sentinel"),
        ("redis://:s3cret@host?tls_ca=ca.pem", "write rediss://"),
        ("rediss://:s3cret@host?tls_key=key.pem", "goes with tls_cert"),
        ("rediss://:s3cret@host?tls_ca=/does/not/exist", "cannot read tls_ca"),
        ("redis://:s3cret@host?nonsense", "no URL"),
        ("redis://:/s3cret@host/0", "%2F"),
        ("redis://:17/s3cret@host", "%2F"),
        ("redis://:17?s3cret=1@host", "%3F"),
        ("redis://user:s3cret@a..b", "a host or port of this URL is none"),
        (f"redis://user:s3cret@{'a' * 80}", "a host or port of this URL is none"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_repeating_it(url: str, why: str) -> None:
    with pytest.raises(WrongValueError, match=why) as caught:
        Address.parse(url)
    assert "s3cret" not in str(caught.value)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(WrongTypeError, match="the address of Redis is a str"):
        Address.parse(17)  # type: ignore[arg-type]


def test_tls_has_one_source(tmp_path: Path) -> None:
    context = ssl.create_default_context()
    assert Address.parse("rediss://host", tls=context)[0].tls is context
    assert Address.parse("rediss://host")[0].tls is not None
    assert str(Address.parse("rediss://host")[0]) == "rediss://host:6379/0"
    assert str(Address.parse("rediss+sentinel://a/main")[0]) == "rediss+sentinel://a:26379/main/0"
    with pytest.raises(WrongValueError, match="exclude each other"):
        Address.parse("rediss://host?tls_ca=ca.pem", tls=context)
    with pytest.raises(WrongValueError, match="write rediss://"):
        Address.parse("redis://host", tls=context)


def test_options_that_are_not_of_the_address_come_back() -> None:
    assert Address.parse("redis://host?prefix=chat:&db=1")[1] == {"prefix": "chat:"}
