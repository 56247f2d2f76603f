"""JSON Web Tokens (RFC 7519) as credentials, checked as RFC 8725 (Best Current Practices) wants it.

PyJWT checks signatures and claims. What it leaves to its caller is decided here: which algorithms, which key,
what a refusal says. What it says never holds a part of the token: it goes to the log.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import trio
from attrs import evolve

from nexios_trio.exceptions import AuthenticationError, WrongTypeError, WrongValueError
from nexios_trio.security.identity import Identity, User

try:
    import jwt as pyjwt

    from nexios_trio.security.keys import ALGORITHMS, SECRET_BYTES, Key, KeySet, PublicKey, key_for
except ImportError as missing:
    raise ImportError(
        f'JWT needs PyJWT and cryptography: pip install "nexios-trio[jwt]" ({missing})', name=missing.name
    ) from missing

__all__ = ["JWT"]

# RFC 7515 §7.1, and §2: base64url without padding, line breaks or anything else.
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

_MALFORMED: Final = "the token is malformed"
_PROBLEMS: Final[tuple[tuple[type[pyjwt.PyJWTError], str], ...]] = (
    (pyjwt.ExpiredSignatureError, "the token has expired"),
    (pyjwt.ImmatureSignatureError, "the token is not valid yet"),
    (pyjwt.InvalidIssuerError, "wrong issuer"),
    (pyjwt.InvalidIssuedAtError, "the token's iat claim is not a number"),
    (pyjwt.exceptions.InvalidSubjectError, "the token's sub claim is not a str"),
    (pyjwt.exceptions.InvalidJTIError, "the token's jti claim is not a str"),
    (pyjwt.InvalidSignatureError, "wrong signature"),
)


class JWT:
    """Checks JSON Web Tokens: ``await jwt(token)`` is an `Identity`, or raises `AuthenticationError`.

    * ``key``: a secret (``HS*``), or a public key as PEM, as an object of ``cryptography`` or as a JWK (a
      dict). For keys that an issuer changes, give ``jwks`` instead.
    * ``algorithms``: those of your tokens, such as ``["RS256"]``; a token of any other is refused.
    * ``audience``: who this server is, as the issuer calls it; a token's ``aud`` must hold it (or one of
      several). None must be written out, and means that the issuer names none: a token with one is refused.
    * ``issuer``: the token's ``iss`` must be it, or one of several. None: any; the key alone decides.
    * ``jwks``: a function, async or not, that returns the issuer's set of keys (RFC 7517 §5) as a dict. It
      runs in a system task, which no client's leaving cancels and which has no context variables of clients.
    * ``jwks_lifetime``: seconds after which the set is fetched again.
    * ``jwks_retry``: seconds between two fetches at least: after a failed one, and for keys nobody knows.
    * ``jwks_stale``: seconds beyond ``jwks_lifetime`` for which the old set serves while fetches fail.
    * ``jwks_timeout``: seconds that a fetch may take.
    * ``leeway``: seconds by which the issuer's clock may differ from ours, for ``exp``, ``nbf``, ``iat``.
    * ``require``: claims that a token must have.
    * ``scopes_claim``: the claim with the scopes, as a str with spaces (RFC 8693 §4.2) or a list of str. A
      token without it has none.
    * ``user``: a function, async or not, that makes the user of the claims; None from it refuses the token.
      Default: `User`, for which a token must have a ``sub``.
    * ``max_bytes``: a longer token is refused unread.
    * ``clock``: seconds, for the age of ``jwks``. Claims are held against the time of day.

    Raises `WrongTypeError` or `WrongValueError` for what would not be safe: no algorithms, "none", secrets
    mixed with public keys, a secret shorter than the hash (RFC 7518 §3.2) or that is a public key, an RSA
    key of less than 2048 bits (§3.3), a private key.

    No header of a token brings a key: ``jwk``, ``jku``, ``x5c``, ``x5u`` are not looked at (RFC 8725 §3.10).
    """

    def __init__(
        self,
        key: str | bytes | PublicKey | Mapping[str, Any] | None = None,
        *,
        algorithms: Sequence[str],
        audience: str | Iterable[str] | None,
        issuer: str | Iterable[str] | None = None,
        jwks: Callable[[], Awaitable[Mapping[str, Any]] | Mapping[str, Any]] | None = None,
        jwks_lifetime: float = 300,
        jwks_retry: float = 10,
        jwks_stale: float = 3600,
        jwks_timeout: float = 5,
        leeway: float = 0,
        require: Sequence[str] = ("exp",),
        scopes_claim: str = "scope",
        user: Callable[[Mapping[str, Any]], Any] | None = None,
        max_bytes: int = 8192,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._algorithms = _algorithms(algorithms)
        self._audience = None if audience is None else _names("audience", audience)
        self._issuer = None if issuer is None else _names("issuer", issuer)
        self._require = _names("require", require, least=0, several=True)
        self._leeway = _seconds("leeway", leeway, zero=True)
        (self._scopes_claim,) = _names("scopes_claim", scopes_claim)
        if user is not None and not callable(user):
            raise WrongTypeError(f"user is a function of the claims, not {type(user).__name__}")
        self._user = user
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
            raise WrongTypeError(f"max_bytes is a whole number, not {max_bytes!r}")
        if max_bytes < 1:
            raise WrongValueError(f"max_bytes is at least 1, not {max_bytes!r}")
        self._max_bytes = max_bytes
        if (key is None) == (jwks is None):
            raise WrongTypeError(
                "give one of key= (one key) and jwks= (a function that returns an issuer's keys)"
            )
        if jwks is None:
            self._key: Key | KeySet = key_for(key, self._algorithms)
        elif not callable(jwks):
            raise WrongTypeError(
                "jwks is a function that fetches the keys, such as `async def jwks(): return (await "
                f"client.get(url)).json()`, not {type(jwks).__name__}"
            )
        else:
            self._key = KeySet(
                jwks,
                self._algorithms,
                lifetime=_seconds("jwks_lifetime", jwks_lifetime, infinite=True),
                stale=_seconds("jwks_stale", jwks_stale, zero=True, infinite=True),
                retry=_seconds("jwks_retry", jwks_retry),
                timeout=_seconds("jwks_timeout", jwks_timeout),
                clock=clock,
            )
        self._pyjwt = pyjwt.PyJWT()

    def __repr__(self) -> str:
        return f"JWT(algorithms={list(self._algorithms)}, audience={self._audience}, issuer={self._issuer})"

    async def __call__(self, token: str | bytes | None) -> Identity:
        """Who the token names. Always a checkpoint; waits only for ``jwks`` and ``user``.

        ``Identity.expires`` is ``exp`` and the leeway: the moment from which on the token would be refused.
        None or an empty token is `AuthenticationError` with the cause "no credentials". The errors hold
        nothing of the token, and no error of PyJWT, which would. What ``user`` raises is let through.
        """
        await trio.lowlevel.checkpoint()
        text, header = self._split(token)
        algorithm, kid = self._header(header)
        key = self._key
        if isinstance(key, KeySet):
            key = await key.find(algorithm, kid)
        return await self._identity(self._claims(text, key, algorithm))

    def _split(self, token: object) -> tuple[str, str]:
        if token is None or token in ("", b""):
            raise AuthenticationError
        if not isinstance(token, str | bytes):  # out of a JSON message, it may be anything
            raise AuthenticationError("the token is not a str")
        if len(token) > self._max_bytes:
            raise AuthenticationError(f"the token is longer than {self._max_bytes} bytes")
        text = token if isinstance(token, str) else token.decode("latin-1")
        compact = _COMPACT.fullmatch(text)
        if compact is None:
            encrypted = text.count(".") == 4  # RFC 7516 §7.1
            raise AuthenticationError(
                "the token is an encrypted one (JWE)" if encrypted else "the token is no JWT (RFC 7515 §7.1)"
            )
        return text, compact[1]

    def _header(self, segment: str) -> tuple[str, str | None]:
        try:
            header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode())
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise AuthenticationError("the token's header is no JSON object")
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:  # RFC 8725 §3.1, §3.2
            raise AuthenticationError(f"the token's algorithm is not {' or '.join(self._algorithms)}")
        # RFC 7515 §4.1.11: what is critical must be understood, and we know no extension. RFC 7797 §6 has b64
        # in crit; a token that forgets it is read in two ways.
        if "crit" in header or header.get("b64", True) is not True:
            raise AuthenticationError("the token has critical extensions (crit), and none is known here")
        kid = header.get("kid")
        if "kid" in header and not isinstance(kid, str):  # RFC 7515 §4.1.4
            raise AuthenticationError("the token's kid is not a str")
        return algorithm, kid

    def _claims(self, text: str, key: Key, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = self._pyjwt.decode(
                text,
                key.material,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": list(self._require)},
            )
        except pyjwt.PyJWTError as error:
            problem = self._problem(error)
        except (ValueError, TypeError, OverflowError, RecursionError):
            problem = _MALFORMED  # PyJWT 2.10 lets them out of json.loads and int(exp)
        else:
            for name in ("exp", "nbf", "iat"):  # RFC 7519 §2, NumericDate; PyJWT takes "1" and true as well
                if name in claims and not _is_number(claims[name]):
                    raise AuthenticationError(f"the token's {name} claim is not a number")
            return claims
        # Here, and not in the except: the errors of PyJWT and json hold parts of the token.
        raise AuthenticationError(problem)

    def _problem(self, error: pyjwt.PyJWTError) -> str:
        if isinstance(error, pyjwt.MissingRequiredClaimError):  # the name is one of ours
            return f"the token has no {error.claim} claim"
        if isinstance(error, pyjwt.InvalidAudienceError):
            if self._audience is None:
                return "the token has an audience (aud), and none is expected here (audience=None)"
            return "wrong audience"
        return next((text for kind, text in _PROBLEMS if isinstance(error, kind)), _MALFORMED)

    async def _identity(self, claims: dict[str, Any]) -> Identity:
        scopes = claims.get(self._scopes_claim, "")
        if isinstance(scopes, str):
            scopes = scopes.split(" ")  # RFC 6749 §3.3: by spaces, not by any white space
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            raise AuthenticationError(f"the token's {self._scopes_claim} claim is no str and no list of str")
        expires = claims["exp"] + self._leeway if "exp" in claims else None
        subject: str | None = claims.get("sub") or None
        if self._user is None:
            if subject is None:
                raise AuthenticationError("the token has no sub claim")
            return Identity(User(subject, claims), filter(None, scopes), expires)
        user = self._user(claims)
        if inspect.isawaitable(user):
            user = await user
        if user is None:
            raise AuthenticationError("the token's user is not known here")
        identity = Identity(user, filter(None, scopes), expires)
        return identity if identity.user_id is not None else evolve(identity, user_id=subject)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _algorithms(algorithms: object) -> tuple[str, ...]:
    if isinstance(algorithms, str):
        raise WrongTypeError(f'algorithms are several str: write algorithms=["{algorithms}"]')
    names = _names("algorithms", algorithms, several=True)
    for name in names:
        if name.lower() == "none":  # RFC 8725 §3.2
            raise WrongValueError(
                'a token of the algorithm "none" is signed by nobody: write that of your tokens, such as '
                'algorithms=["HS256"] or algorithms=["RS256"]'
            )
        if name not in ALGORITHMS:
            raise WrongValueError(
                f"algorithms are some of {', '.join(ALGORITHMS)}, and {name!r} is none of them"
            )
    secret = [name for name in names if name in SECRET_BYTES]
    if secret and len(secret) < len(names):
        raise WrongValueError(  # RFC 8725 §2.1
            f"{secret[0]} takes a secret where others take a public key, and one might pass for the other: "
            f"write two, JWT(secret, algorithms={secret}, ...) and JWT(public_key, algorithms="
            f"{[name for name in names if name not in SECRET_BYTES]}, ...)"
        )
    return names


def _names(what: str, names: object, *, least: int = 1, several: bool = False) -> tuple[str, ...]:
    if isinstance(names, str):
        if several:
            raise WrongTypeError(f'{what} are several str: write {what}=["{names}"]')
        names = (names,)
    if not isinstance(names, Iterable):
        raise WrongTypeError(f"{what} is made of str, not of {type(names).__name__}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise WrongTypeError(f"{what} is made of str, not of {type(name).__name__}")
        if not name:
            raise WrongValueError(f"{what} is a str that is not empty")
    if len(found) < least:
        raise WrongValueError(f"{what} has at least one str")
    return found


def _seconds(what: str, value: object, *, zero: bool = False, infinite: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongTypeError(f"{what} is a number of seconds, not {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero) or (value == math.inf and not infinite):
        least = "0 or more" if zero else "more than 0"
        most = "math.inf: for ever" if infinite else "and finite"
        raise WrongValueError(f"{what} is {least} seconds ({most}), not {value!r}")
    return float(value)
