"""What goes into a conversation and what comes out of it, whatever carries it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from taste_grpc.audio import Encoding
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.phases import Phase


@dataclass(frozen=True)
class VoiceChoice:
    """How the answers of a conversation sound.

    Attributes:
        name: of one of the server's voices; None takes its default.
        speaker_embedding: a voice as a vector `[E]`, for a server that answers with a TASTE model.
        sample_rate_hz: of the answers.
        encoding: of the answers.
    """

    name: str | None = None
    speaker_embedding: tuple[float, ...] | None = None
    sample_rate_hz: int = 16_000
    encoding: Encoding = Encoding.LINEAR16


@dataclass(frozen=True)
class Options:
    """Settings of one conversation; None takes the server's.

    Attributes:
        vad_silence_ms: silence that ends a turn.
        partial_interval_ms: time between partial transcripts.
        max_utterance_ms: the longest turn.
        barge_in_ms: speech that interrupts an answer.
        barge_in: whether speech interrupts an answer at all.
        max_new_tokens: the longest answer.
    """

    vad_silence_ms: int | None = None
    partial_interval_ms: int | None = None
    max_utterance_ms: int | None = None
    barge_in_ms: int | None = None
    barge_in: bool | None = None
    max_new_tokens: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Start:
    """Opens a conversation.

    Attributes:
        sample_rate_hz: of the microphone.
        channels: of the microphone, 1 or 2.
        encoding: of the microphone, a raw one.
        language: BCP 47 tag of the speech; None takes the recogniser's own.
        system_prompt: instructions to the language model; None takes the server's, or those of the resumed one.
        voice: how answers sound; None takes the server's, or that of the resumed one.
        options: those given replace the ones of the resumed conversation.
        resume_token: of an earlier conversation that is to go on.
    """

    sample_rate_hz: int = 16_000
    channels: int = 1
    encoding: Encoding = Encoding.LINEAR16
    language: str | None = None
    system_prompt: str | None = None
    voice: VoiceChoice | None = None
    options: Options = field(default_factory=Options)
    resume_token: str | None = None


@dataclass(frozen=True)
class AudioIn:
    """Microphone audio as `Start` describes it: raw PCM, whole frames."""

    data: bytes


@dataclass(frozen=True)
class Stop:
    """The person has finished: ends the turn at once."""


@dataclass(frozen=True)
class Cancel:
    """Gives up the running turn; nothing of it is remembered."""


@dataclass(frozen=True)
class TextTurn:
    """A turn that was typed."""

    text: str


@dataclass(frozen=True)
class PlaybackAck:
    """The person has heard `played_ms` of the answer of turn `turn`."""

    turn: int
    played_ms: int


@dataclass(frozen=True)
class PlaybackCredit:
    """At most `max_unplayed_ms` of audio may be sent and not played."""

    max_unplayed_ms: int


@dataclass(frozen=True)
class Mark:
    """Goes in with any id, and comes back when all that went in before it has been processed."""

    id: str


ClientEvent = AudioIn | Stop | Cancel | TextTurn | PlaybackAck | PlaybackCredit | Mark


class ErrorCode(Enum):
    """What failed; the names are those of `taste.v1.ConverseErrorCode`."""

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

    @property
    def recoverable(self) -> bool:
        """Whether the conversation goes on with the next turn."""
        return self not in (ErrorCode.PROTOCOL_VIOLATION, ErrorCode.MODEL_LOAD_FAIL, ErrorCode.INTERNAL)


@dataclass(frozen=True)
class Started:
    """The conversation is open. Always the first."""

    session_id: str
    voice: VoiceChoice
    resumed: bool


@dataclass(frozen=True)
class PhaseChanged:
    """The turn entered `phase`."""

    turn: int
    phase: Phase


@dataclass(frozen=True)
class PartialTranscript:
    """What was understood so far, the whole of it; `audio_ms` counts from the start of the turn."""

    turn: int
    text: str
    audio_ms: int


@dataclass(frozen=True)
class FinalTranscript:
    """What was understood."""

    turn: int
    text: str
    audio_ms: int


@dataclass(frozen=True)
class LlmToken:
    """More text of the answer; `done` in the last one of an answer that came to its end."""

    turn: int
    text: str
    done: bool


@dataclass(frozen=True)
class SpeechChunk:
    """More audio of the answer.

    Attributes:
        turn: whose answer it is.
        seq: counts the chunks of the answer from 0.
        samples: `[T]` float32, mono, at `sample_rate_hz`.
        sample_rate_hz: the one of `VoiceChoice`.
        first_sample: place in the answer.
        phrase_index: the phrase it is part of, counted from 0.
        phrase_text: set in the first chunk of a phrase.
    """

    turn: int
    seq: int
    samples: Float32Array
    sample_rate_hz: int
    first_sample: int
    phrase_index: int
    phrase_text: str | None

    @property
    def duration_ms(self) -> float:
        """Length of the audio."""
        return 1000 * len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True)
class SpeechComplete:
    """All audio of the answer has gone out."""

    turn: int
    chunks: int
    audio_ms: float


@dataclass(frozen=True)
class Interrupted:
    """The answer was interrupted, and is remembered as far as it was heard."""

    turn: int
    heard_ms: int
    heard_text: str
    estimated: bool


@dataclass(frozen=True)
class MarkReached:
    """A mark comes back."""

    id: str


@dataclass(frozen=True)
class TurnMetrics:
    """Times of a turn that has ended, in ms after its audio began (t0); None for what did not happen.

    Attributes:
        first_partial_ms: t1.
        final_transcript_ms: t2.
        first_token_ms: t3.
        first_audio_ms: t4.
        response_ms: from the end of speech to t4.
    """

    turn: int
    first_partial_ms: float | None = None
    final_transcript_ms: float | None = None
    first_token_ms: float | None = None
    first_audio_ms: float | None = None
    response_ms: float | None = None


@dataclass(frozen=True)
class Notice:
    """Something worth knowing that is no error."""

    turn: int | None
    message: str


@dataclass(frozen=True)
class Failure:
    """Something failed; the conversation ends with it unless `code.recoverable`."""

    turn: int | None
    code: ErrorCode
    message: str


@dataclass(frozen=True)
class GoingAway:
    """The server is about to stop: go on elsewhere, with `resume_token`."""

    resume_token: str
    grace_ms: int
    token_lifetime_ms: int


ServerEvent = (
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
