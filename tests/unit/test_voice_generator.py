"""Flow, vocoder and both together, on tiny sizes; names and counts on the published ones."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taste_grpc.errors import BatchSizeError, CallAbortedError, CheckpointError, InvalidInputError
from taste_grpc.model.voice_generator.config import PUBLISHED_DIMS
from taste_grpc.model.voice_generator.generator import VoiceGenerator, VoiceGeneratorConfig
from taste_grpc.model.voice_generator.hift_source import SourceRandomness
from taste_grpc.model.voice_generator.weight_norm import WeightNormConv1d, WeightNormConvTranspose1d


def tiny_dims() -> dict[str, Any]:
    dims: dict[str, Any] = copy.deepcopy(dict(PUBLISHED_DIMS))
    flow, hift = dims["flow"], dims["hift"]
    flow |= {"vocab_size": 30, "input_size": 8, "output_size": 12, "spk_embed_dim": 6}
    flow["encoder"] |= {"input_size": 8, "output_size": 8, "attention_heads": 2, "linear_units": 10, "num_blocks": 1}
    flow["length_regulator"]["channels"] = 12
    flow["estimator"] |= {
        "in_channels": 48,
        "out_channels": 12,
        "channels": [8, 16],
        "attention_head_dim": 4,
        "num_heads": 3,
        "n_blocks": 1,
        "num_mid_blocks": 2,
        "group_norm_groups": 4,
    }
    hift |= {"in_channels": 12, "base_channels": 16}
    hift["f0_predictor"] |= {"in_channels": 12, "cond_channels": 7}
    return dims


@pytest.fixture(scope="module")
def generator() -> VoiceGenerator:
    torch.manual_seed(0)
    generator = VoiceGenerator(VoiceGeneratorConfig.from_published(tiny_dims(), None)).eval()
    generator.fold_()
    with torch.no_grad():
        generator.hift.f0_predictor.classifier.bias.fill_(180.0)
    return generator


@pytest.fixture(scope="module")
def published() -> VoiceGenerator:
    with torch.device("meta"):
        return VoiceGenerator(VoiceGeneratorConfig.from_published(None, None))


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_the_published_size_has_the_published_tensors(published: VoiceGenerator) -> None:
    shapes = shapes_of(published)

    def total(prefix: str) -> int:
        return sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(prefix))

    assert len(shapes) == 1412
    assert total("") == 125_335_343
    assert total("flow.") == 104_874_752
    assert total("hift.") == 20_460_591
    assert shapes["flow.decoder.estimator.up_blocks.0.2.conv.weight"] == (256, 256, 4)
    assert shapes["flow.decoder.estimator.mid_blocks.11.1.3.attn1.to_out.0.bias"] == (256,)
    assert shapes["flow.length_regulator.model.12.weight"] == (80, 80, 1)
    assert shapes["hift.ups.0.weight_v"] == (512, 256, 16)
    assert shapes["hift.ups.0.weight_g"] == (512, 1, 1)
    assert shapes["hift.source_downs.0.weight"] == (256, 18, 16)
    assert shapes["hift.f0_predictor.condnet.8.weight_v"] == (512, 512, 3)
    assert VoiceGeneratorConfig.from_published(None, shapes) == published.config


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("flow", "vocab_size", 31, r"flow.vocab_size = 31, but flow.input_embedding.weight of shape \(30, 8\) say 30"),
        ("flow.estimator", "n_blocks", 2, "flow.estimator.n_blocks = 2, but the tensors .*down_blocks.0.1.* say 1"),
        ("flow.estimator", "num_heads", 4, "num_heads x attention_head_dim = 16, but .*to_q.weight"),
        ("hift", "base_channels", 32, "hift.base_channels = 32, but hift.conv_pre.weight_v"),
        ("hift", "nb_harmonics", 4, "hift.nb_harmonics . 1 = 5, but hift.m_source.l_linear.weight"),
        ("flow.cfm", "solver", "heun", "flow.cfm.solver = 'heun'; only 'euler' is supported"),
    ],
)
def test_a_description_that_contradicts_the_tensors_names_both(section: str, key: str, value: Any, words: str) -> None:
    dims = tiny_dims()
    shapes = shapes_of(VoiceGenerator(VoiceGeneratorConfig.from_published(dims, None)))
    part = dims
    for name in section.split("."):
        part = part[name]
    part[key] = value
    with pytest.raises(CheckpointError, match=words):
        VoiceGeneratorConfig.from_published(dims, shapes)


def test_a_description_with_a_hole_names_the_hole() -> None:
    dims = tiny_dims()
    del dims["hift"]["lrelu_slope"]
    with pytest.raises(CheckpointError, match="lrelu_slope"):
        VoiceGeneratorConfig.from_published(dims, None)


def test_without_a_description_other_sizes_than_the_published_are_refused(generator: VoiceGenerator) -> None:
    unfolded = VoiceGenerator(generator.config)
    with pytest.raises(CheckpointError, match=r"there is no cosyvoice/voice_generator_dims\.json"):
        VoiceGeneratorConfig.from_published(None, shapes_of(unfolded))


@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_folding_weight_norm_changes_the_names_and_not_the_result(kind: str) -> None:
    torch.manual_seed(1)
    layer = WeightNormConv1d(4, 6, 3) if kind == "conv" else WeightNormConvTranspose1d(4, 6, 8, 4)
    torch.nn.init.uniform_(layer.weight_g, 0.5, 2.0)
    x = torch.randn(1, 4, 9)
    before = layer(x)
    wanted = torch.stack(
        [
            g * v / math.sqrt(float(v.square().sum()))
            for g, v in zip(layer.weight_g.detach(), layer.weight_v.detach(), strict=True)
        ]
    )
    layer.fold_()
    layer.fold_()
    assert set(layer.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(layer.weight, wanted)
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("units", [1, 2, 7, 24, 255, 1024])
def test_mel_frames_follow_the_published_formula(published: VoiceGenerator, units: int) -> None:
    tensor = torch.tensor([units])
    assert published.config.flow.frames(units) == int((tensor / 50 * 22050 / 256).int())


def test_flow_frames_and_reproducibility(generator: VoiceGenerator) -> None:
    units, speaker = torch.arange(23)[None], torch.randn(1, 6)
    mel = generator.flow.mel(units, speaker, seed=4)
    assert mel.shape == (1, 12, 39)
    torch.testing.assert_close(generator.flow.mel(units, speaker, seed=4), mel, atol=0, rtol=0)
    assert (generator.flow.mel(units, speaker, seed=5) - mel).abs().max() > 1e-3
    assert (generator.flow.mel(units, 3 * speaker, seed=4) - mel).abs().max() < 1e-4  # only the direction counts


def test_flow_noise_is_a_function_of_the_absolute_frame(generator: VoiceGenerator) -> None:
    whole = generator.flow.noise(9, 0, 30)
    torch.testing.assert_close(generator.flow.noise(9, 11, 8), whole[:, :, 11:19], atol=0, rtol=0)


def test_both_guidance_evaluations_in_one_call_equal_two_calls(generator: VoiceGenerator) -> None:
    flow = generator.flow
    x, mu, speaker = torch.randn(2, 12, 9), torch.randn(2, 9, 12), torch.randn(2, 12)
    conditioned, unconditioned = flow.velocity(x, mu, speaker, 0.3)
    t, zeros = torch.full((2,), 0.3), torch.zeros_like(x)
    with torch.no_grad():
        first = flow.decoder.estimator(x, mu.transpose(1, 2), speaker, zeros, t)
        second = flow.decoder.estimator(x, zeros, torch.zeros_like(speaker), zeros, t)
    torch.testing.assert_close(conditioned, first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unconditioned, second, atol=1e-5, rtol=1e-5)


def test_euler_times_start_at_zero_and_cover_one(generator: VoiceGenerator) -> None:
    schedule = generator.flow.schedule()
    assert len(schedule) == 10
    for k, (t, dt) in enumerate(schedule):
        assert t == pytest.approx(1 - math.cos(math.pi / 2 * k / 10), abs=1e-6)
        assert dt > 0
    assert sum(dt for _, dt in schedule) == pytest.approx(1.0, abs=1e-6)


def test_flow_stops_between_euler_steps(generator: VoiceGenerator) -> None:
    calls = 0

    def abort() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise CallAbortedError("stop")

    mu = torch.randn(1, 9, 12)
    with pytest.raises(CallAbortedError):
        list(generator.flow.euler_steps(torch.randn(1, 12, 9), mu, torch.randn(1, 12), abort))
    assert calls == 5


def test_flow_refuses_what_is_not_a_unit(generator: VoiceGenerator) -> None:
    with pytest.raises(InvalidInputError, match="speech_token_ids: 30 is not below 30"):
        generator.flow.mel(torch.tensor([[3, 30]]), torch.randn(1, 6))
    with pytest.raises(InvalidInputError, match="at least one"):
        generator.flow.mel(torch.zeros(1, 0).long(), torch.randn(1, 6))
    with pytest.raises(InvalidInputError, match="noise"):
        generator.flow.mel(torch.tensor([[3, 4]]), torch.randn(1, 6), noise=torch.zeros(1, 12, 9))


def naive_source(generator: VoiceGenerator, f0: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
    """The excitation sample by sample, from its formula."""
    source, running = generator.hift.m_source, 0.0
    samples = []
    for index in range(f0.shape[1] * 256):
        hz = float(f0[0, index // 256])
        running += hz / 22050
        angles = [2 * math.pi * ((running * i) % 1) + float(phases[0, i - 1, 0]) for i in range(1, 10)]
        voiced = hz > 10
        waves = torch.tensor([0.1 * math.sin(angle) if voiced else 0.0 for angle in angles])
        samples.append(waves + (0.003 if voiced else 0.1 / 3) * noise[0, :, index])
    with torch.no_grad():
        return torch.tanh(source.l_linear(torch.stack(samples)))[None]


def test_the_source_is_its_formula(generator: VoiceGenerator) -> None:
    f0 = torch.tensor([[110.0, 4.0, 231.5]])
    phases, noise = torch.rand(1, 9, 1) * 6 - 3, torch.randn(1, 9, 768)
    excitation, _ = generator.hift.source(f0, phases=phases, noise=noise)
    assert excitation.shape == (1, 768, 1)
    torch.testing.assert_close(excitation, naive_source(generator, f0, phases, noise), atol=1e-6, rtol=1e-5)


def test_the_source_may_be_made_in_pieces(generator: VoiceGenerator) -> None:
    f0 = torch.rand(1, 40) * 300
    whole, end = generator.hift.source(f0, seed=8)
    cycles: Tensor | float = 0.0
    pieces = []
    for start, stop in ((0, 7), (7, 8), (8, 40)):
        piece, cycles = generator.hift.source(f0[:, start:stop], seed=8, first_sample=256 * start, start_cycles=cycles)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.as_tensor(cycles), end)
    assert end.dtype == torch.float64


def test_seeded_phases_leave_the_fundamental_alone() -> None:
    phases = SourceRandomness(3).phases(9)
    assert phases[0, 0, 0] == 0
    assert (phases[0, 1:].abs() < math.pi).all()
    assert len(np.unique(phases.numpy())) == 9


@pytest.mark.parametrize("frames", [1, 2, 13])
def test_a_mel_frame_is_256_samples(generator: VoiceGenerator, frames: int) -> None:
    mel = torch.randn(1, 12, frames)
    source, _ = generator.hift.source(generator.hift.f0(mel))
    waveform = generator.hift.decode(mel, source)
    assert waveform.shape == (1, 256 * frames)
    assert waveform.abs().max() <= 0.99
    with pytest.raises(InvalidInputError, match="source"):
        generator.hift.decode(mel, source[:, :-1])


def test_inference_is_a_function_of_its_arguments(generator: VoiceGenerator) -> None:
    units, speaker = torch.arange(10)[None], torch.randn(1, 6)
    waveform, rate = generator.inference(units, flow_embedding=speaker, seed=1)
    assert rate == 22050
    assert waveform.shape == (1, 256 * generator.config.flow.frames(10))
    assert waveform.dtype == torch.float32
    again, _ = generator.inference(torch.cat([units, units], 1), torch.tensor([10]), flow_embedding=speaker, seed=1)
    torch.testing.assert_close(again, waveform, atol=0, rtol=0)
    other, _ = generator.inference(units, flow_embedding=speaker, seed=2)
    assert (other - waveform).abs().max() > 1e-6


def test_inference_takes_one_utterance(generator: VoiceGenerator) -> None:
    with pytest.raises(BatchSizeError, match="speech_token_ids: a batch of 2"):
        generator.inference(torch.zeros(2, 3).long(), flow_embedding=torch.randn(1, 6))
    with pytest.raises(InvalidInputError, match="flow_embedding: shape"):
        generator.inference(torch.zeros(1, 3).long(), flow_embedding=torch.randn(6))
