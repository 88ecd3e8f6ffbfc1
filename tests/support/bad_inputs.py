"""Requests that must be refused: what is wrong, the field that is to be named."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import ModelInfo
from tests.support import messages
from tests.support.bad_clips import CLIPS, INF, NAN, WAV, raw
from tests.support.bad_segments import TOKENS, WORDS, set_at, tokens, words


@dataclass(frozen=True)
class BadInput:
    """`build` makes the request (for Detokenize a list of messages) for a model; `field` is the path to be named.

    Without a field it is not the server that refuses: the message is larger than it takes.
    """

    name: str
    method: str
    field: str
    build: Callable[[ModelInfo], Any]


CASES: list[BadInput] = []


def bad(method: str, field: str, name: str = "") -> Callable[[Callable[[ModelInfo], Any]], None]:
    def add(build: Callable[[ModelInfo], Any]) -> None:
        CASES.append(BadInput(name or build.__name__, method, field, build))

    return add


SPACE = 220
"""Text id of a blank in the tiny tokenizer."""

# --- audio: wherever a clip may stand ---------------------------------------------------------------


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


for _name, (_field, _change) in TOKENS.items():
    bad("Generate", f"segments[1].{_field}", f"segment: {_name}")(
        lambda info, change=_change: generate(messages.text_segment(), tokens(info, change))
    )
    bad("Detokenize", f"segment.{_field}", f"spoken segment: {_name}")(
        lambda info, change=_change: speak(info, tokens(info, change))
    )

# --- words: as a segment of Generate and of Detokenize -------------------------------------------------


for _name, (_field, _change) in WORDS.items():
    # what is wrong with all words together in a whole conversation is said of all its segments
    _together = _name in ("too many", "too many text ids")
    bad("Generate", "segments" if _together else f"segments[1].words.{_field}", f"words: {_name}")(
        lambda info, change=_change: generate(messages.text_segment(), words(info, change))
    )
    bad("Detokenize", f"segment.words.{_field}", f"spoken words: {_name}")(
        lambda info, change=_change: speak(info, words(info, change))
    )

# --- Tokenize -----------------------------------------------------------------------------------------

bad("Tokenize", "audio", "no audio")(lambda info: taste_pb2.TokenizeRequest(text="hi"))
bad("Tokenize", "text_ids", "text and text_ids")(lambda info: tokenize(text="hi", text_ids=[1]))
bad("Tokenize", "text_ids[1]", "text id -1")(lambda info: tokenize(text_ids=[1, -1]))
bad("Tokenize", "text_ids[0]", "text id too high")(lambda info: tokenize(text_ids=[info.text_vocab_size]))
bad("Tokenize", "text_ids", "too many text ids")(lambda info: tokenize(text_ids=[1] * 8193))

# What the tokenizers know.
LONG_TEXT = "abc " * 2000
bad("Tokenize", "text", "more text than is said in 30 s")(lambda info: tokenize(text=LONG_TEXT))
bad("Tokenize", "text_ids", "ids that spell nothing")(lambda info: tokenize(text_ids=[SPACE] * 3))
bad("Tokenize", "text_ids", "more ids than are said in 30 s")(lambda info: tokenize(text_ids=[300] * 2000))

# --- Generate -----------------------------------------------------------------------------------------


def _as(segment: common_pb2.Segment, modality: common_pb2.Modality.ValueType) -> common_pb2.Segment:
    segment.modality = modality
    return segment


bad("Generate", "segments[0].modality", "TEXT with words")(
    lambda info: generate(_as(messages.word_segment(vq_dim=info.vq_dim), common_pb2.MODALITY_TEXT))
)
bad("Generate", "segments[0].modality", "TEXT with audio")(
    lambda info: generate(_as(recording(messages.clip()), common_pb2.MODALITY_TEXT))
)
bad("Generate", "segments", "no segment")(lambda info: taste_pb2.GenerateRequest())
bad("Generate", "segments", "10,000 segments")(lambda info: generate(*[messages.text_segment()] * 10_000))
bad("Generate", "segments", "too many ids together")(
    lambda info: generate(*[messages.token_segment((1,) * 4100, info.vq_dim)] * 2)
)
bad("Generate", "segments", "segments the format has no place for")(
    lambda info: generate(*[messages.text_segment(), recording(messages.clip())] * 2, conversation_format="completion")
)
bad("Generate", "segments[1].audio.transcript", "more transcript than is said in 30 s")(
    lambda info: generate(messages.text_segment(), recording(messages.clip(), LONG_TEXT), messages.text_segment())
)
bad("Generate", "segments", "too many ids once they are known")(
    lambda info: generate(*[messages.text_segment("x " * 3000), recording(messages.clip())] * 3)
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
    "extra_words": (0, -1, 1025, 2**31 - 1),
    "eos_id": (-1, -(2**31)),
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
        tokens(info, lambda s, i: (s.tokens.ClearField("taste_tokens"), s.ClearField("modality"))),
    )
)
bad("Detokenize", "segment.tokens.text_ids", "too many text ids")(
    lambda info: speak(info, messages.token_segment((1,) * 8193, info.vq_dim))
)
bad("Detokenize", "segment.audio.transcript", "more transcript than is said in 30 s, spoken")(
    lambda info: speak(info, recording(messages.clip(), LONG_TEXT))
)
bad("Detokenize", "segment.tokens.taste_tokens", "a word without codes")(
    lambda info: speak(info, tokens(info, lambda s, i: set_at(s.tokens.taste_tokens.codes.ids, slice(0, 4), [-1] * 4)))
)
bad("Detokenize", "segment.audio.clip", "recording without clip, spoken")(lambda info: speak(info, recording(None)))
bad("Detokenize", "config.speaker_embedding", "no speaker")(
    lambda info: [taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig())]
)
for _name, _values in {
    "empty": lambda info: [],
    "too short": lambda info: [1.0] * (info.speaker_embedding_dim - 1),
    "too long": lambda info: [1.0] * (info.speaker_embedding_dim + 1),
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
STATES = {
    "empty": b"",
    "too large": bytes((256 << 10) + 1),
    "no state": b"x" * 99,
    "damaged": b"x\x9c" * 99,
    "zeros": bytes(999),
    "larger inside": zlib.compress(json.dumps({"speech_ids": [1] * (1 << 20)}).encode()),
}
for _name, _state in STATES.items():
    bad("Detokenize", "config.resume_state", f"resume state: {_name}")(
        lambda info, state=_state: [taste_pb2.DetokenizeRequest(config=taste_pb2.DetokenizeConfig(resume_state=state))]
    )

# --- too large for the wire -----------------------------------------------------------------------------

SEVENTEEN_MB = bytes(17_000_000)
bad("Tokenize", "", "17 MB message")(lambda info: tokenize(raw(SEVENTEEN_MB), text="hi"))
bad("Generate", "", "17 MB segment")(lambda info: generate(recording(raw(SEVENTEEN_MB))))
bad("Detokenize", "", "17 MB to be spoken")(lambda info: speak(info, recording(raw(SEVENTEEN_MB))))
