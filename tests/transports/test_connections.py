"""How a set of connections is sent away."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from nexios_trio.transports.connections import Connections


class Leaver:
    def __init__(self, connections: Connections[Leaver]) -> None:
        self.connections = connections
        self.left_at: float | None = None

    def begin_shutdown(self) -> None:
        self.left_at = trio.current_time()
        self.connections.discard(self)


def crowd(size: int) -> tuple[Connections[Leaver], list[Leaver]]:
    connections: Connections[Leaver] = Connections()
    leavers = [Leaver(connections) for _ in range(size)]
    for leaver in leavers:
        connections.add(leaver)
    return connections, leavers


async def test_each_leaves_at_a_random_moment_of_its_share_of_the_window(autojump_clock: MockClock) -> None:
    offsets: list[float] = []
    for _ in range(2):
        connections, leavers = crowd(200)
        begun = trio.current_time()
        await connections.drain(10)
        times = sorted(leaver.left_at - begun for leaver in leavers if leaver.left_at is not None)
        assert len(times) == 200
        for number, at in enumerate(times):
            assert 0.05 * number <= at <= 0.05 * (number + 1) + 1e-9
        offsets.append(sum(at - 0.05 * number for number, at in enumerate(times)))
    assert offsets[0] != offsets[1]


async def test_a_few_do_not_take_the_whole_window(autojump_clock: MockClock) -> None:
    connections, leavers = crowd(3)
    begun = trio.current_time()
    await connections.drain(60)
    assert trio.current_time() - begun <= 0.3 + 1e-9
    assert all(leaver.left_at is not None for leaver in leavers)


async def test_without_a_window_all_leave_at_once(autojump_clock: MockClock) -> None:
    connections, _ = crowd(100)
    begun = trio.current_time()
    await connections.drain()
    assert trio.current_time() == begun
    assert connections.leaving
    assert connections.draining
