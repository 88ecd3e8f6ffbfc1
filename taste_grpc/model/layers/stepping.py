"""Steps of one row per call whose shapes never change, so that a CUDA graph can record and replay them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taste_grpc.model.layers.slot_storage import SlotStorage


class RowStep(Protocol):
    """One row `[n, D]` for each of n different slots through a network; the slots grow by one position.

    What it needs to know beside (weights, cache) it was given when it was made.
    """

    def __call__(self, rows: Tensor, slots: Sequence[int]) -> Tensor:
        """Returns `[n, D]`. `rows` may have more rows than there are slots; the rest are zeros nobody looks at."""
        ...


@dataclass(frozen=True)
class StaticPlaces:
    """Where the rows of a step of fixed shape go, and what they look at, as tensors.

    Attributes:
        slots: `[B]` int64.
        positions: `[B]` int64, where each row goes in its slot. Rows of nobody go to the spare position of slot 0.
        window: positions attention runs over; those beyond a row's own are masked.
    """

    slots: Tensor
    positions: Tensor
    window: int

    def targets(self, cache: SlotStorage) -> Tensor:
        """Row of `cache.keys[layer].view(-1, d)` that each (row, head) goes to: `[B * heads]`."""
        heads, room = cache.keys.shape[2], cache.room
        bases = self.slots * (heads * room) + self.positions
        return (bases[:, None] + torch.arange(0, heads * room, room, device=bases.device)).view(-1)

    def hidden_keys(self) -> Tensor:
        """`[B, window]`, true where a row may not look."""
        return torch.arange(self.window, device=self.positions.device) > self.positions[:, None]

    def exchange(self, cache: SlotStorage, layer: int, targets: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Keep new rows `[B, heads, d]` of a layer; returns keys and values `[B, heads, window, d]`."""
        size = keys.shape[-1]
        windows = []
        for kept, new in ((cache.keys[layer], keys), (cache.values[layer], values)):
            kept.view(-1, size).index_copy_(0, targets, new.reshape(-1, size))
            windows.append(kept[:, :, : self.window].index_select(0, self.slots))
        return windows


class StaticStep(Protocol):
    """A network's step as a function of tensors whose shapes say everything: what a CUDA graph can record.

    No number of it may come back to the host, and what it allocates may depend on shapes only.
    """

    def __call__(self, rows: Tensor, places: StaticPlaces) -> Tensor:
        """Rows `[B, D]` through the network, their keys and values kept; returns `[B, D]`."""
        ...
