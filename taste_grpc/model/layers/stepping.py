"""How one row for each of several calls gets through a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class RowStep(Protocol):
    """One row `[n, D]` for each of n different slots through the network; returns `[n, D]`.

    What it needs to know beside (weights, cache) it was given when it was made. The slots grow by one position.
    """

    def __call__(self, rows: Tensor, slots: Sequence[int]) -> Tensor:
        """`rows` may have more rows than there are slots; the rest are zeros nobody looks at."""
        ...
