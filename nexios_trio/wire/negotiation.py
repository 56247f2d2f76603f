"""What two sides agree on about permessage-deflate in the opening handshake (RFC 7692 §5 and §7.1)."""

from __future__ import annotations

from collections.abc import Iterable

from nexios_trio.wire.deflate import EXTENSION, WINDOW_BITS, Agreement, Deflate
from nexios_trio.wire.errors import HandshakeError
from nexios_trio.wire.headers import Extension

__all__ = ["agree", "agreed", "answer", "offer"]

_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = {str(bits): bits for bits in WINDOW_BITS}  # "08" is none: §7.1.2.1, no leading zeros


class _Parameters:
    """The parameters of one offer or answer; ``valid`` is False if RFC 7692 §7.1 does not allow them."""

    def __init__(self, parameters: list[tuple[str, str | None]], *, is_offer: bool) -> None:
        self.server_no_context_takeover = self.client_no_context_takeover = False
        self.server_max_window_bits: int | None = None
        self.client_max_window_bits: int | None = None
        self.client_may_choose = False
        names = [name for name, _ in parameters]
        self.valid = len(set(names)) == len(names)
        for name, value in parameters:
            if name in _FLAGS and value is None:
                setattr(self, name, True)
            elif name == "server_max_window_bits" and value in _BITS:
                self.server_max_window_bits = _BITS[value]
            elif name == "client_max_window_bits" and value in _BITS:
                self.client_max_window_bits = _BITS[value]
                self.client_may_choose = True
            elif name == "client_max_window_bits" and value is None and is_offer:
                self.client_may_choose = True  # without a value: the server may ask for any
            else:
                self.valid = False


def agree(settings: Deflate, offers: Iterable[Extension]) -> Agreement | None:
    """A server's choice: the first offer of permessage-deflate that is valid; None: there is none.

    An offer that is not valid is declined (RFC 7692 §7.1), which is no error: the client may have sent
    others.
    """
    for name, parameters in offers:
        if name != EXTENSION:
            continue
        wanted = _Parameters(parameters, is_offer=True)
        if not wanted.valid:
            continue
        client_bits = 15
        if wanted.client_may_choose:
            client_bits = min(wanted.client_max_window_bits or 15, settings.client_max_window_bits)
        return Agreement(
            settings,
            server_no_context_takeover=wanted.server_no_context_takeover
            or settings.server_no_context_takeover,
            client_no_context_takeover=wanted.client_no_context_takeover
            or settings.client_no_context_takeover,
            server_max_window_bits=min(wanted.server_max_window_bits or 15, settings.server_max_window_bits),
            client_max_window_bits=client_bits,
        )
    return None


def answer(agreement: Agreement) -> str:
    """The Sec-WebSocket-Extensions of the server's answer.

    client_max_window_bits is told only where it limits the client, which it can only if the client said that
    it knows the parameter (§7.1.2.2); so can `agree`.
    """
    parts = [EXTENSION]
    parts += [flag for flag in _FLAGS if getattr(agreement, flag)]
    if agreement.server_max_window_bits < 15:
        parts.append(f"server_max_window_bits={agreement.server_max_window_bits}")
    if agreement.client_max_window_bits < 15:
        parts.append(f"client_max_window_bits={agreement.client_max_window_bits}")
    return "; ".join(parts)


def offer(settings: Deflate) -> str:
    """The Sec-WebSocket-Extensions of a client's request."""
    parts = [EXTENSION]
    parts += [flag for flag in _FLAGS if getattr(settings, flag)]
    if settings.server_max_window_bits < 15:
        parts.append(f"server_max_window_bits={settings.server_max_window_bits}")
    # Told in any case, so that the server may ask for less.
    bits = settings.client_max_window_bits
    parts.append("client_max_window_bits" if bits == 15 else f"client_max_window_bits={bits}")
    return "; ".join(parts)


def agreed(settings: Deflate | None, answered: list[Extension]) -> Agreement | None:
    """A client's reading of the server's answer to `offer`; None: the connection has no compression.

    Raises `HandshakeError` (status 101) for an answer that does not fit the offer: the connection must be
    failed (RFC 6455 §4.1, RFC 7692 §7.1).
    """
    if not answered:
        return None
    (name, parameters), *more = answered
    if settings is None or more or name != EXTENSION:
        raise HandshakeError(101, "the server answered with an extension that was not offered")
    given = _Parameters(parameters, is_offer=False)
    server_bits = given.server_max_window_bits or 15
    client_bits = given.client_max_window_bits or settings.client_max_window_bits
    if (
        not given.valid
        or (settings.server_no_context_takeover and not given.server_no_context_takeover)
        or server_bits > settings.server_max_window_bits
        or client_bits > settings.client_max_window_bits
    ):
        raise HandshakeError(101, "the server answered the offer of permessage-deflate with other parameters")
    return Agreement(
        settings,
        server_no_context_takeover=given.server_no_context_takeover,
        client_no_context_takeover=given.client_no_context_takeover or settings.client_no_context_takeover,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
    )
