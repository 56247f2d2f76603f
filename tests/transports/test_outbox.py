"""The queue in front of one client, by itself and against a naive model."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import pytest
import trio
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from nexios_trio.config import Deflate, Overflow
from nexios_trio.transports.outbox import Drops, Entry, Outbox


def entry(text: str, size: int = 1, owner: str = "", key: Hashable = None) -> Entry:
    return Entry({"type": "websocket.send", "text": text}, size, owner, key)


async def drain(outbox: Outbox) -> list[str]:
    return [(await outbox.take())["text"] for _ in range(len(outbox))]


async def test_what_is_put_first_comes_out_first() -> None:
    outbox = Outbox(10, 100)
    for text in "abc":
        assert await outbox.put(entry(text))
    assert (len(outbox), outbox.size) == (3, 3)
    assert await drain(outbox) == ["a", "b", "c"]
    assert (len(outbox), outbox.size) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "size", "held"), [(3, 1000, 3), (1000, 30, 3), (1000, 25, 3), (1, 1, 1)]
)
async def test_a_put_waits_at_either_bound(
    messages: int, size: int, held: int, autojump_clock: MockClock
) -> None:
    outbox, returned = Outbox(messages, size), 0

    async def put(number: int) -> None:
        nonlocal returned
        assert await outbox.put(entry(str(number), 10))
        returned += 1

    async with trio.open_nursery() as nursery:
        for number in range(held + 1):
            nursery.start_soon(put, number)
            await wait_all_tasks_blocked()
        assert (returned, len(outbox)) == (held, held)
        assert outbox.full
        await outbox.take()
        await wait_all_tasks_blocked()
        assert returned == held + 1


async def test_waiting_puts_go_in_the_order_in_which_they_came_and_nobody_overtakes_them() -> None:
    outbox, taken = Outbox(1, 100), []

    async def put(text: str) -> None:
        assert await outbox.put(entry(text))

    async with trio.open_nursery() as nursery:
        await outbox.put(entry("0"))
        for text in "123":
            nursery.start_soon(put, text)
            await wait_all_tasks_blocked()
        for _ in range(4):
            taken.append((await outbox.take())["text"])
            assert not outbox.put_nowait(entry("late")) or len(taken) == 4
            # a group that floods gets none of the room that somebody waits for
            if len(taken) < 4:
                assert not outbox.offer(entry("flood", owner="g"), Overflow.DROP_OLDEST, Drops())
    assert taken == ["0", "1", "2", "3"]


async def test_a_cancelled_put_has_added_nothing_and_lets_the_next_one_in() -> None:
    outbox = Outbox(1, 100)
    await outbox.put(entry("a"))
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await outbox.put(entry("never"))
        assert scope.cancelled_caught
        nursery.start_soon(outbox.put, entry("b"))
        await wait_all_tasks_blocked()
        assert await drain(outbox) == ["a"]
        assert await drain(outbox) == ["b"]


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_put_that_is_cancelled_once_it_was_let_in_has_put_its_message() -> None:
    outbox, results = Outbox(1, 100), []
    await outbox.put(entry("a"))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def put() -> None:
                results.append(await outbox.put(entry("b")))

            nursery.start_soon(put)
            await wait_all_tasks_blocked()
            await outbox.take()
            scope.cancel()
    assert results == [True]
    assert await drain(outbox) == ["b"]


async def test_a_put_under_cancellation_raises_even_if_there_is_room() -> None:
    outbox = Outbox(10, 100)
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.put(entry("never"))
    assert scope.cancelled_caught
    assert len(outbox) == 0


async def test_a_loop_of_puts_lets_other_tasks_run() -> None:
    outbox, ran = Outbox(1000, 1000), False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for number in range(64):  # Trio runs the tasks that are ready in random order, each once
            await outbox.put(entry(str(number)))
        assert ran


@pytest.mark.parametrize(
    ("overflow", "taken", "left", "counters"),
    [
        (Overflow.DROP_OLDEST, True, ["d", "2", "3"], Drops(dropped_oldest=1)),
        (Overflow.DROP_NEWEST, False, ["d", "1", "2"], Drops(dropped_newest=1)),
        (Overflow.CONFLATE("id"), True, ["d", "2", "3"], Drops(dropped_oldest=1)),
        (Overflow.DISCONNECT, False, ["d", "1", "2"], Drops()),
        (Overflow.BLOCK, False, ["d", "1", "2"], Drops()),
    ],
)
async def test_each_rule_does_to_a_full_outbox_what_it_says(
    overflow: Overflow, taken: bool, left: list[str], counters: Drops
) -> None:
    outbox, counted = Outbox(3, 100), Drops()
    await outbox.put(entry("d"))
    for text in "12":
        assert outbox.offer(entry(text, owner="g"), overflow, counted)
    assert counted == Drops()
    assert outbox.offer(entry("3", owner="g"), overflow, counted) is taken
    assert counted == outbox.drops == counters
    assert await drain(outbox) == left


async def test_dropping_the_oldest_never_drops_what_is_not_the_groups_own() -> None:
    outbox, counted = Outbox(3, 100), Drops()
    await outbox.put(entry("direct"))
    for owner in ("g", "h"):
        outbox.offer(entry(owner, owner=owner), Overflow.DROP_OLDEST, Drops())
    assert not outbox.offer(entry("k", owner="k"), Overflow.DROP_OLDEST, counted)
    assert counted == Drops(dropped_newest=1)
    assert outbox.offer(entry("h2", owner="h"), Overflow.DROP_OLDEST, counted)
    assert await drain(outbox) == ["direct", "g", "h2"]


async def test_a_waiting_message_of_the_same_key_is_replaced_in_its_place() -> None:
    outbox, counted, rule = Outbox(10, 100), Drops(), Overflow.CONFLATE("id")
    for text, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("none", None), ("a3", "a"), ("none", None)):
        assert outbox.offer(entry(text, len(text), "g", key), rule, counted)
    assert outbox.offer(entry("other group", owner="h", key="a"), rule, counted)
    assert counted.conflated == outbox.drops.conflated == 2
    assert outbox.size == 2 + 2 + 4 + 4 + 1
    assert await drain(outbox) == ["a3", "b1", "none", "none", "other group"]
    assert outbox.offer(entry("a4", owner="g", key="a"), rule, counted)
    assert counted.conflated == 2, "what is on its way is not replaced"


async def test_replacing_small_messages_by_large_ones_stays_within_the_bound() -> None:
    outbox, counted, rule = Outbox(100, 100), Drops(), Overflow.CONFLATE("id")
    for key in range(50):
        outbox.offer(entry("small", 1, "g", key), rule, counted)
    for key in range(50):
        outbox.offer(entry("large", 60, "g", key), rule, counted)
        assert outbox.size < 100 + 60


async def test_a_closed_outbox_sends_what_it_has_and_refuses_all_else() -> None:
    outbox, answers = Outbox(1, 100), []
    await outbox.put(entry("a"))
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            answers.append(await outbox.put(entry("waits")))

        nursery.start_soon(put)
        await wait_all_tasks_blocked()
        outbox.close()
    assert answers == [False]
    assert not await outbox.put(entry("late"))
    assert not outbox.put_nowait(entry("late"))
    assert not outbox.offer(entry("late", owner="g"), Overflow.DROP_OLDEST, Drops())
    assert outbox.drops == Drops()
    assert await drain(outbox) == ["a"]


async def test_waiting_until_all_is_sent_means_sent_and_not_taken(autojump_clock: MockClock) -> None:
    outbox, sent = Outbox(10, 100), []

    async def write() -> None:
        while True:
            frame = await outbox.take()
            await trio.sleep(1)
            sent.append(frame["text"])

    async with trio.open_nursery() as nursery:
        for text in "ab":
            await outbox.put(entry(text))
        nursery.start_soon(write)
        await outbox.wait_sent()
        assert sent == ["a", "b"]
        await outbox.put(entry("c"))
        nursery.start_soon(_throw_away_soon, outbox)
        await outbox.wait_sent()
        assert sent == ["a", "b"]
        assert (len(outbox), outbox.size) == (0, 0)
        nursery.cancel_scope.cancel()


async def _throw_away_soon(outbox: Outbox) -> None:
    await trio.sleep(0.5)
    outbox.throw_away()


async def test_a_cancelled_take_has_taken_nothing() -> None:
    outbox = Outbox(10, 100)
    with trio.move_on_after(0):
        await outbox.take()
    await outbox.put(entry("a"))
    assert await drain(outbox) == ["a"]


# Against a naive model


@define
class Waiting:
    text: str
    size: int
    owner: str
    key: Any


class Model:
    """The same in the plainest words: a list, and a list of those who wait."""

    def __init__(self, messages: int, size: int) -> None:
        self.messages, self.bytes = messages, size
        self.queue: list[Waiting] = []
        self.queued_up: list[Waiting] = []
        self.drops = Drops()

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.messages or sum(w.size for w in self.queue) >= self.bytes

    def admit(self) -> None:
        while self.queued_up and not self.full:
            self.queue.append(self.queued_up.pop(0))

    def put(self, new: Waiting) -> None:
        self.queued_up.append(new)
        self.admit()

    def offer(self, new: Waiting, rule: str) -> bool:
        twin = [w for w in self.queue if new.key is not None and (w.owner, w.key) == (new.owner, new.key)]
        if twin:
            self.drops.conflated += 1
            place = self.queue.index(twin[0])
            self.queue.remove(twin[0])
            if not sum(w.size for w in self.queue) >= self.bytes:
                self.queue.insert(place, new)
                self.admit()
                return True
        if self.full and rule == "disconnect":
            return False
        while self.full:
            own = [w for w in self.queue if w.owner == new.owner]
            if rule == "drop_newest" or not own:
                self.drops.dropped_newest += 1
                self.admit()
                return False
            self.queue.remove(own[0])
            self.drops.dropped_oldest += 1
        self.queue.append(new)
        self.admit()
        return True


RULES = {rule.rule: rule for rule in (Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.DISCONNECT)}
RULES["conflate"] = Overflow.CONFLATE("id")

steps = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 6)),
    st.tuples(
        st.just("offer"),
        st.integers(1, 6),
        st.sampled_from("gh"),
        st.sampled_from(sorted(RULES)),
        st.sampled_from([None, 1, 2]),
    ),
    st.tuples(st.just("take")),
    st.tuples(st.just("cancel")),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.lists(steps, max_size=40))
def test_it_does_what_a_naive_model_does(messages: int, size: int, script: list[tuple[Any, ...]]) -> None:
    trio.run(_compare, messages, size, script)


async def _compare(messages: int, size: int, script: list[tuple[Any, ...]]) -> None:
    outbox, model, counted = Outbox(messages, size), Model(messages, size), Drops()
    texts = map(str, itertools.count())
    scopes: dict[str, trio.CancelScope] = {}
    returned: list[str] = []

    async def put(text: str, size: int) -> None:
        with trio.CancelScope() as scopes[text]:
            assert await outbox.put(entry(text, size))
            returned.append(text)

    async with trio.open_nursery() as nursery:
        for step in script:
            match step:
                case ("put", length):
                    text = next(texts)
                    nursery.start_soon(put, text, length)
                    await wait_all_tasks_blocked()
                    model.put(Waiting(text, length, "", None))
                case ("offer", length, owner, rule, key):
                    text, key = next(texts), key if rule == "conflate" else None
                    took = outbox.offer(entry(text, length, owner, key), RULES[rule], counted)
                    assert took == model.offer(Waiting(text, length, owner, key), rule)
                case ("take",) if model.queue:
                    assert (await outbox.take())["text"] == model.queue.pop(0).text
                    model.admit()
                case ("cancel",) if model.queued_up:
                    scopes[model.queued_up.pop().text].cancel()
            await wait_all_tasks_blocked()
            assert [waiting.frame["text"] for waiting in outbox._entries] == [w.text for w in model.queue]
            assert (len(outbox), outbox.size) == (len(model.queue), sum(w.size for w in model.queue))
            assert outbox.drops == counted == model.drops
            assert len(outbox._keyed) == len({(w.owner, w.key) for w in model.queue if w.key is not None})
            assert not {w.text for w in model.queued_up} & set(returned)
        nursery.cancel_scope.cancel()


def test_an_entry_is_encoded_once_and_compressed_once_for_each_window() -> None:
    message = entry("".join(map(str, range(1000))) * 2)
    assert message.wire() is message.wire()
    settings = Deflate()
    assert message.compressed(settings, 12) is message.compressed(settings, 12)
    assert message.compressed(settings, 12) != message.compressed(settings, 9)
