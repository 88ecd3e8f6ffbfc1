"""The messages of the WebSocket: JSON texts and binary audio, to and from the events of a conversation. Pure.

A client sends `start` first, then Int16 little-endian mono PCM in binary messages and any of the other texts:

    {"type": "start", "sample_rate": 16000, "language", "system_prompt", "voice": {"name", "sample_rate"},
     "options": {"vad_silence_ms", "partial_interval_ms", "max_utterance_ms", "barge_in_ms", "barge_in",
     "max_new_tokens"}, "resume_token", "access_token"}
    {"type": "stop"}    {"type": "cancel"}    {"type": "text", "text"}    {"type": "mark", "id"}
    {"type": "playback_ack", "turn", "played_ms"}    {"type": "playback_credit", "max_unplayed_ms"}

All but the first two fields of `start` may be left out. Types are strict, and a field that is not listed is refused: a
misspelt option is not to be without effect unnoticed.

The server sends `protocol` first, then `started`, `phase`, `partial_transcript`, `final_transcript`, `llm_token`,
`tts_chunk`, `tts_complete`, `interrupted`, `mark`, `info`, `error`, `metrics`, `going_away`, each with `turn` where it
belongs to one. What is unset is left out. More fields may come with time.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError
from websockets.frames import CloseCode

from taste_grpc.audio import Waveform, encode_wav
from taste_grpc.dialogue.events import (
    AudioIn,
    Cancel,
    ClientEvent,
    ErrorCode,
    Failure,
    FinalTranscript,
    GoingAway,
    Interrupted,
    LlmToken,
    Mark,
    MarkReached,
    Notice,
    Options,
    PartialTranscript,
    PhaseChanged,
    PlaybackAck,
    PlaybackCredit,
    ServerEvent,
    SpeechChunk,
    SpeechComplete,
    Start,
    Started,
    Stop,
    TextTurn,
    TurnMetrics,
    VoiceChoice,
)
from taste_grpc.errors import TasteError
from taste_grpc.settings import BargeInMs, LimitSettings, MaxNewTokens, MaxUtteranceMs, PartialIntervalMs, VadSilenceMs

VERSION = 1

UNAUTHENTICATED = "UNAUTHENTICATED"
"""Error code of a client without a known token; beside those of `ErrorCode`."""
OVERLOADED = "OVERLOADED"
"""Error code of a client for whom there is no room; beside those of `ErrorCode`."""
UNAVAILABLE = "UNAVAILABLE"
"""Error code while the server loads or is about to stop; beside those of `ErrorCode`."""
UNSUPPORTED = "UNSUPPORTED"
"""Error code of a `start` that asks for what the loaded models cannot do; beside those of `ErrorCode`."""

_MAX_INT = 2**53 - 1  # beyond it JavaScript has gaps
_MAX_QUOTED_CHARS = 40
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LANGUAGE = re.compile(r"[A-Za-z0-9]{1,8}(-[A-Za-z0-9]{1,8}){0,8}")
_NOT_TEXT = re.compile(r"[^\x20-\x7e]")


class ViolationError(TasteError):
    """A client sent what it may not; the connection is closed with `close_code`."""

    def __init__(self, message: str, close_code: CloseCode = CloseCode.UNSUPPORTED_DATA) -> None:
        super().__init__(message)
        self.close_code = close_code


class UnsupportedRateError(TasteError):
    """A sample rate that `start` asks for is outside the limits."""


def _without_controls(text: str) -> str:
    if control := _CONTROL.search(text):
        raise ValueError(f"has the control character U+{ord(control[0]):04X}; only tab and newline are allowed")
    return text


def _short(text: str) -> str:
    if len(text.encode()) > 256:
        raise ValueError("has more than 256 bytes")
    return text


def _language_tag(text: str) -> str:
    if not _LANGUAGE.fullmatch(text):
        raise ValueError("is no language tag like en or pt-BR")
    return text


_Text = Annotated[str, AfterValidator(_without_controls)]
_Name = Annotated[str, AfterValidator(_short)]
_Count = Annotated[int, Field(ge=0, le=_MAX_INT)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class VoiceFields(_Message):
    """`start.voice`."""

    name: _Name | None = None
    sample_rate: int = VoiceChoice.sample_rate_hz


class OptionFields(_Message):
    """`start.options`."""

    vad_silence_ms: VadSilenceMs | None = None
    partial_interval_ms: PartialIntervalMs | None = None
    max_utterance_ms: MaxUtteranceMs | None = None
    barge_in_ms: BargeInMs | None = None
    barge_in: bool | None = None
    max_new_tokens: MaxNewTokens | None = None


class StartMessage(_Message):
    """Opens a conversation; further ones begin its further turns."""

    type: Literal["start"] = "start"
    sample_rate: int | None = None
    language: Annotated[str, AfterValidator(_language_tag)] | None = None
    system_prompt: _Text | None = None
    voice: VoiceFields | None = None
    options: OptionFields = OptionFields()
    resume_token: str | None = None
    access_token: SecretStr | None = None

    def to_start(self) -> Start:
        """What opens the conversation. `sample_rate` must be set."""
        assert self.sample_rate is not None
        return Start(
            sample_rate_hz=self.sample_rate,
            language=self.language,
            system_prompt=self.system_prompt,
            voice=VoiceChoice(self.voice.name, sample_rate_hz=self.voice.sample_rate) if self.voice else None,
            options=Options(**self.options.model_dump()),
            resume_token=self.resume_token,
        )


class _Stop(_Message):
    type: Literal["stop"]

    def event(self) -> Stop:
        return Stop()


class _Cancel(_Message):
    type: Literal["cancel"]

    def event(self) -> Cancel:
        return Cancel()


class _TextTurn(_Message):
    type: Literal["text"]
    text: _Text

    def event(self) -> TextTurn:
        return TextTurn(self.text)


class _PlaybackAck(_Message):
    type: Literal["playback_ack"]
    turn: Annotated[int, Field(ge=0, lt=2**31)]
    played_ms: _Count

    def event(self) -> PlaybackAck:
        return PlaybackAck(self.turn, self.played_ms)


class _PlaybackCredit(_Message):
    type: Literal["playback_credit"]
    max_unplayed_ms: _Count

    def event(self) -> PlaybackCredit:
        return PlaybackCredit(self.max_unplayed_ms)


class _Mark(_Message):
    type: Literal["mark"]
    id: _Name

    def event(self) -> Mark:
        return Mark(self.id)


_AnyMessage = StartMessage | _Stop | _Cancel | _TextTurn | _PlaybackAck | _PlaybackCredit | _Mark
_MESSAGES: TypeAdapter[_AnyMessage] = TypeAdapter(Annotated[_AnyMessage, Field(discriminator="type")])
_KNOWN_TYPES = "start, stop, cancel, text, playback_ack, playback_credit and mark are known"


def read_message(message: str | bytes, limits: LimitSettings) -> StartMessage | ClientEvent:
    """What a client sent. Raises ViolationError."""
    if isinstance(message, bytes):
        return _read_audio(message)
    try:
        read = _MESSAGES.validate_json(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ViolationError(_complaint(dict(first))) from None
    if isinstance(read, StartMessage):
        _check_size("start.system_prompt", read.system_prompt or "", limits)
        return read
    if isinstance(read, _TextTurn):
        _check_size("text.text", read.text, limits)
        if not read.text.strip():
            raise ViolationError("text.text: is empty or has only blanks")
    return read.event()


def _read_audio(pcm: bytes) -> AudioIn:
    if not pcm:
        raise ViolationError("the binary message is empty; it must hold Int16 samples")
    if len(pcm) % 2:
        raise ViolationError(f"the binary message has {len(pcm)} bytes, no whole number of Int16 samples")
    return AudioIn(pcm)


def _check_size(path: str, text: str, limits: LimitSettings) -> None:
    size = len(text.encode())
    if size > limits.max_text_bytes:
        raise ViolationError(f"{path}: has {size} bytes of UTF-8; at most {limits.max_text_bytes} are allowed")


def check_rates(start: StartMessage, limits: LimitSettings) -> None:
    """Raises UnsupportedRateError when a rate is outside `limits`."""
    rates = {"start.sample_rate": start.sample_rate}
    if start.voice is not None:
        rates["start.voice.sample_rate"] = start.voice.sample_rate
    for path, rate_hz in rates.items():
        if rate_hz is not None and not limits.min_sample_rate_hz <= rate_hz <= limits.max_sample_rate_hz:
            allowed = f"{limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz are allowed"
            raise UnsupportedRateError(f"{path}: is {_quoted(str(rate_hz))}; {allowed}")


def _complaint(error: Mapping[str, Any]) -> str:
    """A sentence for a validation error; of what was sent it repeats names only."""
    path = ".".join(_quoted(str(part)) for part in error["loc"])
    match error["type"]:
        case "json_invalid":
            return f"the message is no JSON: {_quoted(str(error['ctx']['error']), 120)}"
        case "model_attributes_type" | "dict_type" | "model_type" if not path:
            return "the message is no JSON object"
        case "union_tag_not_found":
            return f"the message has no type; {_KNOWN_TYPES}"
        case "union_tag_invalid":
            return f"there is no message of type {_quoted(str(error['ctx']['tag']))}; {_KNOWN_TYPES}"
        case "extra_forbidden":
            return f"{path}: there is no such field"
        case "missing":
            return f"{path}: is missing"
    return f"{path}: {str(error['msg']).removeprefix('Value error, ').removeprefix('Input ')}"


def _quoted(text: str, max_chars: int = _MAX_QUOTED_CHARS) -> str:
    """`text` as far as it can be printed in a line."""
    return _NOT_TEXT.sub("?", text if len(text) <= max_chars else text[: max_chars - 3] + "...")


_NAMES: dict[type[Any], str] = {
    PartialTranscript: "partial_transcript",
    FinalTranscript: "final_transcript",
    LlmToken: "llm_token",
    SpeechComplete: "tts_complete",
    Interrupted: "interrupted",
    MarkReached: "mark",
    TurnMetrics: "metrics",
    Notice: "info",
    GoingAway: "going_away",
}
"""Events whose fields go out as they are called."""


def protocol_text() -> str:
    """What every client is told at once."""
    return _json({"type": "protocol", "version": VERSION})


def info_text(message: str) -> str:
    """Something worth knowing."""
    return _json({"type": "info", "message": message})


def error_text(code: ErrorCode | str, message: str, turn: int | None = None) -> str:
    """Something failed."""
    name, recoverable = (code.value, code.recoverable) if isinstance(code, ErrorCode) else (code, False)
    return _json({"type": "error", "turn": turn, "code": name, "message": message, "recoverable": recoverable})


def event_text(event: ServerEvent) -> str:
    """`event` as a message. Its audio becomes a WAV file of 16-bit samples, whole by itself."""
    match event:
        case Started(session_id, voice, resumed):
            rate_hz = voice.sample_rate_hz
            return _json({"type": "started", "session_id": session_id, "resumed": resumed, "sample_rate": rate_hz})
        case PhaseChanged(turn, phase):
            return _json({"type": "phase", "turn": turn, "phase": phase.value})
        case Failure(turn, code, message):
            return error_text(code, message, turn)
        case SpeechChunk():
            return _json(_chunk(event))
    return _json({"type": _NAMES[type(event)], **vars(event)})


def _chunk(event: SpeechChunk) -> dict[str, Any]:
    wav = encode_wav(Waveform(event.samples, event.sample_rate_hz))
    return {
        "type": "tts_chunk",
        "turn": event.turn,
        "seq": event.seq,
        "mime": "audio/wav",
        "audio_b64": base64.b64encode(wav).decode("ascii"),
        "first_sample": event.first_sample,
        "duration_ms": event.duration_ms,
        "phrase_index": event.phrase_index,
        "phrase_text": event.phrase_text,
    }


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in fields.items() if value is not None}, separators=(",", ":"))
