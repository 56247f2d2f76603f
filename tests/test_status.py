"""Close codes and reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio import CloseCode
from nexios_trio.exceptions import WrongValueError
from nexios_trio.status import REASON_BYTES, check_close, cut_reason


@given(st.text())
def test_a_cut_reason_fits_into_a_frame_and_is_a_beginning_of_the_whole(reason: str) -> None:
    cut = cut_reason(reason)
    assert len(cut.encode("utf-8", "replace")) <= REASON_BYTES
    assert reason.encode("utf-8", "replace").decode().startswith(cut) or cut == reason


@given(st.integers(-10, 70000))
def test_only_codes_that_a_frame_may_carry_pass(code: int) -> None:
    sendable = code in {1000, 1001, 1002, 1003, *range(1007, 1015)} or 3000 <= code <= 4999
    if sendable:
        assert check_close(code, None) == ""
    else:
        with pytest.raises(WrongValueError):
            check_close(code, None)


def test_the_registered_codes_have_names() -> None:
    assert CloseCode(1012) is CloseCode.SERVICE_RESTART
    assert check_close(CloseCode.GOING_AWAY, "bye") == "bye"
