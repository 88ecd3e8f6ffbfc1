"""What a live conversation sends."""

from __future__ import annotations

import array
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypedDict

from taste.v1.common_pb2 import AudioFormat, SpeakerEmbedding
from taste.v1.dialogue_pb2 import (
    ConverseCancel,
    ConverseOptions,
    ConverseRequest,
    ConverseStart,
    ConverseStop,
    Mark,
    PlaybackAck,
    PlaybackCredit,
    TextTurn,
)
from taste.v1.dialogue_pb2 import Voice as VoiceMessage
from taste_grpc_client.audio import SampleArray, list_samples, little_endian
from taste_grpc_client.requests import PcmEncoding, encoding_of

MicrophoneAudio: TypeAlias = (
    "bytes | bytearray | memoryview | array.array[int] | array.array[float] | SampleArray"
    " | Sequence[int] | Sequence[float]"
)
"""Raw bytes in the format the conversation was opened with, or samples, which are brought into it."""

AnswerVoice: TypeAlias = "str | SpeakerEmbedding | Iterable[float]"
"""How answers sound: the name of one of the server's voices, or a voice as a vector (message, numbers or array)."""

_LONGEST_MS = 200
_MOST_BYTES = 60 * 1024
_FULL_SCALE = 32767


class ConversationOptions(TypedDict, total=False):
    """Settings of a conversation. What is left out takes the server's; see `taste.v1.ConverseOptions`."""

    vad_silence_ms: int
    partial_interval_ms: int
    max_utterance_ms: int
    barge_in_ms: int
    barge_in: bool
    max_new_tokens: int


def start_request(
    microphone: MicrophoneFormat,
    *,
    language: str | None,
    system_prompt: str | None,
    voice: AnswerVoice | None,
    voice_sample_rate_hz: int | None,
    voice_encoding: PcmEncoding | None,
    resume_token: str | None,
    options: ConversationOptions,
) -> ConverseRequest:
    """The message that opens a conversation."""
    start = ConverseStart(
        input_format=microphone.message,
        language=language,
        system_prompt=system_prompt,
        voice=_voice(voice, voice_sample_rate_hz, voice_encoding),
        resume_token=resume_token,
        options=ConverseOptions(**options) if options else None,
    )
    return ConverseRequest(start=start)


def _voice(voice: AnswerVoice | None, sample_rate_hz: int | None, encoding: PcmEncoding | None) -> VoiceMessage | None:
    """None when nothing is said of it, so that a resumed conversation keeps its own."""
    if voice is None and sample_rate_hz is None and encoding is None:
        return None
    made = VoiceMessage(out_sample_rate_hz=sample_rate_hz)
    if encoding is not None:
        made.encoding = encoding_of("voice_encoding", encoding)
    if isinstance(voice, str):
        made.name = voice
    elif isinstance(voice, SpeakerEmbedding):
        made.speaker_embedding.CopyFrom(voice)
    elif voice is not None:
        made.speaker_embedding.values.extend(float(value) for value in voice)
    return made


def text_turn(text: str) -> ConverseRequest:
    """A typed turn."""
    return ConverseRequest(text_turn=TextTurn(text=text))


def stop() -> ConverseRequest:
    """The end of the person's turn."""
    return ConverseRequest(stop=ConverseStop())


def cancel() -> ConverseRequest:
    """The running turn is given up."""
    return ConverseRequest(cancel=ConverseCancel())


def playback_ack(turn: int, played_ms: float) -> ConverseRequest:
    """How much of an answer was played."""
    return ConverseRequest(playback_ack=PlaybackAck(turn_index=turn, played_ms=int(played_ms)))


def playback_credit(max_unplayed_ms: float) -> ConverseRequest:
    """How much audio may be in flight."""
    return ConverseRequest(playback_credit=PlaybackCredit(max_unplayed_ms=int(max_unplayed_ms)))


def mark(name: str) -> ConverseRequest:
    """A mark."""
    return ConverseRequest(mark=Mark(id=name))


class MicrophoneFormat:
    """What a conversation sends as audio.

    Raises:
        ValueError: a rate or a number of channels below 1, or another encoding than the two.
    """

    def __init__(self, sample_rate_hz: int, channels: int, encoding: PcmEncoding) -> None:
        for name, value in (("sample_rate_hz", sample_rate_hz), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name}: 1 or more was expected, not {value!r}")
        self.message = AudioFormat(
            encoding=encoding_of("encoding", encoding), sample_rate_hz=sample_rate_hz, channels=channels
        )
        self._encoding = encoding
        self._channels = channels
        self._frame_bytes = channels * (2 if encoding == "linear16" else 4)
        longest = min(_MOST_BYTES // self._frame_bytes, sample_rate_hz * _LONGEST_MS // 1000)
        self._piece_bytes = max(1, longest) * self._frame_bytes

    def pieces(self, audio: MicrophoneAudio) -> Iterator[ConverseRequest]:
        """Messages with all of `audio`, in whole frames, none longer than the server takes.

        Raises ValueError and TypeError for what is no audio of this format, before the first message.
        """
        data = bytes(audio) if isinstance(audio, bytes | bytearray) else self._encoded(audio)
        if len(data) % self._frame_bytes:
            raise ValueError(
                f"audio: {len(data)} bytes are no whole number of frames of {self._frame_bytes} bytes "
                f"({self._channels} of {self._encoding})"
            )
        places = range(0, len(data), self._piece_bytes)
        return (ConverseRequest(audio=data[place : place + self._piece_bytes]) for place in places)

    def _encoded(self, audio: object) -> bytes:
        view = _view(audio)
        if view.format in ("B", "b", "c"):
            return view.tobytes()
        if view.ndim == 2 and view.shape is not None and view.shape[1] != self._channels:
            raise ValueError(f"audio: has {view.shape[1]} channels; the conversation was opened with {self._channels}")
        if view.ndim > 2:
            raise ValueError(f"audio: samples have shape [T] or [T, channels], not {list(view.shape or ())}")
        if view.format == "h":
            whole = array.array("h", view.tobytes())
            return little_endian(whole) if self._encoding == "linear16" else little_endian(_floats(whole))
        if view.format in ("f", "d"):
            samples: array.array[float] = array.array(view.format, view.tobytes())
            if self._encoding == "linear16":
                return little_endian(_whole(samples))
            return little_endian(array.array("f", samples))
        raise ValueError(f"audio: samples are int16, float32 or float64, not of buffer format {view.format!r}")


def _view(audio: object) -> memoryview:
    source: Any = list_samples(audio) if isinstance(audio, list | tuple) else audio
    try:
        return memoryview(source)
    except TypeError:
        raise TypeError(f"audio: bytes or an array of samples was expected, not {type(audio).__name__}") from None


def _whole(samples: array.array[float]) -> array.array[int]:
    if not all(map(math.isfinite, samples)):
        raise ValueError("audio: a sample is NaN or infinite")
    return array.array("h", (round(_FULL_SCALE * max(-1.0, min(1.0, sample))) for sample in samples))


def _floats(samples: array.array[int]) -> array.array[float]:
    return array.array("f", (sample / (_FULL_SCALE + 1) for sample in samples))
