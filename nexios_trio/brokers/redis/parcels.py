"""What goes through Redis: a line of JSON that says what is known of a message, and behind it the data.

``[offset,"epoch","nonce","nonce of the one before",milliseconds,"kind",sender,[excluded],"id"]`` and a
newline; an offset of 0 is a message that is not kept. Presence events are a JSON object.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from attrs import frozen

from nexios_trio.brokers.base import Draft, Kind, Member, Message, PresenceEvent

__all__ = [
    "MISFITS",
    "Event",
    "decode_event",
    "decode_member",
    "decode_message",
    "encode_member",
    "encode_tail",
]

MISFITS: Final = (ValueError, msgspec.MsgspecError, OverflowError, RecursionError)
"""What reading something raises that another program has put there: text that is none, a number beyond all
bounds, a million brackets."""

_Header = tuple[int, str, str, str, int, Kind, str | None, list[str], str]
_header: msgspec.json.Decoder[_Header] = msgspec.json.Decoder(_Header)
_encoder = msgspec.json.Encoder()


def encode_tail(draft: Draft) -> bytes:
    """What the sender knows of a message: the end of its header, without the brackets."""
    return _encoder.encode([draft.kind, draft.sender, sorted(draft.exclude), draft.id])[1:-1]


def decode_message(group: str, payload: bytes) -> tuple[Message, str]:
    """A message and the nonce of the one before. Raises one of `MISFITS` if it is none."""
    header, newline, data = payload.partition(b"\n")
    if not newline:
        raise ValueError("no header")
    offset, epoch, nonce, before, sent_at, kind, sender, exclude, name = _header.decode(header)
    return (
        Message(
            group,
            epoch,
            offset or None,
            kind,
            data if kind == "bytes" else data.decode(),
            sent_at / 1000,
            sender,
            name,
            frozenset(exclude),
            nonce,
        ),
        before,
    )


class _WireMember(msgspec.Struct):
    connection: str
    user: str
    metadata: str
    joined_at: float
    id: str


class _WireEvent(msgspec.Struct):
    type: Literal["presence.join", "presence.leave"]
    version: int
    epoch: str
    member: _WireMember


_event: msgspec.json.Decoder[_WireEvent] = msgspec.json.Decoder(_WireEvent)
_member: msgspec.json.Decoder[_WireMember] = msgspec.json.Decoder(_WireMember)


@frozen
class Event:
    """A presence event with its number."""

    epoch: str
    version: int
    event: PresenceEvent


def encode_member(member: Member) -> bytes:
    """A member as JSON; the metadata is text inside it, so that equal ones are equal texts."""
    metadata = json.dumps(member.metadata, sort_keys=True, separators=(",", ":"))
    return _encoder.encode(_WireMember(member.connection, member.user, metadata, member.joined_at, member.id))


def _as_member(found: _WireMember) -> Member:
    metadata: dict[str, Any] = json.loads(found.metadata)
    return Member(found.connection, found.user, metadata, found.joined_at, found.id)


def decode_member(text: bytes) -> Member:
    """What `encode_member` wrote. Raises one of `MISFITS`."""
    return _as_member(_member.decode(text))


def decode_event(group: str, payload: bytes) -> Event:
    """A presence event. Raises one of `MISFITS` if it is none."""
    found = _event.decode(payload)
    return Event(found.epoch, found.version, PresenceEvent(found.type, group, _as_member(found.member)))
