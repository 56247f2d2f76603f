"""JSON: whatever comes in, only our own errors go out, and never a value."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import annotated_types
import attrs
import msgspec
import pydantic
import pydantic_core
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from nexios_trio import InvalidJSON, MessageTypeError, MessageValidationError, PeerError
from nexios_trio.exceptions import AuthenticationError, LimitError, PermissionDenied, WrongTypeError
from nexios_trio.websockets import codec
from nexios_trio.websockets.json_misfits import of_msgspec


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


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    the_name: int = 0
    inner: Strict | None = None


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: int


class Picky(msgspec.Struct):
    word: str

    def __post_init__(self) -> None:
        raise ValueError(f"{self.word} - at `$.{self.word}`")


@attrs.define
class Checked:
    count: int = attrs.field(validator=attrs.validators.gt(3))


@dataclasses.dataclass
class Plain:
    count: int


class Shape(TypedDict):
    size: int


class Point(NamedTuple):
    x: int
    y: int


class Item(pydantic.BaseModel):
    price: int
    name: str = ""


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    type: Literal["order"]
    items: list[Item] = []
    stock: dict[str, Item] = {}
    amount: int = pydantic.Field(default=0, alias="theAmount", ge=0, lt=100)
    order: Any = None


class Refund(pydantic.BaseModel):
    type: Literal["refund"]
    why: str | int | None = None


Discriminated = Annotated[Order | Refund, pydantic.Field(discriminator="type")]


@pydantic.dataclasses.dataclass
class Place:
    street: str
    item: Item | None = None


class Basket(typing_extensions.TypedDict):
    first: Item


class Corner(NamedTuple):
    item: Item


class Node(pydantic.BaseModel):
    child: Node | None = None


TYPES: list[Any] = [Any, A | B, Bounded, list[int], dict[str, float]]

untimed = settings(deadline=None)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@untimed
@given(json_values)
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value
    assert codec.decode(codec.encode(value).decode()) == value


# Malformed


@pytest.mark.parametrize("type_", [Any, Item])
@pytest.mark.parametrize(
    "message",
    [
        "",
        " ",
        "\0",
        "{",
        '{"price": 1} x',
        '{"price": 1,}',
        "\ufeff{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"name": "\xff"}',
        b'{"\xff": 1}',
        b'"\xc3',
        '"\ud800"',
        '"\\ud800"',
        '{"price": 1, "name": "\\udc00"}',
        '{"price": NaN}',
        '{"price": -Infinity}',
        b'{"price": 1, "name": "NaN", "more": [NaN]}',
        '"' * 1001,
        "\\" * 1001,
        '"' + '\\"' * 1001,
        '"a\nb"',
    ],
)
def test_what_is_no_json_is_refused_as_that(message: str | bytes, type_: Any) -> None:
    with pytest.raises(InvalidJSON) as caught:
        codec.decode(message, type_)
    assert caught.value.close_code == 1007
    assert caught.value.public_reason.startswith("invalid JSON: ")
    assert caught.value.__context__ is None


@pytest.mark.parametrize("type_", [Any, dict[str, Any], Item, Node, list[Item], pydantic.JsonValue])
@pytest.mark.parametrize("document", ["[" * 10_000, "[" * 10_000 + "]" * 10_000, '{"child":' * 10_000])
def test_a_document_that_is_nested_beyond_all_measure_is_refused_without_bounds(
    document: str, type_: Any
) -> None:
    with pytest.raises(PeerError) as caught:
        codec.decode(document, type_)
    if type_ != dict[str, Any] or document.startswith("{"):  # which sees at once that it is no object
        assert caught.value.public_reason == "invalid JSON: it is nested too deep"


def test_what_looks_like_nan_in_a_string_is_none() -> None:
    assert codec.decode('{"price": 1, "name": "\\"NaN\\\\"}', Item).name == '"NaN\\'
    assert codec.decode(b'{"price": 1, "name": "Infinity"}', Item).name == "Infinity"


@pytest.mark.parametrize("number", ["9" * 10_000, "-" + "9" * 10_000, "1e400", "-1e400", "1" * 400 + ".0"])
@pytest.mark.parametrize("type_", [Any, int, float, A, Item, pydantic.FiniteFloat, list[Item], Refund])
def test_a_number_beyond_all_measure_is_a_mistake_of_the_client(number: str, type_: Any) -> None:
    for document in (number, f'{{"type": "a", "n": {number}, "price": {number}}}', f"[{number}]"):
        with pytest.raises((InvalidJSON, MessageValidationError)) as caught:
            codec.decode(document, type_)
        assert "999" not in str(caught.value)


def test_a_hundred_thousand_keys_and_a_key_a_hundred_thousand_times_are_read() -> None:
    many = "{" + ",".join(f'"k{number}":{number}' for number in range(100_000)) + "}"
    same = "{" + ",".join('"price":1' for _ in range(100_000)) + "}"
    assert len(codec.decode(many)) == len(codec.decode(many, dict[str, int])) == 100_000
    assert codec.decode(same) == {"price": 1}
    assert codec.decode(same, Item).price == 1


# Bounds


def measure(document: str | bytes) -> tuple[int, int]:
    """The depth of a document and the number of its values, the slow way."""

    def look(value: Any) -> tuple[int, int]:
        inner = [look(part) for part in value[1]] if isinstance(value, tuple) else []
        depth = isinstance(value, tuple) + max((depth for depth, _ in inner), default=0)
        return depth, 1 + sum(count for _, count in inner)

    def tupled(value: Any) -> Any:
        return ("array", [tupled(part) for part in value]) if isinstance(value, list) else value

    return look(
        tupled(
            json.loads(document, object_pairs_hook=lambda pairs: ("object", [tupled(v) for _, v in pairs]))
        )
    )


brackets = st.text('[]{}",\\ :aé\n', max_size=12)
spaces = st.text(" \t\n\r", max_size=2)


@st.composite
def documents(draw: st.DrawFn, levels: int = 6) -> str:
    """JSON with strings that look like JSON, white space, and keys that come twice."""

    def spaced(text: str) -> str:
        return draw(spaces) + text + draw(spaces)

    kind = draw(st.sampled_from(["scalar", "array", "object"] if levels else ["scalar"]))
    if kind == "scalar":
        scalar = draw(st.none() | st.booleans() | st.integers(-99, 99) | brackets)
        return spaced(json.dumps(scalar, ensure_ascii=draw(st.booleans())))
    parts = draw(st.lists(documents(levels - 1), max_size=4))
    if kind == "array":
        return spaced("[" + (",".join(parts) or draw(spaces)) + "]")
    members = [spaced(json.dumps(draw(brackets))) + ":" + part for part in parts]
    return spaced("{" + (",".join(members) or draw(spaces)) + "}")


@pytest.mark.untraced
@untimed
@given(documents(), st.integers(1, 8), st.integers(1, 30), st.sampled_from(["", "x" * 300, "[{," * 3000]))
def test_the_bounds_are_exact(document: str, depth: int, items: int, filling: str) -> None:
    document = f"[{json.dumps(filling)},{document}]"
    deep, many = measure(document)
    for message in (document, document.encode()):
        for depth_, items_ in ((depth, None), (None, items), (depth, items)):
            fits = (depth_ is None or deep <= depth_) and (items_ is None or many <= items_)
            try:
                codec.decode(message, depth=depth_, items=items_)
            except InvalidJSON as error:
                assert not fits
                assert error.problem in (
                    f"it is nested deeper than {depth}",
                    f"it holds more than {items} values",
                )
            else:
                assert fits
        codec.decode(message, depth=deep, items=many)


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("type_", [Any, Item, A | B, pydantic.JsonValue])
@pytest.mark.parametrize("encode", [str, str.encode])
@pytest.mark.parametrize(
    ("at_the_bound", "beyond", "problem"),
    [
        (nested(64), nested(65), "it is nested deeper than 64"),
        (nested(64, '{"":', "}"), nested(65, '{"":', "}"), "it is nested deeper than 64"),
        (nested(32, '[{"":', "}]"), nested(33, '{"":[', "]}"), "it is nested deeper than 64"),
        ("[" * 64 + "]" * 64, "[" * 65 + "]" * 65, "it is nested deeper than 64"),
        (
            f"[{','.join([nested(63)] * 70)}]",
            f"[{','.join([nested(63)] * 60 + [nested(64)])}]",
            "it is nested deeper than 64",
        ),
        ("[" + "1," * 9998 + "1]", "[" + "1," * 9999 + "1]", "it holds more than 10000 values"),
        ("[" + '"", ' * 9998 + '""]', "[" + '"", ' * 9999 + '""]', "it holds more than 10000 values"),
        ("[" + "[],{ }," * 4999 + "1]", "[" + "[],{ }," * 4999 + "1,1]", "it holds more than 10000 values"),
        ("[" + '["["],' * 4999 + "1]", "[" + '["["],' * 4999 + "{}, 1]", "it holds more than 10000 values"),
        (
            "{" + '"a":1,' * 9998 + '"a":1}',
            "{" + '"a":1,' * 9999 + '"a":1}',
            "it holds more than 10000 values",
        ),
        (
            '["' + '[{,\\\\\\"' * 4000 + '"]',
            '["' + '[{,\\\\\\"' * 4000 + '"' + ",1" * 9999 + "]",
            "it holds more",
        ),
    ],
)
def test_at_the_bounds_it_passes_and_beyond_them_it_does_not(
    at_the_bound: str, beyond: str, problem: str, encode: Callable[[str], Any], type_: Any
) -> None:
    try:
        codec.decode(encode(at_the_bound), type_, depth=64, items=10_000)
    except MessageValidationError:
        assert type_ is not Any
    with pytest.raises(InvalidJSON, match=problem) as caught:
        codec.decode(encode(beyond), type_, depth=64, items=10_000)
    assert caught.value.close_code == 1007
    codec.decode(encode(beyond))  # without bounds


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "]",
        "{",
        '{"":',
        '"',
        '["',
        '"[",',
        '""',
        "\\",
        '"\\',
        '"\\"[',
        "[[],",
        "{},",
        '"a,b",',
        "1,",
        "é[",
        "\ud800[",
    ],
)
@pytest.mark.parametrize("depth", [64, None])
@pytest.mark.parametrize("items", [10_000, None])
def test_a_mebibyte_of_anything_is_no_trouble(unit: str, depth: int | None, items: int | None) -> None:
    with pytest.raises(InvalidJSON):
        codec.decode(unit * ((1 << 20) // len(unit)), depth=depth, items=items)


# What fits no type


@untimed
@given(json_values, st.sampled_from(TYPES[1:]))
def test_an_error_never_holds_a_value(value: Any, type_: Any) -> None:
    secret = "s3cr3t-value"
    document = codec.encode({"n": secret, "name": [secret], "type": secret, "colour": secret, "more": value})
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, type_)
    assert secret not in str(caught.value)
    assert secret not in caught.value.public_reason
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("document", "type_", "problem", "path", "expected", "found"),
    [
        ('{"name": 1}', Bounded, "expected str, got int", "$.name", "str", "int"),
        ('{"name": "x", "many": {"k": "v"}}', Bounded, "expected int, got str", "$.many[...]", "int", "str"),
        ('{"name": "x", "colour": "s"}', Bounded, "invalid enum value", "$.colour", "", "str"),
        ("""{"name": "x", "colour": "it's"}""", Bounded, "invalid enum value", "$.colour", "", "str"),
        ('{"type": "secret"}', A | B, "invalid value", "$.type", "", "str"),
        ('{"type": 5}', A | B, "expected str", "$.type", "str", ""),
        ('[{"type": "a", "n": null}]', list[A | B], "expected int, got null", "$[0].n", "int", "null"),
        ("{}", Bounded, "object missing required field name", "$", "", ""),
        ("{}", A | B, "object missing required field type", "$", "", ""),
        ("[1, null]", list[int], "expected int, got null", "$[1]", "int", "null"),
        ("3", Bounded, "expected object, got int", "$", "object", "int"),
        ("1.5", int | str | None, "expected int | str | null, got float", "$", "int | str | null", "float"),
        ('{"SECRET": 1}', Strict, "object contains an unknown field", "$", "", ""),
        ('{"inner": {"SECRET": 1}}', Strict, "object contains an unknown field", "$.inner", "", ""),
        ('{"a` - at `$.SECRET": 1}', Strict, "object contains an unknown field", "$[...]", "", ""),
        ('{"the-name": "x"}', Strict, "expected int, got str", "$.the-name", "int", "str"),
        ('{"k": {"word": "SECRET"}}', dict[str, Picky], "invalid value", "$[...]", "", ""),
        ('{"word": "SECRET"}', Picky, "invalid value", "$", "", ""),
        ('{"count": 1}', Checked, "invalid value", "$", "", ""),
        ('[{"count": "x"}]', list[Checked], "expected int, got str", "$[0].count", "int", "str"),
        ('{"count": "x"}', Plain, "expected int, got str", "$.count", "int", "str"),
        ('{"size": "x"}', Shape, "expected int, got str", "$.size", "int", "str"),
        ("[1]", Point, "expected array of length 2", "$", "array of length 2", "array"),
        ("[1]", Pair, "expected array of at least length 2", "$", "array of at least length 2", "array"),
        ('[1, "x"]', Pair, "expected int, got str", "$[1]", "int", "str"),
        ('"x"', Literal["a", 1], "invalid enum value", "$", "", "str"),
        ("7", Literal["a", 1], "invalid enum value", "$", "", "int"),
        ('"SECRET"', datetime.datetime, "invalid RFC3339 encoded datetime", "$", "datetime", "str"),
        ('"SECRET"', datetime.date, "invalid RFC3339 encoded date", "$", "date", "str"),
        ('"SECRET"', datetime.time, "invalid RFC3339 encoded time", "$", "time", "str"),
        ('"SECRET"', datetime.timedelta, "invalid ISO8601 duration", "$", "duration", "str"),
        ('"P99999999999D"', datetime.timedelta, "duration is out of range", "$", "duration", "str"),
        ('"SECRET"', uuid.UUID, "invalid UUID", "$", "uuid", "str"),
        ('"SECRET"', decimal.Decimal, "invalid decimal string", "$", "decimal", ""),
        ('"SECRET"', bytes, "invalid base64 encoded string", "$", "bytes", "str"),
        ("5", bytes, "expected bytes, got int", "$", "bytes", "int"),
        (
            '"2020-01-01T00:00:00"',
            Annotated[datetime.datetime, Meta(tz=True)],
            "expected datetime with a timezone component, got str",
            "$",
            "datetime with a timezone component",
            "str",
        ),
        (
            '"x"',
            Annotated[str, Meta(min_length=3)],
            "expected str of length >= 3",
            "$",
            "str of length >= 3",
            "str",
        ),
        ("1", Annotated[int, Meta(ge=3)], "expected int >= 3", "$", "int >= 3", "int"),
        ("5", Annotated[float, Meta(lt=3)], "expected float < 3.0", "$", "float < 3.0", "float"),
        (
            "[1]",
            Annotated[list[int], Meta(max_length=0)],
            "expected array of length <= 0",
            "$",
            "array of length <= 0",
            "array",
        ),
        (
            '"X"',
            Annotated[str, Meta(pattern="^[a-z`]$")],
            "expected str matching regex '^[a-z`]$'",
            "$",
            "str matching regex '^[a-z`]$'",
            "str",
        ),
        ('{"SECRET": 1}', dict[int, int], "in a key: expected int, got str", "$[...]", "int", "str"),
        ('[{"SECRET": 1}]', list[dict[uuid.UUID, int]], "in a key: invalid UUID", "$[0][...]", "uuid", "str"),
        ("[[1]]", set[Any], "expected what can be in a set, got array", "$", "", "array"),
        ("[{}]", frozenset[object], "expected what can be in a set, got object", "$", "", "object"),
        ("1e400", float, "number out of range", "$", "", ""),
        ("9" * 5000, int, "integer value out of range", "$", "", "int"),
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
    assert error.__context__ is error.__cause__ is None


def of(type_: Any, **constraints: Any) -> Any:
    """``type_``, read by Pydantic."""
    return Annotated[type_, pydantic.Field(**constraints)]


@pytest.mark.parametrize(
    ("type_", "document", "text", "types"),
    [
        (Item, "3", "expected object, got int at $", "object/int"),
        (Item, '{"price": "x"}', "expected int, got str at $.price", "int/str"),
        (Item, '{"price": 1.5}', "expected int, got float at $.price", "int/float"),
        (Item, '{"price": null}', "expected int, got null at $.price", "int/null"),
        (Item, '{"price": 1, "name": []}', "expected str, got array at $.name", "str/array"),
        (Item, "{}", "object missing required field price at $", "/"),
        (list[Item], '[{"price": 1}, {}]', "object missing required field price at $[1]", "/"),
        (dict[str, Item], '{"k": {"price": {}}}', "expected int, got object at $[...].price", "int/object"),
        (Item | None, "5", "expected object, got int at $", "object/int"),
        (list[Item | int], "[[]]", "expected object | int, got array at $[0]", "object | int/array"),
        (Discriminated, '{"type": "SECRET"}', "invalid value at $.type", "/str"),
        (Discriminated, "{}", "object missing required field type at $", "/"),
        (
            list[Discriminated],
            '[{"type": "order", "items": [{"price": "x"}]}]',
            "expected int, got str at $[0].items[0].price",
            "int/str",
        ),
        (
            Discriminated,
            '{"type": "order", "stock": {"SECRET": {"price": "x"}}}',
            "expected int, got str at $.stock[...].price",
            "int/str",
        ),
        (
            Discriminated,
            '{"type": "order", "order": {"items": 1}, "items": 2}',
            "expected array, got int at $.items",
            "array/int",
        ),
        (Order, '{"type": "order", "SECRET": 1}', "object contains an unknown field at $", "/"),
        (Order, '{"type": "order", "theAmount": 100}', "expected int < 100 at $.theAmount", "int < 100/int"),
        (Order, '{"type": "order", "theAmount": "-1"}', "expected number >= 0, got str at $.theAmount", None),
        (
            Refund,
            '{"type": "refund", "why": []}',
            "expected str | int, got array at $.why",
            "str | int/array",
        ),
        (Place, '{"street": 1}', "expected str, got int at $.street", "str/int"),
        (Place, '{"street": "", "item": {"price": "x"}}', "expected int, got str at $.item.price", "int/str"),
        (Basket, '{"first": {"price": "x"}}', "expected int, got str at $.first.price", "int/str"),
        (Corner, '{"item": {"price": "x"}}', "expected int, got str at $.item.price", "int/str"),
        (pydantic.TypeAdapter(Item), '{"price": "x"}', "expected int, got str at $.price", "int/str"),
        (of(datetime.datetime), '"SECRET"', "invalid datetime at $", "datetime/str"),
        (of(uuid.UUID), '"SECRET"', "invalid uuid at $", "uuid/str"),
        (of(datetime.timedelta), "[]", "expected duration, got array at $", "duration/array"),
        (of(decimal.Decimal), '"SECRET"', "invalid decimal at $", "decimal/str"),
        (of(Literal["a", 1]), '"SECRET"', "invalid enum value at $", "/str"),
        (of(Colour), "1", "invalid enum value at $", "/int"),
        (of(None), "1", "expected null, got int at $", "null/int"),
        (of(tuple[int, int]), "[1]", "expected array of length >= 2 at $", "array of length >= 2/array"),
        (of(dict[int, int]), '{"SECRET": 1}', "in a key: expected int, got str at $[...]", "int/str"),
        (of(dict[str, int]), '{"[key]": "SECRET"}', "expected int, got str at $[...]", "int/str"),
        (of(set[Any]), "[[]]", "expected what can be in a set at $[0]", "/array"),
        (of(str, max_length=1), '"ab"', "expected str of length <= 1 at $", "str of length <= 1/str"),
        (of(dict[str, int], min_length=1), "{}", "expected object of length >= 1 at $", None),
        (
            of(str, pattern="^a$"),
            '"A"',
            "expected str matching regex '^a$' at $",
            "str matching regex '^a$'/str",
        ),
        (of(int, multiple_of=3), "4", "expected int that's a multiple of 3 at $", None),
        (
            of(datetime.date, gt=datetime.date(2000, 1, 1)),
            '"1999-01-01"',
            "expected value > 2000-01-01, got str at $",
            None,
        ),
        (
            of(pydantic.AwareDatetime),
            '"1999-01-01"',
            "expected datetime with a timezone component, got str at $",
            None,
        ),
        (
            of(pydantic.NaiveDatetime),
            '"1999-01-01T00:00Z"',
            "expected datetime with no timezone component, got str at $",
            None,
        ),
        (of(pydantic.FiniteFloat), "1e400", "number out of range at $", "/float"),
        (of(int), f'"{"9" * 9999}"', "integer value out of range at $", "/str"),
        (of(pydantic.Json[list[int]]), '"["', "invalid JSON in a str at $", "/str"),
        (of(pydantic.Json[list[int]]), "5", "expected str, got int at $", "str/int"),
        (of(pydantic.IPvAnyAddress), '"SECRET"', "invalid value (ip any address) at $", "/str"),
        (Annotated[int, annotated_types.Gt(3)], "1", "expected int > 3 at $", "int > 3/int"),
    ],
)
def test_an_error_of_pydantic_s_says_it_in_the_same_words(
    type_: Any, document: str, text: str, types: str | None
) -> None:
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, type_)
    error = caught.value
    assert str(error) == text
    assert types is None or f"{error.expected}/{error.found}" == types
    assert error.__context__ is error.__cause__ is None


def test_the_text_of_a_validator_is_not_repeated() -> None:
    class Loud(pydantic.BaseModel):
        word: str
        by: Literal["value", "assert", "too_loud", "too_long", "missing"]

        @pydantic.model_validator(mode="after")
        def check(self) -> Loud:
            if self.by not in ("value", "assert"):
                raise pydantic_core.PydanticCustomError(self.by, "{word} is", {"word": self.word})
            assert self.by != "assert", self.word
            raise ValueError(self.word)

    for by, problem in (
        ("value", "invalid value"),
        ("assert", "invalid value"),
        ("too_loud", "invalid value (too loud)"),
        ("too_long", "invalid value (too long)"),
        ("missing", "object missing required field"),
    ):
        with pytest.raises(MessageValidationError) as caught:
            codec.decode(codec.encode({"word": "SECRET", "by": by}), Loud)
        assert caught.value.problem == problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Expected that SECRET is not `said`", "invalid value at $"),
        ("SECRET - at `$.name`", "invalid value at $.name"),
        ("Invalid value 'SECRET - at `$.x`' - at `$.name`", "invalid value at $.name"),
        ("Expected `int`, got `str` - at `SECRET`", "invalid value at $"),
    ],
)
def test_texts_of_msgspec_s_that_are_not_known_are_not_repeated(text: str, said: str) -> None:
    assert str(of_msgspec(msgspec.ValidationError(text), frozenset)) == said


def test_what_a_validator_made_of_the_value_does_not_lead_the_path_astray() -> None:
    class Shifted(pydantic.BaseModel):
        items: list[Item]

        @pydantic.field_validator("items", mode="before")
        @classmethod
        def shift(cls, items: Any) -> Any:
            return [{"price": items}]

    with pytest.raises(MessageValidationError) as caught:
        codec.decode('{"items": "SECRET"}', Shifted)
    assert (caught.value.path, caught.value.found) == ("$.items", "str")


def test_of_very_many_mistakes_only_the_number_is_told() -> None:
    with pytest.raises(MessageValidationError, match=r"^1001 mistakes at \$$"):
        codec.decode("[" + "1," * 1000 + "1]", list[Item])


class Twig(pydantic.BaseModel):
    twig: Twig | None = None
    leaf: Annotated[int, pydantic.BeforeValidator(lambda value: {value: value})] = 0


def test_for_a_place_that_is_not_there_the_search_ends() -> None:
    document = '{"twig":' * 60 + '{"leaf":"SECRET"}' + "}" * 60
    with pytest.raises(MessageValidationError) as caught:
        codec.decode(document, Twig)
    assert caught.value.path == "$" + ".twig" * 60 + ".leaf"


def test_a_field_may_be_called_as_a_member_of_a_union_or_as_it_were_a_key() -> None:
    class Move(pydantic.BaseModel):
        type: Literal["move"]
        move: dict[str, dict[int, int]] = {}

    class Stop(pydantic.BaseModel):
        type: Literal["stop"]

    Message = Annotated[Move | Stop, pydantic.Field(discriminator="type")]
    for move, path in (
        ('{"move": 5}', "$.move.move"),
        ('{"a": {"move": 5}}', "$.move[...].move"),
        ("[]", "$.move"),
        ('{"[key]": 5}', "$.move[...]"),
    ):
        with pytest.raises(MessageValidationError) as caught:
            codec.decode(f'{{"type": "move", "move": {move}}}', Message)
        assert caught.value.path == path


# Types


@pytest.mark.parametrize(
    ("type_", "document", "value"),
    [
        (list[Item], '[{"price": 1}]', [Item(price=1)]),
        (Item | None, "null", None),
        (dict[str, Item], '{"a": {"price": 1}}', {"a": Item(price=1)}),
        (tuple[Item, int], '[{"price": 1}, 2]', (Item(price=1), 2)),
        (Discriminated, '{"type": "refund"}', Refund(type="refund")),
        (Place, '{"street": "x"}', Place("x")),
        (list[Place], '[{"street": "x"}]', [Place("x")]),
        (pydantic.TypeAdapter(list[int]), '["1"]', [1]),
        (Basket, '{"first": {"price": 1}}', {"first": Item(price=1)}),
        (Annotated[int, pydantic.Field(gt=3)], "4", 4),
        (Annotated[int, "one", ["two"]], "4", 4),  # cannot be hashed
        (Annotated[Item, ["two"]], '{"price": 1}', Item(price=1)),
        (set[int], "[1, 1]", {1}),
        (object, "[1]", [1]),
        (None, "null", None),
    ],
)
def test_types_of_all_makes_are_read(type_: Any, document: str, value: Any) -> None:
    assert codec.decode(document, type_) == value
    assert codec.decode(document.encode(), type_) == value


def test_a_model_s_own_way_of_reading_is_its_own() -> None:
    class Own(pydantic.BaseModel):
        @classmethod
        def model_validate_json(cls, *_args: Any, **_options: Any) -> Any:
            return "own"

    assert codec.decode("{}", Own) == "own"


class Reads(pydantic.BaseModel):
    n: int

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_options: Any) -> Reads:
        return cls.model_validate({"n": json_data})


def test_a_model_may_read_what_is_no_json() -> None:
    assert codec.decode("12", Reads).n == 12
    with pytest.raises(MessageValidationError, match=r"^expected int, got str at \$$"):
        codec.decode("<n>SECRET</n>", Reads)


class Hook:
    @classmethod
    def __get_pydantic_core_schema__(cls, *_args: Any) -> Any:
        return pydantic_core.core_schema.int_schema()


class HookedEnum(Hook, enum.Enum):
    ONE = 1


class Hooked(Hook, msgspec.Struct):
    n: HookedEnum


class Alien(Hook):
    pass


class HoldsHooked(pydantic.BaseModel):
    n: Hooked
    m: Alien


def test_a_type_that_msgspec_reads_may_know_pydantic_too() -> None:
    assert codec.decode('{"n": 1}', Hooked) == Hooked(HookedEnum.ONE)
    with pytest.raises(MessageValidationError, match=r"^invalid enum value at \$.n$"):
        codec.decode('{"n": 5}', Hooked)
    assert codec.decode("[5]", list[Alien]) == [5]
    assert codec.decode('{"n": 5, "m": 6}', HoldsHooked).n == 5


def test_types_that_cannot_be_hashed_are_forgotten_in_the_end() -> None:
    for number in range(300):
        assert codec.decode("1", Annotated[int, [number]]) == 1
    with pytest.raises(MessageValidationError, match="unknown field"):
        codec.decode('{"inner": {"x": 1}}', Annotated[Strict, []])


class HoldsModel(msgspec.Struct):
    item: Item


@attrs.define
class AlsoHoldsModel:
    items: list[Item]


@dataclasses.dataclass
class ReadsModel:
    item: Item


class Undefined(pydantic.BaseModel):
    other: NowhereToBeFound  # type: ignore[name-defined]  # noqa: F821


class UndefinedToo(msgspec.Struct):
    other: NowhereToBeFound  # type: ignore[name-defined]  # noqa: F821


class Stranger:
    pass


def test_a_dataclass_may_hold_a_model() -> None:
    assert codec.decode('{"item": {"price": 1}}', ReadsModel) == ReadsModel(Item(price=1))


@pytest.mark.parametrize(
    ("type_", "cure"),
    [
        (5, "type=5 is nothing that JSON can be read as .*; give a msgspec Struct"),
        (Literal[[1]], "is nothing that JSON can be read as"),
        (A | Plain | Point, "is nothing that JSON can be read as"),
        (UndefinedToo, "NowhereToBeFound"),
        (Undefined, "NowhereToBeFound"),
        (list[Undefined], "Undefined.* is not fully defined"),
        (Stranger, "wants a .*Stranger.*, which no JSON is; give"),
        (dict[str, list[complex]], "wants a .*complex.*, which no JSON is; give"),
        (HoldsModel, "needs Pydantic because of .*Item.*cannot read the rest .*HoldsModel.*make all of it"),
        (list[AlsoHoldsModel], "needs Pydantic because of .*Item.*AlsoHoldsModel.*make all of it"),
        (list[A | Item], "needs Pydantic because of .*Item.*make all of it Pydantic models, or none"),
        (Annotated[list[Item], Meta(max_length=1)], r"for msgspec; write Annotated\[\.\.\., pydantic.Field"),
    ],
)
def test_a_type_that_cannot_be_read_is_the_program_s_mistake(type_: Any, cure: str) -> None:
    for _ in range(2):
        with pytest.raises(WrongTypeError, match=cure):
            codec.decode("{}", type_)


def test_what_never_can_be_in_a_set_is_the_program_s_mistake() -> None:
    with pytest.raises(WrongTypeError, match=r"a Plain cannot be in a set; .* or write list\[Plain\]"):
        codec.decode('[{"count": 1}]', set[Plain])


def test_a_bug_in_a_class_s_own_code_is_not_the_client_s_mistake() -> None:
    class Buggy(msgspec.Struct):
        def __post_init__(self) -> None:
            raise KeyError("bug")

    class Unhashable(msgspec.Struct, frozen=True):
        def __hash__(self) -> int:
            raise TypeError("bug")

    with pytest.raises(KeyError, match="bug"):
        codec.decode("{}", Buggy)
    with pytest.raises(TypeError, match="bug"):
        codec.decode("[{}]", set[Unhashable])


def test_pydantic_is_imported_only_for_its_types() -> None:
    program = (
        "import sys, msgspec\n"
        "from nexios_trio.websockets import codec\n"
        "class S(msgspec.Struct): n: int\n"
        "codec.decode('{\"n\": 1}', S)\n"
        "codec.decode('[]', list[S | None])\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_pydantic_its_types_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(WrongTypeError, match=r"pip install pydantic; or write .*msgspec\.Meta"):
        codec.decode("1", Annotated[int, annotated_types.Gt(5)])


# The kind of a message


class Word(str):
    __slots__ = ()


class Kind(enum.StrEnum):
    SAY = "say"


class Thing:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Broken(dict[str, Any]):
    def get(self, *_args: Any) -> Any:
        raise RuntimeError


class Raising:
    @property
    def type(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"type": "say"}, "say"),
        ({"type": Word("say")}, "say"),
        ({"type": Kind.SAY}, "say"),
        ({"type": Colour.RED}, "red"),
        ({"type": 5}, None),
        ({"kind": "say"}, None),
        ({}, None),
        (A(1), "a"),
        (msgspec.defstruct("Numbered", [], tag=7)(), "7"),
        (msgspec.defstruct("Untagged", [("type", str)])("say"), "say"),
        (msgspec.defstruct("Untyped", [])(), None),
        (Refund(type="refund"), "refund"),
        (Thing(type=Kind.SAY), "say"),
        (Thing(type=None), None),
        (Thing(), None),
        (Raising(), None),
        (Broken(), None),
        (["say"], None),
        ("say", None),
        (None, None),
    ],
)  # fmt: skip
def test_the_kind_of_a_message(value: Any, kind: str | None) -> None:
    found = codec.kind_of(value)
    assert found == kind
    assert type(found) in (str, type(None))


def test_the_field_of_the_kind_can_be_another() -> None:
    assert codec.kind_of({"type": "x", "action": "say"}, "action") == "say"
    assert codec.kind_of(Thing(action="say"), "action") == "say"
    assert codec.kind_of({}, ["unhashable"]) is None  # type: ignore[arg-type]
    assert codec.kind_of("text", "upper") is None


# What a client may be told


def mistake(document: str, type_: Any) -> PeerError:
    with pytest.raises(PeerError) as caught:
        codec.decode(document, type_)
    return caught.value


class Strange(PeerError):
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            mistake('{"name": 5}', Bounded),
            {
                "error": "validation",
                "path": "$.name",
                "expected": "str",
                "found": "int",
                "message": "expected str, got int at $.name",
            },
        ),
        (
            mistake("{}", Bounded),
            {
                "error": "validation",
                "path": "$",
                "expected": "",
                "found": "",
                "message": "object missing required field name at $",
            },
        ),
        (mistake("[" * 9999, Any), {"error": "json", "message": "invalid JSON: it is nested too deep"}),
        (
            MessageTypeError("text", b"SECRET"),
            {
                "error": "type",
                "expected": "text",
                "found": "binary",
                "message": "expected a text message, got a binary one",
            },
        ),
        (LimitError("groups", 3, "too many groups"), {"error": "limit", "message": "too many groups"}),
        (AuthenticationError("bad key"), {"error": "authentication", "message": "authentication failed"}),
        (PermissionDenied("not an admin"), {"error": "permission", "message": "permission denied"}),
        (Strange("what it says"), {"error": "refused", "message": "what it says"}),
    ],
)
def test_what_a_client_may_be_told(error: PeerError, told: dict[str, Any]) -> None:
    assert codec.problem_of(error) == {"type": "error", **told}
