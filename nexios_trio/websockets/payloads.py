"""What is sent to groups, encoded once for all members."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Hashable
from typing import Any, Final

from nexios_trio.brokers.base import Draft, Kind, Message
from nexios_trio.exceptions import GroupNameError, LimitError, WrongTypeError, WrongValueError
from nexios_trio.transports.outbox import Entry
from nexios_trio.types import Message as Frame
from nexios_trio.websockets import codec

__all__ = ["Parcel", "check_group_name", "draft_of", "frame_of", "in_form"]

MESSAGE_ID: Final = 200
"""Characters of a message id that a caller gives."""


def check_group_name(name: object, longest: int) -> str:
    """``name`` if it is one: 1 to ``longest`` printable characters. Raises `WrongTypeError`,
    `GroupNameError` (a `WrongValueError`), and for one that is too long `LimitError`."""
    if not isinstance(name, str):
        raise WrongTypeError(f'a group name is a str such as "chat.42", not {type(name).__name__}')
    if len(name) > longest:
        raise LimitError("group_name_length", longest, "the group name is too long")
    if not name or not name.isprintable():
        raise GroupNameError(
            f"a group name has 1 to {longest} printable characters; this one has {len(name)}: {name[:50]!a}"
        )
    return name


def draft_of(
    payload: Any,
    *,
    kind: Kind | None = None,
    sender: str | None = None,
    exclude: Collection[str] = (),
    message_id: str | None = None,
) -> Draft:
    """Encode a payload once for everybody: str as text, bytes and the like as bytes, the rest as JSON.

    Raises `WrongTypeError` for what JSON has no form for, `WrongValueError` for a str that UTF-8 cannot hold,
    and both for a ``message_id`` that is no text of 1 to 200 printable characters.
    """
    if message_id is not None:
        _check_message_id(message_id)
    if isinstance(exclude, str | bytes):
        raise WrongTypeError(f"exclude is a collection of ids; write exclude=[{exclude!r}]")
    if isinstance(payload, bytearray | memoryview):
        payload = bytes(payload)
    if kind is None:
        kind = "text" if isinstance(payload, str) else "bytes" if isinstance(payload, bytes) else "json"
    data: str | bytes = codec.encode(payload).decode() if kind == "json" else payload
    wanted = bytes if kind == "bytes" else str
    if not isinstance(data, wanted):
        raise WrongTypeError(f"a {kind} payload is {wanted.__name__}, not {type(payload).__name__}")
    if isinstance(data, str) and not data.isascii():
        try:  # or it would fail in the server, once for each member
            data.encode()
        except UnicodeEncodeError as error:
            raise WrongValueError(f"this text cannot be sent: {error}") from None
    once = message_id is not None
    return Draft(kind, data, sender, frozenset(exclude), message_id or secrets.token_hex(16), once)


def _check_message_id(name: object) -> None:
    if not isinstance(name, str):
        raise WrongTypeError(f'message_id is a str such as "order-17", not {type(name).__name__}')
    if not (1 <= len(name) <= MESSAGE_ID and name.isprintable()):
        raise WrongValueError(
            f"message_id has 1 to {MESSAGE_ID} printable characters; this one has {len(name)}: {name[:50]!a}"
        )


def in_form(kind: Kind, data: str | bytes, form: Kind | None) -> str | bytes:
    """Encoded data as a channel of this payload type sends it: to one of JSON a str goes as a JSON string,
    to one of bytes all goes as binary messages. None: as it is."""
    if form == "json" and kind == "text":
        return codec.encode(data).decode()
    if form == "bytes" and isinstance(data, str):
        return data.encode()
    return data


def frame_of(data: str | bytes) -> Frame:
    """The ASGI message that sends it."""
    if isinstance(data, str):
        return {"type": "websocket.send", "text": data}
    return {"type": "websocket.send", "bytes": data}


def _enveloped(message: Message) -> str | bytes:
    if isinstance(message.data, bytes):
        return message.data
    payload = message.data if message.kind == "json" else codec.encode(message.data).decode()
    position = "null" if message.position is None else f'"{message.position}"'
    group = codec.encode(message.group).decode()
    return f'{{"group":{group},"position":{position},"payload":{payload}}}'


class Parcel(Entry):
    """A message on its way to all members: as it is, it is the entry for most of their outboxes.

    What some members want differently is made when the first of them asks, and shared.
    """

    __slots__ = ("_entries", "_keys", "_payload", "message")

    def __init__(self, message: Message) -> None:
        super().__init__(frame_of(message.data), len(message.data), message.group)
        self.message = message
        self._entries: dict[tuple[bool, Kind | None], Entry] = {}
        self._keys: dict[Callable[[Any], Hashable], tuple[Hashable, Exception | None]] = {}
        self._payload: list[Any] = []

    def entry(self, envelope: bool, form: Kind | None) -> Entry:
        """The entry for a member who wants the message in an envelope or in another form."""
        if not envelope and form is None:
            return self
        made = self._entries.get((envelope, form))
        if made is None:
            message = self.message
            data = _enveloped(message) if envelope else in_form(message.kind, message.data, form)
            made = self._entries[envelope, form] = Entry(frame_of(data), len(data), message.group)
        return made

    def key_by(self, function: Callable[[Any], Hashable]) -> tuple[Hashable, Exception | None]:
        """What ``function`` says of the payload; (None, the error) if it raises or gives something that
        cannot be a key. All functions get the same payload."""
        found = self._keys.get(function)
        if found is None:
            try:
                if not self._payload:
                    self._payload.append(self.message.payload)
                key = function(self._payload[0])
                hash(key)
                found = key, None
            except Exception as error:
                found = None, error
            self._keys[function] = found
        return found
