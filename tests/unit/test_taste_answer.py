"""Answers of a TASTE model, of which an engine is made up that does what a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue import AnswerError, CascadeSettings, Message, Question
from taste_grpc.dialogue.events import ErrorCode, VoiceChoice
from taste_grpc.dialogue.taste_answer import PHRASE_WORDS, TasteAnswerer
from taste_grpc.engine.protocol import (
    DetokenizeConfig,
    GenerateRequest,
    GenerateResult,
    ModelInfo,
    SegmentInput,
    TokenizeRequest,
)
from taste_grpc.errors import OverloadedError, UnsupportedByModelError
from tests.support.recording_engine import INFO, RecordingEngine

SPEAKER = np.full(192, 192**-0.5, np.float32)
ASKED = [Message("system", "Be kind."), Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?")]
TYPED = Question(ASKED, VoiceChoice(), 77)


class Converser(RecordingEngine):
    """Knows conversations; with `stalls_after` it stands still after so many words."""

    stalls_after: int | None = None

    @property
    def info(self) -> ModelInfo:
        return replace(INFO, conversation_formats=("conversation",))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        count = 0
        async for result in super().generate(request):
            if count == self.stalls_after:
                self.held.clear()
                await self.held.wait()
            count += 1
            yield result


@dataclass
class Sink:
    texts: list[str] = field(default_factory=list)
    audio_of: list[tuple[int, str]] = field(default_factory=list)

    async def token(self, text: str) -> None:
        self.texts.append(text)

    async def audio(self, phrase_index: int, phrase: str, samples: Float32Array, sample_rate_hz: int) -> None:
        self.audio_of.append((phrase_index, phrase))

    def phrase_failed(self, phrase: str, why: str) -> None:
        raise AssertionError(why)

    def notice(self, message: str) -> None:
        raise AssertionError(message)


async def answered(engine: Converser, question: Question = TYPED, **settings: float) -> Sink:
    sink = Sink()
    async with asyncio.timeout(30):
        await TasteAnswerer(engine, SPEAKER, CascadeSettings(**settings)).answer(question, sink)
    return sink


async def test_phrases_of_so_many_words_are_spoken_in_order() -> None:
    engine = Converser()
    engine.results = 2 * PHRASE_WORDS + 4
    sink = await answered(engine)
    words = ["word"] * PHRASE_WORDS
    assert "".join(sink.texts).split() == ["word"] * (2 * PHRASE_WORDS + 3)
    assert sink.audio_of == [(0, " ".join(words)), (1, " ".join(words)), (2, "word word word")]
    segments = [request for request in engine.requests if isinstance(request, SegmentInput)]
    assert [segment.word_ids[0] for segment in segments if segment.word_ids is not None] == [0, 0, 0]
    assert engine.running == 0


async def test_what_was_said_before_is_read_and_the_question_is_heard() -> None:
    engine = Converser()
    await answered(engine, replace(TYPED, samples=np.zeros(16_000, np.float32)))
    (heard,) = [request for request in engine.requests if isinstance(request, TokenizeRequest)]
    (asked,) = [request for request in engine.requests if isinstance(request, GenerateRequest)]
    assert (heard.text, heard.audio.sample_rate_hz) == ("Why?", 16_000)
    assert [(segment.role, segment.modality, segment.text) for segment in asked.segments] == [
        ("system", "text", "Be kind."),
        ("user", "text", "Hi."),
        ("assistant", "text", "Hello."),
        ("user", "audio", None),
    ]
    assert asked.segments[-1].taste_ids is not None
    assert (asked.max_length, asked.conversation_format) == (77, "conversation")


async def test_the_voice_is_the_one_that_the_client_names() -> None:
    engine = Converser()
    embedding = tuple(float(value) for value in range(192))
    voice = VoiceChoice(speaker_embedding=embedding, sample_rate_hz=24_000)
    await answered(engine, replace(TYPED, voice=voice))
    (config,) = [request for request in engine.requests if isinstance(request, DetokenizeConfig)]
    assert config.speaker_embedding.tolist() == list(embedding)
    assert config.out_sample_rate_hz == 24_000


@pytest.mark.parametrize(
    ("stalls_after", "samples", "words", "message"),
    [
        (0, None, 0, "the TASTE model took longer than 0.05 s for its first token"),
        (2, None, 2, "the TASTE model took longer than 0.3 s for its answer"),
        (None, np.zeros(16_000, np.float32), 0, "the TASTE model took longer than 0.05 s for its first token"),
    ],
)
async def test_a_model_that_stalls_is_given_up(
    stalls_after: int | None, samples: Float32Array | None, words: int, message: str
) -> None:
    """Before its first word, in the middle, and while it hears the question."""
    engine = Converser()
    if stalls_after is None:
        engine.held.clear()
    engine.stalls_after = stalls_after
    first_s = 0.3 if words else 0.05
    with pytest.raises(AnswerError) as raised:
        await answered(engine, replace(TYPED, samples=samples), llm_first_token_timeout_s=first_s, llm_timeout_s=0.3)
    assert (raised.value.code, str(raised.value)) == (ErrorCode.LLM_TIMEOUT, message)
    assert engine.running == 0


async def test_an_engine_that_refuses_is_a_failure_of_the_answer() -> None:
    engine = Converser()
    engine.failure = OverloadedError("too many calls", retry_after_ms=100)
    with pytest.raises(AnswerError, match="too many calls") as raised:
        await answered(engine)
    assert raised.value.code is ErrorCode.LLM_FAIL
    assert engine.running == 0


def test_a_model_that_knows_no_conversations_is_refused() -> None:
    with pytest.raises(UnsupportedByModelError, match="the TASTE model recording knows no conversations"):
        TasteAnswerer(RecordingEngine(), SPEAKER, CascadeSettings())
