"""Whatever bytes come, decoding raises nothing but `PeerError`, and what it says holds nothing of them.

`one_input` is a fuzz target: ``atheris.Setup(sys.argv, one_input)``. A 0x01 in its input stands for a word
that no type and no text of ours has; in what is said of the message it must not be.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import uuid
from typing import Annotated, Any, Literal, NamedTuple

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from nexios_trio import InvalidJSON, MessageValidationError, PeerError
from nexios_trio.websockets import codec

pytestmark = pytest.mark.untraced


SECRET = "Zq7xSECRET"

fuzz = settings(
    deadline=None,
    derandomize=bool(os.environ.get("CI")),  # there, a failure must be the commit's
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    ONE = 1


class Say(msgspec.Struct, tag="say", forbid_unknown_fields=True):
    text: Annotated[str, Meta(max_length=5, pattern="^[a-z]*$")] = ""
    count: Annotated[int, Meta(ge=0, lt=10)] = 0
    when: datetime.datetime | None = None
    inner: Say | None = None


class Draw(msgspec.Struct, tag="draw", rename="camel"):
    line_colour: Colour
    sizes: dict[Size, list[float]] = {}
    raw_bytes: bytes = b""
    loud: Loud | None = None


class Loud(msgspec.Struct):
    text: str

    def __post_init__(self) -> None:
        if self.text:
            raise ValueError(f"{self.text} - at `$.{self.text}`")


class Pair(msgspec.Struct, array_like=True, tag=1):
    left: uuid.UUID
    right: decimal.Decimal


@dataclasses.dataclass
class Plain:
    text: str
    items: list[Literal["a", 1]] = dataclasses.field(default_factory=list)
    by_id: dict[uuid.UUID, datetime.timedelta] = dataclasses.field(default_factory=dict)


@attrs.define
class Checked:
    text: str = attrs.field(validator=attrs.validators.in_(["a"]))
    count: int = attrs.field(default=0, validator=attrs.validators.lt(5))


class Shape(typing_extensions.TypedDict, total=False):
    text: typing_extensions.Required[int]
    items: set[Any]
    when: datetime.date


class Point(NamedTuple):
    x: int
    y: frozenset[int | str] = frozenset()


def check(value: Any) -> Any:
    if value:
        raise ValueError(f"{value!r}")
    return value


class Item(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    type: Literal["item"] = "item"
    text: Annotated[str, pydantic.Field(max_length=5, pattern="^[a-z]*$")] = ""
    count: Annotated[int, pydantic.Field(ge=0, lt=10)] = 0
    when: datetime.datetime | datetime.date | None = None
    colour: Colour | None = pydantic.Field(default=None, alias="theColour")
    price: decimal.Decimal | float = 0.0
    checked: Annotated[Any, pydantic.BeforeValidator(check)] = None
    inner: Item | None = None


class Order(pydantic.BaseModel):
    type: Literal["order"] = "order"
    items: list[Item] | dict[int, Item] = []
    by_id: dict[uuid.UUID, pydantic.Json[list[int]]] = {}
    url: pydantic.AnyUrl | None = None
    both: set[int] | tuple[int, str] | bytes | None = None


@pydantic.dataclasses.dataclass
class Place:
    text: str
    item: Item | None = None


class Basket(typing_extensions.TypedDict):
    items: list[Item]


TYPES: list[Any] = [
    Any,
    Say,
    Say | Draw,
    list[Say | Draw | None],
    Draw,
    Loud,
    Pair,
    Plain,
    list[Checked],
    Shape,
    Point,
    dict[str, Any],
    dict[Literal["a"], list[Plain]],
    Annotated[list[int | str], Meta(max_length=3)],
    set[Any],
    Item,
    list[Item],
    Item | None,
    Annotated[Item | Order, pydantic.Field(discriminator="type")],
    dict[str, Item | Order],
    Order,
    Place,
    Basket,
    tuple[Item, int],
    pydantic.TypeAdapter(dict[str, int]),
    pydantic.JsonValue,
    Annotated[float, annotated_types.Gt(3)],
]
BOUNDS: list[tuple[int | None, int | None]] = [(None, None), (64, 10_000), (2, None), (None, 5), (3, 8)]


def one_input(data: bytes) -> None:
    """Decode what comes after the first two bytes, which say as what; complain of what must not be."""
    if len(data) < 2:
        return
    type_ = TYPES[data[0] % len(TYPES)]
    depth, items = BOUNDS[data[1] % len(BOUNDS)]
    payload = data[2:].replace(b"\x01", SECRET.encode())
    message: str | bytes = payload if data[1] & 0x80 else payload.decode("utf-8", "surrogateescape")
    try:
        value = codec.decode(message, type_, depth=depth, items=items)
    except PeerError as error:
        told = codec.problem_of(error)
        assert set(told) >= {"type", "error", "message"}
        said = [str(error), error.public_reason, repr(error), repr(error.args), json.dumps(told)]
        match error:
            case MessageValidationError():
                assert error.path.startswith("$")
                said += [error.problem, error.path, error.expected, error.found]
            case InvalidJSON():
                said += [error.problem, error.msg]
            case _:
                raise AssertionError(f"not an error of decoding: {error!r}") from error
        assert error.__context__ is error.__cause__ is None
        for text in said:
            assert SECRET not in text
            assert len(text) < 500
    else:
        kind = codec.kind_of(value)
        assert kind is None or type(kind) is str


FIELDS = [
    "type", "text", "count", "when", "inner", "lineColour", "sizes", "rawBytes", "loud", "items", "by_id",
    "x", "y", "theColour", "price", "checked", "url", "both", "item", "a", "[key]", SECRET,
    f"a` - at `$.{SECRET}", f"'{SECRET}",
]  # fmt: skip
WORDS = [
    "say", "draw", "item", "order", "red", "a", "1", "2020-01-01", "2020-01-01T00:00:00Z", "P1D",
    "http://x/", "1e400", "NaN", "12345678123456781234567812345678", '["', "", SECRET,
    f"{SECRET}' - at `$.{SECRET}`", f"it's {SECRET}", f"http://{SECRET}:x", f"[{SECRET}]",
]  # fmt: skip
scalars = (
    st.sampled_from(WORDS)
    | st.sampled_from([None, True, False, 0, 1, 7, -1, 10**30, 0.5, 1e300])
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=15,
)
PIECES = [
    *(b'[ ] { } " , : \\ \\ud800 NaN 1e999 \x01 \xff \x00'.split(b" ")),
    b" ",
    b"9" * 5000,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Valid JSON with a few pieces taken out, put in or doubled."""
    text = json.dumps(draw(values), ensure_ascii=draw(st.booleans()))
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        end = min(end, start + 10)
        data = data[:start] + draw(st.sampled_from([b"", data[start:end] * 2, *PIECES])) + data[end:]
    return data


selectors = st.binary(min_size=2, max_size=2)


@fuzz
@given(
    selectors,
    st.binary(max_size=100) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "replace")),
)
def test_arbitrary_input(selector: bytes, data: bytes) -> None:
    one_input(selector + data)


@settings(fuzz, max_examples=500)
@given(selectors, mutated())
def test_nearly_valid_json(selector: bytes, data: bytes) -> None:
    one_input(selector + data)


@fuzz
@given(mutated())
def test_every_type_with_the_same_document(data: bytes) -> None:
    for number in range(len(TYPES)):
        one_input(bytes([number, 0]) + data)
        one_input(bytes([number, 128]) + data)


@fuzz
@given(values)
def test_what_is_valid_and_within_the_bounds_is_no_malformed_json(value: object) -> None:
    try:
        codec.decode(json.dumps(value), depth=64, items=10_000)
    except MessageValidationError as error:  # of an int beyond what a float can hold
        assert "out of range" in error.problem


def test_the_target_takes_anything_short() -> None:
    for data in (b"", b"\x00", b"\x00\x00"):
        one_input(data)
