"""How asyncio calls end, where grpc.aio does not tell."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

_T = TypeVar("_T")

StatusParts: TypeAlias = tuple[grpc.StatusCode, str, Any]
"""Code, details and trailers of a call that has ended."""

_WRITE_FAILED = (grpc.StatusCode.INTERNAL, "Internal error from Core")
# The status that takes its place comes without notice.
_STATUS_POLL_S = 0.005
_STATUS_POLLS = 400


class CallStatus:
    """How a call ended.

    When the server ends a call while a request is being written, grpc.aio (1.85) reports an INTERNAL of its own, in
    place of the status that it has received, or receives in the next moment.
    """

    def __init__(self, call: Any) -> None:
        self._call = weakref.ref(call)
        self._parts: StatusParts | None = None
        call.add_done_callback(self._keep)

    def _keep(self, call: Any) -> None:
        # The coroutines have nothing to wait for: the call has ended. A task would run them too late.
        if self._parts is None or self._parts[:2] == _WRITE_FAILED:
            self._parts = (_at_once(call.code()), _at_once(call.details()), _at_once(call.trailing_metadata()))

    async def parts(self, error: grpc.aio.AioRpcError) -> StatusParts:
        """Code, details and trailers; `error` is what grpc.aio says."""
        return await self.settled() or (error.code(), error.details() or "", error.trailing_metadata())

    async def settled(self) -> StatusParts | None:
        """The same of a call that may not have ended; None then."""
        for _ in range(_STATUS_POLLS):
            call = self._call()
            if call is None or self._parts is None or self._parts[:2] != _WRITE_FAILED:
                break
            await asyncio.sleep(_STATUS_POLL_S)
            self._keep(call)
        return self._parts


def _at_once(answer: Coroutine[Any, Any, _T]) -> _T:
    try:
        answer.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    answer.close()
    raise RuntimeError("a call that has ended has not got its status")


def is_cancelled_itself() -> bool:
    """Whether the running task was cancelled, and not only the call it waits for; gRPC reports both in one way."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
