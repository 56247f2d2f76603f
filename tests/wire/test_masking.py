"""Masking."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio.wire import masking
from nexios_trio.wire.masking import KEY_MULTIPLIERS, KEY_SHIFTS, SHORT, apply_mask_slowly, rotate
from tests.wire.streams import keys, xor

Mask = Callable[[bytes | bytearray, bytes], bytes | bytearray]
BOTH = pytest.mark.parametrize("apply_mask", [masking.apply_mask, apply_mask_slowly], ids=["C", "Python"])


def test_the_routine_in_c_is_used_where_it_is_installed() -> None:
    assert masking.apply_mask is not apply_mask_slowly


@BOTH
@given(st.binary(max_size=1000), keys)
def test_it_is_the_xor_of_the_rfc(apply_mask: Mask, data: bytes, key: bytes) -> None:
    assert apply_mask(data, key) == xor(data, key)


@BOTH
@pytest.mark.parametrize("size", [*range(10), 124, 125, 126, 383, 384, 385, 386, 387, 4096, 65537])
def test_it_is_the_xor_of_the_rfc_at_the_borders_of_its_ways(apply_mask: Mask, size: int) -> None:
    data = bytes(i * 7 % 256 for i in range(size))
    for key in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\2\3", b"\x80\0\0\x01"):
        assert apply_mask(data, key) == xor(data, key)
        assert apply_mask(bytearray(data), key) == xor(data, key)


@BOTH
@given(st.binary(max_size=2000), keys)
def test_it_undoes_itself(apply_mask: Mask, data: bytes, key: bytes) -> None:
    assert apply_mask(apply_mask(data, key), key) == data


@BOTH
def test_it_leaves_its_argument_alone(apply_mask: Mask) -> None:
    data = bytearray(b"abc" * 500)
    apply_mask(data, b"1234")
    assert data == b"abc" * 500


@BOTH
@given(st.binary(max_size=1000), keys, st.integers(0, 1000))
def test_a_rotated_key_goes_on_where_a_piece_ended(
    apply_mask: Mask, data: bytes, key: bytes, place: int
) -> None:
    place = min(place, len(data))
    assert bytes(apply_mask(data[:place], key)) + apply_mask(data[place:], rotate(key, place)) == xor(
        data, key
    )


@given(st.binary(max_size=SHORT), keys)
def test_the_multipliers_repeat_a_key_over_itself_and_a_payload(payload: bytes, key: bytes) -> None:
    size = len(payload)
    number = int.from_bytes(key + payload, "big")
    stream = (number >> size * 8) * KEY_MULTIPLIERS[size] >> KEY_SHIFTS[size]
    assert (number ^ stream).to_bytes(size, "big") == xor(payload, key)
