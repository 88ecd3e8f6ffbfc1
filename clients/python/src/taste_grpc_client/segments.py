"""Segments of a conversation: what `generate` continues and `detokenize` speaks."""

from __future__ import annotations

from typing import Literal, TypeAlias

from taste.v1.common_pb2 import (
    MODALITY_AUDIO,
    MODALITY_TEXT,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_USER,
    Role,
    Segment,
    SegmentAudio,
    SegmentTokens,
)
from taste.v1.taste_pb2 import TokenizeResponse
from taste_grpc_client.audio import AudioSource, audio_clip

RoleName: TypeAlias = Literal["system", "user", "assistant"]
"""Who speaks in a segment."""

_ROLES: dict[str, Role.ValueType] = {"system": ROLE_SYSTEM, "user": ROLE_USER, "assistant": ROLE_ASSISTANT}


def text_segment(text: str, role: RoleName = "user") -> Segment:
    """Written text."""
    return Segment(role=role_of(role), modality=MODALITY_TEXT, text=text)


def audio_segment(
    source: AudioSource,
    role: RoleName = "user",
    *,
    transcript: str | None = None,
    sample_rate_hz: int | None = None,
) -> Segment:
    """Recorded speech; the server transcribes it unless `transcript` is given. Raises as `audio_clip` does."""
    recorded = SegmentAudio(clip=audio_clip(source, sample_rate_hz), transcript=transcript)
    return Segment(role=role_of(role), modality=MODALITY_AUDIO, audio=recorded)


def token_segment(tokenized: TokenizeResponse, role: RoleName = "user") -> Segment:
    """Speech that `tokenize` has turned into text ids and codes."""
    tokens = SegmentTokens(
        text_ids=tokenized.text_ids,
        word_ids=tokenized.word_ids,
        taste_tokens=tokenized.taste_tokens,
        text=tokenized.text,
        words=tokenized.words,
    )
    return Segment(role=role_of(role), modality=MODALITY_AUDIO, tokens=tokens)


def role_of(name: RoleName) -> Role.ValueType:
    """The value of a role's name. Raises ValueError."""
    if name not in _ROLES:
        raise ValueError(f"role: {name!r} is none of {', '.join(_ROLES)}")
    return _ROLES[name]
