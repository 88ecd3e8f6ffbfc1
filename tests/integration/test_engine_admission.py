"""Who the local engine lets in, what those who wait and those who are refused get, and how its end reaches them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from taste_grpc.audio import Waveform
from taste_grpc.engine import (
    DetokenizeConfig,
    EngineSettings,
    EngineStats,
    GenerateRequest,
    LocalEngine,
    SegmentInput,
    TokenizeRequest,
)
from taste_grpc.errors import OverloadedError, UnavailableError
from taste_grpc.settings import AdmissionSettings, MethodAdmission
from tests.checkpoints import TINY
from tests.support.live_server import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("tokenize", "generate", "detokenize")
SEGMENT = SegmentInput("user", "audio", text_ids=np.array([3, 4]), taste_ids=np.ones((2, 4), np.int64))
LONG = GenerateRequest((SEGMENT,), extra_words=1000, max_length=4000, eos_id=0, seed=5)


@asynccontextmanager
async def started() -> AsyncIterator[LocalEngine]:
    """An engine that lets in one call of each method, and one more wait."""
    rules = MethodAdmission(active=1, waiting=1)
    admission = AdmissionSettings(tokenize=rules, generate=rules, detokenize=rules)
    engine = LocalEngine(EngineSettings(model=TINY, device="cpu", threads=1, admission=admission))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.drain(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LocalEngine]:
    async with started() as engine:
        yield engine


async def never(engine: LocalEngine) -> AsyncIterator[SegmentInput]:
    """The segments of a caller that says nothing."""
    await asyncio.Event().wait()
    yield SEGMENT


async def call(engine: LocalEngine, method: str) -> list[Any]:
    """A whole call that is over soon."""
    if method == "tokenize":
        audio = Waveform(np.full(8000, 0.1, np.float32), 16_000)
        return [await engine.tokenize(TokenizeRequest(audio, text_ids=np.array([3, 4])))]
    if method == "generate":
        request = GenerateRequest((SEGMENT,), max_length=3, eos_id=0, seed=5)
        return [result async for result in engine.generate(request)]
    return [chunk async for chunk in engine.detokenize(config(), once())]


def config() -> DetokenizeConfig:
    return DetokenizeConfig(speaker_embedding=np.ones(192, np.float32), seed=1)


async def once() -> AsyncIterator[SegmentInput]:
    yield SEGMENT


@asynccontextmanager
async def one_inside_one_waiting(engine: LocalEngine) -> AsyncIterator[asyncio.Task[list[Any]]]:
    """A Generate that takes its time, and a short one in line behind it, which is yielded."""
    async with aclosing(engine.generate(LONG)) as running:
        await anext(running)
        waiting = asyncio.create_task(call(engine, "generate"))
        await until(lambda: engine.stats().waiting_calls == 1)
        for _ in range(5):
            await anext(running)
        assert not waiting.done()
        yield waiting


async def test_each_method_has_a_door_of_its_own(engine: LocalEngine) -> None:
    refused_before = engine.stats().extra["refused_calls"]
    async with one_inside_one_waiting(engine) as waiting:
        with pytest.raises(OverloadedError, match="1 calls of Generate are under way") as refused:
            await call(engine, "generate")
        assert 100 <= refused.value.retry_after_ms <= 30_000
        for method in ("tokenize", "detokenize"):
            assert await call(engine, method)
        stats = engine.stats()
        assert (stats.active_calls, stats.waiting_calls) == (1, 1)
        assert stats.extra["refused_calls"] == refused_before + 1
    assert await waiting


async def test_one_who_waited_gets_the_same_answer_and_is_told_how_long(engine: LocalEngine) -> None:
    (*_, alone) = await call(engine, "generate")
    async with one_inside_one_waiting(engine) as waiting:
        begun = time.monotonic()
        assert await call(engine, "tokenize")
        waited_ms = 1000 * (time.monotonic() - begun)
    (*_, result) = await waiting
    assert engine.stats().waiting_calls == 0
    assert result.text_ids == alone.text_ids
    assert result.timing_ms["queued"] >= waited_ms


@pytest.mark.parametrize("method", METHODS)
async def test_every_answer_tells_what_was_spent_waiting(engine: LocalEngine, method: str) -> None:
    assert all(answer.timing_ms["queued"] >= 0 for answer in await call(engine, method))


async def test_a_cancelled_waiter_leaves_no_trace(engine: LocalEngine) -> None:
    async with aclosing(engine.generate(LONG)) as running:
        await anext(running)
        before = calls(engine)
        for _ in range(3):
            waiting = asyncio.create_task(call(engine, "generate"))
            await until(lambda: engine.stats().waiting_calls == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert calls(engine) == before


def calls(engine: LocalEngine) -> EngineStats:
    """The counters of calls; those of steps go on while a call runs."""
    return replace(engine.stats(), decode_steps=0, extra={})


async def test_draining_refuses_those_who_wait_and_lets_the_running_finish() -> None:
    async with started() as engine:
        request = GenerateRequest((SEGMENT,), max_length=40, eos_id=0, seed=5)
        running = engine.generate(request)
        await anext(running)
        waiting = asyncio.create_task(call(engine, "generate"))
        await until(lambda: engine.stats().waiting_calls == 1)
        draining = asyncio.create_task(engine.drain(60))
        with pytest.raises(UnavailableError, match="draining") as refused:
            await waiting
        assert refused.value.retry_after_ms > 0
        results = [result async for result in running]
        assert results[-1].is_complete
        await draining
        assert engine.stats().active_calls == 0


async def test_calls_that_outlast_the_grace_are_aborted() -> None:
    """One at work, and one that waits for its caller."""
    async with started() as engine:

        async def read_on() -> None:
            async for _ in engine.generate(LONG):
                pass

        asked = asyncio.Event()

        async def nothing() -> AsyncIterator[SegmentInput]:
            asked.set()
            async for segment in never(engine):
                yield segment

        async def listen() -> None:
            async for _ in engine.detokenize(config(), nothing()):
                pass

        calls = [asyncio.create_task(read_on()), asyncio.create_task(listen())]
        begun = engine.stats().decode_steps
        await until(lambda: engine.stats().decode_steps >= begun + 3 and asked.is_set())
        assert engine.stats().active_calls == 2
        await engine.drain(0)
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, UnavailableError), repr(ended)
            assert ended.retry_after_ms > 0
        assert engine.stats().active_calls == 0


async def test_a_second_drain_cuts_the_grace_of_the_first_short() -> None:
    async with started() as engine:
        running = engine.generate(LONG)
        await anext(running)
        patient = asyncio.create_task(engine.drain(600))
        await asyncio.sleep(0)
        await engine.drain(0)
        with pytest.raises(UnavailableError):
            async for _ in running:
                pass
        await asyncio.wait_for(patient, 30)


async def test_an_engine_whose_thread_fails_says_so() -> None:
    async with started() as engine:
        failed = asyncio.create_task(engine.failed())
        assert await call(engine, "generate")
        assert not failed.done()

        def lost() -> None:
            raise RuntimeError("the device is lost")

        engine._loop._commands.put(lost)
        await asyncio.wait_for(failed, 10)
        with pytest.raises(UnavailableError):
            await call(engine, "generate")
