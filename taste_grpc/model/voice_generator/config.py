"""Sizes and constants of the voice generator, from its description and the stored tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from taste_grpc.errors import CheckpointError
from taste_grpc.model.layers.rel_pos import RelPosEncoderConfig
from taste_grpc.model.tensor_shapes import TensorShapes
from taste_grpc.model.voice_generator.flow import FlowConfig
from taste_grpc.model.voice_generator.flow_estimator import EstimatorConfig
from taste_grpc.model.voice_generator.hift import HiftConfig
from taste_grpc.model.voice_generator.hift_source import SourceConfig

DIMS_FILE = "cosyvoice/voice_generator_dims.json"

_DILATIONS = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]

PUBLISHED_DIMS: Mapping[str, Any] = {
    "output_sampling_rate": 22050,
    "flow": {
        "vocab_size": 4096,
        "input_size": 512,
        "output_size": 80,
        "spk_embed_dim": 192,
        "input_frame_rate": 50,
        "encoder": {
            "input_size": 512,
            "output_size": 512,
            "attention_heads": 8,
            "linear_units": 2048,
            "num_blocks": 6,
        },
        "length_regulator": {"channels": 80, "sampling_ratios": [1, 1, 1, 1], "groups": 1},
        "cfm": {"t_scheduler": "cosine", "solver": "euler", "n_timesteps": 10, "inference_cfg_rate": 0.7},
        "estimator": {
            "in_channels": 320,
            "out_channels": 80,
            "channels": [256, 256],
            "attention_head_dim": 64,
            "num_heads": 8,
            "n_blocks": 4,
            "num_mid_blocks": 12,
            "act_fn": "gelu",
            "group_norm_groups": 8,
        },
    },
    "hift": {
        "in_channels": 80,
        "base_channels": 512,
        "nb_harmonics": 8,
        "sampling_rate": 22050,
        "nsf_alpha": 0.1,
        "nsf_sigma": 0.003,
        "nsf_voiced_threshold": 10,
        "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16],
        "istft": {"n_fft": 16, "hop_len": 4},
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": _DILATIONS,
        "source_resblock_kernel_sizes": [7, 11],
        "source_resblock_dilation_sizes": _DILATIONS[:2],
        "lrelu_slope": 0.1,
        "audio_limit": 0.99,
        "f0_predictor": {"in_channels": 80, "cond_channels": 512},
    },
}
"""The published voice generator, in the form of `cosyvoice/voice_generator_dims.json`."""

_PUBLISHED_F0_LAYERS = 5


@dataclass(frozen=True)
class VoiceGeneratorConfig:
    """Sizes of a `VoiceGenerator`.

    Attributes:
        flow: units to mel.
        hift: mel to waveform.
        sampling_rate_hz: of the waveform.
    """

    flow: FlowConfig
    hift: HiftConfig
    sampling_rate_hz: int

    @classmethod
    def from_published(cls, dims: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]] | None) -> Self:
        """From the content of `voice_generator_dims.json` and the shapes in `voice_generator.pth`.

        Without `dims` the published values are meant; without `shapes` nothing is checked. Raises
        CheckpointError when a value is missing, or is not what the tensors say.
        """
        source = DIMS_FILE if dims is not None else f"the published description (there is no {DIMS_FILE})"
        described = PUBLISHED_DIMS if dims is None else dims
        tensors = TensorShapes(shapes, source)
        try:
            hift = _hift(described["hift"], tensors, counted=shapes is not None)
            flow = _flow(described["flow"], tensors, int(described["output_sampling_rate"]), hift.samples_per_frame)
            rate = int(described["output_sampling_rate"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source} is not usable: {type(error).__name__} {error}") from error
        if hift.mel_bins != flow.mel_bins:
            raise CheckpointError(
                f"{source}: the flow makes {flow.mel_bins} mel bins, the vocoder reads {hift.mel_bins}"
            )
        return cls(flow=flow, hift=hift, sampling_rate_hz=rate)


def _flow(dims: Mapping[str, Any], tensors: TensorShapes, rate: int, hop: int) -> FlowConfig:
    cfm, regulator = dims["cfm"], dims["length_regulator"]
    tensors.require("flow.cfm.t_scheduler", cfm["t_scheduler"], "cosine")
    tensors.require("flow.cfm.solver", cfm["solver"], "euler")
    embedding = "flow.input_embedding.weight"
    tensors.size(embedding, 1, "flow.input_size", dims["input_size"])
    mel_bins = tensors.size("flow.encoder_proj.weight", 0, "flow.output_size", dims["output_size"])
    layers = len(regulator["sampling_ratios"])
    last = f"flow.length_regulator.model.{3 * layers}.weight"
    tensors.size(last, 0, "flow.length_regulator.channels", regulator["channels"])
    tensors.size(last, 2, "flow.length_regulator.sampling_ratios (kernel of the layer after them)", 1)
    return FlowConfig(
        vocab_size=tensors.size(embedding, 0, "flow.vocab_size", dims["vocab_size"]),
        speaker_size=tensors.size("flow.spk_embed_affine_layer.weight", 1, "flow.spk_embed_dim", dims["spk_embed_dim"]),
        mel_bins=mel_bins,
        unit_rate_hz=int(dims["input_frame_rate"]),
        sampling_rate_hz=rate,
        hop_samples=hop,
        encoder=_unit_encoder(dims["encoder"], tensors),
        regulator_layers=layers,
        regulator_groups=int(regulator["groups"]),
        steps=int(cfm["n_timesteps"]),
        guidance=float(cfm["inference_cfg_rate"]),
        estimator=_estimator(dims["estimator"], tensors),
    )


def _unit_encoder(dims: Mapping[str, Any], tensors: TensorShapes) -> RelPosEncoderConfig:
    keys = {
        "input_size": "input_size",
        "width": "output_size",
        "heads": "attention_heads",
        "ffn_size": "linear_units",
        "layers": "num_blocks",
    }
    return RelPosEncoderConfig.from_tensors(
        tensors,
        "flow.encoder",
        keys={field: f"flow.encoder.{key}" for field, key in keys.items()},
        stated={field: dims[key] for field, key in keys.items()},
        causal=False,
    )


def _estimator(dims: Mapping[str, Any], tensors: TensorShapes) -> EstimatorConfig:
    prefix, key = "flow.decoder.estimator", "flow.estimator"
    tensors.require(f"{key}.act_fn", dims["act_fn"], "gelu")
    heads, head_size = int(dims["num_heads"]), int(dims["attention_head_dim"])
    down = f"{prefix}.down_blocks"
    tensors.size(f"{down}.0.1.0.attn1.to_q.weight", 0, f"{key}.num_heads x attention_head_dim", heads * head_size)
    channels = tuple(int(width) for width in dims["channels"])
    tensors.count(down, f"{key}.channels (their number)", len(channels))
    return EstimatorConfig(
        in_channels=tensors.size(f"{prefix}.time_mlp.linear_1.weight", 1, f"{key}.in_channels", dims["in_channels"]),
        out_channels=tensors.size(f"{prefix}.final_proj.weight", 0, f"{key}.out_channels", dims["out_channels"]),
        channels=tuple(
            tensors.size(f"{down}.{index}.0.block1.block.0.weight", 0, f"{key}.channels[{index}]", width)
            for index, width in enumerate(channels)
        ),
        head_size=head_size,
        heads=heads,
        blocks=tensors.count(f"{down}.0.1", f"{key}.n_blocks", dims["n_blocks"]),
        mid_stages=tensors.count(f"{prefix}.mid_blocks", f"{key}.num_mid_blocks", dims["num_mid_blocks"]),
        groups=int(dims["group_norm_groups"]),
    )


def _sizes(tensors: TensorShapes, name: str, dim: int, key: str, stated: list[int]) -> tuple[int, ...]:
    return tuple(tensors.size(name.format(index), dim, f"{key}[{index}]", value) for index, value in enumerate(stated))


def _hift(dims: Mapping[str, Any], tensors: TensorShapes, *, counted: bool) -> HiftConfig:
    f0, n_fft = dims["f0_predictor"], int(dims["istft"]["n_fft"])
    tensors.size("hift.conv_post.weight_v", 0, "hift.istft.n_fft + 2", n_fft + 2)
    condnet = "hift.f0_predictor.condnet"
    rates = tuple(int(rate) for rate in dims["upsample_rates"])
    hop = int(dims["istft"]["hop_len"])
    f0_layers = _PUBLISHED_F0_LAYERS
    if counted:  # every second index is an activation, which has no tensors
        f0_layers = next(layers for layers in itertools.count() if not tensors.has(f"{condnet}.{2 * layers}.weight_v"))
    return HiftConfig(
        mel_bins=tensors.size("hift.conv_pre.weight_v", 1, "hift.in_channels", dims["in_channels"]),
        channels=tensors.size("hift.conv_pre.weight_v", 0, "hift.base_channels", dims["base_channels"]),
        upsample_rates=rates,
        upsample_kernels=_sizes(
            tensors, "hift.ups.{}.weight_v", 2, "hift.upsample_kernel_sizes", dims["upsample_kernel_sizes"]
        ),
        n_fft=n_fft,
        hop_samples=hop,
        kernels=_sizes(
            tensors,
            "hift.resblocks.{}.convs1.0.weight_v",
            2,
            "hift.resblock_kernel_sizes",
            dims["resblock_kernel_sizes"],
        ),
        dilations=tuple(tuple(each) for each in dims["resblock_dilation_sizes"]),
        source_kernels=_sizes(
            tensors,
            "hift.source_resblocks.{}.convs1.0.weight_v",
            2,
            "hift.source_resblock_kernel_sizes",
            dims["source_resblock_kernel_sizes"],
        ),
        source_dilations=tuple(tuple(each) for each in dims["source_resblock_dilation_sizes"]),
        slope=float(dims["lrelu_slope"]),
        audio_limit=float(dims["audio_limit"]),
        f0_channels=tensors.size(f"{condnet}.0.weight_v", 0, "hift.f0_predictor.cond_channels", f0["cond_channels"]),
        f0_layers=f0_layers,
        source=_source(dims, tensors, samples_per_frame=math.prod(rates) * hop),
    )


def _source(dims: Mapping[str, Any], tensors: TensorShapes, *, samples_per_frame: int) -> SourceConfig:
    harmonics = tensors.size("hift.m_source.l_linear.weight", 1, "hift.nb_harmonics + 1", dims["nb_harmonics"] + 1) - 1
    return SourceConfig(
        harmonics=harmonics,
        sampling_rate_hz=int(dims["sampling_rate"]),
        samples_per_frame=samples_per_frame,
        sine_amplitude=float(dims["nsf_alpha"]),
        noise_amplitude=float(dims["nsf_sigma"]),
        voiced_threshold_hz=float(dims["nsf_voiced_threshold"]),
    )
