"""OpenTelemetry: a span for each connection. Needs the extra ``otel``.

That is the API only; where spans go is said by the SDK that your program sets up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen

from nexios_trio.exceptions import WrongValueError
from nexios_trio.instrument import Direction, Observed

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
except ImportError as missing:
    raise ImportError(
        f'Tracing needs opentelemetry-api: pip install "nexios-trio[otel]" ({missing})', name=missing.name
    ) from missing

__all__ = ["Tracing"]

FAILED: Final = 1011
"""The close code of a handler that failed."""


@frozen
class _Traced:
    span: Span
    token: Any


class Tracing:
    """An instrument that makes a span for each connection, from the call of its handler to its end.

    ``app.add_instrument(Tracing())``. The handler runs inside the span, and so do the children that it
    starts: their own spans hang below it. ``parents`` takes the trace context from the request's headers
    (W3C's ``traceparent`` by default, whatever OpenTelemetry's propagators are set to), so a client can have
    its connections sampled; without it every connection begins a trace.

    ``messages`` is the part of messages, 0 to 1, that become events of the span, with direction and size,
    never with the payload; the SDK keeps 128 events of a span unless told otherwise. ``users`` puts the
    user's id into the span. Without ``provider`` the global one is asked.
    """

    def __init__(
        self,
        *,
        messages: float = 0.0,
        parents: bool = True,
        users: bool = False,
        provider: TracerProvider | None = None,
    ) -> None:
        if isinstance(messages, bool) or not isinstance(messages, int | float) or not 0 <= messages <= 1:
            raise WrongValueError(f"messages is the part of messages to note, 0 to 1, not {messages!r}")
        self.counts = messages > 0
        self._part = messages
        self._parents = parents
        self._users = users
        self._tracer = trace.get_tracer("nexios_trio", tracer_provider=provider)
        self._traced: dict[str, _Traced] = {}

    def begun(self, connection: Observed) -> None:
        """See `Instrument.begun`."""
        scope = connection.scope
        parent = propagate.extract(_carrier(scope)) if self._parents else None
        attributes: dict[str, str | int] = {"url.path": scope["path"], "nexios.connection": connection.id}
        if scope.get("client"):
            attributes["client.address"], attributes["client.port"] = scope["client"]
        span = self._tracer.start_span(
            "websocket", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )
        here = context.get_current() if parent is None else parent
        token = context.attach(trace.set_span_in_context(span, here))
        self._traced[connection.id] = _Traced(span, token)

    def opened(self, connection: Observed) -> None:
        """See `Instrument.opened`."""
        span = self._traced[connection.id].span
        span.add_event("accepted")
        if self._part and connection.tally is not None and span.is_recording():
            connection.tally.watch(_sampled(span, self._part))

    def ended(self, connection: Observed) -> None:
        """See `Instrument.ended`."""
        traced = self._traced.pop(connection.id)
        span = traced.span
        if connection.route:
            span.update_name(f"websocket {connection.route}")
            span.set_attribute("http.route", connection.route)
        if self._users and connection.user_id is not None:
            span.set_attribute("user.id", connection.user_id)
        if connection.code is not None:
            span.set_attribute("nexios.close_code", connection.code)
            span.set_attribute("nexios.closed_by", connection.by or "")
            if connection.code == FAILED and connection.by == "local":
                span.set_status(Status(StatusCode.ERROR, "the handler failed"))
        span.end()
        context.detach(traced.token)

    def delivered(self, group: str, seconds: float) -> None:
        """See `Instrument.delivered`."""


def _carrier(scope: Any) -> dict[str, str]:
    """The headers that propagators read."""
    wanted = propagate.get_global_textmap().fields
    return {
        name: value.decode("latin-1")
        for raw, value in scope["headers"]
        if (name := raw.decode("latin-1")) in wanted
    }


def _sampled(span: Span, part: float) -> Callable[[Direction, str | bytes], None]:
    due = 1.0 - part  # the first one is always noted

    def watch(direction: Direction, message: str | bytes) -> None:
        nonlocal due
        due += part
        if due >= 1:
            due -= int(due)
            span.add_event(
                "message",
                {
                    "direction": direction,
                    "size": len(message),
                    "type": "text" if isinstance(message, str) else "binary",
                },
            )

    return watch
