"""Waiting for a caller, who may have gone without a word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

from taste_grpc.errors import IdleError

T = TypeVar("T")


async def in_time(waiting: Awaitable[T], limit_ms: int, message: str) -> T:
    """The result of `waiting`, which is cancelled after `limit_ms`. Raises IdleError with `message` then."""
    limit = asyncio.timeout(limit_ms / 1000)
    try:
        async with limit:
            return await waiting
    except TimeoutError:
        if not limit.expired():
            raise
        raise IdleError(message) from None


class Patience:
    """Ends the task that entered it with IdleError when a wait has lasted for `limit_ms`.

    As asyncio.timeout does, but for a great many short waits, which cost no timer each: the task puts the time at which
    a wait began into `since`, and None once it is over.

    Args:
        limit_ms: the longest wait.
        message: of the error.
    """

    def __init__(self, limit_ms: int, message: str) -> None:
        self.since: float | None = None
        self._limit_ms, self._message = limit_ms, message
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer = self._loop.call_later(limit_ms / 1000, self._look)

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise IdleError(self._message) from None

    def _look(self) -> None:
        now = time.monotonic()
        left_s = self._limit_ms / 1000 - (0.0 if self.since is None else now - self.since)
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._timeout.reschedule(self._loop.time())
