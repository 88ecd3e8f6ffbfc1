"""Arguments of the clients' methods, as request messages. Both clients build the same ones here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, TypeAlias, TypedDict

from taste.v1.common_pb2 import (
    AUDIO_ENCODING_FLOAT32LE,
    AUDIO_ENCODING_LINEAR16,
    AudioClip,
    AudioEncoding,
    Segment,
    SpeakerEmbedding,
)
from taste.v1.dialogue_pb2 import ReplyRequest
from taste.v1.taste_pb2 import (
    DetokenizeConfig,
    EmitPolicy,
    EveryWord,
    GenerateRequest,
    SentenceEnd,
    TokenizeRequest,
)
from taste_grpc_client.audio import AudioSource, audio_clip
from taste_grpc_client.spoken_text import SpokenText

Emit: TypeAlias = Literal["word", "sentence"] | int
"""When results leave: at every word, at every sentence end, or at every so many words."""

PcmEncoding: TypeAlias = Literal["linear16", "float32le"]
"""Encoding of streamed audio."""

Speaker: TypeAlias = "SpeakerEmbedding | Iterable[float] | str | os.PathLike[str] | bytes | AudioClip"
"""A voice: an embedding (message, numbers or array), or a recording of 1 to 30 seconds (path, file or clip)."""

_ENCODINGS: dict[str, AudioEncoding.ValueType] = {
    "linear16": AUDIO_ENCODING_LINEAR16,
    "float32le": AUDIO_ENCODING_FLOAT32LE,
}


class GenerateOptions(TypedDict, total=False):
    """How to continue a conversation. What is left out takes the server's default; see `taste.v1.GenerateRequest`."""

    text_top_p: float
    taste_top_p: float
    text_temperature: float
    repetition_penalty: float
    max_length: int
    extra_words: int
    eos_id: int
    seed: int
    conversation_format: str


class ReplyOptions(TypedDict, total=False):
    """How to answer a question. What is left out takes the server's setting; see `taste.v1.ReplyRequest`."""

    chunk_id: str
    mode: Literal["conversation", "transcription"]
    system_prompt: str
    max_new_tokens: int
    temperature: float
    top_p: float
    chunk_size_words: int
    timeout_ms: int
    chunk_timeout_ms: int


def tokenize_request(
    audio: AudioSource, text: str | None, text_ids: Iterable[int] | None, sample_rate_hz: int | None
) -> TokenizeRequest:
    """The request of `tokenize`."""
    return TokenizeRequest(audio=audio_clip(audio, sample_rate_hz), text=text, text_ids=text_ids)


def reply_request(audio: AudioSource, sample_rate_hz: int | None, options: ReplyOptions) -> ReplyRequest:
    """The request of `reply`."""
    return ReplyRequest(audio=audio_clip(audio, sample_rate_hz), **options)


def generate_request(
    segments: Segment | Iterable[Segment], emit: Emit | None, options: GenerateOptions
) -> GenerateRequest:
    """The request of `generate`. Raises TypeError for what is no option of it."""
    if unknown := sorted(options.keys() - GenerateOptions.__annotations__.keys()):
        known = ", ".join(GenerateOptions.__annotations__)
        raise TypeError(f"{unknown[0]}: there is no such option; there are {known}")
    history = [segments] if isinstance(segments, Segment) else segments
    return GenerateRequest(segments=map(_checked, history), emit_policy=_emit_policy(emit), **options)


def _checked(segment: object) -> Segment:
    if isinstance(segment, Segment):
        return segment
    advice = "; its .segment(role) is one" if isinstance(segment, SpokenText) else ""
    raise TypeError(f"segments: a Segment was expected, not {type(segment).__name__}{advice}")


def _emit_policy(emit: Emit | None) -> EmitPolicy | None:
    if emit is None:
        return None
    if emit == "word":
        return EmitPolicy(every_word=EveryWord())
    if emit == "sentence":
        return EmitPolicy(sentence_end=SentenceEnd())
    if isinstance(emit, int):
        return EmitPolicy(every_words=emit)
    raise ValueError(f"emit: 'word', 'sentence' or a number of words was expected, not {emit!r}")


def voice_of(segments: object, speaker: Speaker | None, resume_state: bytes | None) -> Speaker | None:
    """Whose voice `detokenize` is to use: that of a SpokenText when none is given."""
    if isinstance(segments, SpokenText) and speaker is None and resume_state is None:
        return segments.speaker
    return speaker


def detokenize_config(
    speaker: Speaker | None,
    sample_rate_hz: int | None,
    encoding: PcmEncoding,
    seed: int | None,
    resume_state: bytes | None,
    max_chunk_words: int | None = None,
    look_ahead_words: int | None = None,
) -> DetokenizeConfig:
    """The first message of `detokenize`."""
    config = DetokenizeConfig(
        out_sample_rate_hz=sample_rate_hz,
        encoding=encoding_of("encoding", encoding),
        seed=seed,
        resume_state=resume_state,
        max_chunk_words=max_chunk_words,
        look_ahead_words=look_ahead_words,
    )
    if isinstance(speaker, SpeakerEmbedding):
        config.speaker_embedding.CopyFrom(speaker)
    elif isinstance(speaker, str | os.PathLike | bytes | AudioClip):
        config.reference.CopyFrom(audio_clip(speaker))
    elif speaker is not None:
        # Presence first: an empty embedding must reach the server as one, not as no speaker.
        config.speaker_embedding.SetInParent()
        config.speaker_embedding.values.extend(float(value) for value in speaker)
    return config


def encoding_of(argument: str, encoding: PcmEncoding) -> AudioEncoding.ValueType:
    """The value of an encoding's name. Raises ValueError, which blames `argument`."""
    if encoding not in _ENCODINGS:
        raise ValueError(f"{argument}: {encoding!r} is none of {', '.join(_ENCODINGS)}")
    return _ENCODINGS[encoding]
