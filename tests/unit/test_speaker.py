"""The speaker encoder, over a small network in the published interface."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from taste_grpc.audio import kaldi_fbank, remove_mean
from taste_grpc.errors import CheckpointError, InvalidInputError
from taste_grpc.model.speaker import SpeakerEncoder

WEIGHT = np.random.default_rng(3).standard_normal((80, 192)).astype(np.float32)
BIAS = np.random.default_rng(4).standard_normal(192).astype(np.float32)


def write_network(path: Path, bins: int = 80) -> Path:
    """Mean over time of the squared features, then an affine map: `[1, T, bins]` to `[1, 192]`."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["feats", "feats"], ["power"]),
            helper.make_node("ReduceMean", ["power", "axes"], ["pooled"], keepdims=0),
            helper.make_node("Gemm", ["pooled", "weight", "bias"], ["embedding"]),
        ],
        "speaker",
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, "T", bins])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 192])],
        [
            numpy_helper.from_array(WEIGHT[:bins], "weight"),
            numpy_helper.from_array(BIAS, "bias"),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> SpeakerEncoder:
    return SpeakerEncoder(write_network(tmp_path / "speaker_embed.onnx"))


def clip(seed: int, samples: int = 8000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def raw(samples: np.ndarray) -> np.ndarray:
    return (remove_mean(kaldi_fbank(samples)) ** 2).mean(axis=0) @ WEIGHT + BIAS


def test_one_clip(encoder: SpeakerEncoder) -> None:
    embedding = encoder.embed([clip(0)])
    assert embedding.shape == (192,)
    assert embedding.dtype == np.float32
    expected = raw(clip(0))
    np.testing.assert_allclose(embedding, expected / np.linalg.norm(expected), atol=1e-5)


def test_several_clips_are_averaged_before_the_length_is_taken_away(encoder: SpeakerEncoder) -> None:
    mean = (raw(clip(0)) + raw(clip(1, 16000))) / 2
    np.testing.assert_allclose(encoder.embed([clip(0), clip(1, 16000)]), mean / np.linalg.norm(mean), atol=1e-5)


def test_several_threads_at_a_time(encoder: SpeakerEncoder) -> None:
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda seed: encoder.embed([clip(seed)]), range(16)))
    for seed, embedding in enumerate(parallel):
        np.testing.assert_array_equal(embedding, encoder.embed([clip(seed)]))


def test_clips_that_cannot_be_used(encoder: SpeakerEncoder) -> None:
    with pytest.raises(InvalidInputError, match="clips"):
        encoder.embed([])
    with pytest.raises(InvalidInputError, match="400 samples"):
        encoder.embed([np.zeros(399, np.float32)])


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    absent, damaged = tmp_path / "absent.onnx", tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\x08\x09not a network")
    for path in (absent, damaged, write_network(tmp_path / "other.onnx", bins=40)):
        with pytest.raises(CheckpointError, match=path.name):
            SpeakerEncoder(path)
