"""Requests made up from the contract: good ones, good ones that something was done to, and nonsense.

What a field may hold is read from the descriptors, so that new fields are tried without being named here
(`Spoiler`). Good requests need to know more: which ids and codes the model has, what a clip is (`Inventor`).
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soundfile
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import ModelInfo
from tests.support import messages

Draw = Callable[[st.SearchStrategy[Any]], Any]

INT32 = (-(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 64, 255, 8_000, 16_000, 96_001, 10**9, 2**31 - 1)
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, -0.0, 5e-324, 1e-45, 1e-30, 0.3, 1.0, 1.0000001, 2.0, 3.4e38, 1e308)
TEXTS = (
    "",
    " ",
    "hi",
    "Hello, there.",
    "a b\tc\n",
    "👩‍👩‍👧",
    "שלום",
    "你好，世界",
    "\u200f",
    "\x00",
    "a\x1b[2J",
    "é" * 40,
    "x" * 9_999,
)
WORDS = ("hi", "there.", "it's", "9", "👩‍👩‍👧", "你好", "!?", "o'clock,")
HEAP = (0, 1, 2, 70, 5_000)
"""How often something may be repeated."""
_MAX_BYTES = 2 << 20
"""What messages that are repeated weigh together."""

_LEAVES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from((*INT32, -(2**63), 2**63 - 1)),
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from((0, 1, 2**32 - 1)),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from((0, 1, 2**63, 2**64 - 1)),
    FieldDescriptor.CPPTYPE_DOUBLE: st.sampled_from(NUMBERS) | st.floats(0, 2),
    FieldDescriptor.CPPTYPE_FLOAT: st.sampled_from(NUMBERS) | st.floats(-1, 1, width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from((-1, 0, 1, 2, 3, 4, 5, 6, 7, 77, 2**31 - 1)),
}
_STRINGS = st.sampled_from(TEXTS) | st.text(max_size=12)
_BYTES = st.sampled_from((b"", b"x", b"RIFF", bytes(31), bytes(640), b"\xff" * 640, bytes(200_000))) | st.binary(
    max_size=40
)


@dataclass(frozen=True)
class Spoiler:
    """Puts into messages what their types allow; `sizes` are numbers just beside which limits lie."""

    sizes: tuple[int, ...]

    def anything(self, draw: Draw, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with anything in it."""
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if draw(st.booleans()):
                self.put(draw, message, field, depth)
        return message

    def put(self, draw: Draw, message: Message, field: FieldDescriptor, depth: int = 0) -> None:
        """Set a field to anything, or add that to it."""
        if field.message_type is not None and (depth > 5 or field.message_type.GetOptions().map_entry):
            return  # no request has a map
        if field.is_repeated:
            count = draw(st.sampled_from(HEAP))
            values = getattr(message, field.name)
            if field.message_type is not None:
                _repeat(values, self.anything(draw, field.message_type, depth + 1), count)
            else:
                values.extend([draw(self.leaf(field))] * count)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self.anything(draw, field.message_type, depth + 1))
        else:
            setattr(message, field.name, draw(self.leaf(field)))

    def leaf(self, field: FieldDescriptor) -> st.SearchStrategy[Any]:
        """Any value of a field that is no message."""
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _STRINGS
        if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
            return _int32s(self.sizes)
        return _LEAVES[field.cpp_type]

    def spoil(self, draw: Draw, message: Message) -> None:
        """Do something to one field somewhere in `message`; those that are set come first."""
        places = list(_places(message))
        used = [place for place in places if _is_set(*place)]
        node, field = draw(st.sampled_from(used if used and draw(st.integers(0, 2)) else places))
        what = draw(st.sampled_from(("clear", "put", "nudge", "nudge", "nudge", "many", "less")))
        if what == "clear":
            node.ClearField(field.name)
        elif what == "put" or (field.is_repeated and not len(getattr(node, field.name))):
            if draw(st.booleans()):
                node.ClearField(field.name)
            self.put(draw, node, field)
        elif field.is_repeated:
            self._spoil_list(draw, getattr(node, field.name), field, what)
        elif field.message_type is None:
            setattr(node, field.name, self._nudged(draw, getattr(node, field.name), field))
        else:
            getattr(node, field.name).MergeFrom(self.anything(draw, field.message_type))

    def _spoil_list(self, draw: Draw, values: Any, field: FieldDescriptor, what: str) -> None:
        index = draw(st.integers(0, len(values) - 1))
        if what == "less":
            del values[index]
        elif what == "many" and field.message_type is not None:
            _repeat(values, values[index], draw(st.sampled_from(HEAP)))
        elif what == "many":
            values.extend([values[index]] * draw(st.sampled_from(HEAP)))
        elif field.message_type is not None:
            values[index].CopyFrom(self.anything(draw, field.message_type))
        else:
            values[index] = self._nudged(draw, values[index], field)

    def _nudged(self, draw: Draw, value: Any, field: FieldDescriptor) -> Any:
        """A value like `value`, or any other."""
        if isinstance(value, str):
            return value + draw(st.sampled_from((" ", "\t", "\x00", "x", ".", "é" * 200)))
        if isinstance(value, bytes):
            return value[: draw(st.integers(0, len(value)))] + draw(st.sampled_from((b"", b"", b"\xff", bytes(3))))
        return draw(self.leaf(field))


def _places(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """All fields of `message` and of what is in it; of long lists the first and the last."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or not _is_set(message, field):
            continue
        value = getattr(message, field.name)
        for inner in [*value[:2], *value[2:][-1:]] if field.is_repeated else [value]:
            yield from _places(inner)


def _is_set(message: Message, field: FieldDescriptor) -> bool:
    value = getattr(message, field.name)
    if field.is_repeated:
        return len(value) > 0
    return message.HasField(field.name) if field.has_presence else bool(value)


def _repeat(values: Any, message: Message, count: int) -> None:
    values.extend([message] * min(count, _MAX_BYTES // max(1, message.ByteSize())))


@cache
def _int32s(sizes: tuple[int, ...]) -> st.SearchStrategy[int]:
    beside = [size + step for size in sizes for step in (-1, 0, 1)]
    return st.sampled_from(INT32) | st.sampled_from(beside) | st.integers(-9, 600)


def scramble(draw: Draw, data: bytes) -> bytes:
    """Bytes that were a message; what comes out may still be one, with fields nobody knows."""
    what = draw(st.sampled_from(("flip", "cut", "insert", "unknown", "twice", "random")))
    position = draw(st.integers(0, max(0, len(data) - 1)))
    if what == "flip":
        return data[:position] + draw(st.binary(min_size=1, max_size=3)) + data[position + 1 :]
    if what == "cut":
        return data[:position]
    if what == "insert":
        return data[:position] + draw(st.binary(max_size=9)) + data[position:]
    if what == "unknown":
        return data + draw(
            st.sampled_from((b"\xc0\x3e\x01", b"\xc2\x3e\x05hello", b"\x78\x05", b"\xc2\x3e\xff\xff\xff\xff\x07"))
        )
    return data * 2 if what == "twice" else draw(st.binary(max_size=60))


@dataclass(frozen=True)
class Inventor:
    """Makes requests that have a chance with the model that `info` describes.

    `states` are resume states of it; `min_reference_ms` is how long the recording of a voice must be.
    """

    info: ModelInfo
    states: tuple[bytes, ...]
    min_reference_ms: int

    def tokenize(self, draw: Draw) -> taste_pb2.TokenizeRequest:
        request = taste_pb2.TokenizeRequest(audio=self.clip(draw))
        if draw(st.booleans()):
            request.text = draw(st.sampled_from(("hi", "Hello, there.", "👩‍👩‍👧 你好")))
        else:
            request.text_ids.extend(draw(self._ids()))
        return request

    def generate(self, draw: Draw) -> taste_pb2.GenerateRequest:
        request = taste_pb2.GenerateRequest(seed=draw(st.integers(0, 3)))
        for _ in range(draw(st.integers(1, 3))):
            request.segments.append(self.segment(draw, (*("text", "tokens", "words", "written") * 5, "audio")))
        if draw(st.booleans()):
            request.text_top_p = draw(st.floats(0, 1))
            request.taste_top_p = draw(st.floats(0, 1))
            request.text_temperature = draw(st.sampled_from((5e-324, 1e-45, 1e-9, 0.5, 2.0)))
            request.repetition_penalty = draw(st.floats(1, 2))
            request.max_length = draw(st.integers(1, 4))
            request.extra_words = draw(st.integers(1, 4))
        if draw(st.booleans()):
            request.eos_id = draw(st.integers(0, self.info.text_vocab_size - 1))
            request.emit_policy.every_words = draw(st.integers(1, 4))
        else:
            request.emit_policy.sentence_end.SetInParent()
        if draw(st.booleans()):
            request.conversation_format = draw(st.sampled_from(("conversation", "completion")))
        return request

    def detokenize(self, draw: Draw) -> list[taste_pb2.DetokenizeRequest]:
        config = taste_pb2.DetokenizeConfig()
        voice = draw(st.sampled_from(("embedding", "embedding", "reference", "state")))
        if voice == "embedding":
            values = draw(st.sampled_from(((1.0,), (1e-45, 0.0), (3e38, -3e38))))
            config.speaker_embedding.values.extend(
                (values * self.info.speaker_embedding_dim)[: self.info.speaker_embedding_dim]
            )
        elif voice == "reference":
            config.reference.CopyFrom(self.clip(draw, self.min_reference_ms))
        else:
            config.resume_state = draw(st.sampled_from(self.states)) if draw(st.booleans()) else self.state(draw)
        if draw(st.booleans()):
            config.out_sample_rate_hz = draw(st.sampled_from((8_000, 16_000, 22_050, 96_000)))
            config.encoding = draw(st.sampled_from((1, 2)))
            config.seed = draw(st.sampled_from((0, 2**64 - 1)))
        segments = [
            self.segment(draw, (*("tokens", "words") * 4, "audio")) for _ in range(draw(st.sampled_from((0, 1, 1, 2))))
        ]
        return [
            taste_pb2.DetokenizeRequest(config=config),
            *(taste_pb2.DetokenizeRequest(segment=segment) for segment in segments),
        ]

    def state(self, draw: Draw) -> bytes:
        """A resume state in which one value is another."""
        state = json.loads(zlib.decompress(draw(st.sampled_from(self.states))))
        name = draw(st.sampled_from(sorted(state)))
        value = draw(
            st.sampled_from((None, "", -1, 0, 1, 2**31, 2**64, 10**400, -0.5, 1e308, [], [0], [[0]], {}, True))
        )
        if isinstance(state[name], list) and state[name] and draw(st.booleans()):
            state[name][draw(st.integers(0, len(state[name]) - 1))] = value
        else:
            state[name] = value
        return zlib.compress(json.dumps(state).encode())

    def segment(self, draw: Draw, kinds: tuple[str, ...]) -> common_pb2.Segment:
        kind = draw(st.sampled_from(kinds))
        segment = common_pb2.Segment(role=draw(st.sampled_from((1, 2, 3))))
        if kind == "text":
            segment.text = draw(st.sampled_from(("hi", "Hello, there.", "👩‍👩‍👧 שלום", "a\tb\n")))
        elif kind == "audio":
            segment.audio.clip.CopyFrom(self.clip(draw))
            segment.audio.transcript = draw(st.sampled_from(("hi", "Hello, there.", "你好")))
        elif kind == "words":
            segment.words.words.extend(self.word(draw) for _ in range(draw(st.sampled_from((1, 1, 2)))))
        else:
            segment.tokens.CopyFrom(self.tokens(draw, spoken=kind == "tokens"))
        return segment

    def word(self, draw: Draw) -> common_pb2.SpokenWord:
        word = common_pb2.SpokenWord(text=draw(st.sampled_from(WORDS)))
        codes = word.taste_tokens.codes
        codes.vq_dim = self.info.vq_dim
        codes.ids.extend([draw(st.integers(0, self.info.codebook_size - 1))] * self.info.vq_dim)
        if draw(st.booleans()):
            word.text_ids.extend(draw(self._ids()))
        return word

    def tokens(self, draw: Draw, *, spoken: bool) -> common_pb2.SegmentTokens:
        tokens = common_pb2.SegmentTokens(text_ids=draw(self._ids()))
        count = len(tokens.text_ids)
        if draw(st.booleans()):
            tokens.word_ids.extend(range(count))
        if spoken:
            codes = tokens.taste_tokens.codes
            codes.vq_dim = self.info.vq_dim
            for index in range(count):
                silent = index and not tokens.word_ids and draw(st.booleans())
                codes.ids.extend([-1 if silent else draw(st.integers(0, self.info.codebook_size - 1))] * codes.vq_dim)
        return tokens

    def _ids(self) -> st.SearchStrategy[list[int]]:
        return st.lists(st.integers(0, self.info.text_vocab_size - 1), min_size=1, max_size=3)

    def clip(self, draw: Draw, min_ms: int = 20) -> common_pb2.AudioClip:
        name = draw(st.sampled_from(("LINEAR16", "FLOAT32LE", "WAV", "FLAC", "OGG_OPUS", "MP3")))
        rate_hz = draw(st.sampled_from((8_000, 16_000, 48_000)))
        return recorded(name, rate_hz, draw(st.sampled_from((1, 2))), max(min_ms, draw(st.sampled_from((20, 60)))))


_FILES = {"WAV": ("WAV", "PCM_16"), "FLAC": ("FLAC", "PCM_16"), "OGG_OPUS": ("OGG", "OPUS"), "MP3": ("MP3", None)}


@cache
def recorded(name: str, rate_hz: int, channels: int, length_ms: int) -> common_pb2.AudioClip:
    """A tone in the encoding of that name."""
    tone = np.repeat(messages.tone(length_ms / 1000, rate_hz)[:, None], channels, axis=1)
    clip = common_pb2.AudioClip()
    clip.format.encoding = common_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{name}")
    if name in _FILES:
        buffer = io.BytesIO()
        form, subtype = _FILES[name]
        soundfile.write(buffer, tone, rate_hz, format=form, subtype=subtype)
        clip.data = buffer.getvalue()
        return clip
    clip.format.sample_rate_hz = rate_hz
    clip.format.channels = channels
    clip.data = (tone * 32_767).astype("<i2").tobytes() if name == "LINEAR16" else tone.astype("<f4").tobytes()
    return clip
