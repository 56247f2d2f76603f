"""The simulation: ships that are steered, and stars to gather. Time is counted in steps, chance is a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, count
from random import Random
from typing import Final

from attrs import define, field

WIDTH: Final = 1600.0
HEIGHT: Final = 900.0
STEP: Final = 1 / 60  # seconds
SHIP: Final = 24.0  # radius
STAR: Final = 14.0
STARS: Final = 9
PUSH: Final = 1500.0  # acceleration at full steer, per second squared
DRAG: Final = 2.2  # share of the speed lost per second
BOUNCE: Final = 0.7  # share of the speed kept at a wall
PATIENCE: Final = 60  # steps after which a ship that hears nothing lets go of the helm


@define(eq=False)
class Ship:
    """Where it is, how fast, and what its player wants."""

    id: int
    name: str
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    score: int = 0
    steer_x: float = 0.0
    steer_y: float = 0.0
    steered: int = 0
    """The step at which its player was last heard."""
    seq: int = -1
    """Of the newest input."""


@define
class Star:
    id: int
    x: float
    y: float


@define(eq=False)
class World:
    """``seed`` decides where stars and ships appear; the same inputs at the same steps give the same."""

    seed: int | None = None
    tick: int = 0
    ships: dict[int, Ship] = field(factory=dict)
    stars: list[Star] = field(factory=list)
    _random: Random = field(init=False)
    _ids: Iterator[int] = field(factory=lambda: count(1))

    def __attrs_post_init__(self) -> None:
        self._random = Random(self.seed)
        self.stars = [self._star() for _ in range(STARS)]

    def enter(self, name: str) -> Ship:
        """A new ship, where no other one is if there is such a place."""
        for _ in range(20):
            x, y = self._random.uniform(SHIP, WIDTH - SHIP), self._random.uniform(SHIP, HEIGHT - SHIP)
            if all(math.hypot(ship.x - x, ship.y - y) > 4 * SHIP for ship in self.ships.values()):
                break
        ship = Ship(next(self._ids), name, x, y, steered=self.tick)
        self.ships[ship.id] = ship
        return ship

    def leave(self, ship: Ship) -> None:
        """Harmless if it has left already."""
        self.ships.pop(ship.id, None)

    def steer(self, ship: Ship, seq: int, x: float, y: float) -> None:
        """What the player wants: a direction, cut to a length of 1. An older one than the last is ignored."""
        if seq <= ship.seq:
            return
        length = max(1.0, math.hypot(x, y))
        ship.steer_x, ship.steer_y, ship.seq, ship.steered = x / length, y / length, seq, self.tick

    def step(self) -> None:
        """One sixtieth of a second."""
        self.tick += 1
        for ship in self.ships.values():
            self._move(ship)
        for one, other in combinations(self.ships.values(), 2):
            _collide(one, other)
        for ship in self.ships.values():
            self._gather(ship)

    def _move(self, ship: Ship) -> None:
        if self.tick - ship.steered > PATIENCE:
            ship.steer_x = ship.steer_y = 0.0
        kept = math.exp(-DRAG * STEP)
        ship.vx = (ship.vx + ship.steer_x * PUSH * STEP) * kept
        ship.vy = (ship.vy + ship.steer_y * PUSH * STEP) * kept
        ship.x, ship.vx = _inside(ship.x + ship.vx * STEP, ship.vx, WIDTH)
        ship.y, ship.vy = _inside(ship.y + ship.vy * STEP, ship.vy, HEIGHT)

    def _gather(self, ship: Ship) -> None:
        for index, star in enumerate(self.stars):
            if math.hypot(ship.x - star.x, ship.y - star.y) < SHIP + STAR:
                ship.score += 1
                self.stars[index] = self._star()

    def _star(self) -> Star:
        margin = 2 * STAR
        return Star(
            next(self._ids),
            self._random.uniform(margin, WIDTH - margin),
            self._random.uniform(margin, HEIGHT - margin),
        )


def _inside(at: float, speed: float, size: float) -> tuple[float, float]:
    """Back from a wall, slower."""
    if at < SHIP:
        return SHIP, abs(speed) * BOUNCE
    if at > size - SHIP:
        return size - SHIP, -abs(speed) * BOUNCE
    return at, speed


def _collide(one: Ship, other: Ship) -> None:
    """Of equal mass, and elastic: along the line between them they swap speeds."""
    dx, dy = other.x - one.x, other.y - one.y
    distance = math.hypot(dx, dy)
    overlap = 2 * SHIP - distance
    if overlap <= 0:
        return
    nx, ny = (dx / distance, dy / distance) if distance else (1.0, 0.0)
    for ship, sign in ((one, -0.5), (other, 0.5)):
        ship.x = min(max(ship.x + nx * overlap * sign, SHIP), WIDTH - SHIP)
        ship.y = min(max(ship.y + ny * overlap * sign, SHIP), HEIGHT - SHIP)
    closing = (one.vx - other.vx) * nx + (one.vy - other.vy) * ny
    if closing > 0:
        one.vx, one.vy = one.vx - closing * nx, one.vy - closing * ny
        other.vx, other.vy = other.vx + closing * nx, other.vy + closing * ny
