"""Who goes next."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.engine.scheduler import Scheduler, TurnBudget, Waiting


def test_steps_are_for_all_who_wait_for_one() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for job, kind in [
        ("a", Waiting.TEXT_STEP),
        ("b", Waiting.TURN),
        ("c", Waiting.UNIT_STEP),
        ("d", Waiting.TEXT_STEP),
        ("e", Waiting.ROOM),
    ]:
        scheduler.put(job, kind)
    assert scheduler.is_talking
    steps = scheduler.steps()
    assert (steps.text, steps.units) == (("a", "d"), ("c",))
    assert not scheduler.steps()
    assert not scheduler.is_talking
    assert (scheduler.count(Waiting.TURN), scheduler.count(Waiting.ROOM), len(scheduler)) == (1, 1, 2)


def test_who_is_dropped_is_not_asked_again() -> None:
    scheduler: Scheduler[str] = Scheduler()
    scheduler.put("a", Waiting.TEXT_STEP)
    assert scheduler.drop("a")
    assert not scheduler.drop("a")
    assert not scheduler.steps()


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_turns_may_take_as_long_as_the_median_step() -> None:
    clock = Clock()
    budget = TurnBudget(clock, remembered=3)
    assert budget.is_spent
    for seconds, expected in [(4.0, 4.0), (2.0, 3.0), (9.0, 4.0), (1.0, 2.0), (1.0, 1.0)]:
        with budget.step():
            clock.now += seconds
        clock.now += expected - 0.01
        assert not budget.is_spent
        clock.now += 0.01
        assert budget.is_spent


def test_a_slot_goes_to_who_waited_longest_and_may_be_given_back() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for job in "abc":
        scheduler.put(job, Waiting.TEXT_SLOT)
    assert scheduler.take(Waiting.TEXT_SLOT) == "a"
    scheduler.put_first("a", Waiting.TEXT_SLOT)
    assert [scheduler.take(Waiting.TEXT_SLOT) for _ in range(4)] == ["a", "b", "c", None]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_nobody_waits_for_more_than_one_piece_of_each_other_job(pieces: list[int]) -> None:
    """Round robin: between two turns of a job, every other one has at most one."""
    scheduler: Scheduler[int] = Scheduler()
    left = dict(enumerate(pieces))
    for job in left:
        scheduler.put(job, Waiting.TURN)
    order: list[int] = []
    while (turn := scheduler.take(Waiting.TURN)) is not None:
        order.append(turn)
        left[turn] -= 1
        if left[turn]:
            scheduler.put(turn, Waiting.TURN)
    assert sorted(order) == sorted(job for job, count in enumerate(pieces) for _ in range(count))
    for job in range(len(pieces)):
        places = [place for place, other in enumerate(order) if other == job]
        for start, end in pairwise(places):
            between = order[start + 1 : end]
            assert len(between) == len(set(between))


@pytest.mark.parametrize("module", ["scheduler", "slots", "admission"])
def test_it_imports_no_torch(module: str) -> None:
    program = f"import sys, taste_grpc.engine.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
