"""The memory manager: nobody shares a slot, nobody exceeds the budget, and everything comes back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from taste_grpc.engine.slots import Reservation, SlotPool


class PoolMachine(RuleBasedStateMachine):
    """Calls come and go in any order; a plain dictionary says what must be true."""

    held = Bundle("held")

    @initialize(
        slots=st.integers(1, 6),
        capacity=st.integers(1, 300),
        size=st.integers(1, 50),
        block=st.integers(1, 64),
        blocks=st.integers(1, 12),
    )
    def make(self, slots: int, capacity: int, size: int, block: int, blocks: int) -> None:
        self.size, self.block = size, block
        self.budget = size * block * blocks + size // 2
        self.pool = SlotPool(slots, capacity, size, self.budget, block)
        self.model: dict[Reservation, int] = {}
        self.most = 0

    @rule(target=held, positions=st.integers(1, 300))
    def reserve(self, positions: int) -> object:
        if positions > self.pool.capacity:
            with pytest.raises(ValueError, match=f"{positions} positions were asked for"):
                self.pool.reserve(positions)
            return multiple()
        cost = -(-positions // self.block) * self.block * self.size
        fits = len(self.model) < self.pool.slots and sum(self.model.values()) + cost <= self.budget
        reservation = self.pool.reserve(positions)
        assert (reservation is not None) == fits
        if reservation is None:
            return multiple()
        assert reservation.slot not in {other.slot for other in self.model}
        assert 0 <= reservation.slot < self.pool.slots
        self.model[reservation] = cost
        self.most = max(self.most, sum(self.model.values()))
        return reservation

    @rule(reservation=consumes(held))
    def release(self, reservation: Reservation) -> None:
        reservation.release()
        del self.model[reservation]
        with pytest.raises(RuntimeError, match="was released before"):
            reservation.release()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.live == len(self.model)
        assert self.pool.bytes_reserved == sum(self.model.values()) <= self.budget
        assert self.pool.most_bytes_reserved == self.most
        assert self.pool.most_live >= self.pool.live

    def teardown(self) -> None:
        for reservation in getattr(self, "model", {}):
            reservation.release()
        if hasattr(self, "pool"):
            assert (self.pool.live, self.pool.bytes_reserved) == (0, 0)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(deadline=None, max_examples=60)


def test_a_call_that_could_never_fit_is_told_so_at_once() -> None:
    pool = SlotPool(slots=2, capacity=1000, bytes_per_position=10, budget_bytes=2000, block=64)
    assert pool.capacity == 192  # what the budget allows in whole blocks
    with pytest.raises(ValueError, match="193 positions were asked for; 1 to 192 can be had"):
        pool.reserve(193)
    assert pool.reserve(192) is not None


def test_the_lowest_free_slot_is_taken_first() -> None:
    pool = SlotPool(4, 10, 1, 1000, 1)
    first, second, third = (pool.reserve(1) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    third.release()
    first.release()
    again = pool.reserve(1)
    assert again is not None
    assert again.slot == 0


@pytest.mark.parametrize("name", ["slots", "capacity", "bytes_per_position", "block"])
def test_sizes_below_one_are_named(name: str) -> None:
    sizes = {"slots": 1, "capacity": 1, "bytes_per_position": 1, "budget_bytes": 1, "block": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SlotPool(**sizes)


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 639 bytes is less than a block of 640"):
        SlotPool(1, 100, 10, 639, 64)


def test_it_needs_no_torch() -> None:
    source = SlotPool.__init__.__code__.co_filename
    code = f"import runpy, sys; runpy.run_path({source!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
