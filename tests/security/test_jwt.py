"""JSON Web Tokens: the good ones come in; of a bad one comes nothing but an error that keeps its secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import logging
import math
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt as pyjwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from trio.testing import MockClock

from nexios_trio.exceptions import AuthenticationError, UsageError, WrongTypeError, WrongValueError
from nexios_trio.security import jwt as module
from nexios_trio.security.identity import Identity, User
from nexios_trio.security.jwt import JWT

SECRET = secrets.token_bytes(64)
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())
K256 = ec.generate_private_key(ec.SECP256K1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()

MARKER = "s3cret-marker"

SIGNERS: list[tuple[str, Any, Any]] = [
    *((name, SECRET, SECRET) for name in ("HS256", "HS384", "HS512")),
    *((name, RSA, RSA.public_key()) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ("ES256", P256, P256.public_key()),
    ("ES384", P384, P384.public_key()),
    ("ES512", P521, P521.public_key()),
    ("ES256K", K256, K256.public_key()),
    ("EdDSA", ED25519, ED25519.public_key()),
    ("EdDSA", ED448, ED448.public_key()),
]
each_signer = pytest.mark.parametrize(("algorithm", "private", "public"), SIGNERS)


def pem(key: Any) -> bytes:
    made: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    if isinstance(key, bytes):
        made: Mapping[str, Any] = HMACAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        made = ECAlgorithm.to_jwk(key, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(key, as_dict=True)
    return {**made, **members}


def claims(**others: Any) -> dict[str, Any]:
    """What makes a good token; None leaves a claim out."""
    good = {"sub": "ada", "exp": int(time.time()) + 3600}
    return {name: value for name, value in {**good, **others}.items() if value is not None}


def token(
    payload: Mapping[str, Any] | None = None,
    key: Any = SECRET,
    algorithm: str = "HS256",
    headers: dict[str, Any] | None = None,
) -> str:
    return pyjwt.encode(dict(claims() if payload is None else payload), key, algorithm, headers)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_json(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def signed(header: Any, payload: Any) -> str:
    """What PyJWT would not make, with a good HS256 signature."""
    text = f"{b64(as_json(header))}.{b64(as_json(payload))}"
    return f"{text}.{b64(hmac.digest(SECRET, text.encode(), hashlib.sha256))}"


HS256 = {"alg": "HS256", "typ": "JWT"}


def hs256(**options: Any) -> JWT:
    return JWT(SECRET, **{"algorithms": ["HS256"], "audience": None, **options})


async def refused(jwt: JWT, text: Any) -> str:
    """The cause, once it is sure that the error brings along nothing else."""
    with pytest.raises(AuthenticationError) as caught:
        await jwt(text)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert MARKER not in "".join(traceback.format_exception(error, limit=0))
    if isinstance(text, str) and len(text) > 20:
        assert text not in str(error)
    return error.cause


# Good tokens


@each_signer
async def test_a_good_token_of_every_algorithm_names_its_user(
    algorithm: str, private: Any, public: Any
) -> None:
    payload = claims(scope="read write")
    jwt = JWT(public, algorithms=[algorithm], audience=None)
    identity = await jwt(token(payload, private, algorithm))
    assert identity == Identity(User("ada", payload), ["read", "write"], payload["exp"], "ada")
    assert await jwt(token(payload, private, algorithm).encode()) == identity


@each_signer
async def test_a_forged_signature_is_refused(algorithm: str, private: Any, public: Any) -> None:
    jwt = JWT(public, algorithms=[algorithm], audience=None)
    head, _, signature = token(claims(), private, algorithm).rpartition(".")
    for forged in ("", b64(bytes(64)), b64(bytes(256)), signature[:-8], signature[::-1] + "AA"):
        assert await refused(jwt, f"{head}.{forged}") in ("wrong signature", "the token is malformed")
    header, _, _ = head.partition(".")
    swapped = f"{header}.{b64(as_json(claims(sub='eve')))}.{signature}"
    assert await refused(jwt, swapped) == "wrong signature"


@pytest.mark.parametrize(("algorithm", "private", "public"), [s for s in SIGNERS if s[0][0] != "H"])
async def test_a_public_key_is_taken_as_pem_and_as_jwk_too(algorithm: str, private: Any, public: Any) -> None:
    text = token(claims(), private, algorithm)
    keys: list[Any] = [pem(public), pem(public).decode(), jwk(public), jwk(public, alg=algorithm, use="sig")]
    for key in keys:
        assert (await JWT(key, algorithms=[algorithm], audience=None)(text)).user_id == "ada"


async def test_a_public_key_is_taken_as_ssh_has_it() -> None:
    key = ED25519.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    jwt = JWT(key, algorithms=["EdDSA"], audience=None)
    assert (await jwt(token(claims(), ED25519, "EdDSA"))).user_id == "ada"


async def test_a_secret_is_taken_as_str_and_as_jwk_too() -> None:
    key = "correct horse battery staple, and then some more"
    text = token(claims(), key)
    for each in (key, key.encode(), jwk(key.encode()), jwk(key.encode(), kid="1")):
        assert (await JWT(each, algorithms=["HS256"], audience=None)(text)).user_id == "ada"


async def test_several_algorithms_of_one_kind_go_together() -> None:
    jwt = JWT(RSA.public_key(), algorithms=("RS256", "PS256"), audience=None)
    for algorithm in ("RS256", "PS256"):
        assert (await jwt(token(claims(), RSA, algorithm))).user_id == "ada"
    assert await refused(jwt, token(claims(), RSA, "RS512")) == "the token's algorithm is not RS256 or PS256"


async def test_no_credentials_are_told_from_bad_ones() -> None:
    for nothing in (None, "", b""):
        with pytest.raises(AuthenticationError) as caught:
            await hs256()(nothing)
        assert caught.value.public_reason == "authentication required"
    with pytest.raises(AuthenticationError) as caught:
        await hs256()("bad")
    assert caught.value.public_reason == "authentication failed"


async def test_checking_is_a_checkpoint() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await hs256()(token())
    assert scope.cancelled_caught


# Algorithms


@pytest.mark.parametrize("none", ["none", "None", "NONE", "nOnE", "nonE"])
async def test_a_token_that_nobody_signed_is_refused(none: str) -> None:
    for signature in ("", b64(b"x"), token().rpartition(".")[2]):
        text = f"{b64(as_json({'alg': none}))}.{b64(as_json(claims()))}.{signature}"
        assert await refused(hs256(), text) == "the token's algorithm is not HS256"
        jwt = JWT(RSA.public_key(), algorithms=["RS256", "RS512"], audience=None)
        assert await refused(jwt, text) == "the token's algorithm is not RS256 or RS512"
    with pytest.raises(WrongValueError, match="is signed by nobody"):
        JWT(SECRET, algorithms=["HS256", none], audience=None)


@pytest.mark.parametrize("alg", [None, 1, True, ["HS256"], {"HS256": 1}, "hs256", "HS256 ", ""])
async def test_an_algorithm_is_one_of_the_pinned_to_the_letter(alg: Any) -> None:
    assert await refused(hs256(), signed({"alg": alg}, claims())) == "the token's algorithm is not HS256"


async def test_a_token_without_algorithm_is_refused() -> None:
    assert await refused(hs256(), signed({"typ": "JWT"}, claims())) == "the token's algorithm is not HS256"


@pytest.mark.parametrize("of", [RSA, P256, ED25519])
async def test_a_public_key_is_no_secret(of: Any) -> None:
    public = of.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ssh = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    as_text: list[Any] = [pem(public), pem(public).decode(), b"\n " + pem(public), der, ssh]
    for key in (*as_text, json.dumps(jwk(public))):
        with pytest.raises(WrongValueError, match=r'no secret for HS\*: write algorithms=\["RS256"\]'):
            JWT(key, algorithms=["HS256"], audience=None)
    for key in (public, jwk(public)):
        with pytest.raises(WrongValueError, match=r"HS256 takes a secret, and key is an? "):
            JWT(key, algorithms=["HS256"], audience=None)


async def test_a_token_signed_with_the_public_key_as_secret_is_refused() -> None:
    text = f"{b64(as_json(HS256))}.{b64(as_json(claims(sub='eve')))}"
    forged = f"{text}.{b64(hmac.digest(pem(RSA.public_key()), text.encode(), hashlib.sha256))}"
    for key in (pem(RSA.public_key()), RSA.public_key(), jwk(RSA.public_key())):
        jwt = JWT(key, algorithms=["RS256"], audience=None)
        assert await refused(jwt, forged) == "the token's algorithm is not RS256"
    jwt = JWT(jwks=lambda: {"keys": [jwk(RSA.public_key())]}, algorithms=["RS256"], audience=None)
    assert await refused(jwt, forged) == "the token's algorithm is not RS256"


def test_secrets_and_public_keys_do_not_mix() -> None:
    with pytest.raises(WrongValueError) as caught:
        JWT(pem(RSA.public_key()), algorithms=["RS256", "HS256", "ES256"], audience=None)
    assert "JWT(secret, algorithms=['HS256'], ...)" in str(caught.value)
    assert "JWT(public_key, algorithms=['RS256', 'ES256'], ...)" in str(caught.value)


async def test_keys_in_the_header_are_not_looked_at() -> None:
    for members in (
        {"jwk": jwk(OTHER_RSA.public_key())},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/chain", "x5c": ["AAAA"]},
    ):
        jwt = JWT(RSA.public_key(), algorithms=["RS256"], audience=None)
        assert await refused(jwt, token(claims(), OTHER_RSA, "RS256", members)) == "wrong signature"
        assert (await jwt(token(claims(), RSA, "RS256", members))).user_id == "ada"


@pytest.mark.parametrize(
    "members",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": None},
        {"crit": [MARKER], MARKER: 1},
        {"crit": ["b64"], "b64": False},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"b64": None},
    ],
)
async def test_what_is_critical_is_not_understood(members: dict[str, Any]) -> None:
    cause = await refused(hs256(), signed({**HS256, **members}, claims()))
    assert cause == "the token has critical extensions (crit), and none is known here"


# Construction


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"algorithms": "HS256"}, WrongTypeError, r'write algorithms=\["HS256"\]'),
        ({"algorithms": []}, WrongValueError, "algorithms has at least one str"),
        ({"algorithms": None}, WrongTypeError, "algorithms is made of str, not of NoneType"),
        ({"algorithms": ["hs256"]}, WrongValueError, "HS256, HS384, .* and 'hs256' is none of them"),
        ({"algorithms": ["ES521"]}, WrongValueError, "'ES521' is none of them"),
        ({"algorithms": [256]}, WrongTypeError, "algorithms is made of str, not of int"),
        ({"audience": ""}, WrongValueError, "audience is a str that is not empty"),
        ({"audience": []}, WrongValueError, "audience has at least one str"),
        ({"audience": 5}, WrongTypeError, "audience is made of str, not of int"),
        ({"issuer": ["a", ""]}, WrongValueError, "issuer is a str that is not empty"),
        ({"issuer": [None]}, WrongTypeError, "issuer is made of str, not of NoneType"),
        ({"require": "exp"}, WrongTypeError, r'write require=\["exp"\]'),
        ({"scopes_claim": ""}, WrongValueError, "scopes_claim is a str that is not empty"),
        ({"leeway": -1}, WrongValueError, r"leeway is 0 or more seconds \(and finite\), not -1"),
        ({"leeway": math.inf}, WrongValueError, "and finite"),
        ({"leeway": math.nan}, WrongValueError, "0 or more"),
        ({"leeway": timedelta(seconds=5)}, WrongTypeError, "leeway is a number of seconds"),
        ({"leeway": True}, WrongTypeError, "leeway is a number of seconds"),
        ({"max_bytes": 0}, WrongValueError, "max_bytes is at least 1"),
        ({"max_bytes": 1e3}, WrongTypeError, "max_bytes is a whole number"),
        ({"max_bytes": True}, WrongTypeError, "max_bytes is a whole number"),
        ({"user": "sub"}, WrongTypeError, "user is a function of the claims, not str"),
        ({"jwks": dict}, WrongTypeError, r"give one of key= \(one key\) and jwks="),
    ],
)
def test_a_wrong_setting_is_refused_with_the_cure(
    options: dict[str, Any], error: type[UsageError], says: str
) -> None:
    with pytest.raises(error, match=says):
        hs256(**options)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"jwks": None}, WrongTypeError, r"give one of key= \(one key\) and jwks="),
        (
            {"jwks": "https://issuer.example/keys"},
            WrongTypeError,
            "jwks is a function that fetches .* not str",
        ),
        (
            {"jwks_lifetime": 0},
            WrongValueError,
            r"jwks_lifetime is more than 0 seconds \(math\.inf: for ever\)",
        ),
        ({"jwks_retry": 0}, WrongValueError, "jwks_retry is more than 0 seconds"),
        ({"jwks_retry": math.inf}, WrongValueError, "and finite"),
        ({"jwks_stale": -1}, WrongValueError, "jwks_stale is 0 or more seconds"),
        ({"jwks_timeout": 0}, WrongValueError, "jwks_timeout is more than 0 seconds"),
        ({"jwks_timeout": "5"}, WrongTypeError, "jwks_timeout is a number of seconds"),
    ],
)
def test_a_wrong_setting_of_a_key_set_is_refused_with_the_cure(
    options: dict[str, Any], error: type[UsageError], says: str
) -> None:
    with pytest.raises(error, match=says):
        JWT(**{"algorithms": ["RS256"], "audience": None, "jwks": dict, **options})


def test_algorithms_and_audience_must_be_written_out() -> None:
    with pytest.raises(TypeError, match="algorithms"):
        JWT(SECRET, audience=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="audience"):
        JWT(SECRET, algorithms=["HS256"])  # type: ignore[call-arg]


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_short_secret_is_refused(algorithm: str, least: int) -> None:
    short = bytes(least - 1)
    for key in (short, short.decode(), "", jwk(short)):
        with pytest.raises(WrongValueError, match=rf"secrets\.token_bytes\({least}\)"):
            JWT(key, algorithms=[algorithm], audience=None)
    JWT(bytes(least), algorithms=[algorithm], audience=None)
    with pytest.raises(WrongValueError, match=r"HS512 takes a secret of 64 bytes or more, and key has 32"):
        JWT(bytes(32), algorithms=["HS256", "HS512"], audience=None)


ENCRYPTED = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))


@pytest.mark.parametrize(
    ("key", "algorithm", "error", "says"),
    [
        (WEAK_RSA.public_key(), "RS256", WrongValueError, "2048 bits or more, and key has 1024"),
        (pem(WEAK_RSA.public_key()), "RS256", WrongValueError, "2048 bits or more, and key has 1024"),
        (jwk(WEAK_RSA.public_key()), "RS256", WrongValueError, "2048 bits or more, and key has 1024"),
        (RSA.public_key(), "ES256", WrongValueError, "ES256 takes a P-256 key, and key is an RSA key"),
        (P384.public_key(), "ES256", WrongValueError, "ES256 takes a P-256 key, and key is a P-384 key"),
        (pem(P384.public_key()), "ES256", WrongValueError, "and key is a P-384 key"),
        (P256.public_key(), "EdDSA", WrongValueError, "an Ed25519 key or an Ed448 key, and key is a P-256"),
        (ec.generate_private_key(ec.SECP224R1()).public_key(), "ES256", WrongValueError, "another curve"),
        (jwk(SECRET), "RS256", WrongValueError, "RS256 takes an RSA key, and key is a secret"),
        (SECRET, "RS256", WrongValueError, "key is text, and no public key"),
        ("not a key", "RS256", WrongValueError, "-----BEGIN PUBLIC KEY-----"),
        (json.dumps(jwk(RSA.public_key())), "RS256", WrongValueError, r"passed as json\.loads\(key\)"),
        (RSA, "RS256", WrongValueError, r"write key\.public_key\(\)"),
        (jwk(RSA, key_ops=["verify"]), "RS256", WrongValueError, r"write key\.public_key\(\)"),
        (
            RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "RS256",
            WrongValueError,
            r"write key\.public_key\(\)",
        ),
        (ENCRYPTED, "RS256", WrongValueError, "key is text, and no public key"),
        (dsa.generate_private_key(2048).public_key(), "RS256", WrongTypeError, "key is a secret"),
        (
            5,
            "RS256",
            WrongTypeError,
            "a public key as PEM or object of cryptography, or a JWK as dict, not int",
        ),
        ({}, "RS256", WrongValueError, "a JWK has a kty, one of oct, RSA, EC, OKP"),
        ({"kty": ["RSA"]}, "RS256", WrongValueError, "a JWK has a kty"),
        ({"keys": []}, "RS256", WrongValueError, "write jwks=lambda: keys"),
        ({"kty": "RSA"}, "RS256", WrongValueError, "the members of the JWK make no key of kty RSA"),
        ({"kty": "oct"}, "HS256", WrongValueError, "the members of the JWK make no key of kty oct"),
        ({"kty": "EC", "crv": "P-256", "x": 1, "y": 2}, "ES256", WrongValueError, "make no key of kty EC"),
        ({"kty": "OKP", "crv": MARKER, "x": "AA"}, "EdDSA", WrongValueError, "make no key of kty OKP"),
        (jwk(RSA.public_key(), use="enc"), "RS256", WrongValueError, "not for checking signatures"),
        (jwk(RSA.public_key(), use=None), "RS256", WrongValueError, "not for checking signatures"),
        (jwk(RSA.public_key(), key_ops=["encrypt"]), "RS256", WrongValueError, "not for checking signatures"),
        (jwk(RSA.public_key(), key_ops="verify"), "RS256", WrongValueError, "not for checking signatures"),
        (jwk(RSA.public_key(), kid=5), "RS256", WrongValueError, "the kid of a JWK is a str"),
        (jwk(RSA.public_key(), alg="RSA-OAEP"), "RS256", WrongValueError, "the alg of a JWK is one of"),
        (jwk(RSA.public_key(), alg="RS512"), "RS256", WrongValueError, r'write algorithms=\["RS512"\]'),
    ],
)
def test_a_key_that_does_not_fit_is_refused_with_the_cure(
    key: Any, algorithm: str, error: type[UsageError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        JWT(key, algorithms=[algorithm], audience=None)
    assert MARKER not in str(caught.value)
    assert caught.value.__context__ is None


def test_no_repr_shows_a_key() -> None:
    jwt = hs256(audience="me", issuer=["a", "b"])
    assert repr(jwt) == "JWT(algorithms=['HS256'], audience=('me',), issuer=('a', 'b'))"
    assert repr(SECRET)[2:-1] not in repr(jwt._key)


@pytest.mark.parametrize("absent", ["jwt", "cryptography.hazmat.primitives.asymmetric"])
def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.delitem(sys.modules, "nexios_trio.security.keys")
    spec = importlib.util.spec_from_file_location("a_second_jwt", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r'pip install "nexios-trio\[jwt\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# Claims


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        ({"exp": -60}, "the token has expired"),
        ({"exp": 0}, "the token has expired"),
        ({"nbf": 60}, "the token is not valid yet"),
        ({"iat": 60}, "the token is not valid yet"),
    ],
)
async def test_a_token_out_of_its_time_is_refused_but_for_the_leeway(
    payload: dict[str, int], cause: str
) -> None:
    moments = {name: int(time.time()) + seconds for name, seconds in payload.items()}
    text = token(claims(**moments))
    assert await refused(hs256(), text) == cause
    assert (
        await refused(hs256(leeway=10), token(claims(exp=int(time.time()) - 60))) == "the token has expired"
    )
    assert (await hs256(leeway=120)(text)).user_id == "ada"


async def test_an_identity_holds_as_long_as_the_token_would_be_taken() -> None:
    exp = int(time.time()) - 30
    assert (await hs256(leeway=60)(token(claims(exp=exp)))).expires == exp + 60
    assert (await hs256()(token(claims(exp=exp + 60.5)))).expires == exp + 60.5
    assert (await hs256(require=[])(token(claims(exp=None)))).expires is None


async def test_times_may_be_made_of_datetimes() -> None:
    exp = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    text = token(claims(exp=exp, nbf=datetime.now(UTC) - timedelta(hours=1)))
    assert (await hs256()(text)).expires == exp.timestamp()


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value",
    [
        str(int(time.time()) + 3600).encode(),  # a str of digits
        b'"1"',
        b'"s3cret-marker"',
        b"true",
        b"null",
        b"[]",
        b'{"s3cret-marker": 1}',
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"1" + b"0" * 400,
        b"1" + b"0" * 4500,
    ],
)
async def test_a_time_is_a_number(name: str, value: bytes) -> None:
    good = claims()
    good.pop(name, None)
    if value.isdigit() and len(value) < 20:
        value = b'"' + value + b'"'
    payload = as_json(good)[:-1] + b', "' + name.encode() + b'": ' + value + b"}"
    jwt = hs256(require=["exp"] if name != "exp" else [])
    assert await refused(jwt, signed(HS256, payload)) in (
        "the token is malformed",
        "the token has expired",
        "the token is not valid yet",
        f"the token's {name} claim is not a number",
    )


@pytest.mark.parametrize("missing", ["exp", "sub", "jti", "role"])
async def test_a_claim_that_is_required_is_there(missing: str) -> None:
    payload = claims(jti="1", role="pilot")
    jwt = hs256(require=["exp", "sub", "jti", "role"])
    assert (await jwt(token(payload))).user_id == "ada"
    cause = f"the token has no {missing} claim"
    assert await refused(jwt, token({n: v for n, v in payload.items() if n != missing})) == cause
    assert await refused(jwt, signed(HS256, {**payload, missing: None})) in (cause, "the token is malformed")


async def test_exp_is_required_unless_said_otherwise() -> None:
    assert await refused(hs256(), token(claims(exp=None))) == "the token has no exp claim"


@pytest.mark.parametrize("aud", ["other", "m", "meme", ["other"], ["m", "e"], [MARKER], [1], {"me": 1}, 5])
async def test_a_token_for_another_audience_is_refused(aud: Any) -> None:
    for audience in ("me", ["me", "us"]):
        assert await refused(hs256(audience=audience), token(claims(aud=aud))) == "wrong audience"


@pytest.mark.parametrize("aud", [None, "", []])
async def test_a_token_for_no_audience_is_refused_where_there_is_one(aud: Any) -> None:
    assert await refused(hs256(audience="me"), token(claims(aud=aud))) == "the token has no aud claim"


@pytest.mark.parametrize(("audience", "aud"), [("me", "me"), ("me", ["you", "me"]), (["us", "me"], "me")])
async def test_one_audience_of_several_is_enough(audience: Any, aud: Any) -> None:
    assert (await hs256(audience=audience)(token(claims(aud=aud)))).user_id == "ada"
    cause = await refused(hs256(audience=None), token(claims(aud=aud)))
    assert cause == "the token has an audience (aud), and none is expected here (audience=None)"


@pytest.mark.parametrize(
    "iss", ["https://evil.example", "https://a.exampl", "", [], ["https://a.example"], 5]
)
async def test_a_token_of_another_issuer_is_refused(iss: Any) -> None:
    for issuer in ("https://a.example", ["https://a.example", "https://b.example"]):
        assert await refused(hs256(issuer=issuer), signed(HS256, claims(iss=iss))) == "wrong issuer"


async def test_a_token_says_its_issuer_where_one_is_wanted() -> None:
    issuers = ["https://a.example", "https://b.example"]
    assert await refused(hs256(issuer=issuers), token()) == "the token has no iss claim"
    for issuer in issuers:
        assert (await hs256(issuer=issuers)(token(claims(iss=issuer)))).user_id == "ada"


@pytest.mark.parametrize("sub", [5, True, ["ada"], {MARKER: 1}])
async def test_a_subject_is_a_str(sub: Any) -> None:
    for options in ({}, {"user": lambda claims: "ada"}):
        cause = await refused(hs256(**options), signed(HS256, claims(sub=sub)))
        assert cause == "the token's sub claim is not a str"


async def test_a_token_id_is_a_str() -> None:
    assert await refused(hs256(), signed(HS256, claims(jti=5))) == "the token's jti claim is not a str"


# Scopes and users


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        (None, []),
        ("", []),
        ("read", ["read"]),
        ("read write", ["read", "write"]),
        (" read  write ", ["read", "write"]),
        ("read\tadmin", ["read\tadmin"]),
        ([], []),
        (["read", "write it"], ["read", "write it"]),
        (["", "read"], ["read"]),
    ],
)
async def test_scopes_are_a_str_with_spaces_or_a_list(scope: Any, scopes: list[str]) -> None:
    assert (await hs256()(token(claims(scope=scope)))).scopes == set(scopes)


@pytest.mark.parametrize("scope", [5, True, {MARKER: True}, [MARKER, 5], [[MARKER]], [None]])
async def test_scopes_of_another_kind_are_refused(scope: Any) -> None:
    cause = await refused(hs256(), token(claims(scope=scope)))
    assert cause == "the token's scope claim is no str and no list of str"
    assert (await hs256(scopes_claim="scp")(token(claims(scope=scope)))).scopes == set()


async def test_a_scopes_claim_of_null_is_refused() -> None:
    cause = await refused(hs256(), signed(HS256, {**claims(), "scope": None}))
    assert cause == "the token's scope claim is no str and no list of str"


async def test_scopes_may_be_in_another_claim() -> None:
    jwt = hs256(scopes_claim="permissions")
    text = token(claims(permissions=["chat:read"], scope="openid"))
    assert (await jwt(text)).scopes == {"chat:read"}


@pytest.mark.parametrize("sub", [None, ""])
async def test_a_user_needs_a_subject_unless_somebody_else_finds_it(sub: Any) -> None:
    text = token(claims(sub=sub, email="ada@example.org"))
    assert await refused(hs256(), text) == "the token has no sub claim"
    identity = await hs256(user=lambda claims: {"id": claims["email"]})(text)
    assert identity.user_id == "ada@example.org"
    assert (await hs256(user=lambda claims: object())(text)).user_id is None


async def test_a_user_is_found_by_a_function_of_the_claims() -> None:
    users = {"ada": object()}

    async def find(claims: Mapping[str, Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return users.get(claims["sub"])

    for user in (find, lambda claims: users.get(claims["sub"])):
        jwt = hs256(user=user)
        identity = await jwt(token(claims(scope="read")))
        assert identity.user is users["ada"]
        assert identity.user_id == "ada"
        assert identity.scopes == {"read"}
        assert await refused(jwt, token(claims(sub="eve"))) == "the token's user is not known here"


async def test_an_error_of_the_users_function_is_not_the_tokens() -> None:
    with pytest.raises(KeyError, match="role"):
        await hs256(user=lambda claims: claims["role"])(token())


# Tokens that are none


async def test_a_huge_token_is_refused_unread() -> None:
    fits = token(claims(padding="x" * 2000))
    jwt = hs256(max_bytes=len(fits))
    assert (await jwt(fits)).user_id == "ada"
    for huge in (fits + "A", fits.encode() + b"A", "é" * 9000):
        assert await refused(jwt, huge) == f"the token is longer than {len(fits)} bytes"
    assert await refused(hs256(), "A" * 8193) == "the token is longer than 8192 bytes"


@pytest.mark.parametrize(
    "text",
    [
        ".",
        "..",
        "a.b",
        "a..c",
        ".b.c",
        "a.b.c.d",
        "a.b.c\n",
        " a.b.c",
        "Bearer a.b.c",
        "a=.b=.c=",
        "a+.b/.c",
        "é.b.c",
        "\ud800.b.c",
        "\u0661.b.c",
        b"\xff.b.c",
        b"\x00",
    ],
)
async def test_what_is_not_compact_is_no_token(text: Any) -> None:
    assert await refused(hs256(), text) == "the token is no JWT (RFC 7515 §7.1)"


@pytest.mark.parametrize(
    "thing", [5, True, 1.5, ["a"], {"token": MARKER}, b"a.b.c".__class__, bytearray(b"a.b.c")]
)
async def test_what_is_not_a_str_is_no_token(thing: Any) -> None:
    assert await refused(hs256(), thing) == "the token is not a str"


async def test_an_encrypted_token_is_named() -> None:
    assert await refused(hs256(), "a.b.c.d.e") == "the token is an encrypted one (JWE)"


DEEP = b"[" * 3000


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"null", b"[]", b'"HS256"', b"5", b"\xff", json.dumps(HS256).encode("utf-16"), DEEP],
)
async def test_a_header_is_a_json_object(header: bytes) -> None:
    if header:
        cause = await refused(hs256(), signed(header, claims()))
        assert cause == "the token's header is no JSON object"
    text = token()
    assert await refused(hs256(), "A" + text[text.index(".") :]) == "the token's header is no JSON object"


@pytest.mark.parametrize("kid", [None, 5, True, [MARKER], {}])
async def test_a_kid_is_a_str(kid: Any) -> None:
    assert await refused(hs256(), signed({**HS256, "kid": kid}, claims())) == "the token's kid is not a str"


@pytest.mark.parametrize(
    "payload", [b"{", b"null", b"[]", b'"s3cret-marker"', b"\xff", DEEP, b"{'s3cret-marker'}"]
)
async def test_claims_are_a_json_object(payload: bytes) -> None:
    assert await refused(hs256(), signed(HS256, payload)) == "the token is malformed"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MARKER),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just(MARKER), inner, max_size=3)
    ),
    max_leaves=8,
)
STRICT = hs256(audience="me", issuer="https://a.example")
LOOSE = hs256(require=[], user=lambda claims: "somebody")


def outcome(jwt: JWT, text: Any) -> Identity | None:
    async def main() -> Identity | None:
        try:
            return await jwt(text)
        except AuthenticationError as error:
            assert error.__context__ is None
            assert MARKER not in "".join(traceback.format_exception(error, limit=0))
            return None

    return trio.run(main)


@given(
    st.binary(max_size=300)
    | st.text(max_size=300)
    | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True)
)
def test_garbage_raises_nothing_but_our_error(text: str | bytes) -> None:
    assert outcome(STRICT, text) is None
    assert outcome(LOOSE, text) is None


@given(
    json_values | st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "typ", "jwk"]), json_values)
)
def test_any_header_raises_nothing_but_our_error(header: Any) -> None:
    outcome(LOOSE, signed(header, claims(sub=MARKER)))
    if isinstance(header, dict):
        outcome(LOOSE, signed({**header, "alg": "HS256"}, claims(sub=MARKER)))


@pytest.mark.untraced
@given(
    st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "jti", "scope", MARKER]), json_values
    )
)
@settings(max_examples=300)
def test_any_claims_raise_nothing_but_our_error(payload: dict[str, Any]) -> None:
    text = signed(HS256, payload)
    assert outcome(STRICT, text) is None or payload["iss"] == "https://a.example"
    outcome(LOOSE, text)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_token_with_one_byte_changed_is_refused(at: int, byte: int) -> None:
    text = bytearray(GOOD.encode())
    at %= len(text)
    if text[at] != byte:
        text[at] = byte
        assert outcome(LOOSE, bytes(text)) is None


GOOD = token(claims(exp=int(time.time()) + 86400))


# Key sets


class Issuer:
    """An identity provider: counts what is asked of it, and answers when and how it is told."""

    def __init__(self, *keys: Any) -> None:
        self.keys: list[Any] = list(keys)
        self.fetches = 0
        self.delay = 0.0
        self.error: Exception | None = None
        self.answer: Any = None

    async def __call__(self) -> Any:
        self.fetches += 1
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return self.answer if self.answer is not None else {"keys": self.keys}


def of(issuer: Callable[[], Any], **options: Any) -> JWT:
    return JWT(**{"jwks": issuer, "algorithms": ["RS256", "ES256"], "audience": None, **options})


RSA_1 = jwk(RSA.public_key(), kid="1", alg="RS256", use="sig")
RSA_2 = jwk(OTHER_RSA.public_key(), kid="2")
EC_3 = jwk(P256.public_key(), kid="3")
BY_1 = token(claims(), RSA, "RS256", {"kid": "1"})
BY_2 = token(claims(), OTHER_RSA, "RS256", {"kid": "2"})
BY_3 = token(claims(), P256, "ES256", {"kid": "3"})
UNKNOWN = "the issuer has no key of the token's kid"
NOT_HAD = "the keys of the issuer cannot be had"


async def test_a_key_is_chosen_by_its_kid(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1, RSA_2, EC_3)
    jwt = of(issuer)
    for text in (BY_1, BY_2, BY_3):
        assert (await jwt(text)).user_id == "ada"
    assert issuer.fetches == 1
    wrong = token(claims(), OTHER_RSA, "RS256", {"kid": "1"})
    assert await refused(jwt, wrong) == "wrong signature"
    assert issuer.fetches == 1


async def test_a_key_must_fit_the_algorithm_whatever_its_kid(autojump_clock: MockClock) -> None:
    jwt = of(Issuer(RSA_1, RSA_2, EC_3), algorithms=["RS256", "RS512", "ES256"])
    for text in (
        token(claims(), RSA, "RS512", {"kid": "1"}),  # its alg says RS256
        token(claims(), RSA, "RS256", {"kid": "3"}),
        token(claims(), P256, "ES256", {"kid": "1"}),
    ):
        assert await refused(jwt, text) == "none of the issuer's keys fit the token"
    assert (await jwt(token(claims(), OTHER_RSA, "RS512", {"kid": "2"}))).user_id == "ada"


async def test_two_keys_of_one_kid_are_told_apart_by_their_type(autojump_clock: MockClock) -> None:
    jwt = of(Issuer(RSA_1, {**EC_3, "kid": "1"}))
    for private, algorithm in ((RSA, "RS256"), (P256, "ES256")):
        assert (await jwt(token(claims(), private, algorithm, {"kid": "1"}))).user_id == "ada"
    jwt = of(Issuer(RSA_1, {**RSA_2, "kid": "1"}))
    assert await refused(jwt, BY_1) == "2 of the issuer's keys fit the token"


async def test_without_kid_exactly_one_key_fits(autojump_clock: MockClock) -> None:
    text = token(claims(), RSA, "RS256")
    assert (await of(Issuer(RSA_1, EC_3))(text)).user_id == "ada"
    assert await refused(of(Issuer(RSA_1, RSA_2)), text) == "2 of the issuer's keys fit the token"
    assert await refused(of(Issuer(EC_3)), text) == "none of the issuer's keys fit the token"


async def test_keys_that_are_not_for_us_are_passed_over(autojump_clock: MockClock) -> None:
    issuer = Issuer(
        None,
        "key",
        {},
        {"kty": "RSA", "kid": "1"},
        {"kty": "quantum", "kid": "1"},
        {**RSA_2, "kid": "1", "use": "enc"},
        {**RSA_2, "kid": "1", "key_ops": ["encrypt"]},
        {**RSA_2, "kid": "1", "alg": "RSA-OAEP"},
        jwk(OTHER_RSA, kid="1", key_ops=["verify"]),  # a private key that is public is nobody's
        jwk(WEAK_RSA.public_key(), kid="1"),
        jwk(SECRET, kid="1"),
        jwk(P384.public_key(), kid="1"),
        jwk(ED25519.public_key(), kid="1"),
        RSA_1,
    )
    assert (await of(issuer)(BY_1)).user_id == "ada"


async def test_secrets_come_in_a_set_too(autojump_clock: MockClock) -> None:
    short, long = bytes(31), secrets.token_bytes(32)
    jwt = of(Issuer(jwk(short, kid="short"), jwk(long, kid="long"), RSA_1), algorithms=["HS256"])
    assert (await jwt(token(claims(), long, "HS256", {"kid": "long"}))).user_id == "ada"
    text = signed({**HS256, "kid": "short"}, claims())
    assert await refused(jwt, text) == UNKNOWN


async def test_a_set_without_a_key_for_us_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, algorithms=["EdDSA"])
    assert await refused(jwt, token(claims(), ED25519, "EdDSA", {"kid": "1"})) == UNKNOWN
    assert [record.getMessage() for record in caplog.records] == [
        "of the 1 keys of the issuer none is for EdDSA"
    ]


async def test_a_function_that_is_not_async_serves(autojump_clock: MockClock) -> None:
    assert (await of(lambda: {"keys": [RSA_1]})(BY_1)).user_id == "ada"


async def test_a_set_is_fetched_again_when_it_is_old(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=100)
    for wait, fetches in ((0, 1), (99, 1), (1, 2), (99, 2), (1, 3)):
        await trio.sleep(wait)
        await jwt(BY_1)
        assert issuer.fetches == fetches
    issuer.keys = [RSA_2]  # a key that the issuer takes back ends with the lifetime
    await trio.sleep(100)
    assert await refused(jwt, BY_1) == UNKNOWN


async def test_a_set_may_be_kept_for_ever(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=math.inf)
    await jwt(BY_1)
    await trio.sleep(1e9)
    await jwt(BY_1)
    assert issuer.fetches == 1


async def test_the_age_of_a_set_is_told_by_the_clock_that_is_given() -> None:
    now = -1e6
    issuer = Issuer(RSA_1)
    jwt = of(issuer, clock=lambda: now)
    await jwt(BY_1)
    now += 299
    await jwt(BY_1)
    assert issuer.fetches == 1
    now += 1
    await jwt(BY_1)
    assert issuer.fetches == 2


async def test_a_new_key_of_the_issuer_is_found(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer)
    await jwt(BY_1)
    issuer.keys = [RSA_1, RSA_2]
    await trio.sleep(10)
    assert (await jwt(BY_2)).user_id == "ada"
    assert (await jwt(BY_1)).user_id == "ada"
    assert issuer.fetches == 2


async def test_a_flood_of_unknown_kids_does_not_reach_the_issuer(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer)
    await jwt(BY_1)
    start = trio.current_time()
    for number in range(800):
        kid = {"kid": f"{MARKER}-{number}"} if number % 2 else None
        text = token(claims(), P256, "ES256", kid)
        cause = await refused(jwt, text)
        assert cause in (UNKNOWN, "none of the issuer's keys fit the token")
        await trio.sleep(0.125)
    assert trio.current_time() - start == 100
    assert issuer.fetches == 10  # the first, at 10, at 20 …


async def test_a_flood_at_once_is_one_fetch(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    issuer.delay = 1
    jwt = of(issuer)
    identities = []

    async def client() -> None:
        identities.append(await jwt(BY_1))

    async def attacker(number: int) -> None:
        assert await refused(jwt, token(claims(), RSA, "RS256", {"kid": f"x{number}"})) == UNKNOWN

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(client)
            nursery.start_soon(attacker, number)
    assert len(identities) == 50
    assert issuer.fetches == 1


async def test_who_has_a_known_key_does_not_wait_for_a_fetch(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer)
    await jwt(BY_1)
    await trio.sleep(10)
    issuer.delay = 3
    issuer.keys = [RSA_1, RSA_2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jwt, BY_2)
        await trio.sleep(1)
        start = trio.current_time()
        await jwt(BY_1)
        assert trio.current_time() == start
        nursery.start_soon(jwt, BY_2)
    assert issuer.fetches == 2


async def test_a_client_that_leaves_breaks_no_fetch(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    issuer.delay = 3
    jwt = of(issuer)
    identities = []

    async def first(scope: trio.CancelScope) -> None:
        with scope:
            await jwt(BY_1)

    async def second() -> None:
        identities.append(await jwt(BY_1))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first, scope)
        await trio.sleep(1)
        nursery.start_soon(second)
        await trio.sleep(1)
        scope.cancel()
    assert scope.cancelled_caught
    assert len(identities) == 1
    assert trio.current_time() == pytest.approx(3)
    assert issuer.fetches == 1


async def test_clients_that_come_and_leave_begin_one_fetch(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    issuer.delay = 4
    jwt = of(issuer)
    for _ in range(30):
        with trio.move_on_after(0.1):
            await jwt(BY_1)
    assert issuer.fetches == 1
    assert (await jwt(BY_1)).user_id == "ada"
    assert issuer.fetches == 1


async def test_without_keys_nobody_comes_in_and_one_error_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(RSA_1)
    issuer.error = OSError("no route to host")
    jwt = of(issuer)
    for _ in range(5):
        assert await refused(jwt, BY_1) == NOT_HAD
        await trio.sleep(1)
    assert issuer.fetches == 1
    (record,) = caplog.records
    assert record.name == "nexios_trio.security"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is issuer.error
    assert BY_1 not in caplog.text
    await trio.sleep(5)
    issuer.error = None
    assert (await jwt(BY_1)).user_id == "ada"
    assert issuer.fetches == 2


async def test_old_keys_serve_for_a_while_when_the_issuer_is_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=100, jwks_stale=50)
    await jwt(BY_1)
    issuer.error = OSError("no route to host")
    await trio.sleep(100)
    for _ in range(50):
        assert (await jwt(BY_1)).user_id == "ada"
        await trio.sleep(1)
    assert issuer.fetches == 1 + 5
    assert len(caplog.records) == 5
    assert await refused(jwt, BY_1) == NOT_HAD
    issuer.error = None
    await trio.sleep(10)
    assert (await jwt(BY_1)).user_id == "ada"


async def test_no_old_keys_serve_where_none_may(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=100, jwks_stale=0)
    await jwt(BY_1)
    issuer.error = OSError("no route to host")
    await trio.sleep(100)
    assert await refused(jwt, BY_1) == NOT_HAD


async def test_a_fetch_that_hangs_is_given_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(RSA_1)
    issuer.delay = math.inf
    jwt = of(issuer)
    assert await refused(jwt, BY_1) == NOT_HAD
    assert trio.current_time() == pytest.approx(5)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], trio.TooSlowError)


@pytest.mark.parametrize("answer", ["{}", b"{}", [], 5, {"keys": None}, {"keys": {}}, {"jwks": []}])
async def test_a_wrong_answer_is_a_failed_fetch(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=10)
    await jwt(BY_1)
    issuer.answer = answer
    await trio.sleep(10)
    assert (await jwt(BY_1)).user_id == "ada"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert 'jwks returns the set of keys, {"keys": [...]}' in str(record.exc_info[1])


async def test_an_empty_set_takes_all_keys_back(autojump_clock: MockClock) -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer, jwks_lifetime=10)
    await jwt(BY_1)
    issuer.keys = []
    await trio.sleep(10)
    assert await refused(jwt, BY_1) == UNKNOWN


async def test_an_error_of_a_function_that_is_not_async_is_a_failed_fetch(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, Any]:
        raise ZeroDivisionError

    assert await refused(of(broken), BY_1) == NOT_HAD
    assert len(caplog.records) == 1


def test_keys_are_fetched_anew_in_another_run_of_trio() -> None:
    issuer = Issuer(RSA_1)
    jwt = of(issuer)

    async def leave_while_fetching() -> None:
        issuer.delay = math.inf
        with trio.move_on_after(1):
            await jwt(BY_1)

    async def come_back() -> Identity:
        issuer.delay = 0
        return await jwt(BY_1)

    trio.run(leave_while_fetching, clock=MockClock(autojump_threshold=0))
    for _ in range(2):
        assert trio.run(come_back, clock=MockClock(autojump_threshold=0)).user_id == "ada"
    assert issuer.fetches == 3
