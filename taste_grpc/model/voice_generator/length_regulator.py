"""From unit rate to mel rate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LengthRegulator(nn.Module):
    """Nearest-neighbour stretching over time, then convolutions.

    Args:
        channels: of input and output.
        layers: number of convolutions with norm before the last, pointwise one.
        groups: groups of their norms.
    """

    def __init__(self, channels: int, layers: int, groups: int) -> None:
        super().__init__()
        self.model = nn.Sequential()
        for _ in range(layers):
            self.model.extend([nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.Mish()])
        self.model.append(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """`[B, N, channels]` -> `[B, frames, channels]`; frame t is made from row floor(t * N / frames)."""
        return self.smooth(F.interpolate(x.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2))

    def smooth(self, stretched: Tensor) -> Tensor:
        """The convolutions alone, on rows that are at mel rate already: `[B, frames, channels]`, in and out."""
        out: Tensor = self.model(stretched.transpose(1, 2))
        return out.transpose(1, 2)
