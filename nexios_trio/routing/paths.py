"""Path patterns: ``/rooms/{room_id:int}`` → a regular expression and convertors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from attrs import frozen
from starlette.convertors import (
    Convertor,
    FloatConvertor,
    IntegerConvertor,
    PathConvertor,
    StringConvertor,
    UUIDConvertor,
)

from nexios_trio.exceptions import RoutingError, WrongTypeError
from nexios_trio.types import Scope

__all__ = ["CONVERTORS", "PathPattern", "check_convertors", "check_path", "route_path"]


class SlugConvertor(Convertor[str]):
    """Letters, digits, ``-`` and ``_`` of ASCII."""

    regex = "[-a-zA-Z0-9_]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        if re.fullmatch(self.regex, value) is None:
            raise ValueError("a slug has letters, digits, - and _ only")
        return value


class FiniteFloatConvertor(FloatConvertor):
    """Starlette's, without the numbers that are too large for a float."""

    def convert(self, value: str) -> float:
        number = super().convert(value)
        if math.isinf(number):
            raise ValueError("too large")
        return number


CONVERTORS: Final[Mapping[str, Convertor[Any]]] = {
    "str": StringConvertor(),
    "path": PathConvertor(),
    "int": IntegerConvertor(),
    "float": FiniteFloatConvertor(),
    "uuid": UUIDConvertor(),
    "slug": SlugConvertor(),
}
"""The convertors that every pattern knows; an app or router adds its own by ``convertors=``."""

_PARAMETER: Final = re.compile(r"\{([^{}]*)\}")
_NAME: Final = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?")


def check_convertors(convertors: Mapping[str, Convertor[Any]] | None) -> dict[str, Convertor[Any]]:
    """A dict of the given convertors; raises `WrongTypeError` for what is none."""
    for name, convertor in (convertors or {}).items():
        if not isinstance(convertor, Convertor):
            raise WrongTypeError(
                f'the convertor "{name}" is an instance of a subclass of nexios_trio.routing.Convertor, not '
                f"{convertor!r}"
            )
    return dict(convertors or {})


def check_path(path: object, *, empty: bool = False) -> str:
    """``path``, if it can be one: starts with a slash and is written in plain characters."""
    if not isinstance(path, str):
        raise WrongTypeError(f'a path is a str such as "/rooms/{{room_id}}", not {type(path).__name__}')
    if path == "" and empty:
        return path
    if not path.startswith("/"):
        raise RoutingError(f'a path starts with a slash: write "/{path}" instead of "{path}"')
    if re.search("%[0-9a-fA-F]{2}", path):
        raise RoutingError(
            f'paths are matched after percent-decoding: write the characters themselves in "{path}", for '
            'example "/café" instead of "/caf%C3%A9"'
        )
    if "?" in path or "#" in path:
        raise RoutingError(
            f'"{path}" holds a query or fragment; a route matches the path only (see ws.query_params)'
        )
    return path


def route_path(scope: Scope) -> str:
    """The path below ``root_path`` (ASGI HTTP connection scope): what routes are matched against."""
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


@frozen
class PathPattern:
    """A compiled path pattern. Matching is exact: ``/ws`` and ``/ws/`` are two paths."""

    path: str
    regex: re.Pattern[str]
    convertors: Mapping[str, Convertor[Any]]
    shape: tuple[str | int, ...]
    """The pattern without the names of its parameters, a convertor as its `id`: two routes of one shape
    match the same paths."""

    @classmethod
    def compile(cls, path: str, convertors: Mapping[str, Convertor[Any]]) -> PathPattern:
        """Compile ``path``; raises `RoutingError` that says what to write instead."""
        check_path(path, empty=True)
        regex, at = "", 0
        shape: list[str | int] = []
        used: dict[str, Convertor[Any]] = {}
        for parameter in _PARAMETER.finditer(path):
            match = _NAME.fullmatch(parameter[1])
            if match is None:
                raise RoutingError(
                    f'"{parameter[0]}" in "{path}" is not a parameter; write {{name}} or {{name:convertor}}'
                )
            name, kind = match[1], match[2] or "str"
            if name in used:
                raise RoutingError(
                    f'the parameter {{{name}}} stands twice in "{path}"; give each its own name'
                )
            if kind not in convertors:
                raise RoutingError(
                    f'"{path}" asks for an unknown convertor "{kind}"; known here: '
                    f'{", ".join(sorted(convertors))}. Give your own as convertors={{"{kind}": ...}} to the '
                    "NexiosApp or WSRouter that this route is added to"
                )
            used[name] = convertors[kind]
            literal = path[at : parameter.start()]
            regex += f"{re.escape(literal)}(?P<{name}>{used[name].regex})"
            shape += [literal, id(used[name])]
            at = parameter.end()
        shape.append(path[at:])
        if any(isinstance(part, str) and ("{" in part or "}" in part) for part in shape):
            raise RoutingError(f'"{path}" holds a brace without its partner; a parameter is {{name}}')
        try:
            compiled = re.compile(regex + re.escape(path[at:]))
        except re.error as error:
            raise RoutingError(
                f'"{path}" has a convertor whose regex does not compile ({error}); try it alone with '
                "re.compile(), and give its groups no names"
            ) from error
        return cls(path, compiled, used, tuple(shape))

    def match(self, path: str) -> dict[str, Any] | None:
        """The parameters of ``path``, converted; None if it does not match or does not convert."""
        match = self.regex.fullmatch(path)
        if match is None:
            return None
        try:
            return {name: convertor.convert(match[name]) for name, convertor in self.convertors.items()}
        except ValueError:  # such as an int of 5,000 digits
            return None

    def build(self, parameters: Mapping[str, Any]) -> str:
        """The path for ``parameters``, percent-encoded."""
        built, at = "", 0
        for parameter in _PARAMETER.finditer(self.path):
            name = parameter[1].partition(":")[0]
            convertor = self.convertors[name]
            try:
                text = convertor.to_string(parameters[name])
                if re.fullmatch(convertor.regex, text) is None:
                    raise ValueError(f"{text!r} does not match {convertor.regex}")
            except (AssertionError, ValueError, TypeError) as error:
                raise RoutingError(
                    f'the parameter {name!r} given does not fit "{self.path}": {error}'
                ) from error
            safe = "/" if isinstance(convertor, PathConvertor) else ""
            built += quote(self.path[at : parameter.start()]) + quote(text, safe=safe)
            at = parameter.end()
        return built + quote(self.path[at:])
