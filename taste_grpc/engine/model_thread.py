"""A thread for work that is done in one piece, and how a call on the event loop waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.errors import UnavailableError

T = TypeVar("T")


class ModelThread:
    """Runs pieces of work one after the other, in the order they were handed in.

    Calls hand in a step at a time, so several of them take turns.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closed = False

    async def run(self, work: Callable[[], T], abort: CallAbort | None = None, *, wait: bool = True) -> T:
        """The result of `work`, run on the thread.

        When the awaiting task is cancelled, `abort` is set and work that has begun is waited for (it stops at
        its next check), so that nothing of a call is left running when its task is gone. With `wait` False, for
        work that has no checks, it finishes on its own and its result is dropped.

        Raises UnavailableError when the thread is closed before `work` has begun.
        """
        if self._closed:
            raise UnavailableError("the engine has stopped")
        running = self._executor.submit(_begun, work, abort)
        future = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if future.cancelled():  # not this task, but the work: the thread was closed
                raise UnavailableError("the engine has stopped") from None
            if abort is not None:
                abort.set()
            await _discard(running, future, wait=wait)
            raise
        finally:
            # An error holds this frame, and they hold the error: without this it, and all that was on the stack of
            # the work, would live until the garbage collector comes by.
            del running, future

    def close(self) -> None:
        """Finish what has begun and end the thread."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)


def _begun(work: Callable[[], T], abort: CallAbort | None) -> T:
    if abort is not None:
        abort.begin()
    return work()


async def _discard(running: Future[T], future: asyncio.Future[T], *, wait: bool) -> None:
    """Take back work that nobody wants any more; whatever it ends with was asked for by nobody."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    if not running.cancel() and wait:
        await asyncio.wait([future])  # does not raise what it ended with, so no frame of ours gets into its trace
