"""The game's simulation, step by step."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.game.world import HEIGHT, PATIENCE, SHIP, STARS, WIDTH, Ship, World


def placed(world: World, name: str, x: float, y: float) -> Ship:
    ship = world.enter(name)
    ship.x, ship.y = x, y
    return ship


def test_a_ship_goes_where_it_is_steered_and_stops_when_nobody_steers() -> None:
    world = World(seed=1)
    world.stars.clear()
    ship = placed(world, "Ada", 800, 450)
    for seq in range(30):
        world.steer(ship, seq, 1, 0)
        world.step()
    assert ship.x > 850
    assert ship.y == 450
    for _ in range(PATIENCE + 240):
        world.step()
    assert (ship.steer_x, ship.steer_y) == (0, 0)
    assert abs(ship.vx) < 10


def test_an_older_input_changes_nothing() -> None:
    world = World(seed=1)
    ship = world.enter("Ada")
    world.steer(ship, 5, 1, 0)
    world.steer(ship, 5, -1, 0)
    world.steer(ship, 4, 0, 1)
    assert (ship.steer_x, ship.steer_y) == (1, 0)


def test_nobody_is_faster_across() -> None:
    world = World(seed=1)
    ship = world.enter("Ada")
    world.steer(ship, 0, 1, 1)
    assert math.hypot(ship.steer_x, ship.steer_y) == pytest.approx(1)


def test_a_star_is_gathered_once_and_another_one_appears() -> None:
    world = World(seed=1)
    ship = world.enter("Ada")
    star = world.stars[0]
    world.stars[1:] = []
    ship.x, ship.y = star.x, star.y
    world.step()
    assert ship.score == 1
    assert len(world.stars) == 1
    assert world.stars[0].id != star.id


def test_ships_that_meet_swap_speeds() -> None:
    world = World(seed=1)
    one, other = placed(world, "Ada", 800, 450), placed(world, "Grace", 800 + 2 * SHIP, 450)
    one.vx = 300.0
    for _ in range(2):
        world.step()
    assert one.vx == pytest.approx(0, abs=20)
    assert other.vx > 250


def test_ships_on_the_same_spot_come_apart() -> None:
    world = World(seed=1)
    one, other = placed(world, "Ada", 800, 450), placed(world, "Grace", 800, 450)
    world.step()
    assert math.hypot(one.x - other.x, one.y - other.y) == pytest.approx(2 * SHIP)


def test_a_ship_that_has_left_may_leave_again() -> None:
    world = World(seed=1)
    ship = world.enter("Ada")
    world.leave(ship)
    world.leave(ship)
    world.step()
    assert world.ships == {}


def test_the_same_seed_and_inputs_give_the_same_world() -> None:
    def play() -> list[tuple[float, float, int]]:
        world = World(seed=7)
        ships = [world.enter(name) for name in ("Ada", "Grace")]
        for seq in range(600):
            for ship in ships:
                angle = seq / 40 + ship.id
                world.steer(ship, seq, math.cos(angle), math.sin(angle))
            world.step()
        return [(ship.x, ship.y, ship.score) for ship in ships]

    assert play() == play()


steers = st.tuples(st.integers(0, 3), st.floats(-1, 1), st.floats(-1, 1))


@given(st.integers(0, 99), st.lists(steers, max_size=60))
def test_whatever_players_do_all_stays_inside_and_finite(
    seed: int, inputs: list[tuple[int, float, float]]
) -> None:
    world = World(seed=seed)
    ships = [world.enter(str(number)) for number in range(4)]
    for seq, (who, x, y) in enumerate(inputs):
        world.steer(ships[who], seq, x, y)
        for _ in range(3):
            world.step()
    for ship in ships:
        assert SHIP <= ship.x <= WIDTH - SHIP
        assert SHIP <= ship.y <= HEIGHT - SHIP
        assert math.isfinite(ship.vx)
        assert math.isfinite(ship.vy)
    assert len(world.stars) == STARS
    ids = [star.id for star in world.stars] + [ship.id for ship in ships]
    assert len({*ids}) == len(ids)
    for one, other in combinations(ships, 2):
        assert one.id != other.id
