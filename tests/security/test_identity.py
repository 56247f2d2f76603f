"""Who a client is: what is taken, what is refused, and what a log may show."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from attrs import evolve
from starlette.authentication import AuthCredentials, BaseUser, SimpleUser, UnauthenticatedUser, requires
from starlette.requests import Request

from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.security.identity import Auth, Identity, User, has_scopes

MARKER = "s3cret-marker"
ID = UUID("12345678-1234-5678-1234-567812345678")


# User


def test_a_user_has_what_starlettes_has() -> None:
    user = User("ada")
    simple = SimpleUser("ada")
    for name in ("is_authenticated", "display_name", "identity"):
        assert getattr(user, name) == getattr(simple, name)


@pytest.mark.parametrize(
    ("claims", "name"),
    [({"name": "Ada"}, "Ada"), ({"name": ""}, "ada"), ({"name": ["Ada"]}, "ada"), ({}, "ada")],
)
def test_a_user_is_displayed_by_its_name_where_it_has_one(claims: dict[str, Any], name: str) -> None:
    assert User("ada", claims).display_name == name


def test_a_user_keeps_its_own_copy_of_the_claims() -> None:
    claims = {"role": "guest"}
    user = User("ada", claims)
    claims["role"] = "admin"
    assert user.claims == {"role": "guest"}


def test_a_user_can_be_a_key_though_claims_cannot() -> None:
    assert {User("ada", {"a": [1]}): 1}[User("ada", {"a": [1]})] == 1
    assert User("ada", {"a": 1}) != User("ada", {"a": 2})


def test_a_user_has_an_id_that_is_a_str() -> None:
    with pytest.raises(WrongTypeError, match=r"write User\(str\(id\)\), not int"):
        User(5)  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="not empty"):
        User("")
    with pytest.raises(WrongTypeError, match="claims are a dict, not str"):
        User("ada", MARKER)  # type: ignore[arg-type]


# Scopes


@pytest.mark.parametrize("scopes", [["b", "a", "a"], ("a", "b"), {"a", "b"}, iter(["a", "b"])])
def test_scopes_are_any_iterable_of_str(scopes: Any) -> None:
    assert Identity("ada", scopes).scopes == Auth(["a", "b"]).scopes == frozenset({"a", "b"})


@pytest.mark.parametrize("make", [lambda s: Identity("ada", s), Auth, lambda s: has_scopes(Auth(), s)])
def test_scopes_are_not_one_str(make: Any) -> None:
    with pytest.raises(WrongTypeError, match=r'write \["a", "b"\]'):
        make("read")
    with pytest.raises(WrongTypeError, match="one is int"):
        make(["read", 1])
    with pytest.raises(WrongTypeError, match="not int"):
        make(1)


@pytest.mark.parametrize("auth", [Auth(["read", "write"]), AuthCredentials(["read", "write"])])
def test_scopes_are_found_in_our_auth_and_in_starlettes(auth: object) -> None:
    assert has_scopes(auth, [])
    assert has_scopes(auth, ("read",))
    assert has_scopes(auth, iter(["read", "write"]))
    assert not has_scopes(auth, ["read", "admin"])
    assert not has_scopes(auth, ["rea"])


@pytest.mark.parametrize("auth", [None, object(), AuthCredentials(), Auth()])
def test_who_has_no_scopes_lacks_every_one(auth: object) -> None:
    assert not has_scopes(auth, ["read"])
    assert has_scopes(auth, [])


def test_scopes_that_are_one_str_are_not_searched() -> None:
    with pytest.raises(WrongTypeError, match=r'write \["a", "b"\]'):
        has_scopes(SimpleNamespace(scopes="thread"), ["read"])


async def test_starlettes_requires_takes_our_auth() -> None:
    @requires("read", status_code=404)
    async def page(request: Request) -> str:
        return "let in"

    request = Request({"type": "http", "auth": Auth(["read"]), "user": User("ada")})
    assert await page(request) == "let in"


# Expiry


def test_expiry_is_unix_time_whatever_it_came_as() -> None:
    moment = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    for value in (moment, moment.astimezone(UTC), moment.timestamp(), int(moment.timestamp())):
        expires = Identity("ada", expires=value).expires
        assert expires == Auth(expires=value).expires == moment.timestamp()
        assert isinstance(expires, float)


@pytest.mark.parametrize("never", [None, math.inf, 10**400])
def test_what_never_expires_has_none(never: Any) -> None:
    assert Identity("ada", expires=never).expires is None


def test_a_datetime_without_a_time_zone_is_refused() -> None:
    with pytest.raises(WrongValueError, match=r"write datetime\.now\(UTC\) \+ timedelta\(hours=1\)"):
        Identity("ada", expires=datetime(2030, 1, 1))
    Identity("ada", expires=datetime.now(UTC) + timedelta(hours=1))


@pytest.mark.parametrize("wrong", [True, "2030-01-01", timedelta(hours=1), b""])
def test_expiry_is_a_number_or_a_datetime(wrong: Any) -> None:
    with pytest.raises(WrongTypeError, match=r"time\.time\(\) \+ 3600"):
        Identity("ada", expires=wrong)


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_expiry_is_a_moment(wrong: float) -> None:
    with pytest.raises(WrongValueError, match="Unix time"):
        Auth(expires=wrong)


# The user's id


class Plain(BaseUser):
    """Overrides nothing, so that ``identity`` raises NotImplementedError."""


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("ada", "ada"),
        (5, "5"),
        (User("ada"), "ada"),
        (SimpleNamespace(id=5), "5"),
        (SimpleNamespace(id=0), "0"),
        (SimpleNamespace(id=ID), str(ID)),
        (SimpleNamespace(id=None, identity="ada"), "ada"),
        (SimpleNamespace(id=True), None),
        (SimpleNamespace(id=["ada"]), None),
        (SimpleUser("ada"), "ada"),
        (UnauthenticatedUser(), None),
        (Plain(), None),
        ({"id": 5, "sub": "ada"}, "5"),
        ({"id": None, "sub": "ada"}, "ada"),
        ({"name": "ada"}, None),
        (object(), None),
        (None, None),
        ("", None),
    ],
)
def test_the_users_id_is_found_in_the_user(user: Any, found: str | None) -> None:
    assert Identity(user).user_id == found


def test_a_given_id_goes_before_one_that_is_found() -> None:
    identity = Identity(User("ada"), user_id="ada@example.org")
    assert identity.user_id == "ada@example.org"
    assert evolve(identity, scopes=["read"]).user_id == "ada@example.org"


def test_a_given_id_is_a_str_that_is_not_empty() -> None:
    with pytest.raises(WrongTypeError, match=r"write str\(id\), not int"):
        Identity("ada", user_id=5)  # type: ignore[arg-type]
    with pytest.raises(WrongValueError, match="not empty"):
        Identity("ada", user_id="")


def test_an_error_of_the_user_itself_is_let_through() -> None:
    class Broken:
        @property
        def identity(self) -> str:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Identity(Broken())


# Identity


def test_a_forgotten_await_does_not_let_anybody_in() -> None:
    async def find() -> str:
        return "ada"  # pragma: no cover - the coroutine never runs

    with pytest.raises(WrongTypeError, match=r"write Identity\(await find_user"):
        Identity(find())


def test_auth_is_the_part_of_an_identity_without_the_user() -> None:
    moment = time.time() + 60
    assert Identity("ada", ["read"], moment).auth == Auth(frozenset({"read"}), moment)


def test_an_identity_with_a_user_of_any_kind_can_be_a_key() -> None:
    assert {Identity({"id": 1}): 1}[Identity({"id": 1})] == 1


async def test_a_renewal_is_kept_and_compares_nothing() -> None:
    async def renew(token: str) -> str:
        return token

    identity = Identity("ada", renew=renew)
    assert identity.renew is not None
    assert await identity.renew("new") == "new"
    assert identity == Identity("ada")
    with pytest.raises(WrongTypeError, match="renew is an async function of a token, not str"):
        Identity("ada", renew="new")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "thing",
    [
        User("ada", {"email": MARKER}),
        Identity(User("ada", {"email": MARKER}), ["read"]),
        Identity({"sub": "ada", "token": MARKER}),
        Identity(SimpleNamespace(id=1, token=MARKER)),
    ],
)
def test_no_repr_shows_claims(thing: object) -> None:
    assert MARKER not in repr(thing)
    assert MARKER not in str(thing)
