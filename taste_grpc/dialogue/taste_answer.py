"""Answers of a TASTE model: speech in, speech out, through the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from taste_grpc.audio import MAX_CLIP_MS, Waveform
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.answer import AnswerError, AnswerSink, Question, side_by_side
from taste_grpc.dialogue.answer_time import AnswerTime
from taste_grpc.dialogue.cascade import CascadeSettings
from taste_grpc.dialogue.events import ErrorCode, VoiceChoice
from taste_grpc.engine.protocol import (
    DetokenizeConfig,
    Engine,
    GenerateRequest,
    GenerateResult,
    SegmentInput,
    TokenizeRequest,
)
from taste_grpc.errors import InvalidInputError, TasteError, UnsupportedByModelError
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ

PHRASE_WORDS = 12
"""Words after which a phrase is spoken, unless its sentence ends before."""
_SENTENCE_ENDS = (".", "!", "?")
_FORMAT = "conversation"


@dataclass
class _Phrase:
    text: str
    segment: SegmentInput


def check_converses(engine: Engine) -> None:
    """Raise UnsupportedByModelError when the model of `engine`, which has been started, knows no conversations."""
    if _FORMAT not in engine.info.conversation_formats:
        raise UnsupportedByModelError(
            f"the TASTE model {engine.info.model_id} knows no conversations, so it cannot answer"
        )


class TasteAnswerer:
    """Hears the question with its prosody, answers in words with codes, and speaks these.

    What was said before is read as text. The generator and the speech of one answer run at the same time.

    Args:
        engine: started, with a model that knows conversations.
        speaker_embedding: `[E]`, of answers whose client names no voice.
        settings: how long parts may take, and what is sampled.

    Raises UnsupportedByModelError when the model knows no conversations.
    """

    def __init__(self, engine: Engine, speaker_embedding: Float32Array, settings: CascadeSettings) -> None:
        check_converses(engine)
        self._engine, self._speaker, self._settings = engine, speaker_embedding, settings

    @property
    def name(self) -> str:
        """The model."""
        return f"TASTE {self._engine.info.model_id}"

    def check_voice(self, voice: VoiceChoice) -> None:
        """Voices are vectors of the model's size; none has a name."""
        if voice.name is not None:
            raise UnsupportedByModelError("voice.name: a TASTE model answers, whose voices are vectors")
        size = self._engine.info.speaker_embedding_dim
        given = voice.speaker_embedding
        if given is not None and len(given) != size:
            raise InvalidInputError("voice.speaker_embedding.values", f"has {len(given)} values, not {size}")

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        """Give the whole answer to `sink`. Raises AnswerError."""
        phrases: asyncio.Queue[_Phrase | None] = asyncio.Queue(self._settings.max_pending_phrases)
        await side_by_side(self._write(question, sink, phrases), self._speak(question, sink, phrases))

    async def _write(self, question: Question, sink: AnswerSink, phrases: asyncio.Queue[_Phrase | None]) -> None:
        waiting: list[GenerateResult] = []
        try:
            async with aclosing(self._results(question)) as results:
                async for result in results:
                    if result.text:
                        await sink.token(result.text)
                    waiting += [result] if result.text_ids else []
                    if waiting and (result.is_complete or _is_phrase(waiting)):
                        await phrases.put(_phrase(waiting))
                        waiting = []
        except TasteError as error:
            raise error if isinstance(error, AnswerError) else AnswerError(ErrorCode.LLM_FAIL, str(error)) from error
        await phrases.put(None)

    async def _results(self, question: Question) -> AsyncGenerator[GenerateResult]:
        """What is generated, each result waited for no longer than it may take; hearing the question counts too."""
        settings = self._settings
        allowed = AnswerTime(
            "the TASTE model",
            first_token_s=settings.llm_first_token_timeout_s,
            total_s=settings.llm_timeout_s,
        )
        request = await allowed.spend(self._request(question))
        async with aclosing(self._engine.generate(request)) as results:
            while (result := await allowed.spend(anext(results, None))) is not None:
                if result.text:
                    allowed.has_begun()
                yield result

    async def _request(self, question: Question) -> GenerateRequest:
        *before, asked = question.messages
        segments = [SegmentInput(message.role, "text", text=message.text) for message in before]
        if question.samples is None:
            segments.append(SegmentInput("user", "text", text=asked.text))
        else:
            samples = question.samples[-MAX_CLIP_MS * RECOGNISER_SAMPLE_RATE_HZ // 1000 :]
            audio = Waveform(samples, RECOGNISER_SAMPLE_RATE_HZ)
            heard = await self._engine.tokenize(TokenizeRequest(audio, text=asked.text))
            segments.append(
                SegmentInput(
                    "user", "audio", text_ids=heard.text_ids, word_ids=heard.word_ids, taste_ids=heard.taste_ids
                )
            )
        return GenerateRequest(
            tuple(segments),
            max_length=question.max_new_tokens,
            extra_words=question.max_new_tokens,
            conversation_format=_FORMAT,
        )

    async def _speak(self, question: Question, sink: AnswerSink, phrases: asyncio.Queue[_Phrase | None]) -> None:
        texts: list[str] = []

        async def segments() -> AsyncIterator[SegmentInput]:
            while (phrase := await phrases.get()) is not None:
                texts.append(phrase.text)
                yield phrase.segment

        chosen = question.voice.speaker_embedding
        speaker = self._speaker if chosen is None else np.asarray(chosen, np.float32)
        config = DetokenizeConfig(speaker_embedding=speaker, out_sample_rate_hz=question.voice.sample_rate_hz)
        try:
            async with aclosing(self._engine.detokenize(config, segments())) as chunks:
                async for chunk in chunks:
                    index = chunk.segment_index
                    await sink.audio(index, texts[index], chunk.samples, chunk.sample_rate_hz)
        except TasteError as error:
            raise AnswerError(ErrorCode.TTS_FAIL, f"the answer cannot be spoken: {error}") from error


def _is_phrase(results: list[GenerateResult]) -> bool:
    words = sum(len(result.words) for result in results)
    return words >= PHRASE_WORDS or results[-1].text.rstrip().endswith(_SENTENCE_ENDS)


def _phrase(results: list[GenerateResult]) -> _Phrase:
    """What was generated since the last phrase, to be spoken."""
    text_ids = np.concatenate([np.asarray(result.text_ids, np.int64) for result in results])
    word_ids = np.concatenate([np.asarray(result.word_ids, np.int64) for result in results])
    taste_ids = np.concatenate([np.asarray(result.taste_ids, np.int64) for result in results])
    segment = SegmentInput(
        "assistant", "audio", text_ids=text_ids, word_ids=word_ids - word_ids[0], taste_ids=taste_ids
    )
    return _Phrase("".join(result.text for result in results).strip(), segment)
