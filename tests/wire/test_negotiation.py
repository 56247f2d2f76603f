"""permessage-deflate in the opening handshake."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexios_trio.wire import Agreement, Deflate, HandshakeError, agree
from nexios_trio.wire.headers import parse_extensions
from nexios_trio.wire.negotiation import agreed, answer, offer

WIDE = Deflate(
    server_no_context_takeover=False, server_max_window_bits=15, client_max_window_bits=15, threshold=1
)


def answer_to(offers: str, wanted: Deflate = WIDE) -> str | None:
    agreement = agree(wanted, parse_extensions([offers.encode()]))
    return None if agreement is None else answer(agreement)


# The server


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        ("permessage-deflate", "permessage-deflate"),
        (
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover",
        ),
        (
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
        ),
        (
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_max_window_bits=10",
        ),
        ("permessage-deflate; server_max_window_bits=8", "permessage-deflate; server_max_window_bits=8"),
        ('permessage-deflate; server_max_window_bits="11"', "permessage-deflate; server_max_window_bits=11"),
        (
            "permessage-deflate; client_max_window_bits=9",
            "permessage-deflate; client_max_window_bits=9",
        ),
        # Without a value, and with nothing to ask for: no answer is needed.
        ("permessage-deflate; client_max_window_bits", "permessage-deflate"),
        ("permessage-deflate; client_max_window_bits=15", "permessage-deflate"),
    ],
)
def test_a_server_takes_what_is_offered(offered: str, answered: str) -> None:
    assert answer_to(offered) == answered


NARROW = Deflate(client_no_context_takeover=True, server_max_window_bits=10, client_max_window_bits=11)
FLAGS = "server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offered", "bits"),
    [
        # RFC 7692 §7.1.2.2: a client that does not name the parameter does not know it.
        ("permessage-deflate", "server_max_window_bits=10"),
        (
            "permessage-deflate; client_max_window_bits",
            "server_max_window_bits=10; client_max_window_bits=11",
        ),
        (
            "permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",
            "server_max_window_bits=10; client_max_window_bits=11",
        ),
        (
            "permessage-deflate; client_max_window_bits=9; server_max_window_bits=9",
            "server_max_window_bits=9; client_max_window_bits=9",
        ),
    ],
)
def test_a_server_asks_for_what_it_wants_where_it_may(offered: str, bits: str) -> None:
    assert answer_to(offered, NARROW) == f"permessage-deflate; {FLAGS}; {bits}"


@pytest.mark.parametrize(
    "parameters",
    [
        "unknown",
        "server_no_context_takeover=1",
        "client_no_context_takeover=true",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=08",
        "server_max_window_bits=1x",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=-9",
        "server_no_context_takeover; server_no_context_takeover",
        "server_max_window_bits=10; server_max_window_bits=10",
        "client_max_window_bits; client_max_window_bits=10",
    ],
)
def test_a_bad_offer_is_declined_and_the_next_one_taken(parameters: str) -> None:
    bad = f"permessage-deflate; {parameters}"
    assert answer_to(bad) is None
    assert answer_to(f"{bad}, x-other, permessage-deflate; server_max_window_bits=9") == (
        "permessage-deflate; server_max_window_bits=9"
    )


def test_the_first_good_offer_is_taken() -> None:
    offers = "permessage-deflate; server_max_window_bits=9, permessage-deflate"
    assert answer_to(offers) == "permessage-deflate; server_max_window_bits=9"


def test_other_extensions_are_not_taken() -> None:
    assert answer_to("x-webkit-deflate-frame, permessage-bzip2") is None
    assert answer_to("") is None


# The client


def test_what_a_client_offers() -> None:
    assert offer(WIDE) == "permessage-deflate; client_max_window_bits"
    assert offer(NARROW) == (
        f"permessage-deflate; {FLAGS}; server_max_window_bits=10; client_max_window_bits=11"
    )


def reading(answered: str, wanted: Deflate | None = WIDE) -> Agreement | None:
    return agreed(wanted, parse_extensions([answered.encode()]))


def test_a_client_reads_the_answer() -> None:
    assert reading("") is None
    assert reading("", None) is None
    assert reading("permessage-deflate") == Agreement(WIDE)
    assert reading("permessage-deflate; server_no_context_takeover; client_no_context_takeover") == (
        Agreement(WIDE, server_no_context_takeover=True, client_no_context_takeover=True)
    )
    assert reading("permessage-deflate; server_max_window_bits=9; client_max_window_bits=10") == (
        Agreement(WIDE, server_max_window_bits=9, client_max_window_bits=10)
    )


def test_a_client_keeps_its_own_promises_if_the_answer_does_not_mention_them() -> None:
    found = reading("permessage-deflate; server_no_context_takeover; server_max_window_bits=10", NARROW)
    assert found is not None
    assert (found.client_no_context_takeover, found.client_max_window_bits) == (True, 11)


@pytest.mark.parametrize(
    ("wanted", "answered"),
    [
        (None, "permessage-deflate"),
        (WIDE, "x-other"),
        (WIDE, "permessage-deflate, permessage-deflate"),
        (WIDE, "permessage-deflate; unknown"),
        (WIDE, "permessage-deflate; client_max_window_bits"),
        (WIDE, "permessage-deflate; server_max_window_bits=7"),
        (NARROW, "permessage-deflate"),
        (NARROW, "permessage-deflate; server_no_context_takeover"),
        (NARROW, "permessage-deflate; server_max_window_bits=10"),
        (NARROW, "permessage-deflate; server_no_context_takeover; server_max_window_bits=11"),
        (
            NARROW,
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; "
            "client_max_window_bits=12",
        ),
    ],
)
def test_an_answer_that_does_not_fit_fails_the_handshake(wanted: Deflate | None, answered: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        reading(answered, wanted)
    assert caught.value.status == 101


# Both

deflates = st.builds(
    Deflate,
    st.booleans(),
    st.booleans(),
    server_max_window_bits=st.integers(8, 15),
    client_max_window_bits=st.integers(8, 15),
)


@settings(deadline=None)
@given(deflates, deflates)
def test_both_sides_always_come_to_the_same(ours: Deflate, theirs: Deflate) -> None:
    agreement = agree(ours, parse_extensions([offer(theirs).encode()]))
    assert agreement is not None
    found = agreed(theirs, parse_extensions([answer(agreement).encode()]))
    assert found is not None
    for name in ("server_no_context_takeover", "server_max_window_bits"):
        assert getattr(found, name) == getattr(agreement, name)
    # A client may do more than it has to.
    assert found.client_no_context_takeover or not agreement.client_no_context_takeover
    assert found.client_max_window_bits <= agreement.client_max_window_bits


def test_what_is_agreed_is_never_more_than_either_side_wants() -> None:
    for ours, theirs in itertools.product(range(8, 16), repeat=2):
        agreement = agree(
            Deflate(server_max_window_bits=ours, client_max_window_bits=ours),
            parse_extensions(
                [
                    b"permessage-deflate; server_max_window_bits=%d; client_max_window_bits=%d"
                    % (theirs, theirs)
                ]
            ),
        )
        assert agreement is not None
        assert agreement.server_max_window_bits == agreement.client_max_window_bits == min(ours, theirs)
