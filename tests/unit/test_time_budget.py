"""A time limit with pauses that do not count."""

from __future__ import annotations

import asyncio

import pytest

from taste_grpc.dialogue.time_budget import TimeBudget


async def test_only_waiting_is_paid_for() -> None:
    budget = TimeBudget(10.0)
    assert await budget.spend(asyncio.sleep(0.02, "slept")) == "slept"
    left_s = budget.left_s
    assert 9.0 < left_s <= 9.98 + 0.001
    await asyncio.sleep(0.02)
    assert budget.left_s == left_s
    await budget.spend(asyncio.sleep(0.02))
    assert budget.left_s <= left_s - 0.019


async def test_what_takes_longer_is_cancelled() -> None:
    budget = TimeBudget(0.01)
    waiting = asyncio.ensure_future(asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        await budget.spend(waiting)
    assert waiting.cancelled()
    assert budget.left_s <= 0.0
    with pytest.raises(TimeoutError):
        await budget.spend(asyncio.Event().wait())


async def test_an_error_costs_what_it_took() -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise KeyError("mine")

    budget = TimeBudget(10.0)
    with pytest.raises(KeyError, match="mine"):
        await budget.spend(fail())
    assert budget.left_s <= 9.991
