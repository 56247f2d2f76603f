"""`app.events`: listeners, namespaces, concurrency."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from nexios_trio import NexiosApp
from nexios_trio.events import EventEmitter, EventNamespace
from nexios_trio.exceptions import WrongTypeError


class Listener:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def hear(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((*args, *kwargs.items()))


@pytest.fixture(params=["emitter", "namespace", "nested namespace"])
def events(request: pytest.FixtureRequest) -> EventEmitter | EventNamespace:
    emitter = NexiosApp().events
    match request.param:
        case "namespace":
            return emitter.namespace("chat")
        case "nested namespace":
            return emitter.namespace("chat").namespace("room")
    return emitter


AnyEvents = EventEmitter | EventNamespace


async def test_a_listener_hears_every_emit_with_its_arguments(events: AnyEvents) -> None:
    listener = Listener()
    assert events.on("joined", listener.hear) == listener.hear
    assert await events.emit("joined", 1, name="ada") == 1
    assert await events.emit("joined") == 1
    assert listener.calls == [(1, ("name", "ada")), ()]


async def test_on_and_once_are_decorators_that_give_the_function_back(events: AnyEvents) -> None:
    heard = []

    @events.on("x")
    async def always(value: int) -> None:
        heard.append(("always", value))

    @events.once("x")
    def once(value: int) -> None:
        heard.append(("once", value))

    assert events.listeners("x") == [always, once]
    assert await events.emit("x", 1) == 2
    assert await events.emit("x", 2) == 1
    assert sorted(heard) == [("always", 1), ("always", 2), ("once", 1)]
    await always(3)
    once(3)
    assert len(heard) == 5


async def test_once_is_called_for_one_of_several_emits_at_the_same_time(events: AnyEvents) -> None:
    release = trio.Event()
    calls = []

    async def slow(value: int) -> None:
        calls.append(value)
        await release.wait()

    assert events.once("x", slow) is slow
    async with trio.open_nursery() as nursery:
        for value in range(5):
            nursery.start_soon(events.emit, "x", value)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert len(calls) == 1
    assert events.listeners("x") == []


async def test_an_emit_that_is_cancelled_before_it_calls_anyone_leaves_once_in_place(
    events: AnyEvents,
) -> None:
    listener = Listener()
    events.once("x", listener.hear)
    with trio.CancelScope() as scope:
        scope.cancel()
        await events.emit("x")
    assert listener.calls == []
    assert await events.emit("x") == 1
    assert listener.calls == [()]


async def test_a_listener_registered_twice_is_called_twice(events: AnyEvents) -> None:
    listener = Listener()
    events.on("x", listener.hear)
    events.on("x", listener.hear)
    assert await events.emit("x") == 2
    assert events.off("x", listener.hear)
    assert events.listeners("x") == []


async def test_off_forgets_one_listener_or_all(events: AnyEvents) -> None:
    first, second, third = Listener(), Listener(), Listener()
    for listener in (first, second, third):
        events.on("x", listener.hear)
    assert events.off("x", second.hear) is True
    assert events.off("x", second.hear) is False
    assert events.listeners("x") == [first.hear, third.hear]
    assert events.off("x") is True
    assert events.off("x") is False
    assert await events.emit("x") == 0


async def test_off_inside_a_listener_holds_from_the_next_emit_on(events: AnyEvents) -> None:
    calls = []

    async def second() -> None:
        calls.append("second")

    async def first() -> None:
        calls.append("first")
        events.off("x")

    events.on("x", first)
    events.on("x", second)
    assert await events.emit("x") == 2
    assert await events.emit("x") == 0
    assert sorted(calls) == ["first", "second"]


async def test_a_listener_added_by_a_listener_hears_the_next_emit_only() -> None:
    events = EventEmitter()
    late = Listener()

    async def first() -> None:
        events.once("x", late.hear)

    events.once("x", first)
    assert await events.emit("x") == 1
    assert late.calls == []
    assert await events.emit("x") == 1
    assert late.calls == [()]


async def test_an_event_that_nobody_listens_to_is_a_checkpoint_and_counts_none(events: AnyEvents) -> None:
    with trio.testing.assert_checkpoints():
        assert await events.emit("x") == 0


async def test_listeners_run_at_the_same_time(events: AnyEvents) -> None:
    ping, pong = trio.Event(), trio.Event()

    @events.on("x")
    async def first() -> None:
        ping.set()
        await pong.wait()

    @events.on("x")
    async def second() -> None:
        await ping.wait()
        pong.set()

    assert await events.emit("x") == 2


async def test_emit_waits_for_all_listeners(events: AnyEvents) -> None:
    release = trio.Event()
    emitted = trio.Event()
    events.on("x", release.wait)
    events.on("x", lambda: None)

    async def emit() -> None:
        await events.emit("x")
        emitted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit)
        await trio.testing.wait_all_tasks_blocked()
        assert not emitted.is_set()
        release.set()
    assert emitted.is_set()


@pytest.mark.parametrize("others", [0, 2])
async def test_a_failing_listener_is_logged_with_its_traceback_and_silences_nobody(
    events: AnyEvents, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    listener = Listener()

    @events.on("x")
    async def faulty() -> None:
        raise LookupError("nothing here")

    for _ in range(others):
        events.on("x", listener.hear)
    assert await events.emit("x") == others
    assert len(listener.calls) == others
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("nexios_trio.events", logging.ERROR)
    assert re.search(r"a listener of '[\w:]*x' failed: <function .*faulty", record.getMessage())
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert "in faulty" in caplog.text


async def test_a_failing_sync_listener_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    events = EventEmitter()
    events.on("x", lambda: 1 / 0)
    assert await events.emit("x") == 0
    assert "ZeroDivisionError" in caplog.text


async def test_a_listener_that_fails_in_several_tasks_is_logged_as_a_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(error: Exception) -> None:
        raise error

    events = EventEmitter()

    @events.on("x")
    async def faulty() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, ValueError("one"))
            nursery.start_soon(fail, KeyError("two"))

    assert await events.emit("x") == 0
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert len(record.exc_info[1].exceptions) == 2


async def test_cancelling_an_emit_cancels_the_listeners_that_still_run(events: AnyEvents) -> None:
    ended: list[int] = []
    started = trio.Event()

    async def endless(number: int, *, done: Callable[[], None] = lambda: None) -> None:
        done()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(number)

    events.on("x", functools.partial(endless, 1))
    events.on("x", functools.partial(endless, 2, done=started.set))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.emit, "x")
        await started.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(ended) == [1, 2]
    assert len(events.listeners("x")) == 2


async def test_a_listener_may_emit(events: AnyEvents) -> None:
    listener = Listener()
    events.on("inner", listener.hear)

    @events.on("outer")
    async def forward(value: int) -> None:
        await events.emit("inner", value)

    assert await events.emit("outer", 7) == 1
    assert listener.calls == [(7,)]


async def test_a_namespace_is_the_same_emitter_with_names_joined_by_colons() -> None:
    events = EventEmitter()
    chat = events.namespace("chat")
    room = chat.namespace("room")
    assert (chat.name, room.name) == ("chat", "chat:room")
    heard: list[str] = []
    events.on("chat:joined", lambda: heard.append("from the top"))
    chat.on("joined", lambda: heard.append("from the namespace"))
    room.once("joined", lambda: heard.append("from the room"))
    events.on("joined", lambda: heard.append("without a namespace"))
    assert await chat.emit("joined") == 2
    assert await events.emit("chat:room:joined") == 1
    assert sorted(heard[:2]) == ["from the namespace", "from the top"]
    assert heard[2:] == ["from the room"]
    assert events.namespace("chat").off("joined")
    assert events.listeners("chat:joined") == []


async def test_two_apps_hear_only_their_own_events() -> None:
    first, second = NexiosApp(), NexiosApp()
    listener = Listener()
    first.events.on("x", listener.hear)
    assert await second.events.emit("x") == 0
    assert listener.calls == []


@pytest.mark.parametrize("name", ["", None, 5, b"x", Listener])
async def test_a_wrong_event_name_is_an_error_with_an_example(events: AnyEvents, name: Any) -> None:
    example = re.escape('an event name is a str such as "user.joined", not ')
    for call in (events.on, events.once, events.off, events.listeners, events.namespace):
        if call == events.listeners and isinstance(events, EventEmitter):
            continue
        with pytest.raises(WrongTypeError, match=example):
            call(name)
    with pytest.raises(WrongTypeError, match=example):
        await events.emit(name)


def test_a_listener_that_cannot_be_called_is_an_error(events: AnyEvents) -> None:
    with pytest.raises(WrongTypeError, match="a listener is a function, not int"):
        events.on("x", 5)  # type: ignore[call-overload]
    with pytest.raises(WrongTypeError, match="a listener is a function, not str"):
        events.once("x")("y")  # type: ignore[type-var]
