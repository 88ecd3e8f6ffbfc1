"""The local engine: calls side by side, cancellation, resuming, draining."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from taste_grpc.audio import Waveform
from taste_grpc.engine import (
    DetokenizeChunk,
    DetokenizeConfig,
    EmitPolicy,
    EngineSettings,
    GenerateRequest,
    GenerateResult,
    LocalEngine,
    SegmentInput,
    TokenizeRequest,
)
from taste_grpc.engine.model_thread import CallAbort, ModelThread
from taste_grpc.errors import CheckpointError, InvalidInputError, UnavailableError

TINY = Path(__file__).parents[1] / "data" / "taste-tiny"
SPEAKER = np.linspace(-1, 1, 192, dtype=np.float32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(EngineSettings(model=TINY, threads=1))
    await engine.start()
    yield engine
    await engine.drain(5)


pytestmark = pytest.mark.asyncio(loop_scope="module")


def clip(seconds: float = 1.0, rate_hz: int = 16_000) -> Waveform:
    samples = np.random.default_rng(5).standard_normal(int(seconds * rate_hz)) * 0.1
    return Waveform(samples.astype(np.float32), rate_hz)


def words(engine: LocalEngine, text: str, seed: int = 0) -> SegmentInput:
    """A spoken segment in token form, with made-up codes."""
    ids, word_ids = engine._started.hearing.words(text)
    rng = np.random.default_rng(seed)
    codes = np.full((len(ids), engine.info.vq_dim), -1, np.int64)
    for i, word in enumerate(word_ids):
        if i == 0 or word_ids[i - 1] != word:
            codes[i] = rng.integers(0, engine.info.codebook_size, engine.info.vq_dim)
    return SegmentInput("user", "audio", text_ids=np.asarray(ids), word_ids=np.asarray(word_ids), taste_ids=codes)


async def stream(*segments: SegmentInput) -> AsyncIterator[SegmentInput]:
    for segment in segments:
        yield segment


async def spoken(engine: LocalEngine, config: DetokenizeConfig, *segments: SegmentInput) -> list[DetokenizeChunk]:
    return [chunk async for chunk in engine.detokenize(config, stream(*segments))]


async def generated(engine: LocalEngine, request: GenerateRequest) -> list[GenerateResult]:
    return [result async for result in engine.generate(request)]


async def test_tokenize_aligns_codes_with_text(engine: LocalEngine) -> None:
    result = await engine.tokenize(TokenizeRequest(clip(2, 44_100), text="good morning everyone"))
    assert result.word_ids.tolist() == sorted(result.word_ids.tolist())
    assert set(result.word_ids.tolist()) == {0, 1, 2}
    first = np.diff(result.word_ids, prepend=-1) > 0
    assert ((result.taste_ids[:, 0] != -1) == first).all()
    assert result.taste_ids.shape == (len(result.text_ids), engine.info.vq_dim)
    assert np.isclose(np.linalg.norm(result.speaker_embedding), 1.0, atol=1e-4)
    assert result.audio_ms == pytest.approx(2000)


async def test_tokenize_takes_text_ids_as_they_are(engine: LocalEngine) -> None:
    given = words(engine, "good morning").text_ids
    assert given is not None
    result = await engine.tokenize(TokenizeRequest(clip(), text_ids=given))
    assert result.text_ids.tolist() == given.tolist()


@pytest.mark.parametrize("ids", [[], [-1], [10**6]])
async def test_tokenize_refuses_ids_outside_the_vocabulary(engine: LocalEngine, ids: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="text_ids") as caught:
        await engine.tokenize(TokenizeRequest(clip(), text_ids=np.asarray(ids, np.int64)))
    assert caught.value.field == "text_ids"


async def test_results_hold_whole_words_and_one_is_complete(engine: LocalEngine) -> None:
    request = GenerateRequest((words(engine, "good morning"),), extra_words=5, max_length=60, seed=4)
    results = await generated(engine, request)
    assert [result.is_complete for result in results] == [False] * (len(results) - 1) + [True]
    assert [result.index for result in results] == list(range(len(results)))
    all_words = np.concatenate([result.word_ids for result in results])
    assert (np.diff(all_words) >= 0).all()
    assert all_words[0] == 0
    for earlier, later in itertools.pairwise(results):
        if len(later.word_ids):
            assert later.word_ids[0] > earlier.word_ids[-1]


async def test_a_seed_repeats_an_answer_whatever_runs_beside_it(engine: LocalEngine) -> None:
    requests = [
        GenerateRequest((words(engine, "good morning", seed),), extra_words=4, max_length=40, seed=seed)
        for seed in range(4)
    ]
    alone = [await generated(engine, request) for request in requests]
    together = await asyncio.gather(*(generated(engine, request) for request in requests))
    for one, other in zip(alone, together, strict=True):
        assert [result.text_ids for result in one] == [result.text_ids for result in other]
        assert [result.taste_ids for result in one] == [result.taste_ids for result in other]


async def test_emit_policy_counts_words(engine: LocalEngine) -> None:
    request = GenerateRequest(
        (words(engine, "good morning"),), extra_words=6, max_length=60, seed=4, emit=EmitPolicy(every_words=3)
    )
    results = await generated(engine, request)
    assert len(results) > 1
    for result in results[:-1]:
        assert len(set(result.word_ids)) == 3


async def test_closing_a_generation_stops_its_steps(engine: LocalEngine) -> None:
    results = engine.generate(
        GenerateRequest((words(engine, "good morning"),), extra_words=1000, max_length=4000, seed=1)
    )
    async for _ in results:
        break
    await results.aclose()
    steps = engine.stats().decode_steps
    await engine.tokenize(TokenizeRequest(clip(), text="good morning"))  # the thread goes on for others
    assert engine.stats().decode_steps == steps
    assert engine.stats().active_calls == 0


async def test_a_cancelled_task_leaves_no_call_behind(engine: LocalEngine) -> None:
    before = engine.stats()

    async def run() -> None:
        async for _ in engine.generate(
            GenerateRequest((words(engine, "good morning"),), extra_words=1000, max_length=4000, seed=1)
        ):
            pass

    task = asyncio.create_task(run())
    while engine.stats().decode_steps < before.decode_steps + 3:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.stats().active_calls == 0
    assert engine.stats().cancelled_calls == before.cancelled_calls + 1


async def test_a_new_call_speaks_on_where_a_segment_ended(engine: LocalEngine) -> None:
    segments = [words(engine, f"good morning little robot number {number}", number) for number in range(3)]
    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=9, out_sample_rate_hz=24_000)
    whole = await spoken(engine, config, *segments)
    assert [chunk.segment_index for chunk in whole] == [0, 1, 2]
    assert all(chunk.is_final for chunk in whole)
    resumed = await spoken(engine, DetokenizeConfig(resume_state=whole[0].resume_state), *segments[1:])
    for chunk, same in zip(resumed, whole[1:], strict=True):
        assert np.array_equal(chunk.samples, same.samples)
        assert chunk.first_sample == same.first_sample
        assert chunk.speech_ids.tolist() == same.speech_ids.tolist()
        assert chunk.sample_rate_hz == 24_000


async def test_speech_that_was_ended_may_go_on_without_losing_or_repeating_a_sample(engine: LocalEngine) -> None:
    first, second = words(engine, "good morning little robot", 1), words(engine, "how are you", 2)
    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=9)
    whole = await spoken(engine, config, first, second)
    (begun,) = await spoken(engine, config, first)
    (resumed,) = await spoken(engine, DetokenizeConfig(resume_state=begun.resume_state), second)
    assert len(begun.samples) > len(whole[0].samples)  # nothing is held back where a call ends
    assert resumed.first_sample == len(begun.samples)
    assert len(begun.samples) + len(resumed.samples) == sum(len(chunk.samples) for chunk in whole)


async def test_what_arrives_too_late_is_not_waited_for(engine: LocalEngine) -> None:
    """A caller that waits for a segment's end gets all of its audio, and the end, before it sends the next one."""
    heard = asyncio.Event()
    given = [words(engine, "good morning little robot", 1), words(engine, "how are you", 2)]

    async def one_by_one() -> AsyncIterator[SegmentInput]:
        for segment in given:
            yield segment
            await heard.wait()
            heard.clear()

    chunks = []
    async for chunk in engine.detokenize(DetokenizeConfig(speaker_embedding=SPEAKER, seed=9), one_by_one()):
        chunks.append(chunk)
        if chunk.is_final:
            heard.set()
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    finals = [chunk for chunk in chunks if chunk.is_final]
    assert [chunk.segment_index for chunk in finals] == [0, 1]
    positions = np.cumsum([0, *(len(chunk.samples) for chunk in chunks)])
    assert [chunk.first_sample for chunk in chunks] == positions[:-1].tolist()
    assert len(finals[0].samples) > 0


async def test_a_long_segment_leaves_phrase_by_phrase(engine: LocalEngine) -> None:
    segment = words(engine, "good morning to you, little robot, it is a very fine day today and we go out")
    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=9)
    chunks = await spoken(engine, config, segment)
    assert len(chunks) > 2
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    (at_once,) = await spoken(engine, replace(config, max_chunk_words=64), words(engine, "good morning to you"))
    assert at_once.is_final
    shown = await spoken(engine, replace(config, look_ahead_words=3), segment)
    assert shown[0].speech_ids.tolist() != chunks[0].speech_ids.tolist()


async def test_a_reference_clip_gives_the_voice(engine: LocalEngine) -> None:
    tokenized = await engine.tokenize(TokenizeRequest(clip(), text="good morning"))
    segment = words(engine, "good morning")
    heard = await spoken(engine, DetokenizeConfig(reference=clip(), seed=1), segment)
    told = await spoken(engine, DetokenizeConfig(speaker_embedding=tokenized.speaker_embedding, seed=1), segment)
    assert heard[0].speech_ids.tolist() == told[0].speech_ids.tolist()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (b"", "damaged"),
        (b"junk", "not a resume state"),
        (zlib.compress(b"{}"), "not a resume state of this version"),
        (zlib.compress(b'{"version": 3}'), "version"),
        (zlib.compress(b" " * 50_000_000), "damaged or too large"),
        (b"x" * 300_000, "at most"),
    ],
)
async def test_a_bad_resume_state_is_refused(engine: LocalEngine, state: bytes, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        await spoken(engine, DetokenizeConfig(resume_state=state), words(engine, "good morning"))
    assert caught.value.field == "resume_state"


async def test_a_state_of_another_model_is_refused(engine: LocalEngine) -> None:
    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=9)
    (chunk,) = await spoken(engine, config, words(engine, "good morning"))
    assert chunk.resume_state is not None
    foreign = zlib.compress(zlib.decompress(chunk.resume_state).replace(engine.info.revision.encode(), b"another"))
    with pytest.raises(InvalidInputError, match="belongs to the model another"):
        await spoken(engine, DetokenizeConfig(resume_state=foreign), words(engine, "good morning"))


@pytest.mark.parametrize(
    "speaker", [np.zeros(192, np.float32), np.ones(191, np.float32), np.full(192, np.nan, np.float32)]
)
async def test_a_voice_that_cannot_be_used_is_refused(engine: LocalEngine, speaker: np.ndarray) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await spoken(engine, DetokenizeConfig(speaker_embedding=speaker), words(engine, "good morning"))
    assert caught.value.field == "config.speaker_embedding"


async def test_a_segment_without_codes_cannot_be_spoken(engine: LocalEngine) -> None:
    config = DetokenizeConfig(speaker_embedding=SPEAKER)
    with pytest.raises(InvalidInputError, match="codes"):
        await spoken(engine, config, SegmentInput("assistant", "text", text="good morning"))
    assert len(await spoken(engine, config, words(engine, "good morning"))) == 1


async def test_too_much_text_is_refused(engine: LocalEngine) -> None:
    limit = engine.settings.max_text_tokens
    segment = SegmentInput("user", "text", text_ids=np.full(limit + 1, 300, np.int64))
    with pytest.raises(InvalidInputError, match=str(limit)):
        await generated(engine, GenerateRequest((segment,)))


async def test_before_start_and_after_drain_calls_are_refused() -> None:
    engine = LocalEngine(EngineSettings(model=TINY, threads=1))
    with pytest.raises(UnavailableError, match="loading"):
        await engine.tokenize(TokenizeRequest(clip(), text="good morning"))
    await engine.start()
    await engine.drain(1)
    with pytest.raises(UnavailableError, match="draining"):
        await engine.tokenize(TokenizeRequest(clip(), text="good morning"))


async def test_drain_waits_for_running_calls_and_then_aborts_them() -> None:
    engine = LocalEngine(EngineSettings(model=TINY, threads=1))
    await engine.start()
    request = GenerateRequest((words(engine, "good morning"),), extra_words=5, max_length=60, seed=4)
    short = engine.generate(request)
    await anext(short)
    draining = asyncio.create_task(engine.drain(30))
    rest = [result async for result in short]
    assert rest[-1].is_complete
    await draining


async def test_a_directory_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    engine = LocalEngine(EngineSettings(model=tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        await engine.start()
    await engine.drain(0)


async def test_a_resumed_call_may_change_rate_and_seed(engine: LocalEngine) -> None:
    first, second = words(engine, "good morning", 1), words(engine, "little robot", 2)
    (begun,) = await spoken(engine, DetokenizeConfig(speaker_embedding=SPEAKER, seed=9), first)
    state = begun.resume_state
    (same,) = await spoken(engine, DetokenizeConfig(resume_state=state), second)
    (other,) = await spoken(engine, DetokenizeConfig(resume_state=state, out_sample_rate_hz=8_000), second)
    (reseeded,) = await spoken(engine, DetokenizeConfig(resume_state=state, seed=10), second)
    assert same.sample_rate_hz == 16_000
    assert other.sample_rate_hz == 8_000
    assert abs(2 * other.first_sample - same.first_sample) <= 1
    assert abs(2 * len(other.samples) - len(same.samples)) <= 2
    assert other.speech_ids.tolist() == same.speech_ids.tolist()
    assert reseeded.speech_ids.tolist() != same.speech_ids.tolist()


async def test_special_tokens_are_named_by_their_use(engine: LocalEngine) -> None:
    assert engine.info.special_tokens["sos"] == 496
    assert engine.info.special_tokens["end_of_text"] == 497


async def test_text_with_too_many_tokens_is_blamed_on_the_text(engine: LocalEngine) -> None:
    with pytest.raises(InvalidInputError, match="tokens of the recogniser") as caught:
        await engine.tokenize(TokenizeRequest(clip(), text="good " * 600))
    assert caught.value.field == "text"


Change = Callable[[dict[str, Any]], Any]

FORGERIES: dict[str, Change] = {
    "unit of another model": lambda state: state["window"][0]["units"].append(10**6),
    "token of another model": lambda state: state["window"][0]["ids"].__setitem__(0, 10**6),
    "code above the codebook": lambda state: state["window"][0]["codes"].__setitem__(0, [1, 2, 3, 99]),
    "row of another width": lambda state: state["window"][0]["codes"].__setitem__(0, [1]),
    "word without codes": lambda state: state["window"][0]["word_ids"].__setitem__(-1, 40),
    "words out of order": lambda state: state["window"][0]["word_ids"].reverse(),
    "voice of another width": lambda state: state["speaker"].update(shape=[2], data="AAAAAAAAAAA="),
    "voice that is no number": lambda state: state["speaker"].update(data="AADAfw==" * 192, shape=[192]),
    "bytes that are no array": lambda state: state["mel"]["held"].update(data="!!"),
    "frames that are not there": lambda state: state["mel"].update(frame_count=10**6),
    "waveform ahead of its mel": lambda state: state["wave"].update(frame_count=10**6),
    "history of another stream": lambda state: state["resampler"].update(start=state["resampler"]["start"] + 441),
    "more units than there were": lambda state: state.update(unit_count=1),
    "too long a window": lambda state: state.update(window=state["window"] * 9),
    "unknown field": lambda state: state.update(surprise=1),
    "another version": lambda state: state.update(version=1),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_state_that_does_not_fit_the_model_is_refused(engine: LocalEngine, forgery: str) -> None:
    config = DetokenizeConfig(speaker_embedding=SPEAKER, seed=9)
    (chunk,) = await spoken(engine, config, words(engine, "good morning"))
    assert chunk.resume_state is not None
    content = json.loads(zlib.decompress(chunk.resume_state))
    FORGERIES[forgery](content)
    forged = zlib.compress(json.dumps(content).encode())
    with pytest.raises(InvalidInputError) as caught:
        await spoken(engine, DetokenizeConfig(resume_state=forged), words(engine, "good morning"))
    assert caught.value.field == "resume_state"


async def test_a_word_has_a_greatest_length(engine: LocalEngine) -> None:
    given = words(engine, "good")
    assert given.text_ids is not None
    assert given.taste_ids is not None
    long = replace(
        given,
        text_ids=np.repeat(given.text_ids[:1], 300),
        word_ids=np.zeros(300, np.int64),
        taste_ids=np.concatenate([given.taste_ids[:1], np.full((299, given.taste_ids.shape[1]), -1)]),
    )
    with pytest.raises(InvalidInputError, match="256") as caught:
        await spoken(engine, DetokenizeConfig(speaker_embedding=SPEAKER), long)
    assert caught.value.field == "segment.tokens.text_ids"


async def test_a_cancelled_task_waits_for_the_work_that_has_begun() -> None:
    thread, abort = ModelThread("test"), CallAbort()
    begun, release = threading.Event(), threading.Event()
    stopped: list[bool] = []

    def work() -> None:
        begun.set()
        release.wait(10)
        stopped.append(True)
        abort()

    task = asyncio.create_task(thread.run(work, abort))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped == [True]
    thread.close()
