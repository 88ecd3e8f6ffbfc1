"""From a thread that makes text to a task that reads it."""

from __future__ import annotations

import asyncio
import threading


class PieceStream:
    """Pieces of text on their way from one thread to one task.

    Make it on the event loop. The thread calls `put` and, last, `end`; the task calls `take`, and `close` at any point.

    Args:
        most_ahead: pieces that may wait to be read; the thread waits until there are fewer.
    """

    def __init__(self, most_ahead: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[str | Exception | None] = asyncio.Queue()  # bounded by `_room`
        self._room = threading.Semaphore(most_ahead)
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nobody reads any more. On any thread."""
        return self._closed

    def put(self, piece: str) -> bool:
        """Hand over `piece`, once there is room for it; False when nobody reads any more. Blocks its thread."""
        if not self._closed:
            self._room.acquire()
        return not self._closed and self._post(piece)

    def end(self, error: Exception | None = None) -> None:
        """There is no more; `error` is why, when something went wrong. On any thread, never blocks."""
        self._post(error)

    async def take(self) -> str | None:
        """The next piece; None after the last one. Raises the error that ended them."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        if item is not None:
            self._room.release()
        return item

    def close(self) -> None:
        """Nobody reads any more: lets the thread go on, whose next `put` tells it so. On any thread, more than once."""
        self._closed = True
        self._room.release()

    def _post(self, item: str | Exception | None) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)
        except RuntimeError:  # the event loop is closed, and with it everybody who could read
            return False
        return True
