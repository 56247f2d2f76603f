"""The fuzz target, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.fuzz_wire import CORPUS, check, run

pytestmark = pytest.mark.untraced


@pytest.mark.parametrize("data", CORPUS, ids=range(len(CORPUS)))
def test_the_corpus_is_as_it_should_be(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("seed", range(5))
def test_mutations_of_the_corpus_break_nothing(seed: int) -> None:
    run(seed, 500)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_no_bytes_break_anything(data: bytes) -> None:
    check(data)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(CORPUS), st.integers(0, 400), st.integers(0, 400), st.binary(max_size=20))
def test_no_bytes_in_a_good_stream_break_anything(good: bytes, start: int, end: int, data: bytes) -> None:
    check(good[:start] + data + good[end:])
