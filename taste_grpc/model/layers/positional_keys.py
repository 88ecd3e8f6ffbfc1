"""The positional half of rel-pos attention, worked out once for all streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_POSITIONS_PER_GROWTH = 256


class PositionalKeys:
    """Projected sinusoids of distances, in falling order, so that a row finds those of its keys side by side.

    They depend on weights only and are worked out when first needed, always in the same blocks: a distance has the
    same numbers whoever asks.

    Args:
        project: maps `(first, end)` to the projections `[layers, heads, end - first, d_k]` of the distances
            end-1 .. first.
    """

    def __init__(self, project: Callable[[int, int], Tensor]) -> None:
        self._project = project
        self._falling: Tensor | None = None

    def upto(self, count: int) -> Tensor:
        """`[layers, heads, n, d_k]` for the distances n-1 .. 0, with n at least `count`."""
        falling = self._falling
        known = 0 if falling is None else falling.shape[2]
        if falling is None or known < count:
            end = -(-max(count, 2 * known) // _POSITIONS_PER_GROWTH) * _POSITIONS_PER_GROWTH
            starts = range(end - _POSITIONS_PER_GROWTH, known - 1, -_POSITIONS_PER_GROWTH)
            new = [self._project(first, first + _POSITIONS_PER_GROWTH) for first in starts]
            falling = self._falling = torch.cat(new if falling is None else [*new, falling], dim=2)
        return falling
