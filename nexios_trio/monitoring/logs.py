"""One line per connection, and log records as JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from nexios_trio.instrument import LOG_FIELDS, Observed, log_fields

__all__ = ["AccessLog", "JSONFormatter"]

logger = logging.getLogger("nexios_trio.access")

_COUNTS: Final = ("messages_in", "messages_out", "bytes_in", "bytes_out")


class AccessLog:
    """An instrument that writes one line when a connection is over.

    ``app.add_instrument(AccessLog())``. The line goes to the logger ``nexios_trio.access`` at INFO; it has no
    payload and no query. What it says is in the record's attributes as well, for a formatter such as
    `JSONFormatter`: `LOG_FIELDS`, and with ``counts`` how many messages and bytes came and went.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self.counts = counts

    def begun(self, connection: Observed) -> None:
        """See `Instrument.begun`."""

    def opened(self, connection: Observed) -> None:
        """See `Instrument.opened`."""

    def ended(self, connection: Observed) -> None:
        """See `Instrument.ended`."""
        if not logger.isEnabledFor(logging.INFO):
            return
        fields = log_fields(connection)
        tally = connection.tally
        traffic = ""
        if tally is not None:
            fields |= {name: getattr(tally, name) for name in _COUNTS}
            traffic = f", {tally.messages_in} in, {tally.messages_out} out"
        logger.info(
            "%s %a from %s, user %a: %s after %.3f s%s",
            connection.id,
            fields["path"],
            fields["peer"],
            connection.user_id or "-",
            "not accepted" if connection.code is None else f"{connection.code} by {connection.by}",
            connection.seconds,
            traffic,
            extra=fields,
        )

    def delivered(self, group: str, seconds: float) -> None:
        """See `Instrument.delivered`."""


class JSONFormatter(logging.Formatter):
    """A line of JSON per record: ``time``, ``level``, ``logger``, ``message``, perhaps ``exception``.

    Of the fields that our records carry it has those that the record has.
    """

    _fields: Final = (*LOG_FIELDS, *_COUNTS)

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: vars(record)[name] for name in self._fields if name in vars(record)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
