"""Calls in company: what a call gives does not depend on which others join and leave beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.audio import Waveform
from taste_grpc.engine import (
    DetokenizeConfig,
    EngineSettings,
    GenerateRequest,
    LocalEngine,
    SegmentInput,
    TokenizeRequest,
)
from tests.checkpoints import TINY

CALLS = 16
SPEAKER = np.linspace(-1, 1, 192, dtype=np.float32)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False], ids=["deterministic", "free"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[LocalEngine]:
    settings = EngineSettings(model=TINY, threads=1, deterministic=request.param, cache_mib=256, flush_after_ms=60_000)
    engine = LocalEngine(settings)
    await engine.start()
    yield engine
    await engine.drain(5)


def spoken_segment(engine: LocalEngine, text: str, seed: int) -> SegmentInput:
    ids, word_ids = engine._started.hearing.words(text)
    codes = np.full((len(ids), engine.info.vq_dim), -1, np.int64)
    starts = np.diff(word_ids, prepend=-1) > 0
    rng = np.random.default_rng(seed)
    codes[starts] = rng.integers(0, engine.info.codebook_size, (int(starts.sum()), engine.info.vq_dim))
    return SegmentInput("user", "audio", text_ids=np.asarray(ids), word_ids=np.asarray(word_ids), taste_ids=codes)


TEXTS = (
    "good morning",
    "how are you, little robot of mine",
    "sleep well",
    "it is late and the rain has not stopped yet",
)


async def answer(engine: LocalEngine, number: int) -> list[Any]:
    """What a Generate call gives, in all its parts."""
    request = GenerateRequest(
        (spoken_segment(engine, TEXTS[number % 4], number),),
        text_top_p=(0.0, 0.3, 0.9, 1.0)[number % 4],
        text_temperature=(0.5, 1.0)[number % 2],
        repetition_penalty=1.0 + 0.1 * (number % 3),
        extra_words=3 + number % 5,
        max_length=8 + 5 * (number % 6),
        seed=number,
    )
    results = [result async for result in engine.generate(request)]
    return [(r.text_ids, r.taste_ids, r.completion_reason) for r in results]


async def speech(engine: LocalEngine, number: int) -> list[Any]:
    """What a Detokenize call gives: every sample, every unit."""

    async def segments() -> AsyncIterator[SegmentInput]:
        for place in range(1 + number % 2):
            yield spoken_segment(engine, TEXTS[(number + place) % 3], number + place)

    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=number, look_ahead_words=number % 3)
    chunks = [chunk async for chunk in engine.detokenize(config, segments())]
    return [(c.samples.tobytes(), c.speech_ids.tolist(), c.is_final, c.resume_state) for c in chunks]


async def tokens(engine: LocalEngine, number: int) -> list[Any]:
    """What a Tokenize call gives."""
    samples = np.random.default_rng(number).standard_normal(4_000 + 1_000 * number).astype(np.float32) * 0.1
    result = await engine.tokenize(TokenizeRequest(Waveform(samples, 16_000), text=TEXTS[number % 4]))
    return [result.taste_ids.tolist(), result.speaker_embedding.tobytes()]


KINDS = {"answer": answer, "speech": speech, "tokens": tokens}


@dataclass(frozen=True)
class Planned:
    """A call of a schedule: it begins after `start` steps of the engine, and is cancelled `stop` steps later."""

    kind: str
    number: int
    start: int
    stop: int | None


plans = st.builds(
    Planned,
    st.sampled_from(["answer", "answer", "answer", "speech", "speech", "tokens"]),
    st.integers(0, 11),
    st.integers(0, 60),
    st.one_of(st.none(), st.none(), st.integers(0, 30)),
)


def progress(engine: LocalEngine) -> int:
    return int(engine.stats().extra["rounds"])


async def until_round(engine: LocalEngine, wanted: int, busy: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until the engine has run so many rounds, or there is nothing that would make it run one."""
    while progress(engine) < wanted and any(not task.done() for task in busy):
        await asyncio.sleep(0.001)


async def run_together(engine: LocalEngine, schedule: Sequence[Planned]) -> list[list[Any] | None]:
    """What each call gives; None for those that were cancelled."""
    running: list[asyncio.Task[Any]] = []
    begun = progress(engine)

    async def call(planned: Planned) -> list[Any] | None:
        work: Coroutine[Any, Any, list[Any]] = KINDS[planned.kind](engine, planned.number)
        task = asyncio.create_task(work)
        if planned.stop is not None:
            await until_round(engine, progress(engine) + planned.stop, [task])
            task.cancel()
        running.append(task)
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            return None
        assert not isinstance(outcome, BaseException), outcome
        return outcome

    calls = []
    for planned in sorted(schedule, key=lambda planned: planned.start):
        await until_round(engine, begun + planned.start, running)
        calls.append((planned, asyncio.create_task(call(planned))))
    outcomes = {id(planned): await task for planned, task in calls}
    return [outcomes[id(planned)] for planned in schedule]


ALONE: dict[tuple[bool, str, int], list[Any]] = {}


async def given_alone(engine: LocalEngine, planned: Planned) -> list[Any]:
    key = (engine.settings.deterministic, planned.kind, planned.number)
    if key not in ALONE:
        ALONE[key] = await KINDS[planned.kind](engine, planned.number)
    return ALONE[key]


@settings(deadline=None, max_examples=6)
@given(schedule=st.lists(plans, min_size=2, max_size=CALLS))
async def test_a_call_gives_the_same_alone_and_among_others_that_come_and_go(
    engine: LocalEngine, schedule: list[Planned]
) -> None:
    """To the bit in deterministic mode; the ids otherwise too, since no decision of these is as narrow as rounding."""
    alone = [await given_alone(engine, planned) for planned in schedule]
    together = await run_together(engine, schedule)
    exact = engine.settings.deterministic
    for planned, own, other in zip(schedule, alone, together, strict=True):
        if other is not None:
            assert comparable(planned, own, exact) == comparable(planned, other, exact)
        else:
            assert planned.stop is not None
    held = engine.stats().extra
    assert (held["kv_bytes"], held["live_slots"], engine.stats().active_calls) == (0, 0, 0)


def comparable(planned: Planned, outcome: list[Any], exact: bool) -> list[Any]:
    if exact or planned.kind != "speech":
        return outcome
    return [(units, is_final) for _, units, is_final, _ in outcome]


async def test_sixteen_calls_share_their_steps(engine: LocalEngine) -> None:
    before = engine.stats()
    alone = [await given_alone(engine, Planned("answer", number, 0, None)) for number in range(CALLS)]
    one_by_one = engine.stats()
    together = await asyncio.gather(*(answer(engine, number) for number in range(CALLS)))
    after = engine.stats()
    assert list(together) == alone
    rows = after.decode_steps - one_by_one.decode_steps
    calls = after.extra["text_calls"] - one_by_one.extra["text_calls"]
    assert calls < rows / 3
    assert one_by_one.extra["text_calls"] >= before.extra["text_calls"]


async def test_a_long_prompt_is_read_between_the_steps_of_those_who_talk(engine: LocalEngine) -> None:
    """Half a minute of sound and its words, read while another call talks, which goes on at every round."""
    talk = engine.generate(GenerateRequest((spoken_segment(engine, TEXTS[0], 1),), extra_words=4000, max_length=4000))
    await anext(talk)
    sound = Waveform(np.random.default_rng(1).standard_normal(30 * 16_000).astype(np.float32) * 0.1, 16_000)
    heard = SegmentInput("user", "audio", audio=sound, text=" ".join(["good morning to you"] * 20))
    listening = asyncio.create_task(anext(engine.generate(GenerateRequest((heard,), extra_words=2, seed=3))))
    before = engine.stats()
    async for _ in talk:
        if listening.done():
            break
    after = engine.stats()
    await talk.aclose()
    assert not (await listening).is_complete
    steps = after.extra["text_calls"] - before.extra["text_calls"]
    assert steps >= 8  # the recording was not one piece, nor the prompt
