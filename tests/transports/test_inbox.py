"""The bounded queue between reader and handler."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from nexios_trio.exceptions import ConcurrentReceiveError, WebSocketDisconnect
from nexios_trio.transports.inbox import CHECKPOINT_BUDGET, Inbox


async def test_messages_come_out_in_order_and_are_counted_in_bytes() -> None:
    inbox = Inbox(10, 100)
    for message in ("one", b"two!", "three"):
        assert not inbox.put_nowait(message)
    assert (len(inbox), inbox.size) == (3, 12)
    assert [await inbox.get(), await inbox.get(), await inbox.get()] == ["one", b"two!", "three"]
    assert (len(inbox), inbox.size) == (0, 0)


async def test_both_bounds_stop_the_writer_until_the_reader_takes_a_message() -> None:
    for inbox in (Inbox(2, 1000), Inbox(1000, 2)):
        assert not inbox.put_nowait("a")
        assert inbox.put_nowait("b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.wait_for_room)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            assert await inbox.get() == "a"


async def test_one_message_larger_than_the_bound_is_taken() -> None:
    inbox = Inbox(2, 10)
    assert inbox.put_nowait("x" * 1000)
    assert await inbox.get() == "x" * 1000
    await inbox.wait_for_room()


async def test_a_cancelled_get_takes_nothing() -> None:
    inbox = Inbox(2, 10)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.get)
            await wait_all_tasks_blocked()
            scope.cancel()
    inbox.put_nowait("kept")
    assert await inbox.get() == "kept"

    inbox.put_nowait("kept too")
    with trio.CancelScope() as scope:
        scope.cancel()
        await inbox.get()
    assert scope.cancelled_caught
    assert await inbox.get() == "kept too"


async def test_a_message_that_meets_a_cancellation_is_not_lost() -> None:
    inbox = Inbox(2, 10)
    got: list[object] = []

    async def getter(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await inbox.get())

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(getter, scope)
        await wait_all_tasks_blocked()
        inbox.put_nowait("first come")  # the getter is awake now
        scope.cancel()
    assert got == ["first come"]


async def test_two_tasks_cannot_wait_at_once() -> None:
    inbox = Inbox(2, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.get)
        await wait_all_tasks_blocked()
        with pytest.raises(ConcurrentReceiveError, match="receive in one task and hand messages on"):
            await inbox.get()
        inbox.put_nowait("for the first")


async def test_after_stop_the_rest_is_read_and_then_the_end_is_raised_as_often_as_asked() -> None:
    inbox = Inbox(2, 10)
    inbox.put_nowait("left")
    inbox.stop(lambda: WebSocketDisconnect(4000))
    inbox.stop(lambda: WebSocketDisconnect(4001))
    assert not inbox.put_nowait("too late")
    assert await inbox.get() == "left"
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect) as over:
            await inbox.get()
        assert over.value.code == 4000
    assert over.value.__cause__ is None


async def test_stop_wakes_the_one_who_waits_for_a_message_and_the_one_who_waits_for_room() -> None:
    inbox = Inbox(1, 10)
    ended: list[str] = []

    async def get() -> None:
        with pytest.raises(WebSocketDisconnect):
            await inbox.get()
        ended.append("get")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await wait_all_tasks_blocked()
        inbox.stop(WebSocketDisconnect)
    full = Inbox(1, 10)
    full.put_nowait("x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(full.wait_for_room)
        await wait_all_tasks_blocked()
        full.stop(WebSocketDisconnect)
    assert ended == ["get"]


async def test_a_reader_of_a_full_inbox_lets_others_run() -> None:
    inbox = Inbox(1000, 100_000)
    for _ in range(5 * CHECKPOINT_BUDGET):
        inbox.put_nowait("x")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while len(inbox):
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(5 * CHECKPOINT_BUDGET):
            await inbox.get()
    assert turns >= 4


async def test_get_is_a_checkpoint_even_when_a_message_is_there() -> None:
    inbox = Inbox(10, 100)
    inbox.put_nowait("x")
    with trio.testing.assert_checkpoints():
        for _ in range(CHECKPOINT_BUDGET):
            inbox.put_nowait("x")
            await inbox.get()
