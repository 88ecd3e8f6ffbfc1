"""The full-size network, without weights, has exactly the tensors of the published checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from taste_grpc.errors import CheckpointError
from taste_grpc.model.config import TasteConfig
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.voice_generator.generator import VoiceGenerator, VoiceGeneratorConfig

DATA = Path(__file__).parents[1] / "data"
LM_HEAD = "spoken_lm.language_model.base_model.model.lm_head.weight"
Shapes = dict[str, tuple[int, ...]]

# stored numbers by component: first letters of the names -> count
TOTALS = {
    "audio_tower.audio_joint_encoder_segmenter.audio_encoder.": 636_968_960,
    "audio_tower.audio_joint_encoder_segmenter.audio_segmenter.": 119_436_800,
    "audio_tower.vq.": 3_680_516,
    "speech_decoder.text_e": 56_485_888,
    "speech_decoder.audio_": 21_135_872,
    "speech_decoder.llm": 71_408_641,
    "speech_decoder.sp": 4_391_936,
    "speech_decoder.fuse": 2,
    "spoken_lm.language_model.": 1_543_571_456,
    "spoken_lm.pad": 3_328,
    "spoken_lm.fuse": 2_623_490,
    "spoken_lm.extract": 524_800,
}


def published(part: str) -> Shapes:
    layout: dict[str, Any] = json.loads((DATA / "published_layout.json").read_text())
    return {name: tuple(shape) for name, (shape, _) in layout[part].items()}


def config() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "published_config.json").read_text())
    return content


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


@pytest.fixture(scope="module")
def taste() -> TasteForCausalLM:
    with torch.device("meta"):
        return TasteForCausalLM(TasteConfig.from_published(config()))


@pytest.fixture(scope="module")
def voice() -> VoiceGenerator:
    with torch.device("meta"):
        return VoiceGenerator(VoiceGeneratorConfig.from_published(None, None))


def test_the_model_has_every_published_name_and_shape(taste: TasteForCausalLM) -> None:
    expected = published("model")
    assert len(expected) == 1252
    assert shapes_of(taste) == expected


def test_the_voice_generator_has_every_published_name_and_shape(voice: VoiceGenerator) -> None:
    expected = published("voice_generator")
    assert len(expected) == 1412
    assert shapes_of(voice) == expected


def test_nothing_was_given_memory(taste: TasteForCausalLM, voice: VoiceGenerator) -> None:
    assert all(tensor.is_meta for module in (taste, voice) for tensor in module.state_dict().values())


def test_the_components_add_up(taste: TasteForCausalLM, voice: VoiceGenerator) -> None:
    shapes = shapes_of(taste)
    found = {prefix: numbers(shape for name, shape in shapes.items() if name.startswith(prefix)) for prefix in TOTALS}
    assert found == TOTALS
    assert numbers(shapes.values()) == 2_460_231_689
    assert math.prod(shapes[LM_HEAD]) == 262_668_288
    assert numbers(shape for name, shape in shapes.items() if "lora_" in name) == 45_088_768
    voice_shapes = shapes_of(voice)
    flow = numbers(shape for name, shape in voice_shapes.items() if name.startswith("flow."))
    assert (flow, numbers(voice_shapes.values()) - flow) == (104_874_752, 20_460_591)


def test_configuration_and_tensors_agree() -> None:
    # with the tensors at hand, nothing is left to the published values
    assert TasteConfig.from_published(config(), published("model")) == TasteConfig.from_published(config())
    shapes = published("voice_generator")
    assert VoiceGeneratorConfig.from_published(None, shapes) == VoiceGeneratorConfig.from_published(None, None)


@pytest.mark.parametrize(
    ("tensor", "shape", "words"),
    [
        ("audio_tower.vq.rvq.layers.0._codebook.embed", (1, 256, 256), ["codebook_size", "512", "256"]),
        ("spoken_lm.extract_for_bridge_out_llm.fc_mu.weight", (128, 2048), ["codebook_dim", "256", "128"]),
        ("speech_decoder.speech_embedding.weight", (2048, 1024), ["speech_token_size", "4096", "2048"]),
        ("speech_decoder.text_encoder.encoders.0.self_attn.pos_bias_u", (4, 256), ["attention_heads", "8", "4"]),
    ],
)
def test_a_contradiction_names_both_sides(tensor: str, shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as raised:
        TasteConfig.from_published(config(), published("model") | {tensor: shape})
    for word in [*words, tensor.rsplit(".", 1)[0]]:
        assert word in str(raised.value)


def test_fewer_layers_are_counted(voice: VoiceGenerator) -> None:
    fewer = {
        name: shape for name, shape in published("model").items() if "audio_segmenter.decoder.layers.1." not in name
    }
    assert TasteConfig.from_published(config(), fewer).audio_tower.decoder.layers == 1
    without = {name: shape for name, shape in fewer.items() if "speech_decoder.llm.encoders.6." not in name}
    with pytest.raises(CheckpointError, match="llm__num_blocks = 7"):
        TasteConfig.from_published(config(), without)
