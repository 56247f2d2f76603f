"""Who a client is and what it may do, once an authenticator has looked at its credentials."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from attrs import field, frozen

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["Auth", "Identity", "User", "has_scopes"]


def _scopes(scopes: Iterable[str]) -> frozenset[str]:
    if isinstance(scopes, str):
        raise WrongTypeError('scopes are several str: write ["a", "b"], or "a b".split(), not one str')
    if not isinstance(scopes, Iterable):
        raise WrongTypeError(f'scopes are several str such as ["a", "b"], not {type(scopes).__name__}')
    scopes = tuple(scopes)
    for scope in scopes:
        if not isinstance(scope, str):
            raise WrongTypeError(f'each scope is a str: write ["a", "b"]; one is {type(scope).__name__}')
    return frozenset(scopes)


def _expires(moment: float | datetime | None) -> float | None:
    if moment is None:
        return None
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise WrongValueError(
                "expires is a datetime without a time zone, and nobody knows which moment that is; "
                "write datetime.now(UTC) + timedelta(hours=1)"
            )
        return moment.timestamp()
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise WrongTypeError(
            "expires is Unix time in seconds such as time.time() + 3600, a datetime with a time zone, or "
            f"None (never), not {type(moment).__name__}"
        )
    try:
        seconds = float(moment)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds) or seconds == -math.inf:
        raise WrongValueError(f"expires is a moment in Unix time, in seconds, not {moment!r}")
    return None if seconds == math.inf else seconds


def _id(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    # True is an int, and no id.
    return str(value) if isinstance(value, int | UUID) and not isinstance(value, bool) else None


def _user_id(user: object) -> str | None:
    if isinstance(user, Mapping):
        return _id(user.get("id")) or _id(user.get("sub"))
    found = _id(user) or _id(getattr(user, "id", None))
    if found is not None:
        return found
    try:
        return _id(getattr(user, "identity", None))
    except NotImplementedError:  # Starlette's BaseUser, not overridden
        return None


def _check_id(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise WrongTypeError(f"a user's id is a str: write User(str(id)), not {type(value).__name__}")
    if not value:
        raise WrongValueError("a user's id is a str that is not empty")


def _claims(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(claims, Mapping):
        raise WrongTypeError(f"a user's claims are a dict, not {type(claims).__name__}")
    return dict(claims)


@frozen
class User:
    """A user of whom we know what his token says, and no more.

    It has what Starlette's ``BaseUser`` has, so ``ws.user`` may be one or the other.
    """

    id: str = field(validator=_check_id)
    claims: Mapping[str, Any] = field(factory=dict, converter=_claims, repr=False, hash=False)
    """What the token says; not in the repr, which ends up in logs."""

    @property
    def is_authenticated(self) -> bool:
        """True: whom we do not know gets `AuthenticationError`."""
        return True

    @property
    def display_name(self) -> str:
        """The claim ``name`` (OpenID Connect Core §5.1) where there is one, else ``id``."""
        name = self.claims.get("name")
        return name if isinstance(name, str) and name else self.id

    @property
    def identity(self) -> str:
        """``id``."""
        return self.id


@frozen
class Auth:
    """What the client may do: ``ws.auth``. Read as Starlette's ``AuthCredentials``, by its ``scopes``."""

    scopes: frozenset[str] = field(default=frozenset(), converter=_scopes)
    expires: float | None = field(default=None, converter=_expires)
    """Unix time in seconds; None: never."""


@frozen
class Identity:
    """What an authenticator returns for a client that it knows.

    ``expires`` may be given as a datetime with a time zone. ``user_id`` names the user to limits, presence
    and ``send_to_user``; by default it is ``user`` itself if that is a str, ``user.id`` or
    ``user.identity``, or ``user["id"]`` or ``user["sub"]``, where that is a str, an int or a UUID; else None.

    The repr holds no user: that may be a dict of claims.
    """

    user: Any = field(repr=False, hash=False)
    scopes: frozenset[str] = field(default=frozenset(), converter=_scopes)
    expires: float | None = field(default=None, converter=_expires)
    """Unix time in seconds; None: never."""
    user_id: str | None = None
    renew: Callable[[str], Awaitable[Any]] | None = field(default=None, kw_only=True, repr=False, eq=False)
    """An async function of a new token, for `WebSocket.renew`: gives what an authenticator gives."""

    def __attrs_post_init__(self) -> None:
        if inspect.iscoroutine(self.user):
            self.user.close()  # else Python warns that it was never awaited, far from here
            raise WrongTypeError("user is a coroutine: write Identity(await find_user(...))")
        if self.user_id is None:
            object.__setattr__(self, "user_id", _user_id(self.user))
        elif not isinstance(self.user_id, str):
            raise WrongTypeError(f"user_id is a str: write str(id), not {type(self.user_id).__name__}")
        elif not self.user_id:
            raise WrongValueError("user_id is a str that is not empty, or None")
        if self.renew is not None and not callable(self.renew):
            raise WrongTypeError(f"renew is an async function of a token, not {type(self.renew).__name__}")

    @property
    def auth(self) -> Auth:
        """What ``ws.auth`` becomes."""
        return Auth(self.scopes, self.expires)


def has_scopes(auth: object, required: Iterable[str]) -> bool:
    """Whether ``auth`` has all of the scopes ``required``; expiry is not looked at.

    ``auth`` is an `Auth`, Starlette's ``AuthCredentials``, or anything without ``scopes``, which has none.
    """
    return _scopes(required) <= _scopes(getattr(auth, "scopes", None) or ())
