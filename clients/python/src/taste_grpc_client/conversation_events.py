"""What happens in a live conversation, as the server tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from taste.v1.common_pb2 import AUDIO_ENCODING_FLOAT32LE, AudioFormat
from taste.v1.dialogue_pb2 import ConverseErrorCode, ConverseResponse, TurnPhase


class Phase(StrEnum):
    """Where a turn stands."""

    IDLE = "idle"
    """Nobody speaks."""
    CAPTURING = "capturing"
    """The person speaks."""
    THINKING = "thinking"
    """The person has finished; the answer has not begun."""
    RESPONDING = "responding"
    """The answer is being given."""
    COMPLETE = "complete"
    """The turn is over."""
    ERROR = "error"
    """The turn has failed."""
    UNKNOWN = "unknown"
    """One that this version of the client does not know."""


class ErrorCode(StrEnum):
    """What failed in a conversation; see `taste.v1.ConverseErrorCode`."""

    ASR_FAIL = "ASR_FAIL"
    ASR_TIMEOUT = "ASR_TIMEOUT"
    LLM_FAIL = "LLM_FAIL"
    LLM_TIMEOUT = "LLM_TIMEOUT"
    TTS_FAIL = "TTS_FAIL"
    MAX_DURATION_EXCEEDED = "MAX_DURATION_EXCEEDED"
    BACKPRESSURE = "BACKPRESSURE"
    UNSUPPORTED_SAMPLE_RATE = "UNSUPPORTED_SAMPLE_RATE"
    CANCELLED = "CANCELLED"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    MODEL_LOAD_FAIL = "MODEL_LOAD_FAIL"
    INTERNAL = "INTERNAL"
    UNKNOWN = "UNKNOWN"
    """One that this version of the client does not know."""


@dataclass(frozen=True, slots=True)
class Started:
    """The conversation is open. Always the first.

    Attributes:
        session_id: name of the conversation in the server's log.
        sample_rate_hz: of the answers' audio.
        encoding: of the answers' audio.
        resumed: whether an earlier conversation goes on.
    """

    session_id: str
    sample_rate_hz: int
    encoding: Literal["linear16", "float32le"]
    resumed: bool


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The turn entered `phase`."""

    turn: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """What was understood so far, the whole of it, which may still change; `audio_ms` is how far it goes."""

    turn: int
    text: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class FinalTranscript:
    """What was understood. One for each spoken turn that had words in it."""

    turn: int
    text: str
    audio_ms: int


@dataclass(frozen=True, slots=True)
class LlmToken:
    """More text of the answer; `done` in the last one of an answer that came to its end."""

    turn: int
    text: str
    done: bool


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """More audio of the answer. A `WavWriter` takes it as it is.

    Attributes:
        turn: whose answer it is.
        seq: counts the chunks of the answer from 0.
        audio: raw mono samples.
        sample_rate_hz: of `audio`.
        encoding: of `audio`.
        first_sample: place of `audio` in the answer.
        duration_ms: length of `audio`.
        phrase_index: the phrase it is part of, counted from 0.
        phrase_text: what the phrase says, in its first chunk; None in the others.
    """

    turn: int
    seq: int
    audio: bytes = field(repr=False)
    sample_rate_hz: int
    encoding: Literal["linear16", "float32le"]
    first_sample: int
    duration_ms: float
    phrase_index: int
    phrase_text: str | None


@dataclass(frozen=True, slots=True)
class SpeechComplete:
    """All audio of the answer has come: so many chunks, so long."""

    turn: int
    chunks: int
    audio_ms: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The person spoke into the answer: stop playing it.

    Attributes:
        turn: whose answer it is.
        heard_ms: how much of it was heard.
        heard_text: the words that were heard, which is what is remembered of the answer.
        estimated: whether `heard_ms` was estimated, for want of acks.
    """

    turn: int
    heard_ms: int
    heard_text: str
    estimated: bool


@dataclass(frozen=True, slots=True)
class MarkReached:
    """A mark comes back: all that was sent before it has been processed."""

    id: str


@dataclass(frozen=True, slots=True)
class TurnMetrics:
    """Times of a turn that has ended, in ms after its audio began; None for what did not happen.

    Attributes:
        turn: whose times they are.
        first_partial_ms: the first partial transcript.
        final_transcript_ms: the final transcript.
        first_token_ms: the first text of the answer.
        first_audio_ms: the first audio of the answer.
        response_ms: from the end of speech to the first audio of the answer.
    """

    turn: int
    first_partial_ms: float | None
    final_transcript_ms: float | None
    first_token_ms: float | None
    first_audio_ms: float | None
    response_ms: float | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that is no error."""

    turn: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Something failed, and the conversation goes on. What ends it is raised, as ConversationError."""

    turn: int | None
    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The server is about to stop: go on elsewhere.

    Attributes:
        resume_token: what `converse` takes to continue this conversation, once.
        grace_ms: time until this call is cut.
        token_lifetime_ms: time until the token is worth nothing.
    """

    resume_token: str
    grace_ms: int
    token_lifetime_ms: int


ConversationEvent: TypeAlias = (
    Started
    | PhaseChanged
    | PartialTranscript
    | FinalTranscript
    | LlmToken
    | SpeechChunk
    | SpeechComplete
    | Interrupted
    | MarkReached
    | TurnMetrics
    | Notice
    | Failure
    | GoingAway
)
"""Whatever a conversation gives when it is iterated; made for `match`."""

_SILENT = AudioFormat()


def read_event(response: ConverseResponse, output_format: AudioFormat = _SILENT) -> ConversationEvent | None:
    """The event in `response`; None when it is of a kind that this version does not know.

    `output_format` is that of the answers' audio, as the first response told it.
    """
    kind = response.WhichOneof("event")
    if kind is None:
        return None
    turn = response.turn_index if response.HasField("turn_index") else None
    if kind in _PLAIN:
        return _PLAIN[kind](getattr(response, kind), turn)
    if kind == "tts_chunk":
        return _chunk(response, output_format)
    return _OF_TURN[kind](getattr(response, kind), response.turn_index)


def _encoding(form: AudioFormat) -> Literal["linear16", "float32le"]:
    return "float32le" if form.encoding == AUDIO_ENCODING_FLOAT32LE else "linear16"


def _phase(value: TurnPhase.ValueType) -> Phase:
    name = TurnPhase.Name(value) if value in TurnPhase.values() else ""
    return Phase.__members__.get(name.removeprefix("TURN_PHASE_"), Phase.UNKNOWN)


def _error_code(value: ConverseErrorCode.ValueType) -> ErrorCode:
    name = ConverseErrorCode.Name(value) if value in ConverseErrorCode.values() else ""
    return ErrorCode.__members__.get(name.removeprefix("CONVERSE_ERROR_CODE_"), ErrorCode.UNKNOWN)


def _chunk(response: ConverseResponse, output_format: AudioFormat) -> SpeechChunk:
    told = response.tts_chunk
    return SpeechChunk(
        turn=response.turn_index,
        seq=told.seq,
        audio=told.audio,
        sample_rate_hz=output_format.sample_rate_hz,
        encoding=_encoding(output_format),
        first_sample=told.first_sample,
        duration_ms=told.chunk_duration_ms,
        phrase_index=told.phrase_index,
        phrase_text=told.phrase_text if told.HasField("phrase_text") else None,
    )


def _metrics(told: Any, turn: int) -> TurnMetrics:
    names = ("first_partial_ms", "final_transcript_ms", "first_token_ms", "first_audio_ms", "response_ms")
    return TurnMetrics(turn, *(getattr(told, name) if told.HasField(name) else None for name in names))


_OF_TURN: dict[str, Callable[[Any, int], ConversationEvent]] = {
    "phase_change": lambda told, turn: PhaseChanged(turn, _phase(told.phase)),
    "partial_transcript": lambda told, turn: PartialTranscript(turn, told.text, told.audio_ms),
    "final_transcript": lambda told, turn: FinalTranscript(turn, told.text, told.audio_ms),
    "llm_token": lambda told, turn: LlmToken(turn, told.text, told.done),
    "tts_complete": lambda told, turn: SpeechComplete(turn, told.chunks, told.audio_ms),
    "interruption": lambda told, turn: Interrupted(turn, told.heard_ms, told.heard_text, told.estimated),
    "turn_metrics": _metrics,
}

_PLAIN: dict[str, Callable[[Any, int | None], ConversationEvent]] = {
    "started": lambda told, turn: Started(
        told.session_id, told.output_format.sample_rate_hz, _encoding(told.output_format), told.resumed
    ),
    "mark": lambda told, turn: MarkReached(told.id),
    "notice": lambda told, turn: Notice(turn, told.message),
    "error": lambda told, turn: Failure(turn, _error_code(told.code), told.message),
    "going_away": lambda told, turn: GoingAway(told.resume_token, told.grace_ms, told.token_lifetime_ms),
}
