"""What a program may put into the answer to an opening handshake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

from nexios_trio.exceptions import WrongTypeError, WrongValueError

__all__ = ["encode_headers", "encode_subprotocol"]

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 §5.6.2, lower-cased
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: no CR, LF, NUL


def encode_headers(
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] | None,
) -> list[tuple[bytes, bytes]]:
    """Header pairs as ASGI wants them. Raises `WrongTypeError` or `WrongValueError`, so that nobody
    can smuggle a line break into a response."""
    if headers is None:
        return []
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    encoded = []
    for pair in _pairs(pairs):
        name, value = pair
        if not isinstance(name, str | bytes) or not isinstance(value, str | bytes):
            raise WrongTypeError(
                f"header names and values are str or bytes, not {type(name).__name__}: {type(value).__name__}"
            )
        try:
            raw_name = (name.encode("ascii") if isinstance(name, str) else name).lower()
            raw_value = (value.encode("latin-1") if isinstance(value, str) else value).strip(b" \t")
        except UnicodeEncodeError:
            raise WrongValueError(
                f"the header {name!r} holds characters outside Latin-1; percent-encode them"
            ) from None
        if _TOKEN.fullmatch(raw_name) is None:
            raise WrongValueError(f"{name!r} is not a header name (RFC 9110 §5.6.2)")
        if _VALUE.fullmatch(raw_value) is None:
            raise WrongValueError(f"the value of header {name!r} holds a control character or a line break")
        if raw_name.startswith(b"sec-websocket-"):
            raise WrongValueError(
                f"the header {name!r} belongs to the handshake; choose a subprotocol with "
                "accept(subprotocol=...)"
            )
        encoded.append((raw_name, raw_value))
    return encoded


def _pairs(headers: object) -> list[tuple[object, object]]:
    try:
        pairs = [tuple(pair) for pair in headers]  # type: ignore[attr-defined]
    except TypeError:
        pairs = [()]
    if isinstance(headers, str | bytes) or any(len(pair) != 2 for pair in pairs):
        raise WrongTypeError(
            f'headers are a dict or a list of pairs, such as {{"x-reason": "full"}}, not {headers!r}'
        )
    return cast("list[tuple[object, object]]", pairs)


def encode_subprotocol(subprotocol: str | None, offered: Sequence[str]) -> str | None:
    """Check that the client offers ``subprotocol`` (RFC 6455 §4.2.2, /subprotocol/)."""
    if subprotocol is not None and subprotocol not in offered:
        # Not which: a token may be among them, and this goes to the log.
        raise WrongValueError(
            f"the client does not offer the subprotocol {subprotocol!r}; it offers {len(offered) or 'none'} "
            "(see ws.subprotocols)"
        )
    return subprotocol
