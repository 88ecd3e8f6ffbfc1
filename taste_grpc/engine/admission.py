"""Who gets in: so many calls of a method at once, a line of those that wait, and nobody beyond."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from taste_grpc.errors import OverloadedError, UnavailableError
from taste_grpc.settings import MethodAdmission

MIN_RETRY_MS, MAX_RETRY_MS = 100, 30_000
"""Bounds of what refused callers are told to wait."""

_FIRST_GUESS_S = 1.0
_NEWEST_WEIGHT = 0.2
_SPREAD = 0.25


class Admission:
    """The door of one method. To be used on one event loop.

    At most `rules.active` calls are inside; at most `rules.waiting` wait for that, each for at most
    `max_wait_ms`, and get in in the order they came.

    Args:
        method: its name, for messages.
        rules: how many calls.
        max_wait_ms: the longest wait.
        clock: seconds that only ever grow.
    """

    def __init__(
        self, method: str, rules: MethodAdmission, max_wait_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._method = method
        self._rules = rules
        self._max_wait_ms = max_wait_ms
        self._clock = clock
        self._active = 0
        self._line: dict[asyncio.Future[None], None] = {}  # in the order they came
        self._stay_s = _FIRST_GUESS_S
        self._closed = False
        self.refused = 0

    @property
    def active(self) -> int:
        """Calls inside."""
        return self._active

    @property
    def waiting(self) -> int:
        """Calls in the line."""
        return len(self._line)

    @property
    def retry_after_ms(self) -> int:
        """When one who comes now and is refused may find room: the time the line needs, as calls went so far.

        Spread a little, so that those refused together do not come back together.
        """
        expected_s = self._stay_s * (len(self._line) + 1) / self._rules.active
        spread_ms = 1000.0 * expected_s * random.uniform(1.0, 1.0 + _SPREAD)
        return round(min(max(spread_ms, MIN_RETRY_MS), MAX_RETRY_MS))

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Be inside, for the length of one call; waits for a place.

        A cancel while waiting leaves nothing behind.

        Raises:
            OverloadedError: the line is full, or the wait was too long.
            UnavailableError: closed, before or meanwhile.
        """
        await self._admitted()
        begun = self._clock()
        try:
            yield
        finally:
            self._stay_s += _NEWEST_WEIGHT * (self._clock() - begun - self._stay_s)
            self._leave()

    def close(self) -> None:
        """Let nobody in any more, for good; those who wait are refused, those inside stay."""
        self._closed = True
        for turn in self._line:
            if not turn.done():
                turn.set_exception(_closed())

    async def _admitted(self) -> None:
        if self._closed:
            raise _closed()
        if self._active < self._rules.active:
            self._active += 1
            return
        if len(self._line) >= self._rules.waiting:
            raise self._overloaded("and as many as may wait for that")
        await self._wait()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        timer = loop.call_later(self._max_wait_ms / 1000, self._give_up, turn)
        self._line[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._leave()  # it was let in and cancelled in one moment
            raise
        finally:
            timer.cancel()
            self._line.pop(turn, None)

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(self._overloaded(f"and none ended within {self._max_wait_ms} ms"))

    def _leave(self) -> None:
        """Give the place to the first who waits, or free it."""
        for turn in self._line:
            if not turn.done():
                turn.set_result(None)
                del self._line[turn]
                return
        self._active -= 1

    def _overloaded(self, why: str) -> OverloadedError:
        self.refused += 1
        return OverloadedError(
            f"{self._rules.active} calls of {self._method} are under way, {why}; try again later",
            retry_after_ms=self.retry_after_ms,
        )


def _closed() -> UnavailableError:
    return UnavailableError("the server is draining; no new calls are taken")
