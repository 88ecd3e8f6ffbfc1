"""Requests that are in order, for tests to send or to spoil."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import soundfile

from taste.v1 import common_pb2, dialogue_pb2, taste_pb2
from taste_grpc.audio import Waveform, encode_wav
from taste_grpc.speech import sample_recordings


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


def word_segment(
    texts: Sequence[str] = ("good", "morning"),
    vq_dim: int = 4,
    role: common_pb2.Role.ValueType = common_pb2.ROLE_USER,
    text_ids: Sequence[int] = (),
) -> common_pb2.Segment:
    codes = common_pb2.TasteTokens(codes=common_pb2.TasteCodes(vq_dim=vq_dim, ids=[1] * vq_dim))
    words = [common_pb2.SpokenWord(text=text, taste_tokens=codes, text_ids=text_ids) for text in texts]
    return common_pb2.Segment(role=role, words=common_pb2.SegmentWords(words=words))


def text_segment(text: str = "hello there") -> common_pb2.Segment:
    return common_pb2.Segment(role=common_pb2.ROLE_USER, modality=common_pb2.MODALITY_TEXT, text=text)


def tokenize_request(text: str | None = "hello there") -> taste_pb2.TokenizeRequest:
    return taste_pb2.TokenizeRequest(audio=clip(), text=text)


def generate_request() -> taste_pb2.GenerateRequest:
    return taste_pb2.GenerateRequest(segments=[text_segment()])


@cache
def spoken_wav() -> bytes:
    samples, rate_hz = soundfile.read(sample_recordings()["beckett"], dtype="float32", frames=48_000)
    return encode_wav(Waveform(samples, rate_hz))


def spoken_clip() -> common_pb2.AudioClip:
    """Three seconds of a human voice."""
    form = common_pb2.AudioFormat(encoding=common_pb2.AUDIO_ENCODING_WAV)
    return common_pb2.AudioClip(format=form, data=spoken_wav())


def reply_request(**fields: Any) -> dialogue_pb2.ReplyRequest:
    return dialogue_pb2.ReplyRequest(audio=spoken_clip(), **fields)


def config(size: int = 192) -> taste_pb2.DetokenizeConfig:
    return taste_pb2.DetokenizeConfig(speaker_embedding=common_pb2.SpeakerEmbedding(values=[1.0] * size), seed=1)


def detokenize_requests(segments: int = 1, size: int = 192) -> list[taste_pb2.DetokenizeRequest]:
    return [
        taste_pb2.DetokenizeRequest(config=config(size)),
        *(taste_pb2.DetokenizeRequest(segment=token_segment()) for _ in range(segments)),
    ]


def tokens(text_ids: Sequence[int], word_ids: Sequence[int], rows: np.ndarray) -> common_pb2.SegmentTokens:
    codes = common_pb2.TasteCodes(vq_dim=rows.shape[1], ids=rows.reshape(-1).tolist())
    return common_pb2.SegmentTokens(
        text_ids=text_ids, word_ids=word_ids, taste_tokens=common_pb2.TasteTokens(codes=codes)
    )


def tokens_of(answer: taste_pb2.TokenizeResponse) -> common_pb2.SegmentTokens:
    return common_pb2.SegmentTokens(
        text_ids=answer.text_ids,
        word_ids=answer.word_ids,
        taste_tokens=answer.taste_tokens,
        text=answer.text,
        words=answer.words,
    )


def spoken_words(tokens: common_pb2.SegmentTokens, *, with_ids: bool = True) -> list[common_pb2.SpokenWord]:
    """What a client makes of a result: each word with the codes at its first id, and its ids."""
    rows = code_rows(tokens.taste_tokens, len(tokens.text_ids))
    first = tokens.word_ids[0] if tokens.word_ids else 0
    words = []
    for index, text in enumerate(tokens.words):
        places = [i for i, word in enumerate(tokens.word_ids) if word == first + index]
        codes = common_pb2.TasteCodes(vq_dim=rows.shape[1], ids=rows[places[0]].tolist())
        words.append(
            common_pb2.SpokenWord(
                text=text,
                taste_tokens=common_pb2.TasteTokens(codes=codes),
                text_ids=[tokens.text_ids[i] for i in places] if with_ids else [],
            )
        )
    return words


def code_rows(taste_tokens: common_pb2.TasteTokens, length: int) -> np.ndarray:
    """Codes `[length, vq_dim]`."""
    codes = taste_tokens.codes
    return np.array(codes.ids, np.int64).reshape(length, codes.vq_dim)
