"""A time limit on something that is done in parts, with pauses that do not count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class TimeBudget:
    """So many seconds of waiting in all."""

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds

    @property
    def left_s(self) -> float:
        """What has not been spent."""
        return self._left_s

    async def spend(self, awaitable: Awaitable[T]) -> T:
        """The result of `awaitable`, paid for by this budget. Raises TimeoutError and cancels it when all is spent."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._left_s)):
                return await awaitable
        finally:
            self._left_s -= loop.time() - begun
