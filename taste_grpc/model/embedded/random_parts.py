"""Seeded random weights for any tensor of the published layout.

Scales are chosen so that an untrained network behaves: activations keep their size from layer to
layer, codes and speech units vary, f0 lies where voices are, and the waveform is audible without
clipping. What it says means nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Shape = Sequence[int]
_Init = Callable[[Shape, torch.Generator], Tensor]

_F0_HZ = 140.0
_F0_SPREAD_HZ = 25.0
_LOG_MAGNITUDE = -0.8
_LOG_MAGNITUDE_GAIN = 0.3


def random_tensors(shapes: Mapping[str, Shape], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each name of `shapes` with a float32 tensor of that shape, made when it is asked for."""
    for name, shape in shapes.items():
        yield name, random_tensor(name, shape, seed)


def random_tensor(name: str, shape: Shape, seed: int) -> Tensor:
    """The float32 tensor `name`: a function of name, shape and seed alone.

    `name` is a full published name (`audio_tower.…`, `speech_decoder.…`, `spoken_lm.…`) or one of
    `voice_generator.pth` (`flow.…`, `hift.…`).
    """
    # The running mean of a codebook belongs to its codes.
    drawn_as = name.removesuffix("_avg") if name.endswith("_codebook.embed_avg") else name
    digest = hashlib.blake2b(f"{seed}:{drawn_as}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    for pattern, init in _RULES:
        if pattern.search(drawn_as):
            return init(shape, generator)
    return _by_dimensions(drawn_as, shape, generator)


def _normal(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)


def _around(center: float, spread: float) -> _Init:
    return lambda shape, generator: center + spread * _normal(shape, generator)


def _fan_in(gain: float) -> _Init:
    """Keeps the size of what goes through, times `gain`."""
    return lambda shape, generator: _normal(shape, generator) * (gain / math.sqrt(math.prod(shape[1:])))


def _per_width(gain: float) -> _Init:
    return lambda shape, generator: _normal(shape, generator) * (gain / math.sqrt(shape[-1]))


def _values(*values: float) -> _Init:
    return lambda shape, generator: torch.tensor(values).expand(tuple(shape)).clone()


def _codes(level: int) -> _Init:
    # Each table describes what the one before left over.
    return _around(0.0, 0.9 * 0.6**level)


def _harmonics(shape: Shape, generator: torch.Generator) -> Tensor:
    # Falling by 6 dB per octave, as a voice roughly does; the sines have a tenth of full scale.
    return (5.0 / torch.arange(1, shape[-1] + 1)).expand(tuple(shape)).clone()


def _spectrum_bias(shape: Shape, generator: torch.Generator) -> Tensor:
    bins = shape[0] // 2
    phases = torch.rand(bins, generator=generator) * math.pi - math.pi / 2
    return torch.cat([torch.full((bins,), _LOG_MAGNITUDE), phases])


def _spectrum_gain(shape: Shape, generator: torch.Generator) -> Tensor:
    # Magnitudes are exponentials: little gain there keeps the loudness even, the phases may move freely.
    bins = shape[0] // 2
    return torch.cat([torch.full((bins, 1, 1), _LOG_MAGNITUDE_GAIN), torch.ones(bins, 1, 1)])


def _by_dimensions(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    if len(shape) > 1:
        return _fan_in(1.0)(shape, generator)
    center = 1.0 if name.endswith(".weight") else 0.0  # the gains of norms; biases
    return _around(center, 0.02)(shape, generator)


def _rule(pattern: str, init: _Init) -> tuple[re.Pattern[str], _Init]:
    return re.compile(pattern), init


_RULES: tuple[tuple[re.Pattern[str], _Init], ...] = (
    # residual quantiser
    _rule(r"_codebook\.(initted|cluster_size)$", _values(1.0)),
    *(_rule(rf"\.layers\.{level}\._codebook\.embed$", _codes(level)) for level in range(8)),
    # spoken LM
    _rule(r"language_model\..*(embed_tokens|lm_head)\.weight$", _per_width(2.0)),
    _rule(r"pad_text_unit_embed$", _per_width(2.0)),
    _rule(r"pad_audio_unit_embed$", _around(0.0, 0.5)),
    _rule(r"lora_B\.default\.weight$", _around(0.0, 0.02)),
    _rule(r"fuse_for_bridge_in_llm\.weights$", _values(-2.0, 2.0)),
    _rule(r"b_logvar$", _around(-4.0, 0.1)),
    # audio tower and speech decoder
    # Sharp attention to the sound, so that words that sound different get different codes.
    _rule(r"encoder_attn\.q_proj\.weight$", _fan_in(4.0)),
    _rule(r"encoder_attn\.v_proj\.weight$", _fan_in(0.5)),
    _rule(r"embed_positions\.weight$", _around(0.0, 0.1)),
    _rule(r"fuse_encoded_audio_text_module\.weights$", _values(0.0)),
    _rule(r"pos_bias_[uv]$", _around(0.0, 0.1)),
    _rule(r"llm_decoder\.weight$", _fan_in(2.0)),
    _rule(r"(embedding|embed_tokens)\.weight$", _around(0.0, 1.0)),
    # flow and vocoder
    _rule(r"estimator\.final_proj\.weight$", _fan_in(0.5)),
    _rule(r"\.alpha$", lambda shape, generator: (1.0 + 0.1 * _normal(shape, generator)).clamp_(min=0.5)),
    _rule(r"m_source\.l_linear\.weight$", _harmonics),
    _rule(r"f0_predictor\.classifier\.weight$", _fan_in(_F0_SPREAD_HZ)),
    _rule(r"f0_predictor\.classifier\.bias$", _values(_F0_HZ)),
    _rule(r"hift\.conv_post\.bias$", _spectrum_bias),
    _rule(r"hift\.conv_post\.weight_g$", _spectrum_gain),
    # The length of a filter; an upsampling kernel covers two strides and has half the inputs per output.
    _rule(r"\.ups\.\d+\.weight_g$", _values(2.0)),
    _rule(r"\.convs2\.\d+\.weight_g$", _values(0.4)),
    _rule(r"weight_g$", _values(1.0)),
)
