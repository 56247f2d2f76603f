"""JSON by msgspec, with errors that name the place and never the value."""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import msgspec

from nexios_trio.exceptions import InvalidJSON, MessageValidationError, WrongTypeError

__all__ = ["decode", "encode"]

_MALFORMED: Final = re.compile(r"JSON is malformed: (?P<problem>.*) \(byte (?P<at>\d+)\)")
_AT_PATH: Final = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<found>[^`]*)`")
_QUOTED_VALUE: Final = re.compile(
    r"(?P<before>(?:Invalid|unknown)[a-z ]*?)(?: value)? (?:'.*'|-?\d[\w.]*)", re.DOTALL
)


def _hook(value: object) -> object:
    for plain in (str, int):
        if isinstance(value, plain):  # a subclass, such as Starlette's URLPath
            return plain(value)
    dump = getattr(value, "model_dump", None)  # a Pydantic model
    if callable(dump):
        return dump(mode="json")
    raise WrongTypeError(
        f"cannot send a {type(value).__qualname__} as JSON; send dicts, lists, str, numbers, bool, None, "
        "dataclasses, attrs classes, msgspec Structs or Pydantic models"
    )


_encoder: Final = msgspec.json.Encoder(enc_hook=_hook)


def encode(data: object) -> bytes:
    """``data`` as compact UTF-8 JSON. Raises `WrongTypeError` for what JSON has no form for."""
    try:
        return _encoder.encode(data)
    except WrongTypeError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongTypeError(f"cannot send this as JSON: {error}") from error


@functools.lru_cache(maxsize=256)
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    try:
        return msgspec.json.Decoder(type_)
    except TypeError as error:
        raise WrongTypeError(
            f"type={type_!r} is nothing that JSON can be read as ({error}); give a msgspec Struct, "
            "dataclass, attrs class, TypedDict, a union of such, a built-in type or a Pydantic model"
        ) from None


_any: Final = msgspec.json.Decoder()


def decode(message: str | bytes, type_: Any = Any) -> Any:
    """``message`` read as JSON, checked against ``type_`` if one is given.

    ``type_`` is anything msgspec takes (Struct, dataclass, attrs class, TypedDict, tagged union,
    ``list[int]`` …) or a Pydantic model. Raises `InvalidJSON` or `MessageValidationError`.
    """
    try:
        if type_ is Any:
            return _any.decode(message)
        pydantic_read = getattr(type_, "model_validate_json", None)
        if pydantic_read is not None:
            return _read_pydantic(pydantic_read, message, _declared(type_))
        return _decoder(type_).decode(message)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from None
    except msgspec.DecodeError as error:
        match = _MALFORMED.fullmatch(str(error))
        if match is not None:
            raise InvalidJSON(match["problem"], message, int(match["at"])) from None
        # msgspec says "truncated" of a lone surrogate too
        raise InvalidJSON("the document is cut short or malformed", message, len(message)) from None
    except UnicodeError:
        raise InvalidJSON("the bytes are not UTF-8", message) from None
    except RecursionError:
        raise InvalidJSON("it is nested too deep", message) from None


def _validation_error(text: str) -> MessageValidationError:
    whole = _AT_PATH.fullmatch(text)
    problem, path = (whole["problem"], whole["path"] or "$") if whole else (text, "$")
    types = _EXPECTED.match(problem)
    if types is not None:
        expected, found = types["expected"], types["found"]
        return MessageValidationError(
            f"expected {expected}, got {found}", path=path, expected=expected, found=found
        )
    quoted = _QUOTED_VALUE.match(problem)  # msgspec quotes enum values and tags
    if quoted is not None:
        problem = f"{quoted['before']} value"
    if "unknown field" in problem:  # whose name is the client's
        problem = "object contains an unknown field"
    problem = problem.replace("`", "")
    return MessageValidationError(problem[:1].lower() + problem[1:], path=path)


@functools.lru_cache(maxsize=256)
def _declared(model: Any) -> frozenset[str]:
    """The names of all fields in a Pydantic model's schema: what an error may name."""
    names: set[str] = set()
    todo: list[Any] = [model.model_json_schema()]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            names.update(part.get("properties", ()))
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return frozenset(names)


def _read_pydantic(read: Any, message: str | bytes, declared: frozenset[str]) -> Any:
    try:
        return read(message)
    except ValueError as error:
        details = getattr(error, "errors", None)
        if details is None:
            raise
        first = details(include_url=False, include_context=False, include_input=True)[0]
        if first["type"] == "json_invalid":
            raise InvalidJSON("the document is malformed", message) from None
        path = "$"
        for step in first["loc"]:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if step in declared else "[...]"
        raise MessageValidationError(
            first["type"].replace("_", " "),
            path=path,
            expected=first["type"],
            found=type(first.get("input")).__name__,
        ) from None
