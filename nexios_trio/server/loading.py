"""``module:app`` to the app, with errors that say what was found instead."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from nexios_trio.exceptions import UsageError

__all__ = ["AppLoadError", "load_app"]


class AppLoadError(UsageError):
    """``module:app`` names nothing that can be served."""


def load_app(spec: str) -> Any:
    """Import what ``spec`` names: ``package.module:attribute``, or ``…:factory()``.

    The working directory is looked in first. Without ``:attribute``, ``app`` is meant. Errors that the
    module itself raises while it is imported pass through.
    """
    module_name, _, attribute = spec.partition(":")
    attribute = attribute or "app"
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise AppLoadError(f'"{module_name}" is a file; name the module: {dotted}:{attribute}')
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise AppLoadError(f'"{spec}" is not of the form module:app, such as examples.chat:app')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, one that it imports is not
        parent, _, last = module_name.rpartition(".")
        if parent and ":" not in spec and _is_app(getattr(sys.modules.get(parent), last, None)):
            raise AppLoadError(f'"{spec}" is not of the form module:app; write {parent}:{last}') from None
        raise AppLoadError(
            f'there is no module "{error.name}" (looking for "{module_name}" in {here} and the installed '
            "packages); name it as Python imports it, such as examples.chat:app"
        ) from None
    return _attribute(module, attribute)


def _attribute(module: ModuleType, attribute: str) -> Any:
    name = attribute.removesuffix("()")
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppLoadError(
                f'the module "{module.__name__}" has no "{name}"; {_suggest(module)}'
            ) from None
    spec = f"{module.__name__}:{attribute}"
    if attribute.endswith("()"):
        if _is_app(found) or not _takes(found, 0):
            raise AppLoadError(f'"{spec}" cannot be called without arguments; {_suggest(module)}')
        found = found()
    if not _is_app(found):
        if inspect.iscoroutine(found):
            found.close()
        kind = type(found).__name__
        cure = f"; to call it, write {spec}()" if _is_factory(found) else ""
        raise AppLoadError(f'"{spec}" is a {kind}, not an ASGI app{cure}; {_suggest(module)}')
    return found


def _takes(value: Any, arguments: int) -> bool:
    try:
        inspect.signature(value).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True


def _is_factory(value: object) -> bool:
    return inspect.isfunction(value) and not inspect.iscoroutinefunction(value) and _takes(value, 0)


def _is_app(value: object) -> bool:
    if inspect.isclass(value) or not callable(value):
        return False
    if not (inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(value.__call__)):
        return False
    return _takes(value, 3)


def _suggest(module: ModuleType) -> str:
    apps = sorted(name for name, value in vars(module).items() if not name.startswith("_") and _is_app(value))
    if not apps:
        return "it holds no ASGI app"
    return "it holds: " + ", ".join(f"{module.__name__}:{name}" for name in apps)
