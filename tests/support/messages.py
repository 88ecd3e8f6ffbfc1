"""Requests that are in order, for tests to send or to spoil."""

from __future__ import annotations

import numpy as np

from taste.v1 import common_pb2, taste_pb2


def tone(seconds: float = 0.5, rate_hz: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def clip(seconds: float = 0.5, rate_hz: int = 16_000) -> common_pb2.AudioClip:
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_FLOAT32LE, sample_rate_hz=rate_hz, channels=1)
    return common_pb2.AudioClip(format=form, data=tone(seconds, rate_hz).astype("<f4").tobytes())


def token_segment(
    text_ids: tuple[int, ...] = (3, 4, 5), vq_dim: int = 4, role: common_pb2.Role.ValueType = common_pb2.ROLE_USER
) -> common_pb2.Segment:
    codes = common_pb2.TasteCodes(vq_dim=vq_dim, ids=[1] * (len(text_ids) * vq_dim))
    return common_pb2.Segment(
        role=role,
        modality=common_pb2.MODALITY_AUDIO,
        tokens=common_pb2.SegmentTokens(
            text_ids=text_ids,
            word_ids=range(len(text_ids)),
            taste_tokens=common_pb2.TasteTokens(codes=codes),
        ),
    )


def text_segment(text: str = "hello there") -> common_pb2.Segment:
    return common_pb2.Segment(role=common_pb2.ROLE_USER, modality=common_pb2.MODALITY_TEXT, text=text)


def tokenize_request(text: str | None = "hello there") -> taste_pb2.TokenizeRequest:
    return taste_pb2.TokenizeRequest(audio=clip(), text=text)


def generate_request() -> taste_pb2.GenerateRequest:
    return taste_pb2.GenerateRequest(segments=[text_segment()])


def config(size: int = 192) -> taste_pb2.DetokenizeConfig:
    return taste_pb2.DetokenizeConfig(speaker_embedding=common_pb2.SpeakerEmbedding(values=[1.0] * size), seed=1)


def detokenize_requests(segments: int = 1, size: int = 192) -> list[taste_pb2.DetokenizeRequest]:
    return [
        taste_pb2.DetokenizeRequest(config=config(size)),
        *(taste_pb2.DetokenizeRequest(segment=token_segment()) for _ in range(segments)),
    ]
