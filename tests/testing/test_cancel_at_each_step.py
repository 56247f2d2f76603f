"""The harness that cancels a task at its every step strikes every step, and then stops."""

from __future__ import annotations

import gc
from typing import Literal

import pytest
import trio

from nexios_trio.testing import cancel_at_each_step
from nexios_trio.testing.checkpoints import Interrupter

STEPS = 5
WHEN: tuple[Literal["before", "after"], ...] = ("before", "after")


async def toy(log: list[int], steps: int = STEPS) -> None:
    """Blocks ``steps`` times, each until the run loop comes round."""
    for number in range(steps):
        event = trio.Event()
        trio.lowlevel.current_trio_token().run_sync_soon(event.set)
        await event.wait()
        log.append(number)


@pytest.mark.parametrize("when", WHEN)
async def test_the_kth_step_is_the_one_that_is_struck(when: Literal["before", "after"]) -> None:
    """A task of n checkpoints blocks n times: 'after' interrupts each of them, 'before' the next one."""
    for k in range(1, STEPS + 3):
        log: list[int] = []
        interrupter = Interrupter(k, when)
        await interrupter.run(toy, log)
        done = k - 1 if when == "after" else k
        assert log == list(range(min(done, STEPS)))
        assert interrupter.struck is (k <= STEPS)
        assert interrupter.scope.cancelled_caught is (done < STEPS)


async def test_every_step_is_struck_in_both_ways_and_then_it_ends() -> None:
    rounds: list[tuple[str, int, bool, int]] = []
    async for interrupter in cancel_at_each_step():
        log: list[int] = []
        await interrupter.run(toy, log)
        rounds.append((interrupter.when, interrupter.k, interrupter.struck, len(log)))
    assert rounds == [
        *(("before", k, True, k) for k in range(1, STEPS + 1)),
        ("before", STEPS + 1, False, STEPS),
        *(("after", k, True, k - 1) for k in range(1, STEPS + 1)),
        ("after", STEPS + 1, False, STEPS),
    ]


async def test_only_the_steps_of_its_own_task_count() -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(toy, [], 50)
        interrupter = Interrupter(STEPS + 1, "after")
        log: list[int] = []
        await interrupter.run(toy, log)
        assert not interrupter.struck
        assert interrupter.steps == STEPS
        assert len(log) == STEPS


async def test_a_task_that_never_blocks_is_never_struck() -> None:
    rounds = 0
    async for interrupter in cancel_at_each_step():
        await interrupter.run(toy, [], 0)
        assert not interrupter.struck
        rounds += 1
    assert rounds == 2


async def test_what_blocks_is_interrupted_where_it_blocks() -> None:
    interrupter = Interrupter(1, "after")
    await interrupter.run(trio.sleep_forever)
    assert interrupter.scope.cancelled_caught


async def test_a_task_that_outlives_the_limit_is_an_assertion() -> None:
    with pytest.raises(AssertionError, match="the task still runs after 3 steps"):
        async for interrupter in cancel_at_each_step(limit=3):
            await interrupter.run(toy, [])


async def test_the_arguments_and_the_errors_of_the_task_pass_through() -> None:
    async def fail(*args: int) -> None:
        raise ValueError(args)

    interrupter = Interrupter(1, "after")
    with pytest.raises(ValueError, match="7"):
        await interrupter.run(fail, 7)
    await trio.lowlevel.checkpoint()
    assert interrupter.steps == 0  # it counts no more


async def test_a_loop_that_is_left_early_complains_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    async for interrupter in cancel_at_each_step():
        await interrupter.run(toy, [])
        break
    gc.collect()
    await trio.lowlevel.checkpoint()
    assert not [warning for warning in recwarn if "sync generator" in str(warning.message)]
