"""The calls of an engine: let in, counted, waited for, cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from taste_grpc.engine.admission import Admission
from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.errors import CallAbortedError, UnavailableError
from taste_grpc.settings import AdmissionSettings

METHODS = ("tokenize", "generate", "detokenize")


class Calls:
    """Every call of an engine from its arrival to its end. To be used on one event loop.

    Attributes:
        cut: set once calls are cut off; who waits for a caller wakes up then.
        completed, cancelled, failed: calls that ended so.
    """

    def __init__(self, admission: AdmissionSettings) -> None:
        self._doors = {
            method: Admission(method.capitalize(), getattr(admission, method), admission.max_wait_ms)
            for method in METHODS
        }
        self._closed = False
        self._running: set[CallAbort] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._checks = 0
        self.cut = asyncio.Event()
        self.completed = self.cancelled = self.failed = 0

    @property
    def active(self) -> int:
        """Calls under way."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Calls that wait to be let in."""
        return sum(door.waiting for door in self._doors.values())

    @property
    def refused(self) -> int:
        """Calls that were not let in."""
        return sum(door.refused for door in self._doors.values())

    @property
    def abort_checks(self) -> int:
        """Steps, layers and the like that were begun for all calls."""
        return self._checks + sum(abort.checks for abort in self._running)

    @asynccontextmanager
    async def enter(self, method: str) -> AsyncIterator[CallAbort]:
        """One call, for its length; its abort flag is set on the way out, however it ends.

        Raises OverloadedError or UnavailableError when it is not let in, UnavailableError when it is cut off.
        """
        if self._closed:
            raise UnavailableError("the server is draining; no new calls are taken")
        abort = CallAbort()
        async with self._doors[method].enter():
            with self._counted(abort):
                yield abort

    @contextmanager
    def _counted(self, abort: CallAbort) -> Iterator[None]:
        self._running.add(abort)
        self._idle.clear()
        try:
            yield
            self.completed += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        except CallAbortedError:
            self.cancelled += 1
            if self.cut.is_set():
                raise UnavailableError("the server stopped before the call had ended") from None
            raise
        except Exception:
            self.failed += 1
            raise
        finally:
            abort.set()
            self._checks += abort.checks
            self._running.discard(abort)
            if not self._running:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Let nobody in any more, wait for the others, and cut them off after `grace_s` seconds."""
        self._closed = True
        for door in self._doors.values():
            door.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self.cut.set()
            for abort in self._running:
                abort.set()
