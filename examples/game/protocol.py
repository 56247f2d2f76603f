"""What travels over the WebSocket: a Struct per message, told apart by the field ``type``."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=16)]
Direction = Annotated[float, Meta(ge=-1, le=1)]


# From the player


class Join(Struct, tag="join"):
    """From now on this connection has a ship."""

    name: Name

    def __post_init__(self) -> None:
        self.name = " ".join("".join(filter(str.isprintable, self.name)).split())


class Steer(Struct, tag="steer"):
    """Where to; ``seq`` counts up, and an older one than the last is ignored."""

    seq: Annotated[int, Meta(ge=0, lt=1 << 53)]
    x: Direction
    y: Direction


class Pong(Struct, tag="pong"):
    """The answer to the heartbeat."""


FromPlayer: TypeAlias = Join | Steer | Pong


# To everybody: each replaces the one before it


class State(Struct, tag="state"):
    """All that moves: ``ships`` are ``[id, x, y, vx, vy, score]``, ``stars`` are ``[id, x, y]``; ``at`` is
    the world's time in ms."""

    at: int
    ships: list[tuple[int, float, float, float, float, int]]
    stars: list[tuple[int, float, float]]


class Roster(Struct, tag="roster"):
    """Names by the ids of ships."""

    names: dict[int, str]
    watching: int


# To one page


class Arena(Struct, tag="arena"):
    """First of all: sizes."""

    width: float
    height: float
    ship: float
    star: float


class Welcome(Struct, tag="welcome"):
    """Your ship."""

    id: int


class Problem(Struct, tag="problem"):
    """A message of this client was not taken, and why."""

    text: str


class Ping(Struct, tag="ping"):
    pass
