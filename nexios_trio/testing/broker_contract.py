"""What every `Broker` must do, as tests: subclass `BrokerContract` in a test module of yours.

Needs pytest and pytest-trio in ``trio_mode``::

    class TestMyBroker(BrokerContract):
        @asynccontextmanager
        async def node(self, receiver, *, limits=HistoryLimits()):
            broker = MyBroker("my://127.0.0.1", limits)
            broker.attach(receiver)
            async with broker.serving():
                yield broker
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock

from nexios_trio.brokers.base import Broker, Draft, History, Member, Message, Position, PresenceEvent
from nexios_trio.config import HistoryLimits
from nexios_trio.exceptions import WrongTypeError, WrongValueError
from nexios_trio.testing.checkpoints import cancel_at_each_step

__all__ = ["ROOMY", "BrokerContract", "Recorder", "seen", "text"]

ROOMY = HistoryLimits(messages=1000, bytes=1 << 20, age=600, groups=1000)


class Recorder:
    """A `Receiver` that notes what it gets. ``slow`` makes each delivery take a few steps."""

    def __init__(self, *, slow: bool = False) -> None:
        self.messages: list[Message] = []
        self.events: list[PresenceEvent] = []
        self.resyncs: list[str] = []
        self.slow = slow
        self._came = trio.Event()

    async def deliver(self, message: Message) -> None:
        """See `Receiver.deliver`."""
        self.messages.append(message)
        await self._noted()

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """See `Receiver.deliver_presence`."""
        self.events.append(event)
        await self._noted()

    async def resync(self, group: str) -> None:
        """See `Receiver.resync`."""
        self.resyncs.append(group)
        await self._noted()

    async def _noted(self) -> None:
        self._came.set()
        for _ in range(3 if self.slow else 0):
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Block until ``condition()``; AssertionError after ``seconds``."""
        with trio.move_on_after(seconds) as scope:
            while not condition():
                self._came = trio.Event()
                await self._came.wait()
        assert not scope.cancelled_caught, f"never came: {self.data()}, {self.told()}"

    def of(self, group: str) -> list[Message]:
        """The messages of a group."""
        return [message for message in self.messages if message.group == group]

    def data(self) -> list[str | bytes]:
        """The payloads, as they were sent."""
        return [message.data for message in self.messages]

    def told(self) -> list[tuple[str, str, str]]:
        """The presence events: (``"join"`` or ``"leave"``, group, user)."""
        return [
            (event.type.removeprefix("presence."), event.group, event.member.user) for event in self.events
        ]


def text(data: str, **options: Any) -> Draft:
    """A text message."""
    return Draft("text", data, **options)


def seen(history: History) -> list[str | bytes]:
    """The payloads of a history."""
    return [message.data for message in history.messages]


class BrokerContract:
    """Tests for one implementation; override `node`, and `broker_clock` if it needs a network."""

    nodes: ClassVar[int] = 1
    """2: a second `node` in the same test shares the engine with the first."""
    grace: ClassVar[float] = 0.5
    """Seconds of the presence grace that `node` must set."""

    def node(
        self, receiver: Recorder, *, limits: HistoryLimits = ROOMY
    ) -> AbstractAsyncContextManager[Broker]:
        """A running node of an engine that is empty at the start of the test, with ``receiver`` attached."""
        raise NotImplementedError(f"{type(self).__name__} overrides node(self, receiver, *, limits)")

    @pytest.fixture
    def broker_clock(self) -> trio.abc.Clock:
        """Trio's clock; this one jumps."""
        return MockClock(autojump_threshold=0)

    async def _quiet(self) -> None:  # long enough for whatever is still on its way
        await trio.sleep(3 * self.grace)

    @asynccontextmanager
    async def _pair(self) -> Any:  # two nodes, or the same one twice
        async with AsyncExitStack() as stack:
            here, there = Recorder(), Recorder()
            first = await stack.enter_async_context(self.node(here))
            if self.nodes < 2:
                yield first, here, first, here
            else:
                yield first, here, await stack.enter_async_context(self.node(there)), there

    # Positions, as text

    @pytest.mark.parametrize(
        "position", [Position("e", 0), Position("A-z_9", 10**17), Position("e", 3, "n-1")], ids=str
    )
    def test_a_position_survives_its_text(self, position: Position) -> None:
        assert Position.parse(str(position)) == position

    @pytest.mark.parametrize("wrong", ["", "e", "e:", ":1", "e:-1", "e:1:", "e:\u0661", "e:1:n:m", "e:1\n"])
    def test_a_text_that_is_no_position_is_refused(self, wrong: str) -> None:
        with pytest.raises(WrongValueError, match="a position is"):
            Position.parse(wrong)
        with pytest.raises(WrongTypeError, match="a position is"):
            Position.parse(17)  # type: ignore[arg-type]

    # Numbers, history

    async def test_kept_messages_are_numbered_from_1_in_each_group(
        self, broker_clock: trio.abc.Clock
    ) -> None:
        async with self.node(recorder := Recorder()) as broker:
            await broker.subscribe("a")
            await broker.subscribe("b")
            sent = [await broker.publish(group, text(group), keep=True) for group in "aabab"]
            assert [message.offset for message in sent] == [1, 2, 1, 3, 2]
            assert len({message.epoch for message in sent if message.group == "a"}) == 1
            assert len({message.id for message in sent}) == 5
            assert [m.position for m in recorder.of("a")] == [m.position for m in sent if m.group == "a"]

    async def test_a_message_arrives_as_it_was_sent(self, broker_clock: trio.abc.Clock) -> None:
        drafts = [
            Draft("json", '{"a":"ä"}', "me", frozenset({"x", "y"}), "id-1"),
            Draft("bytes", b"\0\xff", None, frozenset(), "id-2"),
            Draft("text", "", "me", frozenset(), "id-3"),
        ]
        async with self.node(recorder := Recorder()) as broker:
            await broker.subscribe("g")
            for draft in drafts:
                await broker.publish("g", draft, keep=True)
            kept = (await broker.history("g")).messages
            for got in (recorder.messages, kept):
                assert [Draft(m.kind, m.data, m.sender, m.exclude, m.id) for m in got] == drafts
            assert recorder.messages[0].payload == {"a": "ä"}
            assert [m.sent_at for m in kept] == sorted(m.sent_at for m in recorder.messages)

    async def test_a_message_that_is_not_kept_has_no_number(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(recorder := Recorder()) as broker:
            await broker.subscribe("g")
            before = (await broker.history("g")).position
            await broker.publish("g", text("lost"), keep=False)
            kept = await broker.publish("g", text("kept"), keep=True)
            assert recorder.data() == ["lost", "kept"]
            assert [message.offset for message in recorder.messages] == [None, 1]
            assert recorder.messages[0].position is None
            assert kept.position == Position(before.epoch, 1, kept.nonce)
            assert seen(await broker.history("g")) == ["kept"]

    async def test_history_gives_what_came_after_a_position(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(Recorder()) as broker:
            start = (await broker.history("g")).position
            assert start.offset == 0
            sent = [await broker.publish("g", text(str(n)), keep=True) for n in range(1, 6)]
            for since, rest in [(start, "12345"), *((m.position, "12345"[m.offset or 0 :]) for m in sent)]:
                history = await broker.history("g", since=since)
                assert (seen(history), history.complete) == (list(rest), True)
                assert history.position == sent[-1].position
            everything = await broker.history("g")
            assert (seen(everything), everything.complete) == (list("12345"), True)

    async def test_a_limit_gives_the_newest_and_hides_no_gap(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(Recorder()) as broker:
            sent = [await broker.publish("g", text(str(n)), keep=True) for n in range(1, 6)]
            for limit, rest in [(0, ""), (2, "45"), (5, "12345"), (9, "12345")]:
                history = await broker.history("g", limit=limit)
                assert (seen(history), history.position) == (list(rest), sent[-1].position)
            history = await broker.history("g", since=sent[1].position, limit=2)
            assert (seen(history), history.complete) == (["4", "5"], True)

    async def test_what_is_trimmed_is_missed_by_name(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(Recorder(), limits=HistoryLimits(messages=3)) as broker:
            sent = [await broker.publish("g", text(str(n)), keep=True) for n in range(1, 6)]
            assert seen(await broker.history("g")) == ["3", "4", "5"]
            for message in sent:
                history = await broker.history("g", since=message.position)
                assert history.complete == ((message.offset or 0) >= 2)
                assert history.position == sent[-1].position

    async def test_a_foreign_or_future_position_is_not_recovered(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(Recorder()) as broker:
            for group in ("g", "empty"):
                if group == "g":
                    await broker.publish(group, text("1"), keep=True)
                tail = (await broker.history(group)).position
                for since in (Position("another", tail.offset), Position(tail.epoch, tail.offset + 1)):
                    history = await broker.history(group, since=since)
                    assert not history.complete
                    assert history.position == tail
                assert (await broker.history(group, since=tail)).complete

    async def test_to_forget_keeps_the_numbering(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(Recorder()) as broker:
            for group in ("g", "h"):
                first = await broker.publish(group, text("1"), keep=True)
                second = await broker.publish(group, text("2"), keep=True)
                await broker.forget("g" if group == "g" else None)
                assert seen(await broker.history(group)) == []
                assert not (await broker.history(group, since=first.position)).complete
                assert (await broker.history(group, since=second.position)).complete
                third = await broker.publish(group, text("3"), keep=True)
                assert (third.offset, third.epoch) == (3, first.epoch)
                assert seen(await broker.history(group, since=second.position)) == ["3"]
            await broker.forget("never seen")

    # Fan-out

    async def test_all_nodes_see_one_order(self, broker_clock: trio.abc.Clock) -> None:
        async with self._pair() as (first, here, second, there):
            for broker in (first, second):
                await broker.subscribe("g")

            async def send(broker: Broker, name: str) -> None:
                for n in range(20):
                    await broker.publish("g", text(f"{name}{n}"), keep=True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, first, "a")
                nursery.start_soon(send, second, "b")
            for recorder in (here, there):
                await recorder.until(lambda recorder=recorder: len(recorder.messages) >= 40)
                assert [message.offset for message in recorder.messages] == list(range(1, 41))
                for name in "ab":
                    own = [data for data in recorder.data() if str(data).startswith(name)]
                    assert own == [f"{name}{n}" for n in range(20)]
            assert seen(await first.history("g")) == here.data() == there.data()

    async def test_messages_come_once_however_often_one_subscribes(
        self, broker_clock: trio.abc.Clock
    ) -> None:
        async with self._pair() as (first, _here, second, there):
            for _ in range(2):
                await second.subscribe("chat.1")
                await second.subscribe("chat.*", pattern=True)
            for group in ("chat.1", "chat.2"):
                for keep in (True, False):
                    await first.publish(group, text(group), keep=keep)
            await there.until(lambda: len(there.messages) >= 4)
            await self._quiet()
            assert [m.group for m in there.messages] == ["chat.1", "chat.1", "chat.2", "chat.2"]
            second.unsubscribe("chat.*", pattern=True)
            await first.publish("chat.1", text("still"), keep=False)
            await there.until(lambda: there.data()[-1] == "still")
            second.unsubscribe("chat.1")
            second.unsubscribe("chat.1")
            second.unsubscribe("never subscribed")
            await second.subscribe("chat.1")
            await first.publish("chat.1", text("again"), keep=False)
            await there.until(lambda: there.data()[-1] == "again")

    async def test_a_message_that_is_published_once_more_is_not_delivered_again(
        self, broker_clock: trio.abc.Clock
    ) -> None:
        async with self._pair() as (first, _here, second, there):
            await second.subscribe("g")
            await second.subscribe("h")
            for keep in (True, False):
                draft = text("1", id=f"order 7, {keep}", once=True)
                sent = await first.publish("g", draft, keep=keep)
                for broker in (second, first):
                    again = await broker.publish("g", draft, keep=keep)
                    assert (again.position, again.id, again.sent_at) == (
                        sent.position,
                        draft.id,
                        sent.sent_at,
                    )
                other = await first.publish("h", draft, keep=keep)
                assert other.offset == (1 if keep else None)
            assert (await first.publish("g", text("2"), keep=True)).offset == 2
            await there.until(lambda: there.data()[-1:] == ["2"])
            assert [(m.group, m.data) for m in there.messages] == [("g", "1"), ("h", "1")] * 2 + [("g", "2")]
            for _ in range(2):  # an id alone says nothing
                await first.publish("g", text("3", id="order 8"), keep=True)
            await there.until(lambda: there.data()[-2:] == ["3", "3"])

    async def test_a_cancelled_publish_has_reached_all_or_nobody(self, broker_clock: trio.abc.Clock) -> None:
        struck = 0
        async with self.node(recorder := Recorder(slow=True)) as broker:
            async for interrupter in cancel_at_each_step():
                group = f"g{id(interrupter)}-{struck}"
                await broker.subscribe(group)

                async def publish(group: str = group) -> None:
                    await broker.publish(group, text("1"), keep=True)

                await interrupter.run(publish)
                await self._quiet()
                reached = [message.offset for message in recorder.of(group)]
                assert reached in ([], [1])
                assert [m.offset for m in (await broker.history(group)).messages] == reached
                assert interrupter.struck or reached == [1]
                after = await broker.publish(group, text("2"), keep=True)
                assert after.offset == len(reached) + 1
                broker.unsubscribe(group)
                struck += interrupter.struck
        assert struck >= 2

    async def test_cancelled_reads_and_subscriptions_leave_nothing_behind(
        self, broker_clock: trio.abc.Clock
    ) -> None:
        async with self.node(recorder := Recorder()) as broker:
            await broker.publish("g", text("1"), keep=True)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: broker.history("g"),
                lambda: broker.members("g"),
                lambda: broker.subscribe("g"),
            ]
            for call in calls:
                async for interrupter in cancel_at_each_step():
                    await interrupter.run(call)
                    assert seen(await broker.history("g")) == ["1"]
            await broker.subscribe("g")
            await broker.publish("g", text("2"), keep=True)
            await recorder.until(lambda: recorder.data()[-1:] == ["2"])

    # Presence

    async def test_members_are_listed_in_the_order_of_coming(self, broker_clock: trio.abc.Clock) -> None:
        members = [
            Member("c1", "ann", {"name": "Änn", "tags": ["a", 1, None]}, 1.5),
            Member("c2", "bob", {}, 2.5),
            Member("c3", "ann", {"phone": True}, 3.5),
            Member("c3", "ann", {}, 4.5, "c3 once more"),
        ]
        async with self._pair() as (first, _here, second, _there):
            for member in members:
                await first.enter("g", member)
            assert await second.members("g") == tuple(members)
            assert await second.members("other") == ()
            first.leave("g", members[0])
            await first.enter("g", members[0])
            await self._quiet()
            assert await second.members("g") == (*members[1:], members[0])

    async def test_users_come_and_go_once_whatever_their_devices(self, broker_clock: trio.abc.Clock) -> None:
        ann, again, bob = Member("c1", "ann"), Member("c2", "ann"), Member("c3", "bob")
        async with self._pair() as (first, here, second, there):
            for broker in (first, second):
                await broker.subscribe("g")
            await first.enter("g", ann)
            await second.enter("g", again)
            await second.enter("g", bob)
            first.leave("g", ann)
            await self._quiet()
            assert there.told() == [("join", "g", "ann"), ("join", "g", "bob")]
            second.leave("g", again)
            second.leave("g", again)
            first.leave("g", Member("c9", "nobody"))
            await there.until(lambda: len(there.events) >= 3)
            await self._quiet()
            assert there.told() == here.told() == [*there.told()[:2], ("leave", "g", "ann")]
            assert await first.members("g") == (bob,)

    async def test_who_is_back_within_the_grace_was_never_away(self, broker_clock: trio.abc.Clock) -> None:
        async with self.node(recorder := Recorder()) as broker:
            await broker.subscribe("g")
            for n in range(5):
                await broker.enter("g", Member(f"c{n}", "ann"))
                await trio.sleep(self.grace / 10)
                broker.leave("g", Member(f"c{n}", "ann"))
                assert await broker.members("g") == ()
                await trio.sleep(self.grace / 2)
            await recorder.until(lambda: len(recorder.events) >= 2)
            await self._quiet()
            assert recorder.told() == [("join", "g", "ann"), ("leave", "g", "ann")]
            await broker.enter("g", Member("c9", "ann"))
            await recorder.until(lambda: len(recorder.events) >= 3)
            assert recorder.told()[2:] == [("join", "g", "ann")]

    async def test_a_cancelled_entry_can_always_be_taken_back(self, broker_clock: trio.abc.Clock) -> None:
        struck = 0
        async with self.node(recorder := Recorder(slow=True)) as broker:
            await broker.subscribe("g")
            async for interrupter in cancel_at_each_step():
                recorder.events.clear()
                member = Member(f"{id(interrupter)}", "ann")

                async def enter(member: Member = member) -> None:
                    await broker.enter("g", member)

                await interrupter.run(enter)
                assert await broker.members("g") in ((), (member,))
                broker.leave("g", member)
                assert await broker.members("g") == ()
                await self._quiet()
                assert recorder.told() in ([], [("join", "g", "ann"), ("leave", "g", "ann")])
                struck += interrupter.struck
        assert struck >= 2
