"""Velocity network of the flow: a 1-d U-Net of residual convolutions and transformer blocks (after Matcha-TTS)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TIME_SCALE = 1000.0
_TIME_BASE = 10000.0


@dataclass(frozen=True)
class EstimatorConfig:
    """Sizes of a `FlowEstimator`.

    Attributes:
        in_channels: channels of state, mean, speaker and condition together; also the width of the time code.
        out_channels: channels of the velocity, the mel bins.
        channels: width of each stage on the way down.
        head_size: width of one attention head.
        heads: attention heads.
        blocks: transformer blocks per stage.
        mid_stages: stages at the bottom.
        groups: groups of the group norms.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    head_size: int
    heads: int
    blocks: int
    mid_stages: int
    groups: int


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time_size: int, groups: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, outputs))
        self.block1 = _ConvBlock(inputs, outputs, groups)
        self.block2 = _ConvBlock(outputs, outputs, groups)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.block2(self.block1(x) + self.mlp(time)[:, :, None]) + self.res_conv(x)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_size
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        # the published code adds 1 to every score of valid pairs; without padding that changes nothing
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class _GeluProjection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # index 1 is the published network's dropout, which has no parameters
        self.net = nn.Sequential(_GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, heads, head_size)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class _Resample(nn.Module):
    """Halves or doubles the number of frames; a wrapper because the published names have one."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Stage(nn.ModuleList):
    """`[residual block, transformer blocks, (resampling)]`, in the order of the published names."""

    def __init__(self, config: EstimatorConfig, inputs: int, outputs: int, resample: nn.Module | None = None) -> None:
        time_size = 4 * config.channels[0]
        blocks = (_TransformerBlock(outputs, config.heads, config.head_size) for _ in range(config.blocks))
        parts: list[nn.Module] = [
            _ResidualBlock(inputs, outputs, time_size, config.groups),
            nn.ModuleList(blocks),
        ]
        super().__init__(parts if resample is None else [*parts, resample])

    def run(self, x: Tensor, time: Tensor) -> Tensor:
        """Everything but the resampling."""
        x = self[0](x, time).transpose(1, 2)
        blocks = self[1]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x)
        return x.transpose(1, 2)

    def resample(self, x: Tensor) -> Tensor:
        """To the frames of the next stage."""
        out: Tensor = self[2](x)
        return out


class _TimeMlp(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, code: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(code)))
        return out


def time_code(t: Tensor, width: int) -> Tensor:
    """Sinusoids `[B, width]` of the times `[B]` (0 to 1): sines first, then cosines."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(steps * (-math.log(_TIME_BASE) / (half - 1)))
    angles = _TIME_SCALE * t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FlowEstimator(nn.Module):
    """The network f(x, mu, speaker, condition, t).

    All rows of a batch have the same number of frames: the published network does not mask attention and
    normalises over time, so padding would change the result.
    """

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.time_mlp = _TimeMlp(config.in_channels, 4 * widths[0])
        self.down_blocks = nn.ModuleList()
        inputs = config.in_channels
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            conv = nn.Conv1d(width, width, 3, padding=1, stride=1 if last else 2)
            self.down_blocks.append(_Stage(config, inputs, width, conv if last else _Resample(conv)))
            inputs = width
        self.mid_blocks = nn.ModuleList(_Stage(config, inputs, inputs) for _ in range(config.mid_stages))
        self.up_blocks = nn.ModuleList()
        upward = (*reversed(widths), widths[0])
        for index, (above, width) in enumerate(pairwise(upward)):
            last = index == len(widths) - 1
            resample = (
                nn.Conv1d(width, width, 3, padding=1)
                if last
                else _Resample(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1))
            )
            self.up_blocks.append(_Stage(config, 2 * above, width, resample))
        self.final_block = _ConvBlock(widths[0], widths[0], config.groups)
        self.final_proj = nn.Conv1d(widths[0], config.out_channels, 1)

    def forward(self, x: Tensor, mu: Tensor, speaker: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """Velocity `[B, out_channels, T]`.

        `x`, `mu` and `condition` are `[B, channels, T]`, `speaker` `[B, speaker channels]`, `t` `[B]`.
        """
        frames = x.shape[2]
        time = self.time_mlp(time_code(t, self.config.in_channels).to(x.dtype))
        h = torch.cat([x, mu, speaker[:, :, None].expand(-1, -1, frames), condition], dim=1)
        skips: list[Tensor] = []
        for stage in self.down_blocks:
            assert isinstance(stage, _Stage)
            h = stage.run(h, time)
            skips.append(h)
            h = stage.resample(h)
        for stage in self.mid_blocks:
            assert isinstance(stage, _Stage)
            h = stage.run(h, time)
        for stage in self.up_blocks:
            assert isinstance(stage, _Stage)
            skip = skips.pop()
            h = stage.run(torch.cat([h[:, :, : skip.shape[2]], skip], dim=1), time)
            h = stage.resample(h)
        out: Tensor = self.final_proj(self.final_block(h))
        return out
