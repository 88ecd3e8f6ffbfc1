"""Whether calls are let in, and how many are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from taste_grpc.engine.protocol import Engine
from taste_grpc.errors import UnavailableError

_LOADING_RETRY_MS = 2_000
_DRAINING_RETRY_MS = 1_000


class GateState(Enum):
    """Where a server stands."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Gate:
    """Lets calls in to the engine while the server serves, counts them, and knows when the last has left.

    To be used on the event loop only.
    """

    def __init__(self) -> None:
        self.state = GateState.LOADING
        self._engine: Engine | None = None
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Calls inside."""
        return self._active

    def open(self, engine: Engine) -> None:
        """Let calls in. Does nothing once draining."""
        if self.state is GateState.LOADING:
            self._engine, self.state = engine, GateState.SERVING

    def drain(self) -> None:
        """Let nobody in any more, for good."""
        self.state = GateState.DRAINING

    @contextmanager
    def enter(self) -> Iterator[Engine]:
        """The engine, for the length of one call. Raises UnavailableError while loading or draining."""
        if self.state is GateState.DRAINING:
            raise UnavailableError("the server is about to stop", retry_after_ms=_DRAINING_RETRY_MS)
        if self._engine is None:
            raise UnavailableError("the model is being loaded", retry_after_ms=_LOADING_RETRY_MS)
        self._active += 1
        self._idle.clear()
        try:
            yield self._engine
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def idle(self) -> None:
        """Return once no call is inside."""
        await self._idle.wait()
