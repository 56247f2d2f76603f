"""What travels over the WebSocket.

Binary messages, in both directions, begin with a byte: 0, a state vector follows ("this is what I have"), and
the answer to it is 1, an update follows ("this is what you lack"). Updates of others come in the same way.
The formats are those of Yjs.

Text messages are JSON, told apart by the field ``type``.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

STATE: Final = b"\x00"
UPDATE: Final = b"\x01"

Name = Annotated[str, Meta(min_length=1, max_length=24)]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Key = Annotated[str, Meta(min_length=8, max_length=64)]


class Hello(Struct, tag="hello"):
    """The first message. ``key`` is a secret of the page: who comes back with it is the same person."""

    name: Name
    key: Key

    def __post_init__(self) -> None:
        self.name = " ".join("".join(filter(str.isprintable, self.name)).split())


class Place(Struct):
    """Between two characters: at the one with this id (client, clock); none: at the end."""

    item: tuple[Count, Count] | None
    assoc: Annotated[int, Meta(ge=-1, le=0)] = 0


class Cursor(Struct, tag="cursor"):
    """Where somebody is, and from where to where something is selected."""

    anchor: Place
    head: Place


class CursorOf(Struct, tag="cursor"):
    """The same, to all others."""

    user: str
    anchor: Place
    head: Place


class Person(Struct):
    user: str
    name: str


class Welcome(Struct, tag="welcome"):
    """Who you are, and who is there."""

    user: str
    people: list[Person]
