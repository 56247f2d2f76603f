"""JSON: whatever comes in, only our own errors go out, and they name the place and never the value."""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nexios_trio.exceptions import (
    AuthenticationError,
    InvalidJSON,
    LimitError,
    MessageTypeError,
    MessageValidationError,
    PeerError,
    PermissionDenied,
    WrongTypeError,
)
from nexios_trio.websockets.json_bounds import check_bounds
from nexios_trio.websockets.json_misfits import of_msgspec
from nexios_trio.websockets.json_types import declared_names, reader

__all__ = ["decode", "encode", "kind_of", "problem_of"]

_MALFORMED: Final = re.compile(r"JSON is malformed: (?P<problem>.*) \(byte (?P<at>\d+)\)")


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


_read_any: Final[Callable[[str | bytes], Any]] = msgspec.json.Decoder().decode


def decode(
    message: str | bytes, type_: Any = Any, *, depth: int | None = None, items: int | None = None
) -> Any:
    """``message`` read as JSON, checked against ``type_`` if one is given.

    ``type_`` is anything msgspec takes (Struct, dataclass, attrs class, TypedDict, tagged union,
    ``list[int]`` …), a Pydantic model or dataclass, a type with such inside (``list[Model]``,
    ``Model | None``, ``Annotated[A | B, Field(discriminator="type")]``) or a `pydantic.TypeAdapter`.
    Raises `WrongTypeError` for what is none of these.

    ``depth`` bounds how many arrays and objects are inside each other, ``items`` the number of values on all
    levels together, arrays and objects included, keys not. Both are checked before the document is read, on
    all of it. Raises `InvalidJSON` beyond them and for what is no JSON, `MessageValidationError` for what
    does not fit ``type_``.
    """
    size = len(message)
    # Each level takes two characters, each value one and a comma: short messages need no look.
    if (depth is not None and size > depth + depth) or (items is not None and size >= items + items):
        check_bounds(message, depth, items)
    mistake: PeerError
    try:
        return _read_any(message) if type_ is Any else reader(type_)(message)
    except msgspec.ValidationError as error:
        mistake = of_msgspec(error, functools.partial(declared_names, type_))
    except msgspec.DecodeError as error:
        match = _MALFORMED.fullmatch(str(error))
        if match is not None:
            mistake = InvalidJSON(match["problem"], message, int(match["at"]))
        else:  # msgspec says "truncated" of a lone surrogate too
            mistake = InvalidJSON("the document is cut short or malformed", message, len(message))
    except UnicodeError:
        what = "text is not valid Unicode" if isinstance(message, str) else "bytes are not UTF-8"
        mistake = InvalidJSON(f"the {what}", message)
    except RecursionError:
        mistake = InvalidJSON("it is nested too deep", message)
    raise mistake  # from here, so that its context is not the error that holds the value


def kind_of(value: Any, field: str = "type") -> str | None:
    """The kind of a decoded message: a dict's ``value[field]``, a Struct's tag, any other object's attribute
    ``field``, where it is a str (or an Enum of one); else None. It never raises.

    A dict's is the client's own word: of any length, and another one each time.
    """
    try:
        kind: Any
        if isinstance(value, dict):
            kind = value.get(field)
        else:
            tag = value.__struct_config__.tag if isinstance(value, msgspec.Struct) else None
            kind = getattr(value, field, None) if tag is None else str(tag)
        if isinstance(kind, enum.Enum):
            kind = kind.value
        return str.__str__(kind) if isinstance(kind, str) else None
    except Exception:  # a property, a __getattr__, a __hash__
        return None


def problem_of(error: PeerError) -> dict[str, Any]:
    """What a client may be told of ``error``: ``{"type": "error", "error": …, "message": …}``.

    ``error`` is ``"validation"`` (with ``path``, ``expected`` and ``found``, empty where unknown),
    ``"json"``, ``"type"`` (with ``expected`` and ``found``: ``"text"`` or ``"binary"``), ``"limit"``,
    ``"authentication"``, ``"permission"``, or ``"refused"`` for any other. Nothing of the client's message
    is in it.
    """
    facts: dict[str, Any] = {}
    match error:
        case MessageValidationError():
            name = "validation"
            facts = {"path": error.path, "expected": error.expected, "found": error.found}
        case InvalidJSON():
            name = "json"
        case MessageTypeError():
            name = "type"
            facts = {"expected": error.expected, "found": error.found}
        case LimitError():
            name = "limit"
        case AuthenticationError():
            name = "authentication"
        case PermissionDenied():
            name = "permission"
        case _:
            name = "refused"
    return {"type": "error", "error": name, **facts, "message": error.public_reason}
