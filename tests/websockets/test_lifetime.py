"""The seven rules under "A connection is a nursery", in memory and over a real hypercorn."""

from __future__ import annotations

import gc
import logging
import math
import weakref

import pytest
import trio
from starlette.exceptions import HTTPException
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio import Limits, NexiosApp, WebSocket, WebSocketDisconnect, WebSocketException
from nexios_trio.testing import TestClient, WebSocketRejected
from nexios_trio.types import Message, Receive, Scope, Send
from tests.lanes import Lane

# 1. Disconnect


@pytest.mark.parametrize("how", ["close", "drop"])
async def test_a_handler_that_waits_for_a_message_learns_of_the_disconnect(
    how: str, lane: Lane, lane_clock: MockClock
) -> None:
    app, told = NexiosApp(), trio.Event()
    seen: list[WebSocketDisconnect] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as gone:
            seen.append(gone)
            told.set()

    async with lane.serving(app), lane.connect() as peer:
        await (peer.close(4001, "bye") if how == "close" else peer.drop())
        await told.wait()
    if lane.name != "hypercorn" and how == "close":
        assert (seen[0].code, seen[0].reason, seen[0].by) == (4001, "bye", "peer")
    else:  # hypercorn reports 1006 whatever code came
        assert (seen[0].code, seen[0].by) == (1006, "network")
    assert len(app.connections) == 0


async def test_what_was_received_before_the_disconnect_stays_readable(
    lane: Lane, lane_clock: MockClock
) -> None:
    app, gone, done = NexiosApp(), trio.Event(), trio.Event()
    read: list[str] = []

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(watch)
        await ws.send_text("ready")
        await gone.wait()
        async for text in ws.iter_text():
            read.append(text)
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("too late")
        done.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        for text in ("one", "two", "three"):
            await peer.send(text)
        await peer.drop() if lane.name == "memory" else await peer.close()
        await done.wait()
    assert read == ["one", "two", "three"]


async def test_children_are_cancelled_the_moment_the_peer_is_gone(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(disconnect_grace=1000)
    child_gone, handler_may_go = trio.Event(), trio.Event()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            child_gone.set()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child)
        await ws.send_text("ready")
        await handler_may_go.wait()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        before = trio.current_time()
        await peer.drop()
        await child_gone.wait()
        assert trio.current_time() - before < 500  # not the handler's grace
        handler_may_go.set()


async def test_a_handler_that_is_elsewhere_is_cancelled_after_the_grace(
    lane: Lane, lane_clock: MockClock
) -> None:
    app, cancelled = NexiosApp(disconnect_grace=3), trio.Event()
    times: list[float] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("ready")
        try:
            await trio.sleep_forever()
        finally:
            times.append(trio.current_time())
            cancelled.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        before = trio.current_time()
        await peer.drop()
        await cancelled.wait()
    assert times[0] - before >= 3


async def test_no_grace_cancels_at_once_and_infinite_grace_never(autojump_clock: MockClock) -> None:
    ends: dict[float, float] = {}
    for grace in (0, math.inf):
        app = NexiosApp(disconnect_grace=grace)

        @app.ws_route("/")
        async def handler(ws: WebSocket, grace: float = grace) -> None:
            await ws.accept()
            try:
                await trio.sleep(100)
            finally:
                ends[grace] = trio.current_time()

        before = trio.current_time()
        async with TestClient(app, timeout=1000) as client, client.connect("/") as ws:
            await ws.drop()
        ends[grace] -= before
    assert ends == {0: 0, math.inf: 100}


async def test_a_handler_that_waits_in_send_learns_of_the_disconnect(autojump_clock: MockClock) -> None:
    app, told = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            while True:
                await ws.send_text("x")
        told.set()

    async with TestClient(app, window=3) as client, client.connect("/") as ws:
        await ws.stall()
        await trio.sleep(1)
        await ws.drop()
        await told.wait()


async def test_a_handler_that_only_sends_notices_that_the_client_has_left(
    lane: Lane, lane_clock: MockClock
) -> None:
    """A server may swallow sends to a client that is gone; the loop must neither go on nor starve others."""
    app, told = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text("tick")
        except WebSocketDisconnect:
            told.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.receive()
        await peer.drop()
        await told.wait()


# 2. Return


@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (None, 1000, ""),
        (ValueError("secret"), 1011, "internal error"),
        (WebSocketException(4321, "my reason"), 4321, "my reason"),
        (HTTPException(401), 1011, "internal error"),
        (WebSocketDisconnect(1001), 1000, ""),
        (ExceptionGroup("g", [WebSocketException(4001), WebSocketDisconnect()]), 4001, ""),
        (WebSocketException(1006), 1011, "internal error"),
    ],
    ids=["return", "bug", "exception", "http", "disconnect", "group", "unsendable"],
)
async def test_how_the_handler_ends_decides_the_close_code(
    outcome: Exception | None,
    code: int,
    reason: str,
    lane: Lane,
    lane_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        if outcome is not None:
            raise outcome

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (code, reason)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == (1 if code == 1011 else 0)


async def test_a_failure_is_logged_once_with_id_path_and_peer(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()
    ids: list[str] = []

    @app.ws_route("/some/{where}")
    async def handler(ws: WebSocket) -> None:
        ids.append(ws.id)
        await ws.accept()
        raise RuntimeError("broken")

    async with lane.serving(app), lane.connect("/some/where") as peer:
        assert (await peer.wait_closed())[0] == 1011
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    text = record.getMessage()
    assert ids[0] in text
    assert "'/some/where'" in text
    assert ("testclient:50000" if lane.name == "memory" else "127.0.0.1:") in text
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_a_path_cannot_forge_a_log_line(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    @app.ws_route("/{rest}")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        raise RuntimeError("broken")

    async with TestClient(app) as client, client.connect("/a%0aERROR%1b[0m") as ws:
        await ws.wait_closed()
    assert "'/a\\nERROR\\x1b[0m'" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "status", "body"),
    [
        (None, 403, b""),
        (ValueError("secret"), 500, b""),
        (WebSocketException(4000, "no"), 403, b""),
        (HTTPException(402, "pay first", headers={"X-Price": "1"}), 402, b"pay first"),
    ],
    ids=["return", "bug", "exception", "http"],
)
async def test_before_accept_the_client_gets_an_http_answer(
    outcome: Exception | None, status: int, body: bytes, autojump_clock: MockClock
) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        if outcome is not None:
            raise outcome

    async with TestClient(app) as client:
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert (rejected.value.status, rejected.value.body) == (status, body)
    if status == 402:
        assert ("x-price", "1") in rejected.value.headers


async def test_a_child_that_fails_ends_the_connection_as_if_the_handler_had(
    lane: Lane, lane_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app, handler_ended = NexiosApp(), trio.Event()

    async def child() -> None:
        raise KeyError("child")

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child)
        try:
            await trio.sleep_forever()
        finally:
            handler_ended.set()

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (1011, "internal error")
        await handler_ended.wait()
    assert caplog.text.count("KeyError: 'child'") == 1


async def test_failures_of_several_tasks_are_logged_together(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    async def child(message: str) -> None:
        await trio.sleep(1)
        raise RuntimeError(message)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child, "first")
        ws.start_soon(child, "second")
        await ws.receive_text()

    async with TestClient(app) as client, client.connect("/") as ws:
        assert (await ws.wait_closed())[0] == 1011
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "RuntimeError: first" in caplog.text
    assert "RuntimeError: second" in caplog.text


async def test_children_end_when_the_handler_returns(lane: Lane, lane_clock: MockClock) -> None:
    app, child_gone = NexiosApp(), trio.Event()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            child_gone.set()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child)
        await ws.receive_text()

    async with lane.serving(app), lane.connect() as peer:
        await peer.send("go")
        assert (await peer.wait_closed())[0] == 1000
        await child_gone.wait()


async def test_a_child_cannot_be_started_once_the_connection_is_over(autojump_clock: MockClock) -> None:
    app, told = NexiosApp(), trio.Event()

    async def child() -> None:
        raise AssertionError("this must not run")

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with pytest.raises(WebSocketDisconnect):
            await ws.receive_text()
        with pytest.raises(WebSocketDisconnect):
            ws.start_soon(child)
        told.set()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.drop()
        await told.wait()


# 3. close() is idempotent


async def test_close_is_legal_at_any_time_and_the_first_code_counts(
    lane: Lane, lane_clock: MockClock
) -> None:
    app, done = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.close(4000, "first")
            await ws.close(4001, "second")
            with pytest.raises(WebSocketDisconnect) as over:
                await ws.receive_text()
            assert (over.value.code, over.value.reason, over.value.by) == (4000, "first", "local")
            with pytest.raises(WebSocketDisconnect):
                await ws.send_text("x")
        finally:
            await ws.close()
            done.set()

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (4000, "first")
        await done.wait()


async def test_close_after_the_peer_has_gone_does_nothing(lane: Lane, lane_clock: MockClock) -> None:
    app, done = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            async for _ in ws.iter_text():
                pass
        finally:
            await ws.close(4000)
            await ws.close()
            done.set()

    async with lane.serving(app), lane.connect() as peer:
        await peer.drop()
        await done.wait()


async def test_a_close_that_is_cancelled_is_still_sent(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with trio.CancelScope() as scope:
            scope.cancel()
            await ws.close(4005, "although cancelled")
        assert scope.cancelled_caught

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (4005, "although cancelled")


async def test_a_child_may_close_the_connection(lane: Lane, lane_clock: MockClock) -> None:
    app, told = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(ws.close, 4002, "by the child")
        with pytest.raises(WebSocketDisconnect) as over:
            await ws.receive_text()
        assert over.value.code == 4002
        told.set()

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.wait_closed() == (4002, "by the child")
        await told.wait()


async def test_a_peer_that_never_answers_our_close_is_not_waited_for_forever(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(close_timeout=7)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.stall()
        before = trio.current_time()
        await ws._ended.wait()
        assert trio.current_time() - before == 7


async def test_a_server_that_does_not_take_the_close_frame_is_not_waited_for_forever(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(close_timeout=3)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()

    connects = iter([{"type": "websocket.connect"}])

    async def receive() -> Message:
        if (connect := next(connects, None)) is not None:
            return connect
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            await trio.sleep_forever()

    scope = {"type": "websocket", "path": "/", "headers": [], "http_version": "2"}
    before = trio.current_time()
    await app(scope, receive, send)
    assert trio.current_time() - before <= 2 * 3


# 4. Cancellation is clean


async def test_a_cancelled_receive_has_taken_nothing(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with trio.move_on_after(1) as scope:
            await ws.receive_text()
        assert scope.cancelled_caught
        await ws.send_text("now")
        await ws.send_text(await ws.receive_text())

    async with lane.serving(app), lane.connect() as peer:
        assert await peer.receive() == "now"
        await peer.send("kept")
        assert await peer.receive() == "kept"


async def test_a_cancelled_send_to_a_client_that_does_not_read_leaves_the_connection_usable(
    autojump_clock: MockClock,
) -> None:
    app, stuck = NexiosApp(), trio.Event()
    sent: list[int] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        with trio.move_on_after(1) as scope:
            for number in range(100):
                await ws.send_text(str(number))
                sent.append(number)
        assert scope.cancelled_caught
        stuck.set()
        await ws.receive_text()
        await ws.send_text("after")

    async with TestClient(app, window=5) as client, client.connect("/") as ws:
        await ws.stall()
        await stuck.wait()
        await ws.resume()
        await ws.send_text("go on")
        assert [await ws.receive_text() for _ in sent] == [str(number) for number in sent]
        assert await ws.receive_text() == "after"


async def test_a_send_that_is_cancelled_while_others_wait_passes_its_turn_on(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp()
    scope = trio.CancelScope()

    async def sender(ws: WebSocket, text: str) -> None:
        await ws.send_text(text)

    async def cancelled_sender(ws: WebSocket) -> None:
        with scope:
            await ws.send_text("cancelled")

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(sender, ws, "0")
        await wait_all_tasks_blocked()
        ws.start_soon(sender, ws, "1")
        await wait_all_tasks_blocked()
        ws.start_soon(cancelled_sender, ws)
        await wait_all_tasks_blocked()
        ws.start_soon(sender, ws, "2")
        await wait_all_tasks_blocked()
        scope.cancel()
        await ws.receive_text()

    async with TestClient(app, window=0) as client, client.connect("/") as ws:
        await trio.sleep(1)
        assert [await ws.receive_text() for _ in range(3)] == ["0", "1", "2"]
        await ws.send_text("done")


async def test_messages_of_several_tasks_go_out_whole_and_in_the_order_of_the_calls(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp()
    called: list[str] = []

    async def sender(ws: WebSocket, name: int) -> None:
        for number in range(20):
            text = f"{name}.{number}." + "x" * 5000
            called.append(text)
            await ws.send_text(text)

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async with trio.open_nursery() as nursery:
            for name in range(5):
                nursery.start_soon(sender, ws, name)
        await ws.receive_text()

    async with lane.serving(app), lane.connect() as peer:
        received = [await peer.receive() for _ in range(100)]
        await peer.send("done")
    assert received == called


# 5. Server shutdown


async def test_a_shutdown_closes_with_1012_and_gives_handlers_their_grace(
    lane: Lane, lane_clock: MockClock
) -> None:
    app = NexiosApp(disconnect_grace=4)
    told: list[WebSocketDisconnect] = []
    ends: list[float] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await ws.receive_text()
        except WebSocketDisconnect as over:
            told.append(over)
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    async with lane.serving(app), lane.connect() as peer:
        await wait_all_tasks_blocked()
        before = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.drain)
            assert await peer.wait_closed() == (1012, "service restart")
    assert (told[0].code, told[0].reason, told[0].by) == (1012, "service restart", "local")
    assert ends[0] - before >= 4


async def test_connections_are_closed_over_the_drain_window(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    times: list[float] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        times.append(trio.current_time())

    async with TestClient(app, timeout=60) as client, trio.open_nursery() as nursery:
        ready = [trio.Event() for _ in range(100)]

        async def peer(connected: trio.Event) -> None:
            async with client.connect("/") as ws:
                connected.set()
                assert (await ws.wait_closed())[0] == 1012

        for event in ready:
            nursery.start_soon(peer, event)
        for event in ready:
            await event.wait()
        before = trio.current_time()
        await app.drain(window=5)
        took = trio.current_time() - before
    offsets = sorted(time - before for time in times)
    assert len(offsets) == 100
    for number, offset in enumerate(offsets):  # one in each share of the window
        assert number * 0.05 <= offset <= (number + 1) * 0.05 + 1e-9
    assert 4.95 <= took <= 5 + 1e-9


async def test_a_connection_that_comes_during_the_drain_gets_503(autojump_clock: MockClock) -> None:
    app = NexiosApp()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()

    async with TestClient(app) as client:
        await app.drain()
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
    assert rejected.value.status == 503


async def test_a_handshake_that_hangs_at_shutdown_gets_503(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(accept_timeout=100))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep_forever()

    async with TestClient(app) as client, trio.open_nursery() as nursery:

        async def peer() -> None:
            with pytest.raises(WebSocketRejected) as rejected:
                async with client.connect("/"):
                    pass
            assert rejected.value.status == 503

        nursery.start_soon(peer)
        await wait_all_tasks_blocked()
        await app.drain()


async def test_plain_cancellation_by_the_server_says_1012(lane: Lane, lane_clock: MockClock) -> None:
    app, ready, cleaned = NexiosApp(), trio.Event(), trio.Event()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cleaned.set()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child)
        ready.set()
        await trio.sleep_forever()

    scope = trio.CancelScope()

    async def cancellable(asgi_scope: Scope, receive: Receive, send: Send) -> None:
        with scope if asgi_scope["type"] == "websocket" else trio.CancelScope():
            await app(asgi_scope, receive, send)

    async with lane.serving(cancellable), lane.connect() as peer:
        await ready.wait()
        scope.cancel()
        assert await peer.wait_closed() == (1012, "service restart")
        assert cleaned.is_set()


# 6. One client's fault stays its own


async def test_crashes_stalls_and_floods_do_not_touch_others(lane: Lane, lane_clock: MockClock) -> None:
    app = NexiosApp(close_timeout=1)
    stalled = trio.Event()

    @app.ws_route("/echo")
    async def echo(ws: WebSocket) -> None:
        await ws.accept()
        async for text in ws.iter_text():
            await ws.send_text(text)

    @app.ws_route("/crash")
    async def crash(ws: WebSocket) -> None:
        await ws.accept()
        raise RuntimeError("mine alone")

    @app.ws_route("/stall")
    async def stall(ws: WebSocket) -> None:
        await ws.accept()
        with trio.move_on_after(10):
            for _ in range(30):
                await ws.send_text("x" * 100_000)
        stalled.set()

    @app.ws_route("/sleepy")
    async def sleepy(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep(10)

    async with lane.serving(app), lane.connect("/echo") as good, trio.open_nursery() as nursery:

        async def crasher() -> None:
            async with lane.connect("/crash") as peer:
                await peer.wait_closed()

        async def flooder() -> None:
            async with lane.connect("/sleepy") as peer:
                with trio.move_on_after(5):
                    for _ in range(1000):
                        await peer.send("flood")
                await peer.drop()

        async def never_reads() -> None:
            async with lane.connect("/stall") as peer:
                await trio.sleep(5)
                await peer.drop()

        for bad in (crasher, flooder, never_reads):
            nursery.start_soon(bad)
        for number in range(200):
            await good.send(str(number))
            assert await good.receive() == str(number)


# 7. Backpressure


async def test_a_handler_that_does_not_receive_stops_the_reading(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=4))
    go = trio.Event()
    got: list[str] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        async for text in ws.iter_text():
            got.append(text)

    async with TestClient(app) as client, client.connect("/") as ws:
        sent = 0
        with trio.move_on_after(1):
            while True:
                await ws.send_text(str(sent))
                sent += 1
        assert sent == 4 + 10  # inbox, server's queue; the reader holds none of its own
        go.set()
        await ws.send_text("last")
        await ws.close()
    assert got == [*map(str, range(sent)), "last"]


async def test_over_a_socket_too_a_client_is_held_back_and_nothing_is_lost(
    lane: Lane, lane_clock: MockClock
) -> None:
    app, go, done = (
        NexiosApp(limits=Limits(inbox_messages=4, inbox_bytes=1 << 30)),
        trio.Event(),
        trio.Event(),
    )
    waiting: list[int] = []
    sizes: list[int] = []
    sent = 0

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        waiting.append(len(ws._transport.inbox))
        async for data in ws.iter_bytes():
            sizes.append(len(data))
            if len(sizes) == 60:
                done.set()

    async with lane.serving(app), lane.connect() as peer, trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal sent
            for _ in range(60):
                sent += 1
                await peer.send(b"x" * 500_000)

        nursery.start_soon(flood)
        await trio.sleep(20)
        held_back = sent
        go.set()
        await done.wait()
    assert held_back < 60
    assert waiting == [4]
    assert sizes == [500_000] * 60


async def test_bytes_bound_the_inbox_too(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=1000, inbox_bytes=2500))
    sizes: list[int] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep(2)
        sizes.append(len(ws._transport.inbox))
        async for _ in ws.iter_bytes():
            pass

    async with TestClient(app) as client, client.connect("/") as ws:
        for _ in range(13):
            await ws.send_bytes(b"x" * 1000)
        await trio.sleep(5)
    assert sizes == [3]


# Timeouts of the handshake


async def test_a_handler_that_never_accepts_is_cancelled_and_the_client_gets_503(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp(limits=Limits(accept_timeout=3))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep_forever()

    async with TestClient(app) as client:
        before = trio.current_time()
        with pytest.raises(WebSocketRejected) as rejected:
            async with client.connect("/"):
                pass
        assert trio.current_time() - before == 3
    assert rejected.value.status == 503
    assert "neither accepted nor rejected within 3 s" in caplog.text


async def test_accepting_ends_the_accept_timeout(autojump_clock: MockClock) -> None:
    app = NexiosApp(limits=Limits(accept_timeout=3))

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep(2)
        await ws.accept()
        await trio.sleep(100)
        await ws.send_text("still here")

    async with TestClient(app, timeout=200) as client, client.connect("/") as ws:
        assert await ws.receive_text() == "still here"


async def test_a_client_that_leaves_during_the_handshake_is_noticed(autojump_clock: MockClock) -> None:
    app, told = NexiosApp(), trio.Event()

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await trio.sleep(1)
        with pytest.raises(WebSocketDisconnect):
            await ws.accept()
        told.set()

    async with TestClient(app, timeout=0.5) as client:
        with pytest.raises(trio.TooSlowError):
            async with client.connect("/"):
                pass
        await told.wait()


# What is left behind


async def test_a_child_that_fails_in_its_clean_up_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = NexiosApp()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("in the clean-up")

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        ws.start_soon(child)
        await ws.receive_text()

    async with TestClient(app) as client, client.connect("/") as ws:
        await ws.send_text("go")
        await ws.wait_closed()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "RuntimeError: in the clean-up" in caplog.text


async def test_a_connection_leaves_no_cycle_of_references(autojump_clock: MockClock) -> None:
    app = NexiosApp()
    left: list[weakref.ref[object]] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        left.extend(map(weakref.ref, (ws, ws._connection)))
        async for text in ws.iter_text():
            await ws.send_text(text)

    gc.collect()
    gc.disable()
    try:
        async with TestClient(app) as client:
            async with client.connect("/") as ws:
                await ws.send_text("hi")
                assert await ws.receive_text() == "hi"
            del ws
            await wait_all_tasks_blocked()
            assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()


async def test_silence_that_is_the_handler_s_own_fault_is_not_held_against_the_client(
    autojump_clock: MockClock,
) -> None:
    app = NexiosApp(limits=Limits(inbox_messages=2), idle_timeout=5)
    lengths: list[int] = []

    @app.ws_route("/")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await trio.sleep(50)
        lengths.append(len(ws._transport.inbox))
        async for text in ws.iter_text():
            await ws.send_text(text)

    async with TestClient(app, timeout=100) as client, client.connect("/") as ws:
        for number in range(5):
            await ws.send_text(str(number))
        assert [await ws.receive_text() for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert lengths == [2]
