"""Spans, as OpenTelemetry's SDK sees them."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from nexios_trio import NexiosApp, WebSocket
from nexios_trio.exceptions import WrongValueError
from nexios_trio.monitoring.tracing import Tracing
from nexios_trio.testing import TestClient, WebSocketRejected
from tests.lanes import Lane, lane, lane_clock, lane_name

__all__ = ["lane", "lane_clock", "lane_name"]

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.of(name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


def traced(spans: Spans, **options: object) -> NexiosApp:
    app = NexiosApp()
    app.add_instrument(Tracing(provider=spans.provider, **options))  # type: ignore[arg-type]
    tracer = spans.provider.get_tracer("test")

    @app.ws_route("/rooms/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        ws.identify("ann")
        with tracer.start_as_current_span("in the handler"):
            pass
        async for text in ws.iter_text():
            ws.start_soon(child, ws, text)

    async def child(ws: WebSocket, text: str) -> None:
        with tracer.start_as_current_span("in a child"):
            await ws.send_text(text)

    @app.ws_route("/fails")
    async def fails(ws: WebSocket) -> None:
        await ws.accept()
        raise RuntimeError

    @app.ws_route("/no")
    async def no(ws: WebSocket) -> None:
        await ws.reject(401)

    return app


async def test_a_connection_is_a_span_and_what_its_handler_does_hangs_below_it(
    lane: Lane, spans: Spans
) -> None:
    async with lane.serving(traced(spans)):
        async with lane.connect("/rooms/7") as peer:
            await peer.send("hello")
            assert await peer.receive() == "hello"
    span = spans.one("websocket /rooms/{room}")
    assert span.kind is trace.SpanKind.SERVER
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes["url.path"] == "/rooms/7"
    assert span.attributes["http.route"] == "/rooms/{room}"
    assert "user.id" not in span.attributes
    assert [event.name for event in span.events] == ["accepted"]
    for name in ("in the handler", "in a child"):
        inner = spans.one(name)
        assert inner.parent is not None
        assert inner.parent.span_id == span.context.span_id


async def test_the_trace_goes_on_where_the_client_began_it(spans: Spans) -> None:
    async with TestClient(traced(spans)) as client:
        async with client.connect("/rooms/1", headers={"traceparent": PARENT}):
            pass
    span = spans.one("websocket /rooms/{room}")
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.parametrize(
    ("options", "header"), [({"parents": False}, PARENT), ({}, "garbage"), ({}, PARENT + "-\xff")]
)
async def test_a_trace_begins_here_if_the_client_is_not_believed(
    spans: Spans, options: dict[str, bool], header: str
) -> None:
    async with TestClient(traced(spans, **options)) as client:
        async with client.connect("/rooms/1", headers={"traceparent": header}):
            pass
    assert spans.one("websocket /rooms/{room}").parent is None


async def test_connections_at_the_same_time_keep_to_their_own_traces(spans: Spans) -> None:
    async with TestClient(traced(spans)) as client:
        async with client.connect("/rooms/1") as one, client.connect("/rooms/2") as two:
            for ws in (one, two):
                await ws.send_text("x")
                await ws.receive_text()
        assert trace.get_current_span() is trace.INVALID_SPAN
    connections = {span.context.span_id for span in spans.of("websocket /rooms/{room}")}
    assert len(connections) == 2
    children = spans.of("in a child")
    assert {span.parent.span_id for span in children if span.parent} == connections


async def test_a_part_of_the_messages_become_events_without_their_payload(spans: Spans) -> None:
    async with TestClient(traced(spans, messages=0.25)) as client:
        async with client.connect("/rooms/1") as ws:
            for _ in range(8):
                await ws.send_text("secret")
                assert await ws.receive_text() == "secret"
    span = spans.one("websocket /rooms/{room}")
    events = [event for event in span.events if event.name == "message"]
    assert len(events) == 4  # of 16: in and out
    assert events[0].attributes == {"direction": "in", "size": 6, "type": "text"}
    assert "secret" not in span.to_json()


async def test_a_handler_that_fails_is_an_error_and_a_client_that_leaves_is_none(spans: Spans) -> None:
    async with TestClient(traced(spans)) as client:
        async with client.connect("/fails") as ws:
            await ws.wait_closed()
        async with client.connect("/rooms/1") as ws:
            await ws.close(1011)
        with pytest.raises(WebSocketRejected):
            async with client.connect("/no"):
                pass
    assert spans.one("websocket /fails").status.status_code is StatusCode.ERROR
    left = spans.one("websocket /rooms/{room}")
    assert left.status.status_code is StatusCode.UNSET
    assert left.attributes is not None
    assert (left.attributes["nexios.close_code"], left.attributes["nexios.closed_by"]) == (1011, "peer")
    rejected = spans.one("websocket /no")
    assert not rejected.events
    assert rejected.attributes is not None
    assert "nexios.close_code" not in rejected.attributes


async def test_the_user_is_named_only_if_asked(spans: Spans) -> None:
    async with TestClient(traced(spans, users=True)) as client:
        async with client.connect("/rooms/1"):
            pass
    attributes = spans.one("websocket /rooms/{room}").attributes
    assert attributes is not None
    assert attributes["user.id"] == "ann"


async def test_a_sampler_that_says_no_costs_no_events(spans: Spans) -> None:
    spans.provider = TracerProvider(sampler=ALWAYS_OFF)
    app = traced(spans, messages=1.0)
    async with TestClient(app) as client:
        async with client.connect("/rooms/1") as ws:
            await ws.send_text("x")
            await ws.receive_text()
            (connection,) = app.connections
            assert connection.tally is not None
            assert connection.tally.watchers == ()


@pytest.mark.parametrize("part", [-0.1, 1.1, True, "all"])
def test_a_bad_part_is_told(part: object) -> None:
    with pytest.raises(WrongValueError, match="0 to 1"):
        Tracing(messages=part)  # type: ignore[arg-type]
