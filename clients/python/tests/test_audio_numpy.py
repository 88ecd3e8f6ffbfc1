"""Arrays of numpy, where there is numpy."""

from __future__ import annotations

import pytest

from taste.v1 import common_pb2
from taste_grpc_client import audio_clip, text_segment
from taste_grpc_client.requests import detokenize_config

np = pytest.importorskip("numpy", reason="numpy is not installed: the client does not need it")


def test_strided_arrays_of_two_channels() -> None:
    samples = np.arange(12, dtype=np.float32).reshape(2, 6).T / 16  # [6, 2], not contiguous
    clip = audio_clip(samples, 48000)
    assert clip.format.channels == 2
    assert clip.data == np.ascontiguousarray(samples).tobytes()


@pytest.mark.parametrize(("dtype", "encoding"), [("<i2", "LINEAR16"), ("<f4", "FLOAT32LE"), ("<f8", "FLOAT32LE")])
def test_types(dtype: str, encoding: str) -> None:
    clip = audio_clip(np.array([0, 1, 0, -1], dtype), 8000)
    assert clip.format.encoding == common_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{encoding}")
    wire = "<i2" if encoding == "LINEAR16" else "<f4"
    assert np.frombuffer(clip.data, wire).tolist() == [0, 1, 0, -1]


def test_lists_of_its_numbers() -> None:
    assert audio_clip(list(np.array([0.5, -0.25])), 8000) == audio_clip([0.5, -0.25], 8000)
    assert audio_clip(list(np.array([5, -5], np.int16)), 8000) == audio_clip([5, -5], 8000)


def test_embeddings() -> None:
    config = detokenize_config(np.array([0.5, -2.0], np.float32), None, "linear16", None, None)
    assert list(config.speaker_embedding.values) == [0.5, -2.0]
    assert text_segment(str(np.str_("word"))).text == "word"
