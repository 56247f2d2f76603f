"""Which library reads JSON as a type: msgspec, or Pydantic where the type is made of its parts."""

from __future__ import annotations

import enum
import functools
import re
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import msgspec

from nexios_trio.exceptions import InvalidJSON, MessageValidationError, WrongTypeError
from nexios_trio.websockets.json_bounds import outside_strings
from nexios_trio.websockets.json_misfits import JSON_NAMES, of_pydantic

__all__ = ["declared_names", "reader"]

Reader: TypeAlias = Callable[[str | bytes], Any]

_CURE: Final = (
    "give a msgspec Struct, dataclass, attrs class, TypedDict, a union of such, a built-in type, a Pydantic "
    "model, or what is made of models"
)


def reader(type_: Any) -> Reader:
    """What reads a message as ``type_``. Raises `WrongTypeError` if nothing does.

    The reader raises `msgspec.MsgspecError` and what is ours. It is made once per type; of types that
    cannot be hashed, once per object: keep these, such as an ``Annotated`` with a list, in a variable.
    """
    try:
        return _reader(type_)
    except TypeError as error:
        if isinstance(error, WrongTypeError):
            raise
    known = _unhashable.get(id(type_))
    if known is None:
        known = _unhashable[id(type_)] = (type_, _build(type_))  # kept, so that the id stays its own
        if len(_unhashable) > 256:
            _unhashable.popitem(last=False)
    return known[1]


_unhashable: Final[OrderedDict[int, tuple[Any, Reader]]] = OrderedDict()


def declared_names(type_: Any) -> frozenset[str]:
    """The names of all fields that msgspec looks for in a message for ``type_``."""
    try:
        return _names(type_)
    except TypeError:  # it cannot be hashed
        return _names.__wrapped__(type_)


@functools.lru_cache(maxsize=256)
def _names(type_: Any) -> frozenset[str]:
    names: set[str] = set()
    for part in _parts(type_):
        if isinstance(part, type):
            names.update(_fields(part), getattr(part, "__struct_encode_fields__", ()))
            names.add(getattr(getattr(part, "__struct_config__", None), "tag_field", None) or "")
    return frozenset(names)


def _build(type_: Any) -> Reader:
    if isinstance(type_, type):
        if hasattr(type_, "model_validate_json"):  # a model may have a way of its own
            return _pydantic_reader(type_.model_validate_json, type_)
    elif hasattr(type_, "validate_json"):  # pydantic.TypeAdapter
        return _pydantic_reader(type_.validate_json, type_)
    for part in _parts(type_):
        if _is_pydantic(part):
            return _adapter_reader(type_, part)
    return _msgspec_reader(type_)


_reader: Final = functools.lru_cache(maxsize=256)(_build)


def _parts(type_: Any) -> Iterator[Any]:
    """``type_``, what is inside its brackets, what it is annotated with and the types of its fields."""
    seen: dict[int, Any] = {}  # with the objects, so that an id stays its own
    todo = [type_]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        todo += typing.get_args(part)
        todo += getattr(part, "__metadata__", ())
        todo += [getattr(part, name) for name in ("__supertype__", "__value__") if hasattr(part, name)]
        cls = typing.get_origin(part) or part
        if isinstance(cls, type) and not _is_pydantic(cls):
            todo += _fields(cls).values()


_WITH_FIELDS: Final = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "__total__", "_fields")


def _fields(cls: type) -> dict[str, Any]:
    if not any(hasattr(cls, name) for name in _WITH_FIELDS):
        return {}
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a name that is not known: the library will say so
        return {}


# msgspec


def _msgspec_reader(type_: Any) -> Reader:
    try:
        read = msgspec.json.Decoder(type_).decode
        info = msgspec.inspect.type_info(type_)
    except Exception as error:  # TypeError mostly, NameError for an annotation that is not known
        what = f"type={type_!r} is nothing that JSON can be read as ({error})"
        raise WrongTypeError(f"{what}; {_CURE}") from None
    for strange in _strangers(info):
        raise WrongTypeError(f"type={type_!r} wants a {strange!r}, which no JSON is; {_CURE}")
    origins = (typing.get_origin(part) or part for part in _parts(type_))
    if any(isinstance(origin, type) and issubclass(origin, AbstractSet) for origin in origins):
        return functools.partial(_read_with_sets, read)
    return read


_JSON_VALUES: Final[tuple[object, ...]] = (None, True, 0, 0.0, "", [], {})


def _strangers(info: Any) -> Iterator[Any]:
    """The classes that msgspec leaves to a hook, which we have none of, and that no JSON value is one of."""
    seen: dict[int, Any] = {}
    todo = [info]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, msgspec.inspect.CustomType):
            cls = typing.get_origin(part.cls) or part.cls
            if not any(isinstance(value, cls) for value in _JSON_VALUES):
                yield part.cls
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field):
            todo += [getattr(part, name) for name in part.__struct_fields__]
        elif isinstance(part, tuple):
            todo += part


_UNHASHABLE: Final = re.compile(r"unhashable type: '(?P<name>.*)'")


def _read_with_sets(read: Reader, message: str | bytes) -> Any:
    try:
        return read(message)
    except TypeError as error:  # which msgspec leaves as it is
        match = _UNHASHABLE.fullmatch(str(error))
        if match is None:
            raise
    name = match["name"]
    if name in ("list", "dict"):
        found = JSON_NAMES[list if name == "list" else dict]
        raise MessageValidationError("expected what can be in a set, got " + found, found=found)
    raise WrongTypeError(f"a {name} cannot be in a set; make its class frozen, or write list[{name}]")


# Pydantic


def _is_pydantic(part: Any) -> bool:
    """Whether only Pydantic knows what ``part`` means: a model, a dataclass or type of its, a ``Field()``."""
    if hasattr(part, "__pydantic_validator__"):
        return True
    if hasattr(part, "__get_pydantic_core_schema__"):  # what msgspec can read may have it too, for models
        return not isinstance(part, enum.EnumType) and not any(hasattr(part, name) for name in _WITH_FIELDS)
    module: Any = getattr(part if isinstance(part, type) else type(part), "__module__", "")
    return str(module).partition(".")[0] in ("annotated_types", "pydantic", "pydantic_core")


def _adapter_reader(type_: Any, cause: Any) -> Reader:
    try:
        import pydantic  # optional, and takes 100 ms
    except ImportError:
        raise WrongTypeError(
            f"type={type_!r} needs Pydantic because of {cause!r}: pip install pydantic; or write "
            "Annotated[..., msgspec.Meta(...)]"
        ) from None
    for part in _parts(type_):
        if isinstance(part, msgspec.Meta):  # Pydantic would take no notice, and nobody would check
            raise WrongTypeError(
                f"type={type_!r} has {cause!r}, for Pydantic, and {part!r}, for msgspec; write "
                "Annotated[..., pydantic.Field(...)]"
            )
    try:
        adapter = pydantic.TypeAdapter(type_)
    except Exception as error:
        raise WrongTypeError(
            f"type={type_!r} needs Pydantic because of {cause!r}, and Pydantic cannot read the rest of it "
            f"({_first_sentence(error)}); make all of it Pydantic models, or none"
        ) from None
    return _pydantic_reader(adapter.validate_json, adapter)


def _pydantic_reader(read: Reader, type_: Any) -> Reader:
    from pydantic import PydanticUserError, ValidationError

    names = functools.cache(lambda: frozenset(_names_in_schema(type_)))

    def read_pydantic(message: str | bytes) -> Any:
        if _says_nan(message):
            raise InvalidJSON("NaN and Infinity are not JSON", message)
        try:
            return read(message)
        except PydanticUserError as error:
            mistake: Exception = WrongTypeError(f"type={type_!r} cannot be read: {_first_sentence(error)}")
        except ValidationError as error:
            mistake = of_pydantic(error, message, names)
        raise mistake  # from here, so that its context is not the error that holds the value

    return read_pydantic


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _says_nan(message: Any) -> bool:
    """Whether NaN or Infinity is in a document, which Pydantic takes and RFC 8259 §6 does not permit."""
    n, i = ("N", "I") if isinstance(message, str) else (78, 73)  # rare letters, found by memchr()
    if n not in message and i not in message:
        return False
    outside = outside_strings(message)
    return b"NaN" in outside or b"Infinity" in outside


_NAMING: Final = ("name", "alias", "validation_alias", "discriminator")


def _names_in_schema(type_: Any) -> Iterator[str]:
    """The names and aliases of all fields, out of Pydantic's core schema."""
    from pydantic import TypeAdapter

    adapter = type_ if isinstance(type_, TypeAdapter) else TypeAdapter(type_)
    todo: list[Any] = [adapter.core_schema]
    while todo:
        part = todo.pop()
        if isinstance(part, list | tuple):
            todo += part
        elif isinstance(part, dict):
            if isinstance(fields := part.get("fields"), dict):
                yield from fields
            yield from _strings([part.get(key) for key in _NAMING])
            todo += [part[key] for key in part.keys() - {"default", "metadata", "serialization"}]


def _strings(alias: object) -> Iterator[str]:
    """An alias is a name, a list of choices, or a list of lists: of the steps of a path each."""
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, Iterable):
        for part in alias:
            yield from _strings(part)
