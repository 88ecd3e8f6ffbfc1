"""Checking and decoding of large requests, off the event loop and a few at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from taste_grpc.engine.admission import Admission
from taste_grpc.errors import CallAbortedError
from taste_grpc.settings import MethodAdmission

T = TypeVar("T")

_THREADS = 2
_WAITING = 64

StillWanted = Callable[[], None]
"""Raises CallAbortedError once nobody waits for the work any more; to be called between its parts."""


class Decoding:
    """Two threads for work on requests, and a line before them. To be used on one event loop.

    Args:
        max_wait_ms: the longest wait in the line.
    """

    def __init__(self, max_wait_ms: int) -> None:
        self._door = Admission("decoding", MethodAdmission(active=_THREADS, waiting=_WAITING), max_wait_ms)
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="taste-codec")

    async def run(self, work: Callable[[StillWanted], T]) -> T:
        """The result of `work`. A cancel ends it between two parts, and what it was doing is discarded.

        Raises OverloadedError when the line is full or the wait too long.
        """
        given_up = threading.Event()

        def still_wanted() -> None:
            if given_up.is_set():
                raise CallAbortedError("the call was cancelled")

        async with self._door.enter():
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, still_wanted)
            finally:
                given_up.set()

    def close(self) -> None:
        """Ends the threads; what they work on is discarded."""
        self._threads.shutdown(wait=False, cancel_futures=True)
