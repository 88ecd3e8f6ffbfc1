"""The segments a caller sends, read one ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from taste_grpc.engine.call_abort import CallAbort
from taste_grpc.engine.protocol import SegmentInput


class NextSegment:
    """Reads one segment ahead of the one being spoken, so that it is known whether the speech goes on.

    To be used with `async with`, which ends the reading, on one event loop.

    Args:
        segments: what the caller sends.
        cut: set when waiting for the caller has to end.
        abort: raises what the wait ends with then.
    """

    def __init__(self, segments: AsyncIterator[SegmentInput], cut: asyncio.Event, abort: CallAbort) -> None:
        self._segments = segments
        self._cut = cut
        self._abort = abort
        self._reading: asyncio.Task[SegmentInput | None] = self._read()

    def _read(self) -> asyncio.Task[SegmentInput | None]:
        async def read() -> SegmentInput | None:
            return await anext(self._segments, None)

        return asyncio.create_task(read(), name="next-segment")

    async def take(self) -> SegmentInput | None:
        """The next segment; None after the last one. Raises what the caller's stream raises."""
        cut = asyncio.create_task(self._cut.wait())
        try:
            await asyncio.wait({self._reading, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cut.cancel()
        if not self._reading.done():
            self._abort()
        given = await self._reading
        if given is not None:
            self._reading = self._read()
        return given

    async def follows(self, within_s: float) -> bool | None:
        """Whether there is a next segment; None when that is not known within `within_s` seconds."""
        await asyncio.wait({self._reading}, timeout=within_s)
        if not self._reading.done():
            return None
        return self._reading.exception() is None and self._reading.result() is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.wait({self._reading})
        if not self._reading.cancelled():
            self._reading.exception()  # nobody asks for it any more
