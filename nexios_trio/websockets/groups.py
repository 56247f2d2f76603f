"""`Group`: one send reaches all members, and none of them can hold up another."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import trio
from attrs import evolve

from nexios_trio.brokers.base import History, Kind, Message, Position
from nexios_trio.config import Overflow
from nexios_trio.exceptions import PermissionDenied, WrongStateError, WrongTypeError, WrongValueError
from nexios_trio.transports.outbox import Entry, Outbox
from nexios_trio.transports.states import State
from nexios_trio.websockets.lifetime import Connection
from nexios_trio.websockets.payloads import Parcel, draft_of
from nexios_trio.websockets.presence import Presence

if TYPE_CHECKING:
    from nexios_trio.websockets.base import Authorize
    from nexios_trio.websockets.hub import GroupStatistics, Hub

__all__ = ["Group"]

logger = logging.getLogger("nexios_trio.groups")


class Group:
    """Membership of one connection in one group, and the way to send to it.

    Made by ``async with ws.join(name) as group``. ``len(group)`` is the number of members on this server. A
    connection is in a group once: joining it a second time raises `WrongStateError`.

    ``name``, `presence`, `recovered`, `position` and the methods are for everybody. Sending and looking work
    before joining and after leaving as well.
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
        form: Kind | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        self._hub = hub
        self._connection = connection
        self.name = hub.checked(name)
        if authorize is not None and not callable(authorize):
            raise WrongTypeError(f"authorize is a function of the WebSocket and the name, not {authorize!r}")
        self._authorize = authorize
        self._since = _asked_for(since)
        self._overflow = Overflow.DISCONNECT if overflow is None else overflow
        if not isinstance(self._overflow, Overflow):
            raise WrongTypeError(f"overflow is an Overflow such as Overflow.DROP_OLDEST, not {overflow!r}")
        if self._overflow.rule == "block":
            raise WrongValueError(
                "Overflow.BLOCK would let one member hold up all others; a group takes DISCONNECT, "
                "DROP_OLDEST, DROP_NEWEST or CONFLATE(key)"
            )
        self._envelope = envelope
        self._form = form
        self.presence = Presence(hub.broker, self.name, connection, presence, user_id)
        """Who is in the group: ``await group.presence.list()``."""
        self.recovered: bool | None = None
        """True: everything since ``since`` was replayed. False: some of it is gone, and what comes starts
        behind `position`; a part may have been replayed, if the rest was lost while the client read it. None:
        no ``since`` was given."""
        self._epoch = "-"
        self._offset = 0
        self._nonce = ""
        if self._since is not None:
            self._move_to(self._since)
        self._plain = self._overflow.key is None and not envelope and form is None
        self._outbox: Outbox
        self._send_now: Callable[[Entry], bool] | None = None
        """`Outbox.send_now`, if this member gets each message as it is."""
        self._statistics: GroupStatistics | None = None
        self._following = False
        self._left = False
        self._held: list[tuple[Message, Parcel]] | None = None
        """What comes while the history is read; None: it is not to be held."""

    def __len__(self) -> int:
        local = self._hub.groups.get(self.name)
        return 0 if local is None else len(local.members)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Group {self.name!r} of {self._connection.id}>"

    # Joining and leaving

    async def join(self) -> None:
        """Become a member, as ``async with`` does; first replays what was missed, which waits for the client.

        A checkpoint; cancelled, one is no member. Raises `WebSocketDisconnect` if the connection is over or
        ends meanwhile, `WrongStateError` before ``accept()`` and if the connection is in the group already,
        `PermissionDenied` if ``authorize`` says no, `LimitError` for a group too many.
        """
        if self._statistics is not None:
            raise WrongStateError(
                f"this membership of {self.name!r} is entered already; call ws.join() again"
            )
        if self._connection.transport.state is State.CONNECTING:
            raise WrongStateError(
                f"cannot join {self.name!r} before the handshake is done; call `await ws.accept()` first"
            )
        await self._check_permission()
        self._outbox = self._connection.open_outbox()
        if self._plain:
            self._send_now = self._outbox.send_now
        self._statistics = self._hub.enter(self, self._connection)
        self._connection.at_end(self.leave_nowait)
        try:
            await self._hub.broker.subscribe(self.name)
            self._check_open()
            await self._catch_up()
            await self.presence.enter()
            self._check_open()
        except BaseException:
            self.leave_nowait()
            raise

    async def _check_permission(self) -> None:
        if self._authorize is None:
            return
        allowed = self._authorize(self._connection.plain_websocket(), self.name)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if allowed is not True:
            if allowed is not False:
                raise WrongTypeError(f"authorize gives True or False, not {allowed!r}")
            raise PermissionDenied(f"not allowed in the group {self.name!a}")

    def _check_open(self) -> None:
        closure = self._connection.transport.closure
        if closure is not None:
            raise closure.error()

    async def _catch_up(self) -> None:
        since = self._since
        while True:
            held: list[tuple[Message, Parcel]] = []
            self._held = held
            history = await self._hub.broker.history(
                self.name, since=since, limit=0 if since is None else None
            )
            self._check_open()
            if self._held is None and not self._left:
                continue  # too much came meanwhile
            if since is not None:
                self.recovered = history.complete
            if not history.complete or not await self._replay(history):
                break
            since = self.position
        # No checkpoint since the last look at the history: what came before that was held back.
        self._move_to(history.position)
        self._held, self._following = None, not self._left
        statistics = self._statistics
        assert statistics is not None
        for message, parcel in held:
            sent = self._take(message, parcel)
            statistics.delivered += sent  # to which `_take` may have added as well

    async def _replay(self, history: History) -> bool:
        """Send what was missed; returns whether that had to wait, so that more may have been missed."""
        waited = False
        for message in history.messages:
            parcel = Parcel(message)
            entry = self._keyless(parcel)  # it is to be exactly what was missed
            if not self._outbox.put_nowait(entry):
                self._held, waited = None, True  # the next look at the history finds what comes now
                await self._outbox.put(entry)
                self._check_open()
            if message.position is not None:
                self._move_to(message.position)
        return waited

    def _move_to(self, position: Position) -> None:
        self._epoch, self._offset, self._nonce = position.epoch, position.offset, position.nonce

    @property
    def position(self) -> Position:
        """The newest position that this member was given: where it would resume."""
        return Position(self._epoch, self._offset, self._nonce)

    def leave_nowait(self) -> None:
        """Stop being a member, at once; harmless if one is none. Happens by itself at the end of the block,
        and the moment the connection is over."""
        self._left, self._following, self._held = True, False, None
        self._connection.not_at_end(self.leave_nowait)
        self._hub.leave(self, self._connection)
        self.presence.leave_nowait()

    async def __aenter__(self) -> Group:
        await self.join()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    # Receiving: called by the hub

    def _take(self, message: Message, parcel: Parcel) -> bool:
        """Give this member a message by its rule; never waits, never raises.

        Returns whether it was sent at once; if not, what became of it has been counted.
        """
        if not self._following:
            self._hold(message, parcel)
            return False
        offset = message.offset
        if offset is not None:
            if offset <= self._offset and message.epoch == self._epoch:
                return False  # replayed before it was handed out
            self._epoch = message.epoch
            self._offset = offset
            self._nonce = message.nonce
        if message.exclude and self._connection.id in message.exclude:
            return False
        send_now = self._send_now
        if send_now is not None and send_now(parcel):
            return True
        self._put(parcel)
        return False

    def _put(self, parcel: Parcel) -> None:
        statistics = self._statistics
        assert statistics is not None
        entry = parcel if self._plain else self._own_entry(parcel, statistics)
        if self._outbox.offer(entry, self._overflow, statistics):
            statistics.delivered += 1
        elif self._overflow.rule == "disconnect":
            statistics.disconnected += 1
            self._connection.kick(1013, "too slow")

    def _hold(self, message: Message, parcel: Parcel) -> None:
        if self._held is not None:
            if len(self._held) < self._connection.settings.limits.outbox_messages:
                self._held.append((message, parcel))
            else:
                self._held = None  # the history is read once more

    def _keyless(self, parcel: Parcel) -> Entry:
        return parcel.entry(self._envelope, self._form)

    def _own_entry(self, parcel: Parcel, statistics: GroupStatistics) -> Entry:
        entry = self._keyless(parcel)
        if self._overflow.key is None or not parcel.message.id:  # presence messages are not conflated
            return entry
        key, error = parcel.key_by(self._overflow.key)
        if error is not None:
            if not statistics.key_errors:
                logger.error(
                    "group %r: the key of CONFLATE(key) failed, and this is said once; messages for which "
                    "it does are counted in statistics().key_errors and go out unconflated",
                    self.name,
                    exc_info=error,
                )
            statistics.key_errors += 1
        return entry if key is None else Entry(entry.frame, entry.size, entry.owner, key)

    # Sending and looking

    async def send(
        self,
        payload: Any,
        *,
        exclude_self: bool = False,
        exclude: Collection[str] = (),
        save_history: bool = True,
        message_id: str | None = None,
    ) -> Message:
        """Send to all members of the group, on all servers.

        str goes as a text message, bytes as a binary one, anything else as JSON in a text message, encoded
        once. ``exclude`` are ids of connections (``ws.id``). With ``save_history`` it has an offset and can
        be resumed from. Sent again with the same ``message_id`` within some minutes, by whomever, it is not
        delivered again, and the first one comes back. Never waits for a member. A checkpoint; cancelled, it
        was sent to all or to none. Raises `WrongTypeError` for a payload that JSON has no form for,
        `BrokerUnavailable` if the groups are in an engine that cannot be reached.
        """
        draft = draft_of(payload, sender=self._connection.id, exclude=exclude, message_id=message_id)
        if exclude_self:
            draft = evolve(draft, exclude=draft.exclude | {self._connection.id})
        return await self._hub.broker.publish(self.name, draft, keep=save_history)

    async def history(
        self, limit: int | None = None, since: str | Position | None = None
    ) -> tuple[Message, ...]:
        """Kept messages, oldest first; at most the last ``limit``, only those after ``since``."""
        position = Position.parse(since) if isinstance(since, str) else since
        return (await self._hub.broker.history(self.name, since=position, limit=limit)).messages

    def members(self) -> tuple[str, ...]:
        """The ids of the connections in this group on this server, in the order of joining."""
        local = self._hub.groups.get(self.name)
        return () if local is None else tuple(connection.id for connection in local.members)

    def statistics(self) -> GroupStatistics:
        """A copy of the counters of this group on this server. Raises `WrongStateError` before joining."""
        if self._statistics is None:
            raise WrongStateError(
                f"nobody has entered this membership of {self.name!r}; write `async with` it"
            )
        return evolve(self._statistics)


def _asked_for(since: str | Position | None) -> Position | None:
    """The position that a client asks for. What is no position is one that nobody can resume from."""
    if not isinstance(since, str):
        return since
    try:
        return Position.parse(since)
    except WrongValueError:
        return Position("?", 0)
