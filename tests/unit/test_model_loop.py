"""The loop of the model thread, with work that only counts."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.engine.model_loop import READ_AHEAD, Job, ModelLoop
from taste_grpc.errors import CallAbortedError, UnavailableError
from taste_grpc.streaming.work import Emit, Slot, TextSlot, TextStep, Turn, UnitSlot, UnitStep, Work


class CountingMachine:
    """Steps that answer with how many took part, and a few slots."""

    def __init__(self, slots: int = 2) -> None:
        self.free = slots
        self.together: list[int] = []
        self.waited = 0

    def text_steps(self, wants: Sequence[TextStep]) -> list[int]:
        self.together.append(len(wants))
        return [len(wants)] * len(wants)

    def unit_steps(self, wants: Sequence[UnitStep]) -> list[int]:
        return [want.unit + 1 for want in wants]

    def slot(self, want: TextSlot | UnitSlot) -> Slot[Any] | None:
        if not self.free:
            return None
        self.free -= 1
        return Slot(None, 0, 1, self.give_back)  # type: ignore[arg-type]

    def give_back(self) -> None:
        self.free += 1

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def machine() -> CountingMachine:
    return CountingMachine()


@pytest_asyncio.fixture
async def loop(machine: CountingMachine) -> AsyncIterator[ModelLoop]:
    loop = ModelLoop()
    loop.attach(machine)
    yield loop
    await asyncio.to_thread(loop.close)


def talk(steps: int, *, emit: bool = True) -> Work[int]:
    slot = yield TextSlot(1)
    try:
        total = 0
        for _ in range(steps):
            total += yield TextStep(slot, None)  # type: ignore[arg-type]
            if emit:
                yield Emit(total)
    finally:
        slot.release()
    return total


def endless(turns: list[int]) -> Work[None]:
    while True:
        turns.append(1)
        yield Turn()


class Clock:
    """Goes on when it is told to, and notes when."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ClockedMachine(CountingMachine):
    """Steps of one second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.begun: list[float] = []

    def text_steps(self, wants: Sequence[TextStep]) -> list[int]:
        self.begun.append(self.clock.now)
        self.clock.now += 1.0
        return super().text_steps(wants)


@pytest.mark.parametrize("readers", [1, 3])
async def test_turns_of_others_delay_who_talks_by_no_more_than_two_steps(readers: int) -> None:
    clock = Clock()
    machine = ClockedMachine(clock)
    loop = ModelLoop(clock=clock)
    loop.attach(machine)

    def read(done: list[int]) -> Work[None]:
        while True:
            clock.now += 0.7
            done.append(1)
            yield Turn()

    done: list[list[int]] = [[] for _ in range(readers)]
    reading = [loop.submit(read(own), CallAbort()) for own in done]
    await loop.do(talk(20, emit=False), CallAbort())
    waits = np.diff(machine.begun) - 1.0  # beside the step itself
    assert waits.max() <= 2.0
    assert np.allclose(waits, 2 * 0.7)  # the turn that begins before the time is over ends after it
    assert max(map(len, done)) - min(map(len, done)) <= 1
    for job in reading:
        await loop.give_up(job)
    await asyncio.to_thread(loop.close)


async def test_work_runs_on_one_thread_of_its_own(loop: ModelLoop) -> None:
    names = {await loop.run(lambda: threading.current_thread().name) for _ in range(5)}
    assert names == {"taste-model"}


async def test_what_talks_together_steps_together(loop: ModelLoop, machine: CountingMachine) -> None:
    gate = threading.Event()
    holding = loop.submit(hold(gate), CallAbort())
    jobs = [loop.submit(talk(3, emit=False), CallAbort()) for _ in range(2)]
    gate.set()
    # they begin one after the other, a turn each, and step together from then on
    assert [await job.result for job in jobs] == [1 + 2 + 2, 2 + 2 + 1]
    await holding.result
    assert machine.together == [1, 2, 2, 1]
    assert machine.free == 2


async def values(job: Job[Any]) -> AsyncIterator[Any]:
    while batch := await job.take():
        for value in batch:
            yield value


def hold(gate: threading.Event) -> Work[None]:
    assert gate.wait(10)
    yield Turn()


async def test_values_come_in_order_and_then_the_result(loop: ModelLoop) -> None:
    async with loop.emitting(talk(50), CallAbort()) as job:
        assert [value async for value in values(job)] == list(range(1, 51))
        assert await job.result == 50


async def test_a_reader_that_stops_stops_its_job_and_nobody_else(loop: ModelLoop, machine: CountingMachine) -> None:
    async with loop.emitting(talk(1000), CallAbort()) as slow:
        given = values(slow)
        assert await anext(given) == 1
        assert await loop.do(talk(40, emit=False), CallAbort()) >= 40
        steps = len(machine.together)
        await loop.run(lambda: None)  # a round has passed, and nothing moved
        assert len(machine.together) == steps
        seen = [await anext(given) for _ in range(READ_AHEAD + 3)]
        assert seen == sorted(seen)
    assert machine.free == 2


@pytest.mark.parametrize("most_ahead", [1, 2, 3, 16])
async def test_a_job_is_never_further_ahead_than_it_may(loop: ModelLoop, most_ahead: int) -> None:
    made: list[int] = []

    def count() -> Work[None]:
        for number in range(100):
            made.append(number)
            yield Emit(number)

    async with loop.emitting(count(), CallAbort(), most_ahead) as job:
        taken = 0
        async for value in values(job):
            assert value == taken
            taken += 1
            if taken % 7 == 0:
                await loop.run(lambda: None)  # time for more
            assert len(made) <= taken + most_ahead
    assert taken == len(made) == 100


async def test_values_that_are_there_are_taken_together_and_make_room_when_more_are_asked_for(loop: ModelLoop) -> None:
    made: list[int] = []

    def count() -> Work[None]:
        for number in range(40):
            made.append(number)
            yield Emit(number)

    async with loop.emitting(count(), CallAbort(), 16) as job:
        returned = lent = 0
        for _ in range(5):
            await loop.run(lambda: None)  # time for as many as may be ahead
            assert len(made) == min(40, returned + 16), "what was taken counts when more is asked for"
            batch = await job.take()
            returned, lent = returned + lent, len(batch)
            assert batch == list(range(returned, returned + 8))
        assert await job.take() == []


async def test_what_failed_is_freed_without_the_garbage_collector(loop: ModelLoop) -> None:
    class Kept:
        pass

    def failing(kept: Kept) -> Work[None]:
        yield Emit(1)
        raise CallAbortedError("given up")

    async def read(kept: Kept) -> None:
        async with loop.emitting(failing(kept), CallAbort()) as job:
            while await job.take():
                pass

    kept = Kept()
    held = weakref.ref(kept)
    gc.disable()
    try:
        with pytest.raises(CallAbortedError):
            await read(kept)
        del kept
        await loop.run(lambda: None)
        assert held() is None
    finally:
        gc.enable()


async def test_a_reader_gets_each_value_when_it_comes(loop: ModelLoop) -> None:
    """None waits until there are more to be told of together."""
    asked = threading.Event()

    def on_demand() -> Work[None]:
        for number in range(20):
            assert asked.wait(10)
            asked.clear()
            yield Emit(number)
            yield Turn()

    async with loop.emitting(on_demand(), CallAbort(), 16) as job:
        given = values(job)
        for number in range(20):
            asked.set()
            assert await anext(given) == number
        assert [value async for value in given] == []


async def test_who_waits_for_a_slot_gets_it_when_one_is_free(loop: ModelLoop, machine: CountingMachine) -> None:
    jobs = [loop.submit(talk(4, emit=False), CallAbort()) for _ in range(5)]
    results = await asyncio.gather(*(job.result for job in jobs))
    assert len(results) == 5
    assert max(machine.together) == 2
    assert machine.free == 2


async def test_giving_up_frees_what_is_held_before_it_returns(loop: ModelLoop, machine: CountingMachine) -> None:
    turns: list[int] = []
    abort = CallAbort()
    job = loop.submit(endless(turns), abort)
    await loop.run(lambda: None)
    await loop.give_up(job)
    after = len(turns)
    await loop.run(lambda: None)
    assert len(turns) == after
    with pytest.raises(CallAbortedError):
        await job.result


async def test_a_cancel_does_not_cut_short_a_giving_up(loop: ModelLoop, machine: CountingMachine) -> None:
    gate, holding = threading.Event(), threading.Event()

    def hold_the_thread() -> Work[None]:
        yield Turn()
        holding.set()
        gate.wait(10)

    async def fail_while_talking() -> None:
        async with loop.emitting(talk(10_000), CallAbort()) as job:
            await job.take()
            other = loop.submit(hold_the_thread(), CallAbort())
            await asyncio.to_thread(holding.wait, 10)
            try:
                raise ValueError("the reader has gone")
            finally:
                others.append(other)

    others: list[Job[None]] = []
    reader = asyncio.create_task(fail_while_talking())
    while not others:
        await asyncio.sleep(0)
    for _ in range(3):
        reader.cancel()
        await asyncio.sleep(0)
    assert not reader.done()
    assert machine.free == 1
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert machine.free == 2
    await others[0].result


async def test_a_cancelled_wait_leaves_nothing_running(loop: ModelLoop, machine: CountingMachine) -> None:
    turns: list[int] = []
    task = asyncio.create_task(loop.do(endless(turns), CallAbort()))
    while not turns:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after = len(turns)
    await loop.run(lambda: None)
    assert len(turns) == after


async def test_an_error_reaches_the_caller_and_no_other(loop: ModelLoop) -> None:
    def bad() -> Work[None]:
        yield Turn()
        raise ValueError("out of range")

    other = loop.submit(talk(5, emit=False), CallAbort())
    with pytest.raises(ValueError, match="out of range"):
        await loop.do(bad(), CallAbort())
    assert await other.result >= 5


async def test_a_step_that_fails_fails_those_who_took_part(loop: ModelLoop, machine: CountingMachine) -> None:
    def broken(wants: Sequence[TextStep]) -> list[int]:
        raise RuntimeError("the step broke")

    working, machine.text_steps = machine.text_steps, broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the step broke"):
        await loop.do(talk(3), CallAbort())
    machine.text_steps = working  # type: ignore[method-assign]
    assert await loop.do(talk(3, emit=False), CallAbort()) == 3
    assert machine.free == 2


async def test_a_step_that_fails_because_the_device_is_lost_ends_all(
    loop: ModelLoop, machine: CountingMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> None:
        raise RuntimeError("the device is lost")

    def fail(wants: Sequence[TextStep]) -> list[int]:
        monkeypatch.setattr(machine, "synchronize", lost)
        return lost()  # type: ignore[return-value]

    other = loop.submit(endless([]), CallAbort())
    monkeypatch.setattr(machine, "text_steps", fail)
    with pytest.raises(RuntimeError, match="the device is lost"):
        await loop.do(talk(3), CallAbort())
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(other.result, 10)
    await asyncio.wait_for(asyncio.wrap_future(loop.failure), 10)
    with pytest.raises(UnavailableError):
        await loop.run(lambda: None)
    assert machine.free == 2
    assert "the model thread failed" in caplog.text


async def test_closing_ends_what_is_under_way_and_refuses_what_comes() -> None:
    loop = ModelLoop()
    turns: list[int] = []
    job = loop.submit(endless(turns), CallAbort())
    await asyncio.to_thread(loop.close)
    with pytest.raises(UnavailableError):
        await job.result
    with pytest.raises(UnavailableError):
        await loop.run(lambda: None)


async def test_a_machine_that_breaks_between_steps_fails_every_call_and_takes_no_more(
    loop: ModelLoop, machine: CountingMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(machine, "synchronize", broken)
    jobs = [loop.submit(talk(10**6, emit=False), CallAbort()), loop.submit(endless([]), CallAbort())]
    for job in jobs:
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(job.result, 10)
    with pytest.raises(UnavailableError):
        await loop.run(lambda: None)
    assert machine.free == 2
    assert loop.failure.done()
    assert "the model thread failed" in caplog.text


async def test_a_slot_that_cannot_be_had_fails_who_asked_and_no_other(
    loop: ModelLoop, machine: CountingMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.free = 0
    waiting = loop.submit(talk(3, emit=False), CallAbort())
    await loop.run(lambda: None)
    slot = machine.slot

    def refuse(want: TextSlot | UnitSlot) -> Slot[Any] | None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(machine, "slot", refuse)
    await loop.run(lambda: None)
    with pytest.raises(RuntimeError, match="out of memory"):
        await waiting.result
    monkeypatch.setattr(machine, "slot", slot)
    machine.free = 1
    assert await loop.do(talk(3, emit=False), CallAbort()) == 3
