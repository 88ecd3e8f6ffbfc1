"""Between the messages of Converse and the events of a conversation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from taste.v1 import common_pb2, dialogue_pb2
from taste_grpc.audio import Encoding, encode_pcm
from taste_grpc.dialogue import events
from taste_grpc.dialogue.phases import Phase
from taste_grpc.errors import InvalidInputError
from taste_grpc.server import checks
from taste_grpc.settings import LimitSettings, StreamSettings

MAX_NAME_BYTES = 256
"""Of marks, voices and resume tokens."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")
_OUTPUT_ENCODINGS = {
    common_pb2.AUDIO_ENCODING_UNSPECIFIED: Encoding.LINEAR16,
    common_pb2.AUDIO_ENCODING_LINEAR16: Encoding.LINEAR16,
    common_pb2.AUDIO_ENCODING_FLOAT32LE: Encoding.FLOAT32LE,
}
_WIRE_ENCODINGS = {encoding: number for number, encoding in checks.ENCODINGS.items()}
_PHASES = {phase: dialogue_pb2.TurnPhase.Value(f"TURN_PHASE_{phase.name}") for phase in Phase}
_CODES = {code: dialogue_pb2.ConverseErrorCode.Value(f"CONVERSE_ERROR_CODE_{code.name}") for code in events.ErrorCode}
_OPTION_RANGES = {"vad_silence_ms", "partial_interval_ms", "max_utterance_ms", "barge_in_ms", "max_new_tokens"}


class UnsupportedRateError(InvalidInputError):
    """The microphone has a sample rate outside the limits: another `start` may be sent."""


def start_event(start: dialogue_pb2.ConverseStart, limits: LimitSettings) -> events.Start:
    """What opens a conversation. Raises InvalidInputError, UnsupportedRateError for the rate of the microphone."""
    form = start.input_format
    _check_raw("start.input_format.encoding", form.encoding)
    if form.HasField("channels"):
        checks.check_between("start.input_format.channels", form.channels, 1, limits.max_channels)
    if not form.HasField("sample_rate_hz"):
        raise InvalidInputError("start.input_format.sample_rate_hz", "is required")
    if start.HasField("language") and not _LANGUAGE.fullmatch(start.language):
        raise InvalidInputError("start.language", "is no BCP 47 tag such as en or pt-BR")
    if start.system_prompt:
        checks.check_text("start.system_prompt", start.system_prompt, limits.max_text_bytes)
    if start.HasField("resume_token"):
        _check_name("start.resume_token", start.resume_token)
    voice = _voice(start.voice, limits) if start.HasField("voice") else None
    options = _options(start.options)
    try:
        checks.check_rate("start.input_format.sample_rate_hz", form.sample_rate_hz, limits)
    except InvalidInputError as error:
        raise UnsupportedRateError(error.field, error.description) from None
    return events.Start(
        sample_rate_hz=form.sample_rate_hz,
        channels=form.channels if form.HasField("channels") else 1,
        encoding=checks.ENCODINGS[form.encoding],
        language=start.language if start.HasField("language") else None,
        system_prompt=start.system_prompt if start.HasField("system_prompt") else None,
        voice=voice,
        options=options,
        resume_token=start.resume_token if start.HasField("resume_token") else None,
    )


def _check_raw(path: str, encoding: int) -> None:
    checks.check_enum(path, encoding, common_pb2.AudioEncoding)
    if not checks.ENCODINGS[encoding].is_raw:
        raise InvalidInputError(path, f"is {checks.ENCODINGS[encoding].name}; a stream is LINEAR16 or FLOAT32LE")


def _check_name(path: str, name: str) -> None:
    size = len(name.encode())
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidInputError(path, f"has {size} bytes of UTF-8; 1 to {MAX_NAME_BYTES} are allowed")


def _voice(voice: dialogue_pb2.Voice, limits: LimitSettings) -> events.VoiceChoice:
    if voice.encoding not in _OUTPUT_ENCODINGS:
        raise InvalidInputError("start.voice.encoding", "streamed audio is LINEAR16 or FLOAT32LE")
    if voice.HasField("out_sample_rate_hz"):
        checks.check_rate("start.voice.out_sample_rate_hz", voice.out_sample_rate_hz, limits)
    kind = voice.WhichOneof("voice")
    if kind == "name":
        _check_name("start.voice.name", voice.name)
    elif kind == "speaker_embedding":
        values = voice.speaker_embedding.values
        checks.check_embedding("start.voice.speaker_embedding.values", values, len(values))
    return events.VoiceChoice(
        name=voice.name if kind == "name" else None,
        speaker_embedding=tuple(voice.speaker_embedding.values) if kind == "speaker_embedding" else None,
        sample_rate_hz=voice.out_sample_rate_hz if voice.HasField("out_sample_rate_hz") else 16_000,
        encoding=_OUTPUT_ENCODINGS[voice.encoding],
    )


def _options(options: dialogue_pb2.ConverseOptions) -> events.Options:
    given = {field.name: value for field, value in options.ListFields()}
    for name in _OPTION_RANGES & given.keys():
        checks.check_between(f"start.options.{name}", given[name], *_range(name))
    return events.Options(**given)


def _range(name: str) -> tuple[int, int]:
    """What the server's own setting may be."""
    bounds = StreamSettings.model_fields[name].metadata
    low = next(bound.ge for bound in bounds if hasattr(bound, "ge"))
    high = next(bound.le for bound in bounds if hasattr(bound, "le"))
    return low, high


def client_event(request: dialogue_pb2.ConverseRequest, limits: LimitSettings) -> events.ClientEvent:
    """What a later message says. Raises InvalidInputError for one that may not come, or is wrong in itself."""
    kind = request.WhichOneof("event")
    if kind is None:
        raise InvalidInputError("event", "is required: the message is empty")
    if kind == "start":
        raise InvalidInputError("start", "was sent a second time; it comes once, first")
    return _READERS[kind](request, limits)


def _text_turn(request: dialogue_pb2.ConverseRequest, limits: LimitSettings) -> events.ClientEvent:
    checks.check_text("text_turn.text", request.text_turn.text, limits.max_text_bytes)
    return events.TextTurn(request.text_turn.text)


def _ack(request: dialogue_pb2.ConverseRequest, _: LimitSettings) -> events.ClientEvent:
    ack = request.playback_ack
    _check_positive("playback_ack.turn_index", ack.turn_index)
    _check_positive("playback_ack.played_ms", ack.played_ms)
    return events.PlaybackAck(ack.turn_index, ack.played_ms)


def _credit(request: dialogue_pb2.ConverseRequest, _: LimitSettings) -> events.ClientEvent:
    _check_positive("playback_credit.max_unplayed_ms", request.playback_credit.max_unplayed_ms)
    return events.PlaybackCredit(request.playback_credit.max_unplayed_ms)


def _mark(request: dialogue_pb2.ConverseRequest, _: LimitSettings) -> events.ClientEvent:
    size = len(request.mark.id.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidInputError("mark.id", f"has {size} bytes of UTF-8; at most {MAX_NAME_BYTES} are allowed")
    return events.Mark(request.mark.id)


def _check_positive(path: str, value: int) -> None:
    if value < 0:
        raise InvalidInputError(path, f"is {value}; it cannot be negative")


_READERS: dict[str, Callable[[dialogue_pb2.ConverseRequest, LimitSettings], events.ClientEvent]] = {
    "audio": lambda request, _: events.AudioIn(request.audio),
    "stop": lambda request, _: events.Stop(),
    "cancel": lambda request, _: events.Cancel(),
    "text_turn": _text_turn,
    "playback_ack": _ack,
    "playback_credit": _credit,
    "mark": _mark,
}


class ConverseResponses:
    """Makes the messages of one conversation; it remembers in which encoding its audio goes out."""

    def __init__(self) -> None:
        self._encoding = Encoding.LINEAR16

    def message(self, event: events.ServerEvent) -> dialogue_pb2.ConverseResponse:
        """`event` as a message."""
        if isinstance(event, events.Started):
            self._encoding = event.voice.encoding
        fields = _WRITERS[type(event)](event, self._encoding)
        turn = getattr(event, "turn", None)
        return dialogue_pb2.ConverseResponse(turn_index=turn, **fields)


def _started(event: events.Started, _: Encoding) -> dict[str, Any]:
    voice = event.voice
    form = common_pb2.AudioFormat(
        encoding=_WIRE_ENCODINGS[voice.encoding],  # type: ignore[arg-type]  # a value of the enum, as an int
        sample_rate_hz=voice.sample_rate_hz,
        channels=1,
    )
    started = dialogue_pb2.ConverseStarted(session_id=event.session_id, output_format=form, resumed=event.resumed)
    return {"started": started}


def _speech(event: events.SpeechChunk, encoding: Encoding) -> dict[str, Any]:
    chunk = dialogue_pb2.TtsChunk(
        seq=event.seq,
        audio=encode_pcm(event.samples, encoding),
        first_sample=event.first_sample,
        chunk_duration_ms=event.duration_ms,
        phrase_index=event.phrase_index,
        phrase_text=event.phrase_text,
    )
    return {"tts_chunk": chunk}


def _metrics(event: events.TurnMetrics, _: Encoding) -> dict[str, Any]:
    times = {name: value for name, value in vars(event).items() if name != "turn" and value is not None}
    return {"turn_metrics": dialogue_pb2.TurnMetrics(**times)}


def _failure(event: events.Failure, _: Encoding) -> dict[str, Any]:
    error = dialogue_pb2.ConverseError(
        code=_CODES[event.code], message=event.message, recoverable=event.code.recoverable
    )
    return {"error": error}


_WRITERS: dict[type[Any], Callable[[Any, Encoding], dict[str, Any]]] = {
    events.Started: _started,
    events.PhaseChanged: lambda event, _: {"phase_change": dialogue_pb2.PhaseChange(phase=_PHASES[event.phase])},
    events.PartialTranscript: lambda event, _: {
        "partial_transcript": dialogue_pb2.PartialTranscript(text=event.text, audio_ms=event.audio_ms)
    },
    events.FinalTranscript: lambda event, _: {
        "final_transcript": dialogue_pb2.FinalTranscript(text=event.text, audio_ms=event.audio_ms)
    },
    events.LlmToken: lambda event, _: {"llm_token": dialogue_pb2.LlmToken(text=event.text, done=event.done)},
    events.SpeechChunk: _speech,
    events.SpeechComplete: lambda event, _: {
        "tts_complete": dialogue_pb2.TtsComplete(chunks=event.chunks, audio_ms=event.audio_ms)
    },
    events.Interrupted: lambda event, _: {
        "interruption": dialogue_pb2.Interruption(
            heard_ms=event.heard_ms, heard_text=event.heard_text, estimated=event.estimated
        )
    },
    events.MarkReached: lambda event, _: {"mark": dialogue_pb2.Mark(id=event.id)},
    events.TurnMetrics: _metrics,
    events.Notice: lambda event, _: {"notice": dialogue_pb2.Notice(message=event.message)},
    events.Failure: _failure,
    events.GoingAway: lambda event, _: {
        "going_away": dialogue_pb2.GoingAway(
            resume_token=event.resume_token, grace_ms=event.grace_ms, token_lifetime_ms=event.token_lifetime_ms
        )
    },
}
