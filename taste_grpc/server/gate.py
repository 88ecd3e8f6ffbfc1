"""Whether calls are let in, and how many are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

from taste_grpc.errors import UnavailableError

T = TypeVar("T")

_LOADING_RETRY_MS = 2_000
_DRAINING_RETRY_MS = 1_000


class GateState(Enum):
    """Where a server stands."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Gate(Generic[T]):
    """Lets calls in to what serves them, an engine say, counts them, and knows when the last has left.

    To be used on the event loop only.
    """

    def __init__(self) -> None:
        self.state = GateState.LOADING
        self._served: T | None = None
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Calls inside."""
        return self._active

    def open(self, serves: T) -> None:
        """Let calls in. Does nothing once draining."""
        if self.state is GateState.LOADING:
            self._served, self.state = serves, GateState.SERVING

    def drain(self) -> None:
        """Let nobody in any more, for good."""
        self.state = GateState.DRAINING

    @contextmanager
    def enter(self) -> Iterator[T]:
        """What serves, for the length of one call. Raises UnavailableError while loading or draining."""
        if self.state is GateState.DRAINING:
            raise UnavailableError("the server is about to stop", retry_after_ms=_DRAINING_RETRY_MS)
        if self._served is None:
            raise UnavailableError("the model is being loaded", retry_after_ms=_LOADING_RETRY_MS)
        self._active += 1
        self._idle.clear()
        try:
            yield self._served
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def idle(self) -> None:
        """Return once no call is inside."""
        await self._idle.wait()
