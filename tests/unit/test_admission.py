"""Admission: how many are let in, who waits, in which order, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.engine.admission import MAX_RETRY_MS, MIN_RETRY_MS, Admission
from taste_grpc.errors import OverloadedError, UnavailableError
from taste_grpc.settings import MethodAdmission

LONG_MS = 60_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def door(active: int, waiting: int, max_wait_ms: int = LONG_MS, clock: Clock | None = None) -> Admission:
    return Admission("Generate", MethodAdmission(active=active, waiting=waiting), max_wait_ms, clock or Clock())


class Caller:
    """A call that stays inside until it is told to leave."""

    def __init__(self, admission: Admission, name: str = "", inside: list[str] | None = None) -> None:
        self.leave = asyncio.Event()
        self.entered = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, name, inside))

    async def _run(self, admission: Admission, name: str, inside: list[str] | None) -> None:
        async with admission.enter():
            self.entered.set()
            if inside is not None:
                inside.append(name)
            await self.leave.wait()


async def settled() -> None:
    """Let everybody run who can: each step of a caller takes one turn of the loop, and none takes ten."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def callers(admission: Admission, count: int) -> AsyncIterator[list[Caller]]:
    them = [Caller(admission) for _ in range(count)]
    await settled()
    try:
        yield them
    finally:
        for caller in them:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in them), return_exceptions=True)


async def test_so_many_get_in_and_so_many_wait_and_the_next_is_refused_at_once() -> None:
    admission = door(active=2, waiting=3)
    async with callers(admission, 5) as them:
        assert [caller.entered.is_set() for caller in them] == [True, True, False, False, False]
        assert (admission.active, admission.waiting) == (2, 3)
        with pytest.raises(OverloadedError, match="2 calls of Generate are under way") as refused:
            async with admission.enter():
                pass
        assert MIN_RETRY_MS <= refused.value.retry_after_ms <= MAX_RETRY_MS
        assert admission.refused == 1
    assert (admission.active, admission.waiting) == (0, 0)


async def test_those_who_wait_get_in_in_the_order_they_came() -> None:
    admission, inside = door(active=1, waiting=5), []
    them = [Caller(admission, str(number), inside) for number in range(6)]
    for number, caller in enumerate(them):
        await settled()
        assert inside == [str(k) for k in range(number + 1)]
        caller.leave.set()
        await caller.task
    assert (admission.active, admission.waiting) == (0, 0)


async def test_one_who_comes_later_does_not_overtake_the_line() -> None:
    admission, inside = door(active=1, waiting=5), []
    first, second = Caller(admission, "first", inside), Caller(admission, "second", inside)
    await settled()
    first.leave.set()
    third = Caller(admission, "third", inside)  # in the very turn of the loop in which the place is given on
    await settled()
    assert inside == ["first", "second"]
    for caller in (second, third):
        caller.leave.set()
        await caller.task
    assert inside == ["first", "second", "third"]


async def test_a_wait_that_is_too_long_ends_in_a_refusal() -> None:
    admission = door(active=1, waiting=5, max_wait_ms=1)
    async with callers(admission, 1):
        with pytest.raises(OverloadedError, match="within 1 ms"):
            async with admission.enter():
                pass
        assert (admission.active, admission.waiting) == (1, 0)


async def test_no_place_to_wait_refuses_at_once() -> None:
    admission = door(active=1, waiting=0)
    async with callers(admission, 1):
        with pytest.raises(OverloadedError):
            await asyncio.wait_for(Caller(admission).task, 10)


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    admission = door(active=1, waiting=2)
    async with callers(admission, 3) as (first, second, third):
        second.task.cancel()
        await settled()
        assert (admission.active, admission.waiting) == (1, 1)
        first.leave.set()
        await settled()
        assert third.entered.is_set()
        assert (admission.active, admission.waiting) == (1, 0)
    assert admission.active == 0


async def test_a_waiter_cancelled_in_the_moment_it_is_let_in_hands_its_place_on() -> None:
    admission = door(active=1, waiting=2)
    async with callers(admission, 3) as (first, second, third):
        first.leave.set()
        while admission.waiting == 2:  # until the place has been given to the second, which has not run since
            await asyncio.sleep(0)
        second.task.cancel()
        await settled()
        assert not second.entered.is_set()
        assert third.entered.is_set()
        assert (admission.active, admission.waiting) == (1, 0)


async def test_closing_refuses_those_who_wait_and_those_who_come() -> None:
    admission = door(active=1, waiting=2)
    async with callers(admission, 3) as (first, second, third):
        admission.close()
        for caller in (second, third):
            with pytest.raises(UnavailableError, match="draining"):
                await caller.task
        with pytest.raises(UnavailableError, match="draining"):
            async with admission.enter():
                pass
        assert (admission.active, admission.waiting) == (1, 0)
        first.leave.set()
        await first.task
    assert admission.active == 0


async def test_a_call_that_fails_gives_its_place_back() -> None:
    admission = door(active=1, waiting=0)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"):
            async with admission.enter():
                raise RuntimeError("broken")
    assert admission.active == 0


@pytest.mark.parametrize(("stay_s", "waiting", "low_ms", "high_ms"), [(2.0, 3, 8_000, 10_000), (2.0, 0, 2_000, 2_500)])
async def test_refused_callers_are_told_how_long_the_line_takes(
    stay_s: float, waiting: int, low_ms: int, high_ms: int
) -> None:
    clock = Clock()
    admission = door(active=1, waiting=waiting, clock=clock)
    for _ in range(60):  # calls that take as long teach it
        async with admission.enter():
            clock.now += stay_s
    async with callers(admission, 1 + waiting):
        told = [admission.retry_after_ms for _ in range(50)]
    assert low_ms - 1 <= min(told) <= max(told) <= high_ms + 1
    assert len(set(told)) > 1, "all who are refused come back at once"


@pytest.mark.parametrize(("stay_s", "told_ms"), [(0.0, MIN_RETRY_MS), (3600.0, MAX_RETRY_MS)])
async def test_what_refused_callers_are_told_is_bounded(stay_s: float, told_ms: int) -> None:
    clock = Clock()
    admission = door(active=1, waiting=0, clock=clock)
    for _ in range(60):
        async with admission.enter():
            clock.now += stay_s
    assert admission.retry_after_ms == told_ms


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(0, 20)), max_size=40),
)
def test_whatever_happens_places_are_neither_lost_nor_made_up(
    active: int, waiting: int, events: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        admission = door(active, waiting)
        them: list[Caller] = []
        for what, which in events:
            alive = [caller for caller in them if not caller.task.done()]
            if what == "come":
                them.append(Caller(admission))
            elif alive:
                caller = alive[which % len(alive)]
                caller.leave.set() if what == "leave" else caller.task.cancel()
            if which % 2:  # else the next event comes before anybody has moved
                await settled()
                self_check(admission, them)
        for caller in them:
            caller.leave.set()
        await asyncio.gather(*(caller.task for caller in them), return_exceptions=True)
        assert (admission.active, admission.waiting) == (0, 0)

    def self_check(admission: Admission, them: list[Caller]) -> None:
        inside = sum(caller.entered.is_set() and not caller.task.done() for caller in them)
        assert admission.active == inside <= active
        assert admission.waiting <= waiting
        assert admission.waiting == sum(not c.entered.is_set() and not c.task.done() for c in them)
        assert not (admission.waiting and inside < active), "somebody waits beside a free place"

    asyncio.run(run())
