"""What msgspec and Pydantic find wrong with a message, in our words: a place and type names, never a value.

The words are those of JSON in msgspec's spelling: ``str``, ``int``, ``float``, ``bool``, ``null``, ``array``
and ``object``; what travels in a string is called by what it stands for: ``datetime``, ``uuid`` …
A place has the names of declared fields, the positions in arrays, and ``[...]`` for a key of the client's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from nexios_trio.exceptions import InvalidJSON, MessageValidationError, PeerError

__all__ = ["JSON_NAMES", "Names", "of_msgspec", "of_pydantic"]

Names: TypeAlias = Callable[[], frozenset[str]]
"""The names of all fields that a type declares: what an error may repeat. Asked for only where needed."""

JSON_NAMES: Final[Mapping[type, str]] = {
    bool: "bool",
    dict: "object",
    float: "float",
    int: "int",
    list: "array",
    str: "str",
    type(None): "null",
}

# msgspec

_PLACE: Final = re.compile(r" - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`")
_STEP: Final = re.compile(r"\.(?P<name>[^.\[\]]+)|\[[^\[\]]*\]")
_TYPES: Final = re.compile(r"`(?P<expected>[^`]*)`(?:, got `(?P<found>[^`]*)`)?")
_CONSTRAINT: Final = re.compile(r"`(?P<type>\w+)` (?P<rest>.*?)(?:, got \d+)?", re.DOTALL)
_IN_STRINGS: Final = frozenset(
    {"bytes", "date", "datetime", "decimal", "duration", "str", "time", "url", "uuid"}
)
_PLAIN: Final = {  # problems that msgspec says without values, and what they say was expected and found
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
}


def of_msgspec(error: Exception, names: Names) -> MessageValidationError:
    """What is wrong, from a `msgspec.ValidationError`, which has nothing but a text.

    Texts are taken only where it is known what is in them: some hold the value, or the client's name for a
    field, and those of a ``__post_init__`` or an attrs validator may hold anything.
    """
    text = str(error)
    if error.__cause__ is not None:  # raised by a class's own code
        problem = ""
        place = _PLACE.fullmatch(text, len(str(error.__cause__)))
    else:
        end = text.rfind(" - at `")
        place = _PLACE.fullmatch(text, end) if end >= 0 else None
        problem = text if place is None else text[:end]
    path = "$" if place is None else place["path"]
    if "contains unknown field" in problem:  # the client's name for it may look like a place at the end
        declared = names()
        path = "$" + "".join(
            step[0] if step["name"] is None or step["name"] in declared else "[...]"
            for step in _STEP.finditer(path)
        )
    problem, expected, found = _in_our_words(problem)
    if place is not None and place["key"]:
        problem, path = f"in a key: {problem}", f"{path}[...]"
    return MessageValidationError(problem, path=path, expected=expected, found=found)


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
            return _mismatch(f"{constraint['type']} {constraint['rest']}", found)
    for start in ("Invalid enum value ", "Invalid value "):  # and then comes the value
        if text.startswith(start):
            return start.lower().strip(), "", "str" if text[len(start)] in "'\"" else "int"
    if text.startswith("Object contains unknown field"):
        return "object contains an unknown field", "", ""
    if text.startswith("Object missing required field"):
        return "o" + text[1:].replace("`", ""), "", ""
    return "invalid value", "", ""


def _mismatch(expected: str, found: str) -> tuple[str, str, str]:
    # "expected int >= 3, got int" would be a riddle
    got = f", got {found}" if found and not expected.startswith(found) else ""
    return f"expected {expected}{got}", expected, found


# Pydantic

_KIND: Final = re.compile(r"(?P<base>[a-z]+(?:_delta|_set)?)_(?P<rest>\w+)")
_BASES: Final = {
    "arguments": "object",
    "bool": "bool",
    "bytes": "bytes",
    "dataclass": "object",
    "date": "date",
    "datetime": "datetime",
    "decimal": "decimal",
    "deque": "array",
    "dict": "object",
    "float": "float",
    "frozen_set": "array",
    "int": "int",
    "iterable": "array",
    "json": "str",
    "list": "array",
    "mapping": "object",
    "model": "object",
    "none": "null",
    "set": "array",
    "string": "str",
    "time": "time",
    "time_delta": "duration",
    "tuple": "array",
    "url": "url",
    "uuid": "uuid",
}
_CONSTRAINTS: Final = {  # how it is said, and where the bound is
    "bytes_too_long": ("of length <= {}", "max_length"),
    "bytes_too_short": ("of length >= {}", "min_length"),
    "greater_than": ("> {}", "gt"),
    "greater_than_equal": (">= {}", "ge"),
    "less_than": ("< {}", "lt"),
    "less_than_equal": ("<= {}", "le"),
    "multiple_of": ("that's a multiple of {}", "multiple_of"),
    "string_pattern_mismatch": ("matching regex {!r}", "pattern"),
    "string_too_long": ("of length <= {}", "max_length"),
    "string_too_short": ("of length >= {}", "min_length"),
    "too_long": ("of length <= {}", "max_length"),
    "too_short": ("of length >= {}", "min_length"),
}
_SIMPLE: Final = {
    "assertion_error": "invalid value",
    "enum": "invalid enum value",
    "finite_number": "number out of range",
    "int_parsing_size": "integer value out of range",
    "json_invalid": "invalid JSON in a str",
    "literal_error": "invalid enum value",
    "set_item_not_hashable": "expected what can be in a set",
    "union_tag_invalid": "invalid value",
    "value_error": "invalid value",
}
_MISSING: Final = ("union_tag_not_found", "missing", "missing_argument", "missing_keyword_only_argument")
_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_MANY: Final = 1000
"""Mistakes of which Pydantic is asked for the particulars: it tells all or none, up to 10 µs each."""


def of_pydantic(error: Any, message: str | bytes, names: Names) -> PeerError:
    """What is wrong, from a `pydantic.ValidationError`: its first mistake."""
    from pydantic_core import from_json  # optional, but where ``error`` is from

    count = error.error_count()
    if count > _MANY:
        return MessageValidationError(f"{count} mistakes")
    details = error.errors(include_url=False)
    first = details[0]
    if (
        first["type"] in ("json_invalid", "string_unicode") and first["input"] == message
    ):  # not a Json field's
        problem = first.get("ctx", {}).get("error", "the text is not valid Unicode")
        problem = re.sub(r" at line \d+ column \d+$", "", problem)
        return InvalidJSON("it is nested too deep" if "recursion" in problem else problem, message)
    declared = names()
    try:
        document = from_json(message)
    except ValueError:  # a model with a way of reading of its own
        document = None
    path, problem, expected, found = _read(first, document, declared)
    # Where Pydantic has one mistake for each member of a union, msgspec has one that names all.
    wanted = [expected]
    for other in details[1:20]:
        there, _, also, _ = _read(other, document, declared)
        if there == path and also.isidentifier() and also not in wanted:
            wanted.append(also)
    if expected.isidentifier() and len(wanted) > 1:
        problem, expected, found = _mismatch(" | ".join(wanted), found)
    return MessageValidationError(problem, path=path, expected=expected, found=found)


def _read(detail: Mapping[str, Any], document: Any, declared: frozenset[str]) -> tuple[str, str, str, str]:
    """The path, the problem, what was expected, what was found."""
    kind, location, context, value = detail["type"], detail["loc"], detail.get("ctx", {}), detail["input"]
    found = JSON_NAMES.get(type(value), "")  # "" for what a validator has made of it before
    field = location[-1] if location else ""
    if kind.startswith("union_tag"):
        field = str(context.get("discriminator", "")).strip("'")
    if kind in _UNKNOWN or kind in _MISSING[1:]:
        location = location[:-1]
    in_a_key = location[-2:] == (value, "[key]")
    if in_a_key:
        location = location[:-1]
    path = "$"
    for step in _steps(document, location, value):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if step in declared else "[...]"
    if kind in _UNKNOWN:
        return path, "object contains an unknown field", "", ""
    if kind in _MISSING:
        if isinstance(field, int):
            return path, f"expected array of length >= {field + 1}", f"array of length >= {field + 1}", found
        return path, "object missing required field" + (f" {field}" if field in declared else ""), "", ""
    if kind == "union_tag_invalid" and field in declared and isinstance(value, dict):
        path, found = f"{path}.{field}", JSON_NAMES.get(type(value.get(field)), "")
    problem, expected, found = _described(kind, context, found)
    return path, f"in a key: {problem}" if in_a_key else problem, expected, found


def _steps(document: Any, location: tuple[str | int, ...], goal: Any) -> list[str | int]:
    """Those steps of ``location`` that lead through ``document``: the others name members of unions.

    Either may be called as the other, so all ways are tried (up to a number), for one that leads to what
    looks like ``goal`` or, where a validator has changed the values, takes the most steps.
    """
    longest: list[str | int] = []
    todo: list[tuple[Any, int, list[str | int]]] = [(document, 0, [])]
    for _ in range(500 + 2 * len(location)):
        if not todo:
            break
        value, at, steps = todo.pop()
        if at == len(location):
            if type(value) is type(goal) and _gist(value) == _gist(goal):
                return steps
            longest = max(longest, steps, key=len)
            continue
        step = location[at]
        todo.append((value, at + 1, steps))
        if isinstance(value, dict):
            if step in value:
                todo.append((value[step], at + 1, [*steps, step]))
        elif isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value):
            todo.append((value[step], at + 1, [*steps, step]))
    return longest


def _gist(value: Any) -> Any:
    if isinstance(value, dict):
        return len(value), next(iter(value), None)
    return len(value) if isinstance(value, list) else value


def _described(kind: str, context: Mapping[str, Any], found: str) -> tuple[str, str, str]:
    """The problem, what was expected, what was found."""
    if kind in _SIMPLE:
        return _SIMPLE[kind], "", found
    say, name = _CONSTRAINTS.get(kind, ("", ""))
    if name in context:
        base = found or "value"
        if kind.startswith(("greater", "less", "multiple")) and found not in ("int", "float"):
            base = "value" if isinstance(context[name], str) else "number"  # a str: the bound of a date
        return _mismatch(f"{base} {say.format(context[name])}", found)
    if kind in ("timezone_aware", "timezone_naive"):
        article = "a" if kind == "timezone_aware" else "no"
        return _mismatch(f"datetime with {article} timezone component", found)
    match = _KIND.fullmatch(kind)
    expected = _BASES.get(match["base"], "") if match is not None else ""
    if match is None or not expected:
        return f"invalid value ({kind.replace('_', ' ')})", "", found
    if expected in _IN_STRINGS and expected != "str" and not match["rest"].endswith("type"):
        return f"invalid {expected}", expected, found
    return _mismatch(expected, found)
