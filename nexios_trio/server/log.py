"""hypercorn's log, one line per entry whatever a client sends, and without what clients keep secret.

hypercorn writes the decoded path into its access log, so ``GET /%0a...`` would forge a line, and a header's
control characters as they came; a format with the query string would write tokens. Here each value is
escaped, paths are as they came over the wire, and queries and credentials are left out. A ``logger_class`` of
the user's own is used as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from hypercorn.config import Config
from hypercorn.logging import AccessLogAtoms, Logger
from hypercorn.trio.statsd import StatsdLogger

if TYPE_CHECKING:
    from hypercorn.typing import ResponseSummary, WWWScope

__all__ = ["LineFormatter", "SafeLogger", "SafeStatsdLogger", "printable"]

HIDDEN: Final = "[...]"
"""Stands for what is not logged."""

_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)

_SECRET: Final = frozenset(
    f"{{{name}}}{way}"
    for name in (
        "authorization",
        "cookie",
        "proxy-authorization",
        "sec-websocket-protocol",  # where browsers put a token
        "set-cookie",
        "x-api-key",
        "x-csrf-token",
    )
    for way in "io"
)

_URLS: Final = ("f", "{referer}i", "{location}o", "{x-original-url}i", "{x-forwarded-uri}i")

_ANSWERED: Final = "nexios_trio.answered"


def printable(text: str) -> str:
    r"""The text with ``\x1b`` and the like for whatever is no printable character: controls, C1, U+2028,
    marks that change the direction of writing, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _field(text: str) -> str:
    """The same for a part of a line: neither can it end the quotes around it."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return printable(text)


class LineFormatter(logging.Formatter):
    """What another formatter makes of an entry, from the margin on and further lines indented: no text in an
    entry, not even the message of an exception in a traceback, looks like the next one."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        first, *others = self._inner.format(record).split("\n")
        lines = [printable(first), *("    " + printable(line.expandtabs(4)) for line in others)]
        return "\n".join(lines)


class _Atoms(AccessLogAtoms):
    """hypercorn's atoms, escaped, and with `HIDDEN` for secrets.

    All of them at once, not when they are looked up: formatters that write JSON take the whole mapping.
    """

    def __init__(self, request: WWWScope, response: ResponseSummary | None, request_time: float) -> None:
        query: bytes = request["query_string"]
        # hypercorn decodes it strictly, and over HTTP/2 it may be anything.
        super().__init__(cast("Any", {**request, "query_string": b""}), response, request_time)
        path = (request.get("raw_path") or request["path"].encode("utf-8", "surrogatepass")).decode("latin-1")
        hidden = f"?{HIDDEN}" if query else ""
        method, protocol = self["m"], self["H"]
        self.update(
            {
                "r": f"{method} {path} {protocol}",
                "R": f"{method} {path}{hidden} {protocol}",
                "U": path,
                "Uq": path + hidden,
                "q": HIDDEN if query else "",
            }
        )
        for name, value in self.items():
            if not isinstance(value, str):
                continue
            if name in _SECRET:
                self[name] = HIDDEN
            elif name in _URLS:
                self[name] = _field(_QUERY.sub(f"?{HIDDEN}", value))
            else:
                self[name] = _field(value)


class _Safe(Logger):
    """What both loggers share."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.logconfig is None and config.logconfig_dict is None:
            for target, logger in (
                (config.accesslog, self.access_logger),
                (config.errorlog, self.error_logger),
            ):
                if isinstance(target, str) and logger is not None:  # otherwise it is the user's own
                    for handler in logger.handlers:
                        handler.setFormatter(LineFormatter(handler.formatter or logging.Formatter()))

    async def access(self, request: WWWScope, response: ResponseSummary | None, request_time: float) -> None:
        """See hypercorn; which logs a WebSocket that its app leaves unanswered twice."""
        notes: dict[str, Any] = request  # type: ignore[assignment]
        if request["type"] == "websocket" and response is not None and response["status"] == 500:
            if _ANSWERED in notes:
                return
            notes[_ANSWERED] = True
        await super().access(request, response, request_time)  # type: ignore[arg-type]

    def atoms(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> Mapping[str, str]:
        """See hypercorn."""
        return _Atoms(request, response, request_time)


class SafeLogger(_Safe):
    """In the place of hypercorn's default."""


class SafeStatsdLogger(_Safe, StatsdLogger):
    """The same where hypercorn would count in statsd."""
