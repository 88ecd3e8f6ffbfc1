"""Replies of the embedded default: the recogniser and the language model that ship in packages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
import soundfile

from taste_grpc.dialogue import CascadeModel
from taste_grpc.dialogue.embedded_llm import EmbeddedLanguageModel
from taste_grpc.dialogue.reply import ReplyChunk
from taste_grpc.speech import MoonshineRecogniser, RecogniserPool, sample_recordings

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAMPLES, _ = soundfile.read(sample_recordings()["beckett"], dtype="float32", frames=48_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[CascadeModel]:
    model = CascadeModel(RecogniserPool(MoonshineRecogniser), EmbeddedLanguageModel())
    await model.initialize()
    yield model
    await model.aclose()


async def ask(model: CascadeModel, **arguments: object) -> list[ReplyChunk]:
    return [chunk async for chunk in model.process_realtime_chunk_streaming(SAMPLES, "q-1", **arguments)]


async def test_a_recording_is_answered_in_chunks(model: CascadeModel) -> None:
    chunks = await ask(model, mode="conversation", temperature=0, max_new_tokens=40)
    assert all(chunk.success for chunk in chunks)
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) > 3
    assert all(1 <= len(chunk.text.split()) <= 4 for chunk in chunks[:-1])
    again = await ask(model, mode="conversation", temperature=0, max_new_tokens=40, chunk_size_words=9)
    assert "".join(chunk.text for chunk in again) == "".join(chunk.text for chunk in chunks)


async def test_a_recording_is_written_down(model: CascadeModel) -> None:
    chunks = await ask(model, mode="transcription")
    assert "".join(chunk.text for chunk in chunks).startswith("Ever tried")


async def test_the_longest_answer_is_that_of_the_request(model: CascadeModel) -> None:
    (chunk,) = await ask(model, max_new_tokens=1)
    assert chunk.success
    assert len(chunk.text.split()) == 1


async def test_leaving_midway_lets_the_next_one_in(model: CascadeModel) -> None:
    for _ in range(5):  # more than the model has slots
        async with aclosing(model.process_realtime_chunk_streaming(SAMPLES, "q", max_new_tokens=900)) as chunks:
            assert (await anext(chunks)).success
    assert all(chunks[-1].success for chunks in await asyncio.gather(*(ask(model, max_new_tokens=8) for _ in range(3))))
