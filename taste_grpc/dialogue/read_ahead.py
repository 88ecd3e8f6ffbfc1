"""Reading a stream of text with time limits that leave the stream alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_AHEAD = 4


@dataclass(frozen=True)
class _End:
    error: Exception | None


class ReadAhead:
    """Reads `source` on one task, a few pieces ahead of its reader.

    A wait for the next piece may be given up, and the piece is there for the next one: cancelling an async generator's
    own step would end the generator. Leaving the `async with` block closes `source`.
    """

    def __init__(self, source: AsyncGenerator[str]) -> None:
        self._source = source
        self._queue: asyncio.Queue[str | _End] = asyncio.Queue(_AHEAD)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read(), name="read-ahead")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def next(self, timeout_s: float) -> str | None:
        """The next piece; empty when none came in time, None after the last. Raises what `source` raised."""
        try:
            async with asyncio.timeout(timeout_s):
                item = await self._queue.get()
        except TimeoutError:
            return ""
        if isinstance(item, str):
            return item
        if item.error is not None:
            raise item.error
        return None

    async def _read(self) -> None:
        error = None
        try:
            async with aclosing(self._source) as pieces:
                async for piece in pieces:
                    if piece:
                        await self._queue.put(piece)
        except Exception as caught:
            error = caught
        await self._queue.put(_End(error))
