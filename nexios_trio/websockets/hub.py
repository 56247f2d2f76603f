"""All groups of one app on one node: who is in them, and how a message reaches them."""

from __future__ import annotations

import fnmatch
import math
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define
from trio.lowlevel import ParkingLot

from nexios_trio.brokers.base import Broker, Message, Position, PresenceEvent
from nexios_trio.config import Limits, Overflow
from nexios_trio.exceptions import (
    BrokerError,
    BrokerUnavailable,
    LimitError,
    WebSocketDisconnect,
    WrongStateError,
    WrongTypeError,
    WrongValueError,
)
from nexios_trio.instrument import NULL_INSTRUMENT, Instrument
from nexios_trio.transports.outbox import Drops, Entry
from nexios_trio.transports.states import State
from nexios_trio.websockets.groups import Group
from nexios_trio.websockets.lifetime import Connection
from nexios_trio.websockets.orders import ORDERS, Order, obey
from nexios_trio.websockets.payloads import Parcel, check_group_name, frame_of
from nexios_trio.websockets.presence import presence_message

if TYPE_CHECKING:
    from nexios_trio.websockets.channels import Channel

__all__ = ["GroupStatistics", "Hub", "Subscription"]

OBEYED: Final = 1000
"""Orders that are known again if they come twice."""
YIELD_EVERY: Final = 128
"""Members that a group send reaches before it lets other tasks run."""


@define
class GroupStatistics(Drops):
    """What has happened in a group on this server since its first member came, in messages.

    Of each message sent, a member that was not excluded counts as one of ``delivered``, ``dropped_newest``
    and ``disconnected``. Of those delivered, ``dropped_oldest`` and ``conflated`` went again unsent.
    """

    members: int = 0
    """Members now, those that are still catching up included."""
    sent: int = 0
    """Messages sent to the group."""
    delivered: int = 0
    """Messages put into a member's outbox, beside those replayed from the history."""
    disconnected: int = 0
    """Members closed with 1013 because they did not read."""
    key_errors: int = 0
    """Messages for which a member's CONFLATE function raised, or gave something that cannot be a key; the
    member got them as messages without a key."""


class LocalGroup:
    """The members of one group on this node."""

    __slots__ = ("busy", "members", "name", "statistics", "turns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Connection, Group] = {}
        self.busy = False
        self.turns = ParkingLot()
        """Tasks with a message to hand out, while another one does."""
        self.statistics = GroupStatistics()


class Hub:
    """What a broker delivers to; one per app."""

    def __init__(self, broker: Broker, connections: Iterable[Connection], limits: Limits) -> None:
        self.broker = broker
        self.limits = limits
        self._shares_places = limits.connections_per_user_shared and broker.shared
        if self._shares_places and broker.quotas is None:
            raise WrongValueError(
                "connections_per_user_shared needs a broker that counts for all servers, such as redis://, "
                f"not {broker!r}"
            )
        self.instrument: Instrument = NULL_INSTRUMENT
        broker.attach(self)
        self.connections = connections
        self.channels: dict[str, Channel] = {}
        self.groups: dict[str, LocalGroup] = {}
        """Those with members."""
        self.users: dict[str, dict[Connection, None]] = {}
        self.owners: dict[Connection, str] = {}
        """The other way round."""
        self._places: dict[Connection, str] = {}
        """Whose places connections hold, or are asking for, among those that servers share."""
        self.subscriptions: dict[Subscription, None] = {}
        self.node = secrets.token_urlsafe(9)
        """Who we are to the other nodes."""
        self._orders_from: Position | None = None
        """Orders up to here are older than this node, or were heard of."""
        self._obeyed: OrderedDict[str, None] = OrderedDict()
        """Ids of the newest orders."""
        self._wanted: Counter[tuple[str, bool]] = Counter()
        """How many want the messages of a group, or (True) of a pattern."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Entered for as long as the app runs. A broker that is away does not keep the app from starting."""
        async with self.broker.serving():
            if self.broker.shared:
                with trio.move_on_after(math.inf if self.broker.available else 0):
                    try:
                        await self.broker.subscribe(ORDERS)
                        self._orders_from = (await self.broker.history(ORDERS, limit=0)).position
                    except BrokerUnavailable:
                        pass  # it is subscribed as soon as the broker is there
            yield

    async def order(self, order: Order) -> None:
        """Ask all other nodes. Raises `BrokerUnavailable`; kept, so that one that reconnects hears of it."""
        if self.broker.shared:
            await self.broker.publish(ORDERS, order.draft(), keep=True)

    def checked(self, name: object) -> str:
        """``name`` if a group may have it; see `check_group_name`."""
        return check_group_name(name, self.limits.group_name_length)

    # Membership

    def membership(self, connection: Connection, name: str, **options: Any) -> Group:
        """A membership that is not entered yet."""
        return Group(self, connection, name, **options)

    def enter(self, member: Group, connection: Connection) -> GroupStatistics:
        """Add a member. Raises `WrongStateError` if the connection is in the group already, `LimitError` if
        it is in too many."""
        local = self.groups.get(member.name)
        if local is not None and connection in local.members:
            raise WrongStateError(
                f"connection {connection.id} is in the group {member.name!r} already and would get every "
                "message twice; use the membership that it has, or leave that first"
            )
        most = self.limits.groups
        if most is not None and connection.memberships >= most:
            raise LimitError("groups", most, "too many groups")
        if local is None:
            local = self.groups[member.name] = LocalGroup(member.name)
        local.members[connection] = member
        connection.memberships += 1
        local.statistics.members += 1
        self._wanted[member.name, False] += 1
        return local.statistics

    def leave(self, member: Group, connection: Connection) -> None:
        """Take a member out; harmless if it is not in."""
        local = self.groups.get(member.name)
        if local is None or local.members.get(connection) is not member:
            return
        del local.members[connection]
        connection.memberships -= 1
        local.statistics.members -= 1
        if not local.members:
            del self.groups[member.name]
        self._unwanted(member.name, False)

    def _unwanted(self, name: str, pattern: bool) -> None:
        self._wanted[name, pattern] -= 1
        if not self._wanted[name, pattern]:
            del self._wanted[name, pattern]
            self.broker.unsubscribe(name, pattern=pattern)

    @asynccontextmanager
    async def subscribed(self, subscription: Subscription) -> AsyncIterator[Subscription]:
        """Hand messages to ``subscription`` for as long as the block lasts."""
        wanted = (subscription.pattern, not subscription.exact)
        self._wanted[wanted] += 1
        self.subscriptions[subscription] = None
        try:
            await self.broker.subscribe(wanted[0], pattern=wanted[1])
            yield subscription
        finally:
            del self.subscriptions[subscription]
            self._unwanted(*wanted)
            subscription.close()

    # Receiver: what the broker calls

    async def deliver(self, message: Message) -> None:
        """See `Receiver.deliver`."""
        if message.group == ORDERS:
            self._obey(message)
            return
        if self.instrument is not NULL_INSTRUMENT:
            self.instrument.delivered(message.group, time.time() - message.sent_at)
        for subscription in tuple(self.subscriptions):
            subscription.take(message)
        local = self.groups.get(message.group)
        if local is not None:
            local.statistics.sent += 1
            await self._hand_out(local, message, watchers=False)

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """See `Receiver.deliver_presence`."""
        local = self.groups.get(event.group)
        if local is not None:
            await self._hand_out(local, presence_message(event), watchers=True)

    async def resync(self, group: str) -> None:
        """Close the members: they resume from where they were. Orders have none, so we look ourselves."""
        if group == ORDERS:
            await self._obey_missed()
        local = self.groups.get(group)
        for connection in tuple(local.members) if local is not None else ():
            connection.kick(1012, "resync")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _obey(self, message: Message) -> None:
        if message.id not in self._obeyed:
            self._obeyed[message.id] = None
            if len(self._obeyed) > OBEYED:
                self._obeyed.popitem(last=False)
            obey(self, message)

    async def _obey_missed(self) -> None:
        """The engine has lost what it knew: what it has now may be orders that we have not heard of."""
        try:
            history = await self.broker.history(ORDERS)
        except BrokerError:
            return  # it says so itself
        start, self._orders_from = self._orders_from, history.position
        if start is None:
            return  # we do not know which of them are older than we are
        for message in history.messages:
            at = message.position
            if at is not None and (at.epoch != start.epoch or at.offset > start.offset):
                self._obey(message)

    async def _hand_out(self, local: LocalGroup, message: Message, *, watchers: bool) -> None:
        # One after the other, in the order of the calls, so that all members see one order. Whoever comes
        # meanwhile waits, which takes no longer than the members before: nobody here waits for a client.
        if local.busy:
            with trio.CancelScope(shield=True):
                await local.turns.park()
        local.busy = True
        try:
            parcel = Parcel(message)
            members = [*local.members.values()]
            if watchers:
                members = [member for member in members if member.presence.watched]
            for start in range(0, len(members), YIELD_EVERY):
                if start:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                some = members[start : start + YIELD_EVERY]
                sent = sum([member._take(message, parcel) for member in some])
                local.statistics.delivered += sent  # to which `_take` has added as well
        finally:
            if local.turns:
                local.turns.unpark()  # busy stays True: the turn is that task's
            else:
                local.busy = False

    # Connections, channels and users

    def push(self, connection: Connection, message: Message) -> bool:
        """Put a message into the outbox of one connection; never waits. Returns whether it took it."""
        try:
            outbox = connection.open_outbox()
        except (WebSocketDisconnect, WrongStateError):
            return False
        if outbox.offer(Entry(frame_of(message.data), len(message.data)), Overflow.DISCONNECT, Drops()):
            return True
        connection.kick(1013, "too slow")
        return False

    def add_channel(self, channel: Channel, connection: Connection) -> None:
        """Make a channel known by its id for as long as its connection lives."""
        self.channels[channel.id] = channel
        connection.at_end(lambda: self.channels.pop(channel.id, None))

    def identify(self, connection: Connection, user_id: str) -> None:
        """Note who a connection belongs to. Raises `LimitError` if he has too many."""
        if not isinstance(user_id, str) or not user_id:
            raise WrongTypeError(f"a user id is a str that is not empty, not {user_id!r}")
        if not user_id.isascii() and any("\ud800" <= char <= "\udfff" for char in user_id):
            raise WrongValueError(f"a user id is text that UTF-8 can hold, not {user_id[:50]!a}")
        known = self.owners.get(connection)
        if known == user_id:
            return
        most = self.limits.connections_per_user
        if most is not None and len(self.users.get(user_id, ())) >= most:
            raise self._too_many(most)
        if known is not None:
            self._forget_user(connection)
        self.owners[connection] = connection.user_id = user_id
        connection.known_to = self
        self.users.setdefault(user_id, {})[connection] = None
        if known is None:
            connection.at_end(lambda: self._forget_user(connection))

    def claim_soon(self, connection: Connection) -> None:
        """`claim`, by a task of an accepted connection, which closes it with 1008 if he has too many."""
        if connection.transport.state is State.OPEN and self._lacks_place(connection):
            connection.start_soon(self._claim_or_close, connection)

    async def _claim_or_close(self, connection: Connection) -> None:
        try:
            await self.claim(connection)
        except LimitError as error:
            connection.counts[f"closed.{type(error).__name__}"] += 1
            connection.kick(error.close_code, error.public_reason)

    def _lacks_place(self, connection: Connection) -> bool:
        owner = self.owners.get(connection)
        return self._shares_places and owner is not None and self._places.get(connection) != owner

    async def claim(self, connection: Connection) -> None:
        """Take a place of this connection's user, if servers share them. Raises `LimitError` if others have
        all; while nobody can tell, each server counts its own. A checkpoint if it asks."""
        while self._lacks_place(connection):
            quotas, most = self.broker.quotas, self.limits.connections_per_user
            assert quotas is not None
            assert most is not None
            user_id = self._places[connection] = self.owners[connection]
            held = True
            try:
                held = await quotas.hold(user_id, connection.id, most)
            except BrokerError:
                pass
            except BaseException:
                if self._places.get(connection) == user_id:
                    del self._places[connection]
                quotas.release(user_id, connection.id)
                raise
            if self._places.get(connection) != user_id:  # over, or another's by now
                quotas.release(user_id, connection.id)
            elif not held:
                del self._places[connection]
                raise self._too_many(most)

    def _give_back(self, connection: Connection, user_id: str) -> None:
        if self._places.get(connection) == user_id:
            del self._places[connection]
            assert self.broker.quotas is not None
            self.broker.quotas.release(user_id, connection.id)

    @staticmethod
    def _too_many(most: int) -> LimitError:
        return LimitError("connections_per_user", most, "too many connections of this user")

    def _forget_user(self, connection: Connection) -> None:
        user_id = self.owners.pop(connection)
        del self.users[user_id][connection]
        if not self.users[user_id]:
            del self.users[user_id]
        self._give_back(connection, user_id)


class Subscription:
    """Messages of all groups that match a pattern, for code of the server; an async iterator, which ends
    with the block of ``app.channels.subscribe``.

    Bounded: when it is full, the oldest message goes, and `dropped` counts it.
    """

    def __init__(self, pattern: str, size: int) -> None:
        self.pattern = pattern
        self.dropped = 0
        self.exact = not any(sign in pattern for sign in "*?[")
        self._waiting: deque[Message] = deque(maxlen=size)
        self._readers = ParkingLot()
        self._closed = False

    def take(self, message: Message) -> None:
        """Called by the hub."""
        if message.group == self.pattern or (
            not self.exact and fnmatch.fnmatchcase(message.group, self.pattern)
        ):
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(message)
            self._readers.unpark()

    def close(self) -> None:
        """Called by the hub: what waits can still be read, then the iteration ends."""
        self._closed = True
        self._readers.unpark_all()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            await self._readers.park()
        return self._waiting.popleft()
