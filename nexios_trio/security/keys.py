"""The keys that tokens are checked by: secrets, public keys, JWKs and an issuer's set of them (RFC 7517)."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import jwt as pyjwt
import trio
from attrs import define, field, frozen
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from nexios_trio.exceptions import AuthenticationError, WrongTypeError, WrongValueError

PublicKey: TypeAlias = (
    rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
)

__all__ = ["ALGORITHMS", "SECRET_BYTES", "Key", "KeySet", "PublicKey", "key_for"]

logger = logging.getLogger("nexios_trio.security")

# RFC 7518 §3.1, RFC 8037 §3.1, RFC 8812 §3.2: the keys that an algorithm takes. A table of our own, as PyJWT
# knows "none", and lets others be registered.
ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "HS256": ("a secret",),
    "HS384": ("a secret",),
    "HS512": ("a secret",),
    "RS256": ("an RSA key",),
    "RS384": ("an RSA key",),
    "RS512": ("an RSA key",),
    "PS256": ("an RSA key",),
    "PS384": ("an RSA key",),
    "PS512": ("an RSA key",),
    "ES256": ("a P-256 key",),
    "ES384": ("a P-384 key",),
    "ES512": ("a P-521 key",),
    "ES256K": ("a secp256k1 key",),
    "EdDSA": ("an Ed25519 key", "an Ed448 key"),
}
_CURVES: Final = {
    "secp256r1": "a P-256 key",
    "secp384r1": "a P-384 key",
    "secp521r1": "a P-521 key",
    "secp256k1": "a secp256k1 key",
}
SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_BITS: Final = 2048
_FROM_JWK: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    "oct": HMACAlgorithm.from_jwk,
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


@frozen
class Key:
    """A key that checks signatures. ``alg`` is the one algorithm that its JWK allows (RFC 7517 §4.4)."""

    kind: str
    material: Any = field(repr=False)
    kid: str | None = None
    alg: str | None = None

    def misfit(self, algorithm: str) -> str | None:
        """Why the key is not for ``algorithm`` (RFC 8725 §3.1); None if it is."""
        if self.alg is not None and self.alg != algorithm:
            return f'the JWK is for {self.alg} only: write algorithms=["{self.alg}"]'
        if self.kind not in ALGORITHMS[algorithm]:
            return f"{algorithm} takes {' or '.join(ALGORITHMS[algorithm])}, and key is {self.kind}"
        least = SECRET_BYTES.get(algorithm, 0)
        if least and len(self.material) < least:  # RFC 7518 §3.2
            return (
                f"{algorithm} takes a secret of {least} bytes or more, and key has {len(self.material)}: "
                f"make one with secrets.token_bytes({least})"
            )
        return None


def _secret(secret: bytes) -> bytes:
    """``secret``, unless it is a public key, by which everybody could sign (RFC 8725 §2.1)."""
    try:
        jwk = json.loads(secret)
    except (ValueError, RecursionError):
        jwk = None
    public = b"-----BEGIN" in secret or (isinstance(jwk, dict) and "kty" in jwk)
    try:
        serialization.load_der_public_key(secret)
        public = True
    except Exception:  # noqa: S110 - whatever is wrong with it: it is no public key
        pass
    try:
        if secret:  # an empty one is too short, which `misfit` says
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except pyjwt.InvalidKeyError:
        public = True
    if public:
        raise WrongValueError(
            "key is a public key, a certificate or a JWK as text, and no secret for HS*: write "
            'algorithms=["RS256"] (or "ES256", "EdDSA", after the key), or key=json.loads(key) for a JWK'
        )
    return secret


def _checking(material: object, kid: str | None = None, alg: str | None = None) -> Key:
    """What `cryptography` or PyJWT has loaded, as a key of ours."""
    if isinstance(material, bytes):
        return Key("a secret", _secret(material), kid, alg)
    if isinstance(material, rsa.RSAPublicKey):
        if material.key_size < _RSA_BITS:  # RFC 7518 §3.3
            raise WrongValueError(f"an RSA key has {_RSA_BITS} bits or more, and key has {material.key_size}")
        return Key("an RSA key", material, kid, alg)
    if isinstance(material, ec.EllipticCurvePublicKey):
        return Key(_CURVES.get(material.curve.name, "a key of another curve"), material, kid, alg)
    if isinstance(material, ed25519.Ed25519PublicKey):
        return Key("an Ed25519 key", material, kid, alg)
    if isinstance(material, ed448.Ed448PublicKey):
        return Key("an Ed448 key", material, kid, alg)
    if hasattr(material, "public_key"):
        raise WrongValueError(
            "key is a private key, and to check takes the public one: write key.public_key()"
        )
    raise WrongTypeError(
        "key is a secret (str or bytes), a public key as PEM or object of cryptography, or a JWK as dict, "
        f"not {type(material).__name__}"
    )


def _from_jwk(jwk: object) -> Key:
    if not isinstance(jwk, Mapping):
        raise WrongTypeError(f"a JWK is a dict, not {type(jwk).__name__}")
    kty, kid, alg = jwk.get("kty"), jwk.get("kid"), jwk.get("alg")
    if not isinstance(kty, str) or kty not in _FROM_JWK:
        hint = "; for a set of keys write jwks=lambda: keys" if "keys" in jwk else ""
        raise WrongValueError(f"a JWK has a kty, one of {', '.join(_FROM_JWK)}{hint}")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise WrongValueError("the JWK is not for checking signatures (RFC 7517 §4.2, §4.3: use, key_ops)")
    if kid is not None and not isinstance(kid, str):
        raise WrongValueError("the kid of a JWK is a str (RFC 7517 §4.5)")
    if alg is not None and (not isinstance(alg, str) or alg not in ALGORITHMS):
        raise WrongValueError(f"the alg of a JWK is one of {', '.join(ALGORITHMS)}")
    try:
        material = _FROM_JWK[kty](dict(jwk))
    except Exception:  # KeyError, TypeError and more, by what is wrong with it
        material = None
    # Not in the except: errors of PyJWT hold what was in the JWK, and that may be secret.
    if material is None:
        raise WrongValueError(f"the members of the JWK make no key of kty {kty}")
    return _checking(material, kid, alg)


def _from_text(text: bytes) -> Key:
    try:
        if text.startswith((b"ssh-", b"ecdsa-sha2-")):
            material: object = serialization.load_ssh_public_key(text)
        elif b"PRIVATE KEY" in text:
            material = serialization.load_pem_private_key(text, None)
        else:
            material = serialization.load_pem_public_key(text)
    except Exception:  # ValueError, TypeError and more, by what is wrong with it
        material = None
    if material is None:
        raise WrongValueError(
            'key is text, and no public key: that begins with "-----BEGIN PUBLIC KEY-----" and keeps its '
            "line ends; a JWK is passed as json.loads(key)"
        )
    return _checking(material)


def key_for(key: object, algorithms: tuple[str, ...]) -> Key:
    if isinstance(key, Mapping):
        made = _from_jwk(key)
    elif isinstance(key, str | bytes):
        raw = key.encode() if isinstance(key, str) else key
        made = _checking(raw) if algorithms[0] in SECRET_BYTES else _from_text(raw)
    else:
        made = _checking(key)
    for algorithm in algorithms:
        if problem := made.misfit(algorithm):
            raise WrongValueError(problem)
    return made


@define(eq=False)
class _Known:
    """The issuer's keys, as one run of Trio has them."""

    keys: tuple[Key, ...] = ()
    fetched: float = -math.inf
    tried: float = -math.inf
    """When the last fetch ended, in a success or not."""
    fetching: trio.Event | None = None


class KeySet:
    """The keys of an issuer: fetched, kept, and fetched again, at most once at a time and per ``retry``."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Mapping[str, Any]] | Mapping[str, Any]],
        algorithms: tuple[str, ...],
        *,
        lifetime: float,
        stale: float,
        retry: float,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._fetch = fetch
        self._algorithms = algorithms
        self._lifetime = lifetime
        self._stale = stale
        self._retry = retry
        self._timeout = timeout
        self._clock = clock
        # In tests an app outlives runs of Trio: the event and the clock of one mean nothing in the next.
        self._run: trio.lowlevel.RunVar[_Known | None] = trio.lowlevel.RunVar(
            "nexios_trio.security.jwt", None
        )

    async def find(self, algorithm: str, kid: str | None) -> Key:
        known = self._run.get()
        if known is None:
            known = _Known()
            self._run.set(known)
        if self._clock() - known.fetched >= self._lifetime:
            await self._refresh(known)
            if self._clock() - known.fetched >= self._lifetime + self._stale:
                # Not the client's fault. Yet it is not let in, and what an authenticator raises for that is
                # one error: a second one would be caught in fewer places. The log has the fault.
                raise AuthenticationError("the keys of the issuer cannot be had")
        if not self._named(known, algorithm, kid):
            await self._refresh(known)
        named = self._named(known, algorithm, kid)
        if not named and kid is not None:
            raise AuthenticationError("the issuer has no key of the token's kid")
        fitting = [key for key in named if key.misfit(algorithm) is None]
        if len(fitting) != 1:  # none of several is tried out: RFC 7515 §4.1.4 has kid for that
            raise AuthenticationError(f"{len(fitting) or 'none'} of the issuer's keys fit the token")
        return fitting[0]

    @staticmethod
    def _named(known: _Known, algorithm: str, kid: str | None) -> list[Key]:
        if kid is not None:  # RFC 7517 §4.5: keys of different types may share one
            return [key for key in known.keys if key.kid == kid]
        return [key for key in known.keys if key.misfit(algorithm) is None]

    async def _refresh(self, known: _Known) -> None:
        if known.fetching is None:
            if self._clock() - known.tried < self._retry:
                return
            known.fetching = trio.Event()
            # The fetch belongs to no client. In the task of the first one it would die with that one's
            # connection, and whoever connects and leaves in a loop would begin a new one each time.
            trio.lowlevel.spawn_system_task(self._try, known, known.fetching)
        await known.fetching.wait()

    async def _try(self, known: _Known, done: trio.Event) -> None:
        try:
            with trio.fail_after(self._timeout):
                answer = self._fetch()
                if inspect.isawaitable(answer):
                    answer = await answer
            known.keys = self._read(answer)
            known.fetched = self._clock()
        except Exception as error:  # one that leaves a system task ends the program
            logger.error("the keys of the issuer cannot be had (jwks=)", exc_info=error)
        finally:
            known.tried = self._clock()
            known.fetching = None
            done.set()

    def _read(self, answer: object) -> tuple[Key, ...]:
        listed = answer.get("keys") if isinstance(answer, Mapping) else None
        if not isinstance(listed, list):  # RFC 7517 §5.1
            raise WrongTypeError(
                'jwks returns the set of keys, {"keys": [...]}: write return response.json(); it returned '
                f"{type(answer).__name__}"
            )
        keys = []
        for jwk in listed:
            try:
                key = _from_jwk(jwk)
            except (WrongTypeError, WrongValueError):
                continue  # RFC 7517 §5: a set may hold keys that are not for us
            if any(key.misfit(algorithm) is None for algorithm in self._algorithms):
                keys.append(key)
        if not keys:
            logger.warning(
                "of the %d keys of the issuer none is for %s", len(listed), ", ".join(self._algorithms)
            )
        return tuple(keys)
