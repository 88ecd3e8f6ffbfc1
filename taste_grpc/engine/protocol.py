"""What a front end needs from an engine, in plain dataclasses and numpy.

Nothing here imports torch or gRPC, so a server process can speak to an engine
that lives elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from taste_grpc.audio.waveform import Waveform as Waveform

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

Role = Literal["system", "user", "assistant"]
Modality = Literal["text", "audio"]
CompletionReason = Literal["continuing", "segment_end", "finished", "no_speech", "max_length"]


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word without blanks around it, and its codes `[vq_dim]` int64.

    `text_ids` are the ids it came as; they count only while they spell `text`.
    """

    text: str
    taste_ids: Int64Array
    text_ids: Int64Array | None = None


@dataclass(frozen=True, slots=True)
class SegmentInput:
    """One fragment of a conversation or of speech, in one of four forms.

    Plain `text`; spoken `words`; token form (`text_ids` `[S]` int64, optional `word_ids` `[S]`,
    optional `taste_ids` `[S, vq_dim]` int64 with -1 rows); or raw `audio` with an
    optional `text` transcript, which the engine transcribes and tokenizes.
    `audio` modality in token form needs `taste_ids`.
    """

    role: Role
    modality: Modality
    text: str | None = None
    text_ids: Int64Array | None = None
    word_ids: Int64Array | None = None
    taste_ids: Int64Array | None = None
    audio: Waveform | None = None
    words: tuple[SpokenWord, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Audio to tokenize. `text` or `text_ids` say what is spoken; with neither, the engine's recogniser does."""

    audio: Waveform
    text: str | None = None
    text_ids: Int64Array | None = None


@dataclass(frozen=True, slots=True)
class TokenizeResult:
    """`text_ids` `[S]`, `word_ids` `[S]`, `taste_ids` `[S, vq_dim]`, `speaker_embedding` `[192]` (L2-normalised).

    `words` are the texts of the words that `word_ids` number, without blanks around them.
    """

    text: str
    text_ids: Int64Array
    word_ids: Int64Array
    taste_ids: Int64Array
    speaker_embedding: Float32Array
    audio_ms: float
    words: tuple[str, ...] = ()
    timing_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmitPolicy:
    """When a generated segment leaves: every `every_words` completed words, or at each sentence end."""

    every_words: int = 1
    at_sentence_end: bool = False


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A conversation to continue; defaults are those of the published model."""

    segments: tuple[SegmentInput, ...]
    text_top_p: float = 0.3
    taste_top_p: float = 0.0
    text_temperature: float = 0.5
    repetition_penalty: float = 1.1
    max_length: int = 512
    extra_words: int = 32
    eos_id: int | None = None
    seed: int | None = None
    emit: EmitPolicy = EmitPolicy()
    conversation_format: str | None = None
    """One of `ModelInfo.conversation_formats`; None takes the model's default (the first)."""


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What is new since the last result, in whole words; exactly one, the last, has `is_complete`.

    `text_ids`, as many `word_ids` (counted from the start of the answer), as many rows of `vq_dim` `taste_ids`, and
    `words`, the text of each word. There are none of them when the last result brings no word. Most results are of one
    row, for which tuples are much cheaper than arrays.
    """

    is_complete: bool
    completion_reason: CompletionReason
    text: str
    text_ids: tuple[int, ...]
    word_ids: tuple[int, ...]
    taste_ids: tuple[tuple[int, ...], ...]
    index: int
    words: tuple[str, ...] = ()
    timing_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DetokenizeConfig:
    """How speech is to sound. Exactly one of `speaker_embedding` `[192]` and `reference` is given,
    or neither with a `resume_state`, which carries the speaker.

    `out_sample_rate_hz` and `seed`, when given, win over those of the state; else 16,000 Hz and a new seed.
    Speech is made phrase by phrase, of at most `max_chunk_words` words; `look_ahead_words` after each are shown to the
    model, so that a phrase inside a sentence does not sound like its end."""

    speaker_embedding: Float32Array | None = None
    reference: Waveform | None = None
    out_sample_rate_hz: int | None = None
    seed: int | None = None
    resume_state: bytes | None = None
    max_chunk_words: int | None = None
    look_ahead_words: int | None = None


@dataclass(frozen=True, slots=True)
class DetokenizeChunk:
    """New audio only.

    Attributes:
        samples: `[T]` float32 at `sample_rate_hz`.
        first_sample: position of `samples[0]` in the whole stream.
        speech_ids: `[N]` units (50 per second) this audio was made from; when there is too much of it for one chunk,
            those of all its chunks are in the first.
        index: counts chunks of the call; `segment_index` counts its segments.
        is_final: the last chunk of its segment.
        resume_state: on final chunks, what a new call needs to go on from here.
    """

    samples: Float32Array
    sample_rate_hz: int
    first_sample: int
    speech_ids: Int64Array
    index: int
    segment_index: int
    is_final: bool
    resume_state: bytes | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)

    @property
    def chunk_duration_ms(self) -> float:
        """Length of `samples` in milliseconds."""
        return 1000.0 * len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded and how it runs."""

    model_id: str
    revision: str
    parts_trained: dict[str, bool]
    text_vocab_size: int
    asr_vocab_size: int
    vq_dim: int
    codebook_size: int
    speaker_embedding_dim: int
    input_sample_rate_hz: int
    output_sample_rate_hz: int
    speech_unit_rate_hz: int
    special_tokens: dict[str, int]
    conversation_formats: tuple[str, ...]
    device: str
    dtype: str
    asr: str

    @property
    def random_parts(self) -> tuple[str, ...]:
        """Names of the parts whose weights are random."""
        return tuple(name for name, trained in self.parts_trained.items() if not trained)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of an engine since it started."""

    active_calls: int
    waiting_calls: int
    completed_calls: int
    cancelled_calls: int
    failed_calls: int
    decode_steps: int
    prefill_tokens: int
    speech_units: int
    extra: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Many calls over one model.

    All methods are called from one asyncio event loop; none blocks it. Cancelling
    the awaiting task, or closing an iterator, stops the model work of that call
    within one step. Errors are those of `taste_grpc.errors`.
    """

    @property
    def info(self) -> ModelInfo:
        """What is loaded; available once `start` has returned."""
        ...

    async def start(self) -> None:
        """Load and warm up. Raises CheckpointError."""
        ...

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Audio to aligned text ids and codes."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult]:
        """Continue a conversation, word by word."""
        ...

    def detokenize(
        self, config: DetokenizeConfig, segments: AsyncIterator[SegmentInput]
    ) -> AsyncGenerator[DetokenizeChunk]:
        """Speak segments as they arrive."""
        ...

    def stats(self) -> EngineStats:
        """Counters, at no cost."""
        ...

    async def failed(self) -> None:
        """Return once the engine has failed, as its device is lost, say; neither before nor because it was drained."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within `grace_s` seconds, then abort them and stop."""
        ...
