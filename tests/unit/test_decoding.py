"""Work on requests, off the event loop: a few at a time, in a line that has an end, and given up between its parts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from taste_grpc.errors import OverloadedError
from taste_grpc.server.decoding import Decoding, StillWanted


class Parts:
    """Work of many parts that waits before each until it is told to go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.parts = 0

    def __call__(self, still_wanted: StillWanted) -> int:
        self.begun.set()
        try:
            self.go_on.wait(30)
            for _ in range(5):
                still_wanted()
                self.parts += 1
            return self.parts
        finally:
            self.ended.set()


@pytest_asyncio.fixture
async def decoding() -> AsyncIterator[Decoding]:
    decoding = Decoding(max_wait_ms=50)
    yield decoding
    decoding.close()


async def begun(parts: Parts) -> None:
    assert await asyncio.to_thread(parts.begun.wait, 30)


async def test_work_nobody_waits_for_ends_between_two_parts(decoding: Decoding) -> None:
    parts = Parts()
    task = asyncio.create_task(decoding.run(parts))
    await begun(parts)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    parts.go_on.set()
    assert await asyncio.to_thread(parts.ended.wait, 30)
    assert parts.parts == 0


async def test_those_who_find_all_threads_busy_do_not_wait_for_ever(decoding: Decoding) -> None:
    busy = [Parts(), Parts()]
    tasks = [asyncio.create_task(decoding.run(parts)) for parts in busy]
    for parts in busy:
        await begun(parts)
    with pytest.raises(OverloadedError) as refused:
        await decoding.run(lambda still_wanted: None)
    assert refused.value.retry_after_ms > 0
    for parts in busy:
        parts.go_on.set()
    assert await asyncio.gather(*tasks) == [5, 5]
    assert await decoding.run(lambda still_wanted: "the next") == "the next"
