"""Replies by a recogniser and a language model, one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.chunked_reply import ChunkedReplyModel, NothingSaidError
from taste_grpc.dialogue.language_model import LanguageModel, Message, Sampling
from taste_grpc.dialogue.reply import ReplyMode
from taste_grpc.dialogue.silence import MakeDetector
from taste_grpc.settings import ChunkedResponseSettings

SYSTEM_PROMPT = "You are a voice assistant. Answer in one or two short, plain sentences."


class QuestionRecogniser(Protocol):
    """A recogniser that may be used from the event loop, such as a pool of them."""

    async def transcribe(self, samples: Float32Array, *, urgent: bool, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is.

        What is `urgent` comes before what is not. Raises SpeechError when the recogniser fails.
        """
        ...

    async def start(self) -> None:
        """Load what is needed. Raises UnsupportedByModelError when it cannot be used."""
        ...

    async def aclose(self) -> None:
        """End what it runs."""
        ...


class CascadeModel(ChunkedReplyModel):
    """Writes the question down, and has a language model answer what was written.

    Args:
        recogniser: hears.
        language_model: answers.
        settings: of requests that do not say otherwise.
        make_detector: makes the voice-activity detector that looks for speech.
        owns_models: `initialize` starts both and `aclose` ends them; otherwise somebody else does, who uses them too.
    """

    def __init__(
        self,
        recogniser: QuestionRecogniser,
        language_model: LanguageModel,
        *,
        settings: ChunkedResponseSettings | None = None,
        make_detector: MakeDetector | None = None,
        owns_models: bool = True,
    ) -> None:
        super().__init__(settings, make_detector)
        self._recogniser, self._language_model = recogniser, language_model
        self._owns_models = owns_models
        self._started = self._initialised = False

    @property
    def name(self) -> str:
        """Name of the language model."""
        return f"recogniser and {self._language_model.name}"

    @property
    def is_initialised(self) -> bool:
        """Whether it can be asked."""
        return self._initialised

    async def initialize(self) -> None:
        """Start what is its own. Raises UnsupportedByModelError when a part of it cannot be used."""
        if self._initialised:
            return
        await self._prepare_detector()
        if self._owns_models:
            self._started = True
            await self._recogniser.start()
            await self._language_model.start()
        self._initialised = True

    async def aclose(self) -> None:
        """End what is its own."""
        started, self._started, self._initialised = self._started, False, False
        if started:
            await self._language_model.aclose()
            await self._recogniser.aclose()

    async def _answer(
        self, samples: Float32Array, mode: ReplyMode, settings: ChunkedResponseSettings
    ) -> AsyncGenerator[str]:
        heard = (await self._recogniser.transcribe(samples, urgent=True)).strip()
        if not heard:
            raise NothingSaidError
        if mode == "transcription":
            yield heard
            return
        messages = [Message("system", settings.system_prompt or SYSTEM_PROMPT), Message("user", heard)]
        sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
        async with aclosing(self._language_model.answer(messages, sampling)) as pieces:
            async for piece in pieces:
                yield piece
