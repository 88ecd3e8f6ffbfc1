"""The whole way over the wire: real engine, real recogniser, a tiny model that can hold a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from taste.v1 import common_pb2, taste_pb2, taste_pb2_grpc
from taste_grpc.engine import EngineSettings, LocalEngine
from taste_grpc.speech import sample_recordings
from tests.support import messages
from tests.support.details import read_failure
from tests.support.live_server import Live, live_server, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(chat_checkpoint: Path):
    async with live_server(LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))) as live:
        yield live


def voice() -> common_pb2.AudioClip:
    pytest.importorskip("moonshine_voice")
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_WAV)
    return common_pb2.AudioClip(format=form, data=sample_recordings()["beckett"].read_bytes())


def long_answer(live: Live) -> taste_pb2.GenerateRequest:
    segment = messages.token_segment(vq_dim=live.engine.info.vq_dim)
    return taste_pb2.GenerateRequest(
        segments=[segment], max_length=4096, extra_words=1024, eos_id=0, seed=5, conversation_format="completion"
    )


async def test_a_voice_is_heard_and_tokenized(live: Live):
    answer = await live.stub.Tokenize(taste_pb2.TokenizeRequest(audio=voice()))
    assert "tried" in answer.text.lower()
    rows = np.array(answer.taste_tokens.codes.ids).reshape(len(answer.text_ids), -1)
    starts = np.diff(answer.word_ids, prepend=-1) > 0
    assert (rows[starts] >= 0).all()
    assert (rows[~starts] == -1).all()
    assert np.linalg.norm(answer.speaker_embedding.values) == pytest.approx(1, abs=1e-5)
    assert answer.audio_ms == pytest.approx(9960, abs=10)


async def test_a_recording_is_answered_and_the_answer_spoken_as_it_is_made(live: Live):
    """Raw audio in, speech out; Detokenize runs while Generate does."""
    question = common_pb2.Segment(role=common_pb2.ROLE_USER, audio=common_pb2.SegmentAudio(clip=voice()))
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment("Be kind."), question], seed=3, max_length=12)
    request.segments[0].role = common_pb2.ROLE_SYSTEM
    results: list[taste_pb2.StreamingResult] = []

    async def spoken():
        yield taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(reference=voice(), seed=1))
        async for result in live.stub.Generate(request):
            results.append(result)
            if result.HasField("segment"):
                yield taste_pb2.DetokenizeRequest(segment=result.segment)

    chunks = [chunk async for chunk in live.stub.Detokenize(spoken())]
    assert results[-1].is_complete
    segments = [result.segment.tokens for result in results if result.HasField("segment")]
    assert [chunk.segment_index for chunk in chunks if chunk.is_final] == list(range(len(segments)))
    word_ids = [word for tokens in segments for word in tokens.word_ids]
    assert word_ids[:1] == [0]
    assert set(np.diff(word_ids)) <= {0, 1}
    position = 0
    for chunk in chunks:
        assert chunk.first_sample == position
        position += len(chunk.audio) // 2
        assert chunk.chunk_duration_ms == pytest.approx(1000 * (len(chunk.audio) // 2) / 16_000)


async def test_the_same_seed_gives_the_same_answer(live: Live):
    request = taste_pb2.GenerateRequest(segments=[messages.text_segment()], seed=9, text_top_p=0.9, max_length=10)

    async def ids() -> list[int]:
        return [i async for result in live.stub.Generate(request) for i in result.segment.tokens.text_ids]

    assert await ids() == await ids()


async def test_policies_and_limits_shape_the_answer(live: Live):
    request = long_answer(live)
    request.max_length = 40
    request.emit_policy.every_words = 5
    results = [result async for result in live.stub.Generate(request)]
    counts = [len(set(result.segment.tokens.word_ids)) for result in results]
    assert set(counts[:-1]) <= {5}
    assert results[-1].completion_reason != taste_pb2.COMPLETION_REASON_CONTINUING
    assert sum(len(result.segment.tokens.text_ids) for result in results) <= 40


async def steps_of(live: Live, request: taste_pb2.GenerateRequest) -> int:
    """Decode steps the engine makes, for whomever, while `request` is answered."""
    before = live.engine.stats().decode_steps
    async for _ in live.stub.Generate(request):
        pass
    return live.engine.stats().decode_steps - before


def short_answer(live: Live) -> taste_pb2.GenerateRequest:
    request = long_answer(live)
    request.max_length = 20
    return request


@asynccontextmanager
async def narrow(live: Live) -> AsyncIterator[Any]:
    """A stub whose window is so short that a few results fill it."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(live.server.address, options=options) as channel:
        yield taste_pb2_grpc.TasteServiceStub(channel)


async def test_cancel_stops_the_decoding(live: Live):
    alone = await steps_of(live, short_answer(live))
    call = live.stub.Generate(long_answer(live))
    await call.read()
    call.cancel()
    await until(lambda: live.engine.stats().active_calls == 0)
    assert await steps_of(live, short_answer(live)) == alone


async def test_a_deadline_stops_the_decoding(live: Live):
    alone = await steps_of(live, short_answer(live))
    call = live.stub.Generate(long_answer(live), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in call:
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: live.engine.stats().active_calls == 0)
    assert await steps_of(live, short_answer(live)) == alone


async def test_calls_that_a_stop_cuts_off_are_told_why(chat_checkpoint: Path):
    """One that is being answered, and one that waits for its caller."""
    engine = LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))
    async with live_server(engine, drain_grace_s=0) as live:
        speech = live.stub.Detokenize()
        await speech.write(taste_pb2.DetokenizeRequest(config=messages.config()))
        answer = live.stub.Generate(long_answer(live))
        await answer.read()
        await until(lambda: engine.stats().active_calls == 2)
        waiting = [asyncio.create_task(read_all(call)) for call in (speech, answer)]
        await live.server.stop()
        for call in waiting:
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await call
            failure = read_failure(cut.value)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_NOT_SERVING")
            assert failure.retry_s == 1.0
            assert failure.request_id


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_slow_reader_holds_the_decoding_back_and_misses_nothing(live: Live):
    request = long_answer(live)
    request.max_length = 400
    alone = await steps_of(live, short_answer(live))
    async with narrow(live) as stub:
        before = live.engine.stats().decode_steps
        call = stub.Generate(request)
        results = [await call.read()]
        others = 0
        while (both := await steps_of(live, short_answer(live))) > alone:  # until only the others take turns
            others += alone
            assert both <= 3 * alone, "the others did not get every other turn"
        ahead = live.engine.stats().decode_steps - before - others - alone
        assert ahead <= 200, "the answer was made without anybody reading it"
        assert live.engine.stats().active_calls == 1
        while (result := await call.read()) is not grpc.aio.EOF:
            results.append(result)
    assert [result.index for result in results] == list(range(len(results)))
    assert [result.is_complete for result in results] == [False] * (len(results) - 1) + [True]
    alike = [result.segment async for result in live.stub.Generate(request)]
    assert [result.segment for result in results] == alike


async def test_cancel_of_calls_that_nobody_reads(live: Live):
    alone = await steps_of(live, short_answer(live))
    async with narrow(live) as stub:
        calls = [stub.Generate(long_answer(live)) for _ in range(3)]
        for call in calls:
            await call.read()
        while await steps_of(live, short_answer(live)) > alone:
            pass
        assert live.engine.stats().active_calls == len(calls)
        for call in calls:
            call.cancel()
        await until(lambda: live.engine.stats().active_calls == 0)
    held = live.engine.stats().extra
    assert (held["kv_bytes"], held["live_slots"]) == (0, 0)


async def test_calls_side_by_side_do_not_disturb_each_other(live: Live):
    def request(seed: int) -> taste_pb2.GenerateRequest:
        return taste_pb2.GenerateRequest(segments=[messages.text_segment()], seed=seed, text_top_p=0.9, max_length=10)

    async def ids(seed: int) -> list[int]:
        return [i async for result in live.stub.Generate(request(seed)) for i in result.segment.tokens.text_ids]

    alone = [await ids(seed) for seed in range(4)]
    together = await asyncio.gather(*(ids(seed) for seed in range(4)))
    assert list(together) == alone


async def test_silence_cannot_be_transcribed(live: Live):
    pytest.importorskip("moonshine_voice")
    silence = messages.clip()
    silence.data = bytes(len(silence.data))
    segment = common_pb2.Segment(role=common_pb2.ROLE_USER, audio=common_pb2.SegmentAudio(clip=silence))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await live.stub.Generate(taste_pb2.GenerateRequest(segments=[segment])).read()
    failure = read_failure(refused.value)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == ["segments[0].audio"]


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_caller_that_never_reads_is_let_go(chat_checkpoint: Path):
    engine = LocalEngine(EngineSettings(model=chat_checkpoint, device="cpu", threads=1))
    async with live_server(engine, limits={"max_idle_ms": 400}) as live, narrow(live) as stub:
        call = stub.Generate(long_answer(live))
        await call.read()
        await until(lambda: engine.stats().active_calls == 0, 60)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_on(call)
        failure = read_failure(ended.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_IDLE")
        assert [result async for result in live.stub.Generate(short_answer(live))][-1].is_complete
