"""JSON: whatever comes in, only our own errors go out, and never a value."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexios_trio import InvalidJSON, MessageValidationError
from nexios_trio.exceptions import WrongTypeError
from nexios_trio.websockets import codec


class Colour(enum.Enum):
    RED = "red"


class A(msgspec.Struct, tag="a"):
    n: int


class B(msgspec.Struct, tag="b"):
    colour: Colour


class Bounded(msgspec.Struct):
    name: str
    many: dict[str, int] = {}
    colour: Colour = Colour.RED


TYPES: list[Any] = [Any, A | B, Bounded, list[int], dict[str, float]]


@given(st.binary(max_size=200) | st.text(max_size=200), st.sampled_from(TYPES))
def test_arbitrary_input_raises_nothing_but_our_errors(message: str | bytes, type_: Any) -> None:
    try:
        codec.decode(message, type_)
    except (InvalidJSON, MessageValidationError) as error:
        assert error.close_code == 1007
        assert isinstance(error.public_reason, str)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(json_values)
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value
    assert codec.decode(codec.encode(value).decode()) == value


@given(json_values, st.sampled_from(TYPES[1:]))
def test_an_error_never_holds_a_value(value: Any, type_: Any) -> None:
    secret = "s3cr3t-value"
    document = codec.encode({"n": secret, "name": [secret], "type": secret, "colour": secret, "more": value})
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, type_)
    assert secret not in str(caught.value)
    assert secret not in caught.value.public_reason


@pytest.mark.parametrize(
    ("document", "type_", "problem", "path", "expected", "found"),
    [
        ('{"name": 1}', Bounded, "expected str, got int", "$.name", "str", "int"),
        (
            '{"name": "x", "many": {"key": "v"}}',
            Bounded,
            "expected int, got str",
            "$.many[...]",
            "int",
            "str",
        ),
        ('{"name": "x", "colour": "secret"}', Bounded, "invalid enum value", "$.colour", "", ""),
        ('{"type": "secret"}', A | B, "invalid value", "$.type", "", ""),
        ("{}", Bounded, "object missing required field name", "$", "", ""),
        ("[1, null]", list[int], "expected int, got null", "$[1]", "int", "null"),
        ("3", Bounded, "expected object, got int", "$", "object", "int"),
    ],
)
def test_an_error_says_where_and_what(
    document: str, type_: Any, problem: str, path: str, expected: str, found: str
) -> None:
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, type_)
    error = caught.value
    assert (error.problem, error.path, error.expected, error.found) == (problem, path, expected, found)
    assert str(error) == f"{problem} at {path}"


def test_a_document_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(InvalidJSON, match="nested too deep"):
        codec.decode("[" * 100_000)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidJSON, match="cut short or malformed"):
        codec.decode('"\\ud800"')


def test_a_type_that_cannot_be_read_is_the_program_s_mistake() -> None:
    with pytest.raises(WrongTypeError, match="type="):
        codec.decode("{}", 5)
