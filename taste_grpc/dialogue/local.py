"""Everything a server holds conversations with, in its own process, put together from its settings."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from platformdirs import user_cache_path

from taste_grpc.audio import Encoding, decode_clip, resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.answer import Answerer
from taste_grpc.dialogue.cascade import Cascade, CascadeSettings
from taste_grpc.dialogue.cascade_reply import CascadeModel
from taste_grpc.dialogue.choose_llm import make_language_model
from taste_grpc.dialogue.conversation import ConversationParts
from taste_grpc.dialogue.conversations import Conversations
from taste_grpc.dialogue.embedded_llm import MAX_SLOTS, EmbeddedLanguageModel
from taste_grpc.dialogue.language_model import LanguageModel
from taste_grpc.dialogue.metrics import DialogueMetrics
from taste_grpc.dialogue.reply import ReplyModel
from taste_grpc.dialogue.resume import ResumeStore
from taste_grpc.dialogue.settings import (
    EMBEDDED_TEMPERATURE,
    SHORT_PROMPT,
    SPOKEN_PROMPT,
    TEMPERATURE,
    DialogueSettings,
)
from taste_grpc.dialogue.taste_answer import TasteAnswerer, check_converses
from taste_grpc.dialogue.voxtral import VoxtralModel
from taste_grpc.engine.protocol import Engine, TokenizeRequest
from taste_grpc.errors import InvalidInputError, SettingsError, UnsupportedByModelError
from taste_grpc.observability import log_event
from taste_grpc.settings import Settings, StreamSettings
from taste_grpc.speech import (
    RECOGNISER_SAMPLE_RATE_HZ,
    MoonshineRecogniser,
    Recogniser,
    RecogniserPool,
    SileroDetector,
    SpeechDetector,
    Voice,
    WebRtcDetector,
    WhisperRecogniser,
    make_voice,
    sample_recordings,
)

logger = logging.getLogger(__name__)

_DETECTORS: dict[str, type[SpeechDetector]] = {"silero": SileroDetector, "webrtc": WebRtcDetector}


class LocalDialogue:
    """Recognisers, a language model and a voice, or a TASTE model; and the conversations that use them.

    To be used on one event loop. `aclose` is to be called after `start`, however that ended.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings, self._chunked, self._engine = settings.stream, settings.chunked_response, engine
        self._device = settings.device
        self.metrics = DialogueMetrics(log_latency=settings.stream.log_latency)
        self._conversations: Conversations | None = None
        self._reply_model: ReplyModel | None = None
        self._parts: tuple[str, ...] = ()
        self._voice: Voice | None = None
        self._running = AsyncExitStack()

    @property
    def conversations(self) -> Conversations:
        """Live conversations; after `start`."""
        assert self._conversations is not None, "the dialogue has not been started"
        return self._conversations

    @property
    def reply_model(self) -> ReplyModel:
        """Answers spoken questions; after `start`."""
        assert self._reply_model is not None, "the dialogue has not been started"
        return self._reply_model

    @property
    def voice(self) -> Voice:
        """Speaks the answers of a language model. Raises UnsupportedByModelError where a TASTE model answers."""
        if self._voice is None:
            raise UnsupportedByModelError("a TASTE model speaks for itself")
        return self._voice

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what listens, answers and speaks; after `start`."""
        return self._parts

    async def start(self) -> None:
        """Load everything, and use it once. Raises TasteError when a part cannot be had."""
        settings = self._settings
        if settings.language_model == "taste":
            check_converses(self._engine)  # before anything is loaded
        make_detector = _DETECTORS[settings.detector]
        detector = await asyncio.to_thread(make_detector)
        recognisers = settings.recognisers or max(1, (os.cpu_count() or 2) // 2)
        pool = RecogniserPool(lambda: _recogniser(settings), recognisers)
        self._running.push_async_callback(pool.aclose)
        await pool.start()
        voice = await asyncio.to_thread(_recorded_voice)
        await asyncio.gather(*(pool.transcribe(voice, urgent=False) for _ in range(recognisers)))
        model = await self._language_model()
        self._reply_model = await self._replies(pool, model, make_detector)
        answerer = await (self._taste() if settings.language_model == "taste" else self._cascade(model))
        self._conversations = Conversations(
            ConversationParts(pool, answerer, self.metrics),
            _dialogue_settings(settings, _prompt(model)),
            make_detector,
            ResumeStore(settings.resume_dir or user_cache_path("taste-grpc") / "resume", settings.resume_lifetime_s),
            most=settings.max_sessions,
        )
        self._running.push_async_callback(self._conversations.aclose)
        self._parts = (detector.name, pool.name, answerer.name)

    async def aclose(self) -> None:
        """End the conversations, then what they used."""
        await self._running.aclose()

    async def _language_model(self) -> LanguageModel:
        settings = self._settings
        choice = settings.language_model
        model = make_language_model(
            "auto" if choice == "taste" else choice,
            openai_api_key=os.environ.get("OPENAI_API_KEY"),
            openai_base_url=os.environ.get("OPENAI_BASE_URL"),
            openai_model=settings.openai_model,
            openai_context_tokens=settings.openai_context_tokens,
            embedded_slots=min(settings.max_sessions, MAX_SLOTS),
        )
        self._running.push_async_callback(model.aclose)
        await model.start()
        return model

    async def _replies(
        self, pool: RecogniserPool, model: LanguageModel, make_detector: Callable[[], SpeechDetector]
    ) -> ReplyModel:
        chunked = self._chunked
        replies: ReplyModel
        if self._settings.voxtral is not None:
            replies = VoxtralModel(self._settings.voxtral, device=self._device, settings=chunked)
        else:
            prompted = chunked.model_copy(update={"system_prompt": chunked.system_prompt or _prompt(model)})
            replies = CascadeModel(pool, model, settings=prompted, make_detector=make_detector, owns_models=False)
        self._running.push_async_callback(replies.aclose)
        await replies.initialize()
        return replies

    async def _cascade(self, model: LanguageModel) -> Answerer:
        voice = self._voice = make_voice(self._settings.voice, processes=self._settings.voice_processes)
        self._running.push_async_callback(voice.aclose)
        await voice.start()
        return Cascade(model, voice, _cascade_settings(self._settings, _temperature(model)))

    async def _taste(self) -> Answerer:
        if random_parts := self._engine.info.random_parts:
            log_event(
                logger,
                logging.WARNING,
                "answers come from a TASTE model with parts that have learned nothing: they mean nothing",
                random_parts=", ".join(random_parts),
            )
        speaker = await _speaker_embedding(self._engine, self._settings.taste_reference)
        return TasteAnswerer(self._engine, speaker, _cascade_settings(self._settings, TEMPERATURE))


def _prompt(model: LanguageModel) -> str:
    """Instructions that suit `model`."""
    return SHORT_PROMPT if isinstance(model, EmbeddedLanguageModel) else SPOKEN_PROMPT


def _temperature(model: LanguageModel) -> float:
    return EMBEDDED_TEMPERATURE if isinstance(model, EmbeddedLanguageModel) else TEMPERATURE


def _recogniser(settings: StreamSettings) -> Recogniser:
    return WhisperRecogniser(settings.model_whisper) if settings.recogniser == "whisper" else MoonshineRecogniser()


def _recorded_voice() -> Float32Array:
    """What recognisers hear first."""
    clip = decode_clip(sample_recordings()["beckett"].read_bytes(), Encoding.WAV)
    return resample(clip.samples, clip.sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ)


async def _speaker_embedding(engine: Engine, reference: Path | None) -> Float32Array:
    """How a TASTE model sounds: as the person of a recording, a WAV file."""
    path = reference or sample_recordings()["beckett"]
    try:
        data = await asyncio.to_thread(path.read_bytes)
        clip = decode_clip(data, Encoding.WAV)
    except (OSError, InvalidInputError) as error:
        raise SettingsError(f"stream.taste_reference: {path}: {error}") from error
    return (await engine.tokenize(TokenizeRequest(clip, text="voice"))).speaker_embedding


def _cascade_settings(settings: StreamSettings, temperature: float) -> CascadeSettings:
    return CascadeSettings(
        llm_first_token_timeout_s=settings.first_token_timeout_s,
        llm_timeout_s=settings.llm_timeout_s,
        tts_timeout_s=settings.tts_timeout_s,
        max_pending_phrases=settings.max_pending_phrases,
        temperature=temperature if settings.temperature is None else settings.temperature,
        top_p=settings.top_p,
    )


def _dialogue_settings(settings: StreamSettings, prompt: str) -> DialogueSettings:
    return DialogueSettings(
        system_prompt=prompt if settings.system_prompt is None else settings.system_prompt,
        vad_silence_ms=settings.vad_silence_ms,
        partial_interval_ms=settings.partial_interval_ms,
        max_utterance_ms=settings.max_utterance_ms,
        max_utterance_bytes=settings.max_utterance_bytes,
        barge_in_ms=settings.barge_in_ms,
        max_new_tokens=settings.max_new_tokens,
        asr_timeout_s=settings.asr_timeout_s,
    )
