"""Which library reads a type, and what its errors say in our words: a place and type names, never a value.

The words are those of JSON, with msgspec's spelling: ``str``, ``int``, ``float``, ``bool``, ``null``,
``array`` and ``object``; what travels in a string has the name of what it stands for: ``datetime``, ``uuid`` …
"""

from __future__ import annotations

import functools
import re
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import msgspec

from nexios_trio.exceptions import InvalidJSON, MessageValidationError, PeerError, WrongTypeError
from nexios_trio.websockets.json_bounds import outside_strings

__all__ = ["misfit", "reader"]

Reader: TypeAlias = Callable[[str | bytes], Any]

_CURE: Final = (
    "give a msgspec Struct, dataclass, attrs class, TypedDict, a union of such, a built-in type, or a Pydantic "
    "model or what is made of models"
)


def reader(type_: Any) -> Reader:
    """What reads a message as ``type_``. Raises `WrongTypeError` if nothing does.

    It is made once per type. Of types that cannot be hashed, that means: once per object.
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


def _build(type_: Any) -> Reader:
    if isinstance(type_, type):
        if hasattr(type_, "model_validate_json"):  # a model itself; it may have its own way of reading
            return _pydantic_reader(type_.model_validate_json, type_)
    elif hasattr(type_, "validate_json"):
        return _pydantic_reader(type_.validate_json, type_)
    parts = list(_parts(type_))
    cause = next(filter(_is_pydantic, parts), None)
    return _msgspec_reader(type_, parts) if cause is None else _adapter_reader(type_, parts, cause)


_reader: Final = functools.lru_cache(maxsize=256)(_build)


def _parts(type_: Any) -> Iterator[Any]:
    """``type_``, what is inside its brackets, what it is annotated with and what its fields are."""
    seen: set[int] = set()
    todo = [type_]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        todo += typing.get_args(part)
        todo += getattr(part, "__metadata__", ())
        todo += [getattr(part, name) for name in ("__supertype__", "__value__") if hasattr(part, name)]
        if isinstance(part, type) and not _is_pydantic(part):
            todo += _fields(part).values()
        elif isinstance(origin := typing.get_origin(part), type):
            todo.append(origin)


def _fields(cls: type) -> dict[str, Any]:
    kinds = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "__total__", "_fields")
    if not any(hasattr(cls, kind) for kind in kinds):
        return {}
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # a name that is not known (yet): msgspec will say so
        return {}


@functools.lru_cache(maxsize=256)
def _declared(type_: Any) -> frozenset[str]:
    names: set[str] = set()
    for part in _parts(type_):
        if isinstance(part, type):
            names.update(_fields(part), getattr(part, "__struct_encode_fields__", ()))
            names.add(getattr(getattr(part, "__struct_config__", None), "tag_field", None) or "")
    return frozenset(names)


# msgspec


def _msgspec_reader(type_: Any, parts: Sequence[Any]) -> Reader:
    try:
        read = msgspec.json.Decoder(type_).decode
        info = msgspec.inspect.type_info(type_)
    except Exception as error:  # TypeError mostly, NameError for an annotation that means nothing
        raise WrongTypeError(
            f"type={type_!r} is nothing that JSON can be read as ({error}); {_CURE}"
        ) from None
    for strange in _strangers(info):
        raise WrongTypeError(f"no JSON can be read as {strange!r}, as type={type_!r} wants; {_CURE}")
    has_set = any(
        isinstance(origin := typing.get_origin(part) or part, type) and issubclass(origin, AbstractSet)
        for part in parts
    )
    return functools.partial(_read_sets, read) if has_set else read


_JSON_VALUES: Final = (None, True, 0, 0.0, "", [], {})


def _strangers(info: Any) -> Iterator[Any]:
    """The classes that msgspec leaves to a hook, which we have none of, and that no JSON value is one of."""
    seen: set[int] = set()
    todo = [info]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, msgspec.inspect.CustomType):
            cls = typing.get_origin(part.cls) or part.cls
            if not any(isinstance(value, cls) for value in _JSON_VALUES):
                yield part.cls
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field):
            todo += [getattr(part, name) for name in part.__struct_fields__]
        elif isinstance(part, tuple):
            todo += part


def _read_sets(read: Reader, message: str | bytes) -> Any:
    try:
        return read(message)
    except TypeError as error:  # msgspec does not translate it
        match = re.fullmatch(r"unhashable type: '(.*)'", str(error))
        if match is None:
            raise
        name = match[1]
    if name not in ("list", "dict"):
        raise WrongTypeError(
            f"no {name} can be in a set; make the class frozen (and hashable), or write list[{name}]"
        )
    raise MessageValidationError("expected what can be in a set, got " + _WORDS[name], found=_WORDS[name])


# The place, with `key` in it if it is a key that is wrong
_PLACE: Final = re.compile(r" - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`")
_STEP: Final = re.compile(r"\.(?P<name>[^.\[\]]+)|\[[^\[\]]*\]")
_TYPES: Final = re.compile(r"`(?P<expected>[^`]*)`(?:, got `(?P<found>[^`]*)`)?")
_CONSTRAINT: Final = re.compile(r"`(?P<type>\w+)` (?P<rest>.*?)(?:, got \d+)?", re.DOTALL)
_WORDS: Final = {"list": "array", "dict": "object", "NoneType": "null"}
_IN_STRINGS: Final = frozenset(
    {"bytes", "date", "datetime", "decimal", "duration", "str", "time", "url", "uuid"}
)
_PLAIN: Final = {  # problems as they are: what was expected, what was found
    "Duration is out of range": ("duration", "str"),
    "Integer value out of range": ("", "int"),
    "Invalid ISO8601 duration": ("duration", "str"),
    "Invalid RFC3339 encoded date": ("date", "str"),
    "Invalid RFC3339 encoded datetime": ("datetime", "str"),
    "Invalid RFC3339 encoded time": ("time", "str"),
    "Invalid UUID": ("uuid", "str"),
    "Invalid base64 encoded string": ("bytes", "str"),
    "Invalid decimal string": ("decimal", ""),
    "Number out of range": ("", ""),
    "Timestamp is out of range": ("datetime", ""),
}


def misfit(error: msgspec.ValidationError, type_: Any) -> MessageValidationError:
    """What msgspec found wrong with a message for ``type_``.

    Its texts are taken only where it is known what is in them: some hold the value, or the client's name for
    a field, and those of a ``__post_init__`` or an attrs validator may hold anything.
    """
    text = str(error)
    start = text.rfind(" - at `")
    if error.__cause__ is not None:  # raised by a class's own code: no telling what it says
        start, problem = len(str(error.__cause__)), ""
    else:
        problem = text[:start] if start >= 0 else text
    place = _PLACE.fullmatch(text, start) if start >= 0 else None
    if place is None:
        path = "$"
        problem = problem and text
    else:
        path = place["path"] + ("[...]" if place["key"] else "")
    if "contains unknown field" in problem:  # whose name may look like the end of the message
        try:
            declared = _declared(type_)
        except TypeError:
            declared = _declared.__wrapped__(type_)
        path = _only(declared, path)
    problem, expected, found = _in_our_words(problem)
    if place is not None and place["key"]:
        problem = "in a key: " + problem
    return MessageValidationError(problem, path=path, expected=expected, found=found)


def _only(declared: Iterable[str], path: str) -> str:
    return "$" + "".join(
        step[0] if step["name"] is None or step["name"] in declared else "[...]"
        for step in _STEP.finditer(path)
    )


def _in_our_words(text: str) -> tuple[str, str, str]:
    """The problem, what was expected, what was found."""
    if text in _PLAIN:
        return text[0].lower() + text[1:], *_PLAIN[text]
    if text.startswith("Expected "):
        wanted = text.removeprefix("Expected ")
        types = _TYPES.fullmatch(wanted)
        if types is not None:
            return _mismatch(types["expected"], types["found"] or "")
        constraint = _CONSTRAINT.fullmatch(wanted)
        if constraint is not None:
            found = "str" if constraint["type"] in _IN_STRINGS else constraint["type"]
            return (
                "expected " + wanted.replace("`", "", 2),
                f"{constraint['type']} {constraint['rest']}",
                found,
            )
    for start in ("Invalid enum value ", "Invalid value "):  # and then comes the value
        if text.startswith(start):
            return start.lower().strip(), "", "str" if text[len(start)] in "'\"" else "int"
    if text.startswith("Object contains unknown field"):
        return "object contains an unknown field", "", ""
    if text.startswith("Object missing required field"):
        return "o" + text[1:].replace("`", ""), "", ""
    return "invalid value", "", ""


def _mismatch(expected: str, found: str) -> tuple[str, str, str]:
    found = _WORDS.get(found, found)
    return f"expected {expected}" + (f", got {found}" if found else ""), expected, found


# Pydantic


def _is_pydantic(part: Any) -> bool:
    """Whether only Pydantic knows what ``part`` means: a model, a dataclass or type of its, a ``Field()``."""
    if hasattr(part, "__get_pydantic_core_schema__") or hasattr(part, "__pydantic_validator__"):
        return True
    module = (part if isinstance(part, type) else type(part)).__module__
    return module.partition(".")[0] in ("annotated_types", "pydantic", "pydantic_core")


def _adapter_reader(type_: Any, parts: Iterable[Any], cause: Any) -> Reader:
    for part in parts:
        if isinstance(part, msgspec.Meta):  # Pydantic would not look at it, and nobody would check
            raise WrongTypeError(
                f"type={type_!r} has {cause!r}, for Pydantic, and {part!r}, for msgspec; write pydantic.Field(...)"
            )
    try:
        import pydantic

        adapter = pydantic.TypeAdapter(type_)
    except ImportError:
        raise WrongTypeError(
            f"type={type_!r} needs Pydantic because of {cause!r}: pip install pydantic, or write "
            "Annotated[..., msgspec.Meta(...)]"
        ) from None
    except Exception as error:
        raise WrongTypeError(
            f"type={type_!r} needs Pydantic because of {cause!r}, and Pydantic cannot read the rest of it "
            f"({_first_line(error)}); make all of it Pydantic models, or none"
        ) from None
    return _pydantic_reader(adapter.validate_json, adapter)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _pydantic_reader(read: Reader, type_: Any) -> Reader:
    from pydantic import PydanticUserError, ValidationError

    declared: list[frozenset[str]] = []

    def read_pydantic(message: str | bytes) -> Any:
        if _says_nan(message):
            raise InvalidJSON("NaN and Infinity are no JSON", message)
        try:
            return read(message)
        except PydanticUserError as error:
            raise WrongTypeError(f"type={type_!r} cannot be read: {_first_line(error)}") from None
        except ValidationError as error:
            if not declared:
                declared.append(frozenset(_names_in(type_)))
            mistake = _pydantic_mistake(error, message, declared[0])
        raise mistake  # outside of the block: without the error that holds the value

    return read_pydantic


def _says_nan(message: Any) -> bool:
    """Whether a document has NaN or Infinity, which Pydantic takes (RFC 8259 §6: not permitted)."""
    if isinstance(message, str):
        if not (("N" in message and "NaN" in message) or ("I" in message and "Infinity" in message)):
            return False
    elif not ((78 in message and b"NaN" in message) or (73 in message and b"Infinity" in message)):
        return False
    outside = outside_strings(message)
    return b"NaN" in outside or b"Infinity" in outside


def _names_in(type_: Any) -> Iterator[str]:
    """The names and aliases of all fields, out of Pydantic's core schema."""
    import pydantic

    adapter = type_ if isinstance(type_, pydantic.TypeAdapter) else pydantic.TypeAdapter(type_)
    todo: list[Any] = [adapter.core_schema]
    while todo:
        part = todo.pop()
        if isinstance(part, list | tuple):
            todo += part
            continue
        if not isinstance(part, dict):
            continue
        fields = part.get("fields")
        if part.get("type") in ("model-fields", "typed-dict") and isinstance(fields, dict):
            yield from fields
        if part.get("type") == "dataclass-field":
            yield part["name"]
        yield from _strings(part.get("validation_alias"))
        if part.get("type") == "tagged-union":
            yield from _strings(part.get("discriminator"))
        todo += [value for key, value in part.items() if key not in ("metadata", "serialization")]


def _strings(alias: Any) -> Iterator[str]:
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, list | tuple):
        for part in alias:
            yield from _strings(part)


_MANY: Final = 1000
"""Errors of which Pydantic is asked for the particulars: it gives all or none, 1 to 10 µs each."""


def _pydantic_mistake(error: Any, message: str | bytes, declared: frozenset[str]) -> PeerError:
    import pydantic_core

    count = error.error_count()
    if count > _MANY:
        return MessageValidationError(f"{count} mistakes")
    details = error.errors(include_url=False, include_input=False, include_context=True)
    first = details[0]
    if first["type"] == "json_invalid" and not first["loc"]:
        problem = re.sub(r" at line \d+ column \d+$", "", first["ctx"]["error"])
        return InvalidJSON("it is nested too deep" if "recursion" in problem else problem, message)
    if first["type"] == "string_unicode" and not first["loc"]:
        return InvalidJSON("the text is not Unicode", message)
    document = pydantic_core.from_json(message)
    path, *mistake = _place(first, document, declared)
    expected = [mistake[1]]
    for other in details[1:]:  # of the other members of a union
        if other["loc"][:1] != first["loc"][:1]:
            break
        place, _, more, _ = _place(other, document, declared)
        if place == path and more and more not in expected:
            expected.append(more)
    problem, wanted, found = mistake
    if len(expected) > 1 and expected[0]:
        problem, wanted, found = _mismatch(" | ".join(expected), found)
    return MessageValidationError(problem, path=path, expected=wanted, found=found)
