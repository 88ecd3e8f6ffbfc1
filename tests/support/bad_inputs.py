"""Requests that must be refused: what is wrong, the field that is to be named."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.audio import Waveform, encode_wav
from taste_grpc.engine.protocol import ModelInfo
from tests.support import messages

LINEAR16 = common_pb2.AUDIO_ENCODING_LINEAR16
FLOAT32LE = common_pb2.AUDIO_ENCODING_FLOAT32LE
WAV = common_pb2.AUDIO_ENCODING_WAV
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class BadInput:
    """`build` makes the request (for Detokenize a list of messages) for a model; `field` is the path to be named."""

    name: str
    method: str
    field: str
    build: Callable[[ModelInfo], Any]


CASES: list[BadInput] = []


def bad(method: str, field: str, name: str = "") -> Callable[[Callable[[ModelInfo], Any]], None]:
    def add(build: Callable[[ModelInfo], Any]) -> None:
        CASES.append(BadInput(name or build.__name__, method, field, build))

    return add


# --- audio: wherever a clip may stand ---------------------------------------------------------------


def raw(data: bytes, encoding: int = LINEAR16, rate_hz: int | None = 16_000, channels: int | None = 1):
    form = common_pb2.AudioFormat(sample_rate_hz=rate_hz, channels=channels)
    form.encoding = encoding  # type: ignore[assignment]  # unknown values too
    return common_pb2.AudioClip(format=form, data=data)


def floats(*samples: float) -> common_pb2.AudioClip:
    return raw(np.array([0.1] * 1000 + list(samples), "<f4").tobytes(), FLOAT32LE)


def container(data: bytes, encoding: int = WAV, rate_hz: int | None = None, channels: int | None = None):
    return raw(data, encoding, rate_hz, channels)


def wav(seconds: float = 1.0, rate_hz: int = 16_000) -> bytes:
    return encode_wav(Waveform(messages.tone(seconds, rate_hz), rate_hz))


def flac(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((round(seconds * rate_hz), channels), np.float32), rate_hz, format="FLAC")
    return buffer.getvalue()


ONE_SECOND = bytes(32_000)

CLIPS: dict[str, tuple[str, Callable[[], common_pb2.AudioClip]]] = {
    "no format": ("format.encoding", lambda: common_pb2.AudioClip(data=ONE_SECOND)),
    "unknown encoding": ("format.encoding", lambda: raw(ONE_SECOND, 77)),
    "no data": ("data", lambda: raw(b"")),
    "half a sample": ("data", lambda: raw(ONE_SECOND + b"abc")),
    "half a stereo frame": ("data", lambda: raw(ONE_SECOND + b"ab", channels=2)),
    "too short": ("data", lambda: raw(bytes(2 * 300))),
    "31 s": ("data", lambda: raw(bytes(2 * 8000 * 31), rate_hz=8000)),
    "31 s compressed": ("data", lambda: container(flac(31), common_pb2.AUDIO_ENCODING_FLAC)),
    "NaN": ("data", lambda: floats(NAN)),
    "infinity": ("data", lambda: floats(-INF)),
    "integers sent as floats": ("data", lambda: floats(30_000.0)),
    "rate 0": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=0)),
    "rate not given": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=None)),
    "rate -1": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=-1)),
    "rate 10^9": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=10**9)),
    "0 channels": ("format.channels", lambda: raw(ONE_SECOND, channels=0)),
    "9 channels": ("format.channels", lambda: raw(ONE_SECOND, channels=9)),
    "9 channels in a file": ("data", lambda: container(flac(1, channels=8), common_pb2.AUDIO_ENCODING_FLAC)),
    "truncated WAV": ("data", lambda: container(wav()[:9000])),
    "no WAV at all": ("data", lambda: container(b"hello" * 100)),
    "another container": ("data", lambda: container(wav(), common_pb2.AUDIO_ENCODING_FLAC)),
    "rate that is not the file's": ("format.sample_rate_hz", lambda: container(wav(), rate_hz=8_000)),
    "channels that are not the file's": ("format.channels", lambda: container(wav(), channels=2)),
}


def tokenize(clip: common_pb2.AudioClip | None = None, **fields: Any) -> taste_pb2.TokenizeRequest:
    return taste_pb2.TokenizeRequest(audio=clip or messages.clip(), **fields)


def recording(clip: common_pb2.AudioClip | None, transcript: str = "hi", role: int = common_pb2.ROLE_USER):
    segment = common_pb2.Segment(audio=common_pb2.SegmentAudio(clip=clip, transcript=transcript))
    segment.role = role  # type: ignore[assignment]
    return segment


def speak(info: ModelInfo, *segments: common_pb2.Segment) -> list[taste_pb2.DetokenizeRequest]:
    first = taste_pb2.DetokenizeRequest(config=messages.config(info.speaker_embedding_dim))
    return [first, *(taste_pb2.DetokenizeRequest(segment=segment) for segment in segments)]


def configure(info: ModelInfo, **fields: Any) -> list[taste_pb2.DetokenizeRequest]:
    config = messages.config(info.speaker_embedding_dim)
    config.MergeFrom(taste_pb2.DetokenizeConfig(**fields))
    return [taste_pb2.DetokenizeRequest(config=config), *speak(info, tokens(info))[1:]]


def generate(*segments: common_pb2.Segment, **fields: Any) -> taste_pb2.GenerateRequest:
    return taste_pb2.GenerateRequest(segments=segments or [messages.text_segment()], **fields)


for _name, (_field, _make) in CLIPS.items():
    bad("Tokenize", f"audio.{_field}", f"audio: {_name}")(lambda info, make=_make: tokenize(make(), text="hi"))
    bad("Generate", f"segments[1].audio.clip.{_field}", f"segment audio: {_name}")(
        lambda info, make=_make: generate(messages.text_segment(), recording(make()))
    )
    bad("Detokenize", f"segment.audio.clip.{_field}", f"spoken audio: {_name}")(
        lambda info, make=_make: speak(info, recording(make()))
    )
    bad("Detokenize", f"config.reference.{_field}", f"reference: {_name}")(
        lambda info, make=_make: configure(info, reference=make())
    )

# --- text ---------------------------------------------------------------------------------------------

TEXTS = {
    "empty": "",
    "only spaces": " \n\t ",
    "no-break spaces only": "\u00a0\u2003",
    "1 MB": "a" * (1 << 20),
    "just too long in bytes": "é" * 4097,
    "null": "a\0b",
    "carriage return": "a\r\n",
    "escape": "\x1b[2J",
    "C1 control": "a\x85b",
}

for _name, _text in TEXTS.items():
    bad("Tokenize", "text", f"text: {_name}")(lambda info, text=_text: tokenize(text=text))
    bad("Generate", "segments[0].text", f"segment text: {_name}")(
        lambda info, text=_text: generate(messages.text_segment(text))
    )
    bad("Generate", "segments[0].audio.transcript", f"transcript: {_name}")(
        lambda info, text=_text: generate(recording(messages.clip(), text))
    )

# --- tokens: as a segment of Generate and of Detokenize ---------------------------------------------


def tokens(info: ModelInfo, change: Callable[[common_pb2.Segment], object] | None = None) -> common_pb2.Segment:
    segment = messages.token_segment(vq_dim=info.vq_dim)
    if change:
        change(segment)
    return segment


def _set(ids: Any, index: int, value: int) -> None:
    ids[index] = value


TOKENS: dict[str, tuple[str, Callable[[common_pb2.Segment, ModelInfo], object]]] = {
    "no text ids": ("tokens.text_ids", lambda s, i: s.tokens.ClearField("text_ids")),
    "text id -1": ("tokens.text_ids[1]", lambda s, i: _set(s.tokens.text_ids, 1, -1)),
    "text id too high": ("tokens.text_ids[2]", lambda s, i: _set(s.tokens.text_ids, 2, i.text_vocab_size)),
    "too few word ids": ("tokens.word_ids", lambda s, i: s.tokens.word_ids.pop()),
    "negative word id": ("tokens.word_ids[0]", lambda s, i: _set(s.tokens.word_ids, 0, -1)),
    "word ids fall": ("tokens.word_ids[2]", lambda s, i: _set(s.tokens.word_ids, 2, 0)),
    "word ids skip": ("tokens.word_ids[2]", lambda s, i: _set(s.tokens.word_ids, 2, 3)),
    "text for people too long": ("tokens.text", lambda s, i: setattr(s.tokens, "text", "a" * 8193)),
    "codes missing": ("tokens.taste_tokens.codes", lambda s, i: s.tokens.taste_tokens.ClearField("codes")),
    "vq_dim": (
        "tokens.taste_tokens.codes.vq_dim",
        lambda s, i: setattr(s.tokens.taste_tokens.codes, "vq_dim", i.vq_dim - 1),
    ),
    "too few codes": ("tokens.taste_tokens.codes.ids", lambda s, i: s.tokens.taste_tokens.codes.ids.pop()),
    "too many codes": ("tokens.taste_tokens.codes.ids", lambda s, i: s.tokens.taste_tokens.codes.ids.append(0)),
    "code too high": (
        "tokens.taste_tokens.codes.ids[5]",
        lambda s, i: _set(s.tokens.taste_tokens.codes.ids, 5, i.codebook_size),
    ),
    "code -2": ("tokens.taste_tokens.codes.ids[0]", lambda s, i: _set(s.tokens.taste_tokens.codes.ids, 0, -2)),
    "one -1 in a row": ("tokens.taste_tokens.codes.ids[1]", lambda s, i: _set(s.tokens.taste_tokens.codes.ids, 1, -1)),
    "modality TEXT": ("modality", lambda s, i: setattr(s, "modality", common_pb2.MODALITY_TEXT)),
    "unknown modality": ("modality", lambda s, i: setattr(s, "modality", 9)),
    "unknown role": ("role", lambda s, i: setattr(s, "role", 9)),
    "no content": ("content", lambda s, i: s.ClearField("tokens")),
}

for _name, (_field, _change) in TOKENS.items():

    def _spoiled(info: ModelInfo, change: Any = _change) -> common_pb2.Segment:
        return tokens(info, lambda segment: change(segment, info))

    bad("Generate", f"segments[1].{_field}", f"segment: {_name}")(
        lambda info, make=_spoiled: generate(messages.text_segment(), make(info))
    )
    bad("Detokenize", f"segment.{_field}", f"spoken segment: {_name}")(
        lambda info, make=_spoiled: speak(info, make(info))
    )

# --- Tokenize -----------------------------------------------------------------------------------------

bad("Tokenize", "audio", "no audio")(lambda info: taste_pb2.TokenizeRequest(text="hi"))
bad("Tokenize", "text_ids", "text and text_ids")(lambda info: tokenize(text="hi", text_ids=[1]))
bad("Tokenize", "text_ids[1]", "text id -1")(lambda info: tokenize(text_ids=[1, -1]))
bad("Tokenize", "text_ids[0]", "text id too high")(lambda info: tokenize(text_ids=[info.text_vocab_size]))
bad("Tokenize", "text_ids", "too many text ids")(lambda info: tokenize(text_ids=[1] * 8193))

# --- Generate -----------------------------------------------------------------------------------------

bad("Generate", "segments", "no segment")(lambda info: taste_pb2.GenerateRequest())
bad("Generate", "segments", "10,000 segments")(lambda info: generate(*[messages.text_segment()] * 10_000))
bad("Generate", "segments", "too many ids together")(
    lambda info: generate(*[messages.token_segment((1,) * 4100, info.vq_dim)] * 2)
)
bad("Generate", "segments[0].role", "role not stated")(lambda info: generate(common_pb2.Segment(text="hi")))
bad("Generate", "segments[0].modality", "AUDIO without speech")(
    lambda info: generate(common_pb2.Segment(role=2, modality=common_pb2.MODALITY_AUDIO, text="hi"))
)
bad("Generate", "segments[0].audio.clip", "recording without clip")(lambda info: generate(recording(None)))
bad("Generate", "emit_policy.every_words", "every 0 words")(
    lambda info: generate(emit_policy=taste_pb2.EmitPolicy(every_words=0))
)
bad("Generate", "emit_policy.every_words", "every 1025 words")(
    lambda info: generate(emit_policy=taste_pb2.EmitPolicy(every_words=1025))
)
bad("Generate", "conversation_format", "unknown conversation format")(lambda info: generate(conversation_format="x"))
bad("Generate", "conversation_format", "empty conversation format")(lambda info: generate(conversation_format=""))
bad("Generate", "eos_id", "eos_id too high")(lambda info: generate(eos_id=info.text_vocab_size))

_RANGES: dict[str, tuple[float, ...]] = {
    "text_top_p": (-0.1, 1.1, NAN, INF),
    "taste_top_p": (-0.1, 1.1, NAN, -INF),
    "text_temperature": (0.0, -1.0, 2.1, NAN, INF),
    "repetition_penalty": (0.9, 2.1, NAN, INF),
    "max_length": (0, -1, 4097, 10**9),
    "extra_words": (0, -1, 1025),
    "eos_id": (-1,),
}
for _field, _values in _RANGES.items():
    for _value in _values:
        bad("Generate", _field, f"{_field} {_value}")(lambda info, f=_field, v=_value: generate(**{f: v}))

# --- Detokenize ---------------------------------------------------------------------------------------


def _embedding(info: ModelInfo, *values: float) -> common_pb2.SpeakerEmbedding:
    return common_pb2.SpeakerEmbedding(values=values)


bad("Detokenize", "config", "no message at all")(lambda info: [])
bad("Detokenize", "config", "no config first")(lambda info: speak(info, tokens(info))[1:])
bad("Detokenize", "config", "empty first message")(lambda info: [taste_pb2.DetokenizeRequest()])
bad("Detokenize", "config", "two configs")(lambda info: [*speak(info), *speak(info)])
bad("Detokenize", "segment", "empty later message")(lambda info: [*speak(info), taste_pb2.DetokenizeRequest()])
bad("Detokenize", "segment.content", "empty segment")(lambda info: speak(info, common_pb2.Segment()))
bad("Detokenize", "segment.text", "written text")(lambda info: speak(info, messages.text_segment()))
bad("Detokenize", "segment.tokens.taste_tokens", "segment without codes")(
    lambda info: speak(
        info,
        tokens(info, lambda s: (s.tokens.ClearField("taste_tokens"), s.ClearField("modality"))),
    )
)
bad("Detokenize", "segment.tokens.text_ids", "too many text ids")(
    lambda info: speak(info, messages.token_segment((1,) * 8193, info.vq_dim))
)
bad("Detokenize", "config.speaker_embedding", "no speaker")(
    lambda info: [taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig())]
)
for _name, _values in {
    "empty": lambda info: [],
    "too short": lambda info: [1.0] * (info.speaker_embedding_dim - 1),
    "all zero": lambda info: [0.0] * info.speaker_embedding_dim,
}.items():
    bad("Detokenize", "config.speaker_embedding.values", f"speaker embedding: {_name}")(
        lambda info, values=_values: [
            taste_pb2.DetokenizeRequest(
                config=taste_pb2.DetokenizeConfig(speaker_embedding=_embedding(info, *values(info)))
            )
        ]
    )
bad("Detokenize", "config.speaker_embedding.values[1]", "speaker embedding: NaN")(
    lambda info: [
        taste_pb2.DetokenizeRequest(
            config=taste_pb2.DetokenizeConfig(
                speaker_embedding=_embedding(info, 1.0, NAN, *[0.0] * (info.speaker_embedding_dim - 2))
            )
        )
    ]
)
bad("Detokenize", "config.reference.data", "reference below 1 s")(
    lambda info: configure(info, reference=messages.clip(0.9))
)
for _rate in (0, -1, 7_999, 96_001, 10**9):
    bad("Detokenize", "config.out_sample_rate_hz", f"output rate {_rate}")(
        lambda info, rate=_rate: configure(info, out_sample_rate_hz=rate)
    )
for _encoding in (WAV, common_pb2.AUDIO_ENCODING_MP3, 77):
    bad("Detokenize", "config.encoding", f"output encoding {_encoding}")(
        lambda info, encoding=_encoding: configure(info, encoding=encoding)
    )
bad("Detokenize", "config.speaker_embedding", "voice beside a resume state")(
    lambda info: configure(info, resume_state=b"x")
)
for _name, _state in {"empty": b"", "too large": bytes((256 << 10) + 1)}.items():
    bad("Detokenize", "config.resume_state", f"resume state: {_name}")(
        lambda info, state=_state: [taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(resume_state=state))]
    )
