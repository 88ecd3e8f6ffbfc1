"""A time limit with pauses that do not count."""

from __future__ import annotations

import asyncio

import pytest

from taste_grpc.dialogue.time_budget import TimeBudget
from tests.support.scripted import time_passes


async def test_only_waiting_is_paid_for() -> None:
    async def slow(result: str) -> str:
        time_passes(30.0)
        return result

    budget = TimeBudget(100.0)
    assert await budget.spend(slow("first")) == "first"
    left_s = budget.left_s
    assert 60.0 < left_s <= 70.0
    time_passes(30.0)
    assert budget.left_s == left_s
    assert await budget.spend(slow("second")) == "second"
    assert budget.left_s <= left_s - 30.0


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
        time_passes(3.0)
        raise KeyError("mine")

    budget = TimeBudget(10.0)
    with pytest.raises(KeyError, match="mine"):
        await budget.spend(fail())
    assert budget.left_s <= 7.0
