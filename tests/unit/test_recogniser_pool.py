"""Who is decoded when, with recognisers that wait to be told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError, UnsupportedByModelError
from taste_grpc.speech import RecogniserPool, known_language


class Told:
    """Decodes a clip, whose first sample is its number, when `may` has been released."""

    name = "told"
    languages = frozenset({"en"})

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.thread = threading.get_ident()

    def transcribe(self, samples: Float32Array, language: str | None = None) -> str:
        known_language(self, language)
        number = int(samples[0])
        assert threading.get_ident() == self.thread
        self.stage.begun.append(number)
        assert self.stage.may.acquire(timeout=30)
        if number < 0:
            raise RuntimeError("a broken clip")
        return str(number)


class Stage:
    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may = threading.Semaphore(0)
        self.made: list[Told] = []
        self.pool = RecogniserPool(self._make)

    def _make(self) -> Told:
        self.made.append(Told(self))
        return self.made[-1]

    async def open(self, size: int) -> None:
        self.pool = RecogniserPool(self._make, size)
        await self.pool.start()

    def ask(self, number: int, *, urgent: bool = False, language: str | None = None) -> asyncio.Task[str]:
        clip = np.full(4, number, np.float32)
        return asyncio.create_task(self.pool.transcribe(clip, urgent=urgent, language=language))

    async def until_begun(self, count: int) -> None:
        while len(self.begun) < count:
            await asyncio.sleep(0.001)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.may.release(100)
    await stage.pool.aclose()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recogniser")]


async def test_urgent_ones_first_each_kind_in_its_order(stage: Stage) -> None:
    await stage.open(1)
    tasks = [stage.ask(1)]
    await stage.until_begun(1)
    tasks += [stage.ask(2), stage.ask(3), stage.ask(4, urgent=True), stage.ask(5), stage.ask(6, urgent=True)]
    await asyncio.sleep(0)
    assert (stage.pool.busy, stage.pool.waiting) == (1, 5)
    stage.may.release(6)
    assert await asyncio.gather(*tasks) == ["1", "2", "3", "4", "5", "6"]
    assert stage.begun == [1, 4, 6, 2, 3, 5]
    assert (stage.pool.busy, stage.pool.waiting) == (0, 0)


async def test_as_many_at_once_as_there_are_recognisers(stage: Stage) -> None:
    await stage.open(2)
    tasks = [stage.ask(number) for number in (1, 2, 3)]
    await stage.until_begun(2)
    assert sorted(stage.begun) == [1, 2]
    assert (stage.pool.busy, stage.pool.waiting) == (2, 1)
    assert len({told.thread for told in stage.made}) == 2
    assert threading.get_ident() not in {told.thread for told in stage.made}
    stage.may.release(3)
    assert await asyncio.gather(*tasks) == ["1", "2", "3"]


async def test_a_request_cancelled_while_it_waits_is_never_decoded(stage: Stage) -> None:
    await stage.open(1)
    first = stage.ask(1)
    await stage.until_begun(1)
    second, third = stage.ask(2), stage.ask(3)
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    assert stage.pool.waiting == 1
    stage.may.release(3)
    assert await asyncio.gather(first, third) == ["1", "3"]
    assert stage.begun == [1, 3]


async def test_a_request_cancelled_under_way_finishes_off_the_path(stage: Stage) -> None:
    await stage.open(1)
    first = stage.ask(1)
    await stage.until_begun(1)
    first.cancel()
    await asyncio.wait([first])
    second = stage.ask(2)
    await asyncio.sleep(0)
    assert (stage.pool.busy, stage.pool.waiting) == (1, 1)
    stage.may.release(2)
    assert await second == "2"
    assert stage.begun == [1, 2]


async def test_a_failure_is_its_callers_alone(stage: Stage) -> None:
    await stage.open(1)
    broken, unknown, good = stage.ask(-1), stage.ask(1, language="de"), stage.ask(2, language="en-GB")
    stage.may.release(3)
    with pytest.raises(SpeechError, match="RuntimeError: a broken clip"):
        await broken
    with pytest.raises(UnsupportedByModelError, match="'de'; it knows en"):
        await unknown
    assert await good == "2"


async def test_closing_finishes_what_is_under_way_and_drops_the_rest(stage: Stage) -> None:
    await stage.open(1)
    first, second = stage.ask(1), stage.ask(2)
    await stage.until_begun(1)
    closing = asyncio.create_task(stage.pool.aclose())
    with pytest.raises(SpeechError, match="have been stopped"):
        await second
    stage.may.release(1)
    assert await first == "1"
    await closing
    with pytest.raises(SpeechError, match="not running"):
        await stage.ask(3)
    assert stage.begun == [1]


async def test_a_recogniser_that_cannot_be_made_is_the_error_of_the_start() -> None:
    calls: list[int] = []

    def make() -> Told:
        calls.append(threading.get_ident())
        raise UnsupportedByModelError("no weights")

    pool = RecogniserPool(make, 2)
    with pytest.raises(UnsupportedByModelError, match="no weights"):
        await pool.start()
    assert len(calls) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recogniser")]


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RecogniserPool(lambda: Told(Stage()), 0)


@pytest.mark.parametrize(("tag", "first"), [(None, None), ("en", "en"), ("EN-us", "en"), ("en_GB", "en")])
def test_known_languages(tag: str | None, first: str | None) -> None:
    assert known_language(Told(Stage()), tag) == first
