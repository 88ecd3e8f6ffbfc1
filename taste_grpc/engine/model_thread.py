"""The thread model work runs on, and how a call on the event loop waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from taste_grpc.errors import CallAbortedError, UnavailableError

T = TypeVar("T")


class CallAbort:
    """One call's stop flag: set on the event loop, looked at by the model thread between steps."""

    def __init__(self) -> None:
        self._wanted = threading.Event()

    def set(self) -> None:
        """Ask the call's model work to stop at its next check."""
        self._wanted.set()

    def __call__(self) -> None:
        """Raise CallAbortedError when the call is no longer wanted."""
        if self._wanted.is_set():
            raise CallAbortedError("the call was cancelled")


class ModelThread:
    """Runs pieces of work one after the other, in the order they were handed in.

    Calls hand in a step at a time, so several of them take turns.
    """

    def __init__(self, name: str = "taste-model") -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closed = False

    async def run(self, work: Callable[[], T], abort: CallAbort | None = None, *, wait: bool = True) -> T:
        """The result of `work`, run on the thread.

        When the awaiting task is cancelled, `abort` is set and work that has begun is waited for (it stops at
        its next check), so that nothing of a call is left running when its task is gone. With `wait` False, for
        work that has no checks, it finishes on its own and its result is dropped.
        """
        if self._closed:
            raise UnavailableError("the engine has stopped")
        running = self._executor.submit(work)
        future = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if abort is not None:
                abort.set()
            # whatever it ends with was asked for by nobody
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            if not running.cancel() and wait:
                with suppress(Exception):
                    await asyncio.shield(future)
            raise

    def close(self) -> None:
        """Finish what was handed in and end the thread."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
