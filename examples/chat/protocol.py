"""What travels over the WebSocket: a Struct per message, told apart by the field ``type``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=36)]
Name = Annotated[str, Meta(min_length=1, max_length=24)]
Text = Annotated[str, Meta(max_length=500, pattern=r"\S")]
Place = Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,64}:[0-9]{1,18}\Z")]


# From the client. Whatever does not fit never reaches the handler.


class Join(Struct, tag="join"):
    """The first message. ``key`` is a secret of the page: who comes back with it takes its old place, and
    ``since``, the position of the last message it has, brings what it missed."""

    name: Name
    key: Id
    since: Place | None = None

    def __post_init__(self) -> None:
        self.name = " ".join("".join(filter(str.isprintable, self.name)).split())


class Say(Struct, tag="say"):
    """``id`` is the page's own, so that it knows its message when it comes back."""

    id: Id
    text: Text


class Typing(Struct, tag="typing"):
    pass


class Pong(Struct, tag="pong"):
    """The answer to the heartbeat."""


FromMember: TypeAlias = Say | Typing | Pong


# To the room, in an envelope with the position; presence.join and presence.leave come by themselves.


class Said(Struct, tag="said"):
    """``user`` is who said it: a name may be somebody else's tomorrow."""

    id: str
    user: str
    name: str
    text: str
    at: datetime


class TypingBy(Struct, tag="typing"):
    name: str


# To one page.


class Welcome(Struct, tag="welcome"):
    """The name may have got a number: no two members of a room have the same one. With ``recovered`` all
    that was missed has come before this; without, ``history`` holds the last messages. ``place`` is where
    to resume, ``people`` are the names by user, ``user`` is you."""

    user: str
    name: str
    place: str
    recovered: bool
    history: list[Any]
    people: dict[str, str]


class Problem(Struct, tag="problem"):
    """A message of this client was not taken, and why."""

    text: str


class Ping(Struct, tag="ping"):
    pass
