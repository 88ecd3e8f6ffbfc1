"""Pieces of text from a thread to a task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from taste_grpc.dialogue.piece_stream import PieceStream
from taste_grpc.errors import LanguageModelError


class Writer:
    """A thread that writes numbers until nobody reads them."""

    def __init__(self, pieces: PieceStream, last: int, error: Exception | None = None) -> None:
        self.written = 0
        self.refused = False
        self._pieces, self._last, self._error = pieces, last, error
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def _main(self) -> None:
        while not self.refused and self.written < self._last:
            self.refused = not self._pieces.put(str(self.written))
            self.written += not self.refused
        self._pieces.end(self._error)

    async def ended(self) -> None:
        await asyncio.to_thread(self._thread.join, 30)
        assert not self._thread.is_alive()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def read(pieces: PieceStream) -> list[str]:
    found = []
    while (piece := await pieces.take()) is not None:
        found.append(piece)
    return found


async def test_everything_comes_in_order() -> None:
    pieces = PieceStream(2)
    writer = Writer(pieces, 100)
    assert await read(pieces) == [str(number) for number in range(100)]
    await writer.ended()


async def test_an_error_comes_after_what_was_written() -> None:
    pieces = PieceStream(4)
    writer = Writer(pieces, 3, LanguageModelError("broken"))
    assert [await pieces.take() for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(LanguageModelError, match="broken"):
        await pieces.take()
    await writer.ended()


async def test_the_thread_waits_for_the_reader_and_goes_on_with_it() -> None:
    pieces = PieceStream(3)
    writer = Writer(pieces, 100)
    await until(lambda: writer.written == 3)
    assert await pieces.take() == "0"
    await until(lambda: writer.written == 4)
    assert await pieces.take() == "1"
    await until(lambda: writer.written == 5)
    pieces.close()
    await writer.ended()
    assert writer.refused
    assert writer.written == 5


async def test_who_writes_after_the_end_is_told_at_once() -> None:
    pieces = PieceStream(1)
    pieces.close()
    assert pieces.is_closed
    assert [pieces.put("x") for _ in range(3)] == [False, False, False]


def test_a_thread_that_outlives_the_event_loop_is_told_so() -> None:
    async def make() -> PieceStream:
        return PieceStream(1)

    pieces = asyncio.run(make())
    assert pieces.put("x") is False
    pieces.end()
