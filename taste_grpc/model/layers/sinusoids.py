"""Sinusoids of distances."""

from __future__ import annotations

import torch
from torch import Tensor

_POSITION_BASE = 10000.0


def sinusoids(distances: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """R of the given `distances` `[n]` (query position minus key position): `[n, width]`, sine and cosine in turn."""
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=distances.device) / width
    angles = distances.double()[:, None] * torch.pow(_POSITION_BASE, -exponent)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(dtype)
