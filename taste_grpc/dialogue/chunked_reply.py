"""What all reply models do with a question and an answer, whatever model answers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.read_ahead import ReadAhead
from taste_grpc.dialogue.reply import REPLY_MODES, ReplyChunk, ReplyMode
from taste_grpc.dialogue.reply_audio import question_samples
from taste_grpc.dialogue.reply_chunks import WordGrouper
from taste_grpc.dialogue.reply_progress import ReplyProgress
from taste_grpc.dialogue.silence import MakeDetector, default_detector, has_speech
from taste_grpc.errors import InvalidInputError, NotInitialisedError, TasteError
from taste_grpc.settings import ChunkedResponseSettings

if TYPE_CHECKING:
    from taste_grpc.dialogue.reply_audio import AudioData

_SHOWN_CHARS = 64


class NothingSaidError(TasteError):
    """The recogniser found no words in what sounded like speech."""


class ChunkedReplyModel(ABC):
    """What all reply models share: the question's checks, the grouping of words, time limits, failures, log lines.

    Args:
        settings: of requests that do not say otherwise.
        make_detector: makes the voice-activity detector that looks for speech, one for each question.
    """

    def __init__(self, settings: ChunkedResponseSettings | None, make_detector: MakeDetector | None) -> None:
        self._settings = settings or ChunkedResponseSettings()
        self._make_detector = make_detector or default_detector

    @property
    @abstractmethod
    def name(self) -> str:
        """Name and version, for people."""

    @property
    @abstractmethod
    def is_initialised(self) -> bool:
        """Whether it can be asked."""

    @abstractmethod
    def _answer(self, samples: Float32Array, mode: ReplyMode, settings: ChunkedResponseSettings) -> AsyncGenerator[str]:
        """The answer to `samples` `[T]` float32 at 16 kHz, in pieces as they come. Closing it ends the model's work.

        Raises NothingSaidError when there is nothing to answer, anything else when it fails.
        """

    async def _prepare_detector(self) -> None:
        """Load the weights of the detector, which all detectors share. Raises UnsupportedByModelError."""
        await asyncio.to_thread(self._make_detector)

    async def process_realtime_chunk_streaming(
        self,
        audio_data: AudioData,
        chunk_id: str,
        mode: str = "conversation",
        *,
        sampling_rate: int = 16_000,
        **overrides: Any,
    ) -> AsyncGenerator[ReplyChunk]:
        """The answer to a spoken question, chunk by chunk: see `ReplyModel`."""
        reply = ReplyProgress(self.name, str(chunk_id))
        try:
            if not self.is_initialised:
                raise NotInitialisedError(f"{self.name} is not initialised: await its initialize() first")
            chosen, settings = checked_mode(mode), overridden(self._settings, overrides)
            reply.begin(chosen, settings.timeout_ms)
            samples = await asyncio.to_thread(question_samples, audio_data, sampling_rate)
            async with aclosing(self._chunks(reply, samples, settings)) as chunks:
                async for chunk in chunks:
                    with reply.paused():
                        yield chunk
        except Exception:
            reply.outcome = "refused"
            raise
        finally:
            reply.log()

    async def _chunks(
        self, reply: ReplyProgress, samples: Float32Array, settings: ChunkedResponseSettings
    ) -> AsyncGenerator[ReplyChunk]:
        grouper = WordGrouper(settings.chunk_size_words, settings.chunk_timeout_ms / 1000)
        try:
            if not await asyncio.to_thread(has_speech, samples, self._make_detector):
                raise NothingSaidError
            async with ReadAhead(self._answer(samples, reply.mode, settings)) as pieces:
                while (piece := await pieces.next(reply.patience_s(grouper.due_in_s))) is not None:
                    for text in grouper.push(piece) if piece else grouper.cut_due():
                        yield reply.chunk(text)
                    reply.check_time()
        except NothingSaidError:
            last = reply.no_speech()
        except Exception as error:
            last = reply.failure(error)
        else:
            last = reply.chunk(grouper.finish(), is_final=True)
        yield last


def check_reply_options(mode: str = "conversation", **overrides: Any) -> None:
    """Raises InvalidInputError, naming the one that cannot be, for what no reply model takes."""
    checked_mode(mode)
    overridden(ChunkedResponseSettings(), overrides)


def checked_mode(mode: str) -> ReplyMode:
    """`mode`, if there is such a one. Raises InvalidInputError naming it."""
    if mode not in REPLY_MODES:
        raise InvalidInputError("mode", f"is {_shown(mode)}; {' and '.join(REPLY_MODES)} are allowed")
    return mode


def overridden(settings: ChunkedResponseSettings, overrides: Mapping[str, Any]) -> ChunkedResponseSettings:
    """`settings` with those of one request in their place. Raises InvalidInputError naming the one that cannot be."""
    try:
        return ChunkedResponseSettings.model_validate({**settings.model_dump(), **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise InvalidInputError(name, "there is no such setting of replies") from None
        raise InvalidInputError(name, f"is {_shown(first['input'])}; {_allowed(name) or first['msg']}") from None


def _shown(value: Any) -> str:
    text = repr(value[:_SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _allowed(name: str) -> str:
    """`1 to 64 is allowed`; empty for settings without a range."""
    bounds = {}
    for limit in ChunkedResponseSettings.model_fields[name].metadata:
        bounds.update({side: getattr(limit, side) for side in ("ge", "le") if hasattr(limit, side)})
    return f"{bounds['ge']} to {bounds['le']} is allowed" if len(bounds) == 2 else ""
