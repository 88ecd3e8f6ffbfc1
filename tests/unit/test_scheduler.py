"""Who goes next."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.engine.scheduler import Scheduler, Waiting


def test_a_round_is_a_step_for_all_who_talk_and_one_turn() -> None:
    scheduler: Scheduler[str] = Scheduler()
    for job, kind in [
        ("a", Waiting.TEXT_STEP),
        ("b", Waiting.TURN),
        ("c", Waiting.UNIT_STEP),
        ("d", Waiting.TEXT_STEP),
        ("e", Waiting.TURN),
        ("f", Waiting.ROOM),
    ]:
        scheduler.put(job, kind)
    first, second, third = (scheduler.next_round() for _ in range(3))
    assert (first.text, first.units, first.turn) == (("a", "d"), ("c",), "b")
    assert (second.text, second.units, second.turn) == ((), (), "e")
    assert not third
    assert len(scheduler) == 1
    assert scheduler.count(Waiting.ROOM) == 1


def test_who_is_dropped_is_not_asked_again() -> None:
    scheduler: Scheduler[str] = Scheduler()
    scheduler.put("a", Waiting.TEXT_STEP)
    assert scheduler.drop("a")
    assert not scheduler.drop("a")
    assert not scheduler.next_round()


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
    while (turn := scheduler.next_round().turn) is not None:
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
