"""Groups: one send reaches all members, and none of them can hold up another."""

from __future__ import annotations

import fnmatch
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define

from nexios_trio.brokers.base import Broker, Draft, History, Kind, Message, Position, PresenceEvent
from nexios_trio.config import Overflow
from nexios_trio.exceptions import WebSocketDisconnect, WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.transports.outbox import Drops, Entry, Outbox
from nexios_trio.types import Message as Frame
from nexios_trio.websockets import codec
from nexios_trio.websockets.lifetime import Connection
from nexios_trio.websockets.presence import Presence, presence_message

if TYPE_CHECKING:
    from nexios_trio.websockets.channels import Channel

__all__ = ["Group", "GroupStatistics", "Hub", "Subscription", "check_group_name", "draft_of"]

YIELD_EVERY: Final = 256
"""Members that a group send reaches before it lets other tasks run."""

NAME_LENGTH: Final = 200


def check_group_name(name: object) -> str:
    """``name`` if it is one: 1 to 200 printable characters."""
    if not isinstance(name, str):
        raise WrongTypeError(f'a group name is a str such as "chat.42", not {type(name).__name__}')
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable():
        raise WrongValueError(
            f"a group name has 1 to {NAME_LENGTH} printable characters; this one has {len(name)}: "
            f"{name[:50]!a}"
        )
    return name


def draft_of(
    payload: Any,
    *,
    kind: Kind | None = None,
    sender: str | None = None,
    exclude: Iterable[str] = (),
    id: str | None = None,
) -> Draft:
    """Encode a payload once for everybody: str as text, bytes as bytes, anything else as JSON."""
    if kind is None:
        kind = "text" if isinstance(payload, str) else "bytes" if isinstance(payload, bytes) else "json"
    data: str | bytes = codec.encode(payload).decode() if kind == "json" else payload
    wanted = bytes if kind == "bytes" else str
    if not isinstance(data, wanted):
        raise WrongTypeError(f"a {kind} payload is {wanted.__name__}, not {type(payload).__name__}")
    return Draft(kind, data, sender, frozenset(exclude), id or secrets.token_hex(16))


def _frame(message: Message) -> Frame:
    if isinstance(message.data, str):
        return {"type": "websocket.send", "text": message.data}
    return {"type": "websocket.send", "bytes": message.data}


@define
class GroupStatistics(Drops):
    """What has happened in a group on this server, in messages, beside what was dropped."""

    members: int = 0
    sent: int = 0
    """Messages sent to the group."""
    delivered: int = 0
    """Messages given to a member's outbox."""
    disconnected: int = 0
    """Members closed with 1013 because they did not read."""


class _LocalGroup:
    """The members of one group on this node."""

    __slots__ = ("busy", "members", "name", "queue", "statistics")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[Group, None] = {}
        self.queue: deque[Message | PresenceEvent] = deque()
        self.busy = False
        self.statistics = GroupStatistics()


class Hub:
    """All groups of an app on this node; what a broker delivers to."""

    def __init__(self, broker: Broker, connections: Iterable[Connection]) -> None:
        self.broker = broker
        broker.attach(self)
        self.connections = connections
        self.channels: dict[str, Channel] = {}
        self.groups: dict[str, _LocalGroup] = {}
        self.users: dict[str, dict[Connection, None]] = {}
        self.subscriptions: dict[Subscription, None] = {}

    # Membership

    def membership(self, connection: Connection, name: str, **options: Any) -> Group:
        """A membership that is not entered yet."""
        return Group(self, connection, name, **options)

    def enter(self, group: Group) -> bool:
        """Add a member; returns whether it is the first one here."""
        local = self.groups.get(group.name)
        first = local is None
        if local is None:
            local = self.groups[group.name] = _LocalGroup(group.name)
        local.members[group] = None
        local.statistics.members += 1
        return first

    def leave(self, group: Group) -> None:
        """Take a member out; harmless if it is not in."""
        local = self.groups.get(group.name)
        if local is None or group not in local.members:
            return
        del local.members[group]
        local.statistics.members -= 1
        if not local.members:
            del self.groups[group.name]
            trio.lowlevel.spawn_system_task(self._unsubscribe, group.name)

    async def _unsubscribe(self, name: str) -> None:
        if name not in self.groups:
            await self.broker.unsubscribe(name)

    # Receiver: what the broker calls

    async def deliver(self, message: Message) -> None:
        """See `Receiver.deliver`."""
        for subscription in tuple(self.subscriptions):
            subscription.take(message)
        local = self.groups.get(message.group)
        if local is not None:
            local.statistics.sent += 1
            local.queue.append(message)
            await self._empty(local)

    async def deliver_presence(self, event: PresenceEvent) -> None:
        """See `Receiver.deliver_presence`."""
        local = self.groups.get(event.group)
        if local is not None:
            local.queue.append(event)
            await self._empty(local)

    async def resync(self, group: str) -> None:
        """Close the members: they resume from where they were."""
        local = self.groups.get(group)
        for member in tuple(local.members) if local is not None else ():
            member.connection.kick(1012, "resync")
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _empty(self, local: _LocalGroup) -> None:
        # One task hands out at a time, so that all members see one order; whoever comes meanwhile leaves
        # its message in the queue.
        if local.busy:
            return
        local.busy = True
        try:
            handed = 0
            while local.queue:
                item = local.queue.popleft()
                if isinstance(item, PresenceEvent):
                    message, watchers = presence_message(item), True
                else:
                    message, watchers = item, False
                entry = Entry(_frame(message), len(message.data), local.name)
                for member in tuple(local.members):
                    if not watchers or member.presence.watched:
                        member.take(message, entry)
                    handed += 1
                    if handed % YIELD_EVERY == 0:
                        await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            local.busy = False

    # Connections, channels and users

    def push(self, connection: Connection, message: Message) -> bool:
        """Put a message into the outbox of one connection; never waits. Returns whether it took it."""
        try:
            outbox = connection.open_outbox()
        except (WebSocketDisconnect, WrongStateError):
            return False
        if outbox.offer(Entry(_frame(message), len(message.data)), Overflow.DISCONNECT):
            return True
        connection.kick(1013, "too slow")
        return False

    def add_channel(self, channel: Channel, connection: Connection) -> None:
        """Make a channel known by its id for as long as its connection lives."""
        self.channels[channel.id] = channel
        connection.at_end(lambda: self.channels.pop(channel.id, None))

    def identify(self, connection: Connection, user_id: str) -> None:
        """Note who a connection belongs to."""
        if not isinstance(user_id, str) or not user_id:
            raise WrongTypeError(f"a user id is a str that is not empty, not {user_id!r}")
        if connection.user_id is not None:
            self._forget_user(connection)
        connection.user_id = user_id
        self.users.setdefault(user_id, {})[connection] = None
        connection.at_end(lambda: self._forget_user(connection))

    def _forget_user(self, connection: Connection) -> None:
        if connection.user_id is not None:
            mine = self.users.get(connection.user_id, {})
            mine.pop(connection, None)
            if not mine:
                self.users.pop(connection.user_id, None)


class Group:
    """Membership of one connection in one group, and the way to send to it.

    Made by ``async with ws.join(name) as group``. ``len(group)`` is the number of members on this server.
    """

    def __init__(
        self,
        hub: Hub,
        connection: Connection,
        name: str,
        *,
        since: str | Position | None = None,
        presence: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        overflow: Overflow | None = None,
        envelope: bool = False,
    ) -> None:
        self.hub = hub
        self.connection = connection
        self.name = check_group_name(name)
        self.since = Position.parse(since) if isinstance(since, str) else since
        self.overflow = overflow or Overflow.DISCONNECT
        if not isinstance(self.overflow, Overflow):
            raise WrongTypeError(f"overflow is an Overflow such as Overflow.DROP_OLDEST, not {overflow!r}")
        if self.overflow.rule == "block":
            raise WrongValueError(
                "Overflow.BLOCK would let one member hold up all others; a group takes DISCONNECT, "
                "DROP_OLDEST, DROP_NEWEST or CONFLATE(key)"
            )
        self.envelope = envelope
        self.presence = Presence(hub.broker, self.name, connection, presence, user_id)
        self.recovered: bool | None = None
        """True: everything since ``since`` was replayed. False: some of it is gone, and nothing of it was
        replayed. None: no ``since`` was given."""
        self._epoch = "-"
        self._offset = 0
        self._plain = self.overflow.key is None and not envelope
        self._outbox: Outbox
        self._statistics: GroupStatistics
        self._held: list[tuple[Message, Entry]] | None = []
        self._joined = False

    def __len__(self) -> int:
        local = self.hub.groups.get(self.name)
        return 0 if local is None else len(local.members)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Group {self.name!r} of {self.connection.id}>"

    # Joining and leaving

    async def join(self) -> None:
        """Become a member; first replays what was missed. A checkpoint; cancelled, one is no member."""
        if self._joined:
            raise WrongStateError(
                f"this membership of {self.name!r} is entered already; call ws.join() again"
            )
        self._outbox = self.connection.open_outbox()
        self._joined = True
        first = self.hub.enter(self)
        self._statistics = self.hub.groups[self.name].statistics
        self.connection.at_end(self.leave_nowait)
        try:
            if first:
                await self.hub.broker.subscribe(self.name)
            await self._catch_up()
            await self.presence.enter()
            if self.connection.transport.closure is not None:
                raise self.connection.transport.closure.error()
        except BaseException:
            self.leave_nowait()
            raise

    async def _catch_up(self) -> None:
        broker = self.hub.broker
        if self.since is None:
            self._move_to((await broker.history(self.name, limit=0)).position)
        else:
            self._move_to(self.since)
            while True:
                self._held = []
                history = await broker.history(self.name, since=self.position)
                self.recovered = history.complete
                if not history.complete or not history.messages:
                    self._move_to(history.position)
                    break
                await self._replay(history)
        # No checkpoint from here on: what came since the last look was held back.
        held, self._held = self._held or [], None
        for message, entry in held:
            if message.offset is None or message.epoch != self._epoch or message.offset > self._offset:
                self.take(message, entry)

    async def _replay(self, history: History) -> None:
        for message in history.messages:
            await self._outbox.put(self._entry(message))
            if self.connection.transport.closure is not None:
                raise self.connection.transport.closure.error()
            assert message.offset is not None
            self._epoch, self._offset = message.epoch, message.offset

    def _move_to(self, position: Position) -> None:
        self._epoch, self._offset = position.epoch, position.offset

    @property
    def position(self) -> Position:
        """The newest position that this member was given: where it would resume."""
        return Position(self._epoch, self._offset)

    def leave_nowait(self) -> None:
        """Stop being a member, at once; harmless if one is none."""
        self.connection.not_at_end(self.leave_nowait)
        self.hub.leave(self)
        self.presence.leave_nowait()

    async def __aenter__(self) -> Group:
        await self.join()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    # Receiving: called by the hub

    def take(self, message: Message, entry: Entry) -> None:
        """Put a message into this member's outbox by its rule; never waits.

        ``entry`` is shared by all members, who must not change it.
        """
        if self._held is not None:
            self._held.append((message, entry))
            return
        if message.offset is not None:
            self._epoch, self._offset = message.epoch, message.offset
        if message.exclude and self.connection.id in message.exclude:
            return
        statistics = self._statistics
        if self._outbox.offer(entry if self._plain else self._entry(message), self.overflow, statistics):
            statistics.delivered += 1
        else:
            statistics.disconnected += 1
            self.connection.kick(1013, "too slow")

    def _entry(self, message: Message) -> Entry:
        frame = _enveloped(message) if self.envelope else _frame(message)
        key: Hashable = None
        if self.overflow.key is not None:
            key = self.overflow.key(message.payload)
        return Entry(frame, len(message.data), self.name, key)

    # Sending and looking

    async def send(
        self,
        payload: Any,
        *,
        exclude_self: bool = False,
        exclude: Collection[str] = (),
        save_history: bool = True,
    ) -> Message:
        """Send to all members of the group, on all servers.

        str goes as a text message, bytes as a binary one, anything else as JSON in a text message, encoded
        once. ``exclude`` are ids of connections (``ws.id``). With ``save_history`` it has an offset and can
        be resumed from. Never waits for a member. A checkpoint; cancelled, it was sent to all or to none.
        """
        left_out = {*exclude, self.connection.id} if exclude_self else exclude
        draft = draft_of(payload, sender=self.connection.id, exclude=left_out)
        return await self.hub.broker.publish(self.name, draft, keep=save_history)

    async def history(
        self, limit: int | None = None, since: str | Position | None = None
    ) -> tuple[Message, ...]:
        """Kept messages, oldest first; at most the last ``limit``, only those after ``since``."""
        position = Position.parse(since) if isinstance(since, str) else since
        return (await self.hub.broker.history(self.name, since=position, limit=limit)).messages

    def members(self) -> tuple[str, ...]:
        """The ids of the connections in this group on this server, in the order of joining."""
        local = self.hub.groups.get(self.name)
        return () if local is None else tuple(member.connection.id for member in local.members)

    def statistics(self) -> GroupStatistics:
        """Counters of this group on this server, since its first member came."""
        if not self._joined:
            raise WrongStateError(
                f"nobody has entered this membership of {self.name!r}; write `async with` it"
            )
        return self._statistics


def _enveloped(message: Message) -> Frame:
    if isinstance(message.data, bytes):
        return {"type": "websocket.send", "bytes": message.data}
    payload = message.data if message.kind == "json" else codec.encode(message.data).decode()
    position = "null" if message.position is None else f'"{message.position}"'
    group = codec.encode(message.group).decode()
    return {
        "type": "websocket.send",
        "text": f'{{"group":{group},"position":{position},"payload":{payload}}}',
    }


class Subscription:
    """Messages of all groups that match a pattern, for code of the server; an async iterator.

    Bounded: when it is full, the oldest message goes, and `dropped` counts it.
    """

    def __init__(self, pattern: str, size: int) -> None:
        self.pattern = pattern
        self.dropped = 0
        self._exact = not any(sign in pattern for sign in "*?[")
        self._waiting: deque[Message] = deque(maxlen=size)
        self._arrived = trio.Event()

    def take(self, message: Message) -> None:
        """Called by the hub."""
        if message.group == self.pattern or (
            not self._exact and fnmatch.fnmatchcase(message.group, self.pattern)
        ):
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(message)
            self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._waiting:
            await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()
