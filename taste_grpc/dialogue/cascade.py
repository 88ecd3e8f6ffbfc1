"""Answers from a language model, spoken by a voice phrase by phrase while the next one is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.answer import AnswerError, AnswerSink, Question, side_by_side
from taste_grpc.dialogue.answer_time import AnswerTime
from taste_grpc.dialogue.events import ErrorCode, VoiceChoice
from taste_grpc.dialogue.language_model import LanguageModel, Sampling
from taste_grpc.dialogue.phrase_cutter import PhraseCutter
from taste_grpc.dialogue.time_budget import TimeBudget
from taste_grpc.errors import InvalidInputError, LanguageModelError, TasteError, UnsupportedByModelError
from taste_grpc.speech import Voice

HELD_BACK = "the answer is spoken more slowly than it is written: the language model waits"


@dataclass(frozen=True)
class CascadeSettings:
    """How long parts may take.

    Attributes:
        llm_first_token_timeout_s: until the first piece of an answer.
        llm_timeout_s: for all of an answer, without the time in which the model waited for the voice.
        tts_timeout_s: for one phrase, without the time in which the voice waited for the client.
        max_pending_phrases: phrases that wait for the voice; with more, the language model is not read further.
        temperature, top_p: of the language model.
    """

    llm_first_token_timeout_s: float = 15.0
    llm_timeout_s: float = 30.0
    tts_timeout_s: float = 10.0
    max_pending_phrases: int = 5
    temperature: float = 0.7
    top_p: float = 0.9


class Cascade:
    """A language model and a voice, one after the other, at the same time."""

    def __init__(
        self,
        model: LanguageModel,
        voice: Voice,
        settings: CascadeSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._voice, self._clock = model, voice, clock
        self._settings = settings or CascadeSettings()

    @property
    def name(self) -> str:
        """The language model and the voice."""
        return f"{self._model.name}, {self._voice.name}"

    def check_voice(self, voice: VoiceChoice) -> None:
        """There is one voice; it may be called by its name."""
        if voice.speaker_embedding is not None:
            raise UnsupportedByModelError("voice.speaker_embedding: no TASTE model answers here")
        if voice.name not in (None, self._voice.name):
            raise InvalidInputError("voice.name", f"is not known; answers are spoken by {self._voice.name!r}")

    async def answer(self, question: Question, sink: AnswerSink) -> None:
        """Give the whole answer to `sink`. Raises AnswerError."""
        phrases: asyncio.Queue[str | None] = asyncio.Queue(self._settings.max_pending_phrases)
        await side_by_side(self._write(question, sink, phrases), self._speak(sink, phrases))

    async def _write(self, question: Question, sink: AnswerSink, phrases: asyncio.Queue[str | None]) -> None:
        cutter = PhraseCutter(clock=self._clock)
        hand_over = _HandOver(phrases, sink)
        settings = self._settings
        sampling = Sampling(question.max_new_tokens, settings.temperature, settings.top_p)
        try:
            async with (
                aclosing(self._model.answer(question.messages, sampling)) as pieces,
                aclosing(self._in_time(pieces, cutter, hand_over)) as timely,
            ):
                async for piece in timely:
                    await sink.token(piece)
                    for phrase in cutter.push(piece):
                        await hand_over.put(phrase)
        except LanguageModelError as error:
            raise AnswerError(ErrorCode.LLM_FAIL, str(error)) from error
        rest = cutter.finish()
        if rest:
            await hand_over.put(rest)
        await phrases.put(None)

    async def _in_time(
        self, pieces: AsyncGenerator[str], cutter: PhraseCutter, hand_over: _HandOver
    ) -> AsyncGenerator[str]:
        """The pieces, each waited for no longer than it may take; a phrase that waits too long for its end is cut."""
        settings = self._settings
        allowed = AnswerTime(
            "the language model",
            first_token_s=settings.llm_first_token_timeout_s,
            total_s=settings.llm_timeout_s,
        )
        while True:
            piece_task = asyncio.ensure_future(anext(pieces, None))
            try:
                while not await allowed.spend(_done(piece_task, cutter.due_in_s)):
                    phrase = cutter.cut_at_gap()
                    if phrase:
                        await hand_over.put(phrase)
            finally:
                await _cancelled(piece_task)
            piece = piece_task.result()
            if piece is None:
                return
            allowed.has_begun()
            yield piece

    async def _speak(self, sink: AnswerSink, phrases: asyncio.Queue[str | None]) -> None:
        index = 0
        while (phrase := await phrases.get()) is not None:
            spoken = False
            try:
                async with aclosing(self._speech(phrase)) as speech:
                    async for samples in speech:
                        spoken = True
                        await sink.audio(index, phrase, samples, self._voice.sample_rate_hz)
            except TimeoutError:
                sink.phrase_failed(phrase, f"the voice took longer than {self._settings.tts_timeout_s:g} s")
            except TasteError as error:
                sink.phrase_failed(phrase, str(error))
            index += spoken  # also when only its beginning was: that is in the audio

    async def _speech(self, phrase: str) -> AsyncGenerator[Float32Array]:
        """The audio of a phrase, each piece waited for no longer than all of them may take together."""
        budget = TimeBudget(self._settings.tts_timeout_s)
        async with aclosing(self._voice.speak(phrase)) as pieces:
            while (samples := await budget.spend(anext(pieces, None))) is not None:
                if len(samples):
                    yield samples


class _HandOver:
    """Phrases on their way to the voice."""

    def __init__(self, phrases: asyncio.Queue[str | None], sink: AnswerSink) -> None:
        self._phrases, self._sink, self._told = phrases, sink, False

    async def put(self, phrase: str) -> None:
        if self._phrases.full() and not self._told:
            self._told = True
            self._sink.notice(HELD_BACK)
        await self._phrases.put(phrase)


async def _done(task: asyncio.Future[str | None], timeout_s: float | None) -> bool:
    """Whether `task` is done, at the latest after `timeout_s`."""
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    return bool(done)


async def _cancelled(task: asyncio.Future[str | None]) -> None:
    """End `task`, if it has not ended; its model is then free to be closed, and how it ended does not matter."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # has been looked at, also if whoever waits for it is cancelled at this moment
