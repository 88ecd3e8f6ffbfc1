"""Keys and values of a rel-pos attention encoder, kept per call in slots of one preallocated block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError

_POSITIONS_PER_GROWTH = 256


@dataclass
class RelPosCache:
    """State of `slots` causal streams through one encoder; made by `RelPosEncoder.new_cache`.

    Attributes:
        rows: `[layers, slots, heads, capacity, 2 * d_k]`, key first, then value. Zeroed at the start, so
            that what a mask hides is always a number.
        lengths: positions of each slot that are filled.
        block: attention looks at a whole number of blocks of that many positions, so the shapes of a
            step change only once per block; with `block = capacity` they never change.
        project_positions: maps `(first, end)` to the projected sinusoids `[layers, heads, end - first, d_k]`
            of those distances. They depend on weights only and are computed when first needed.
    """

    rows: Tensor
    block: int
    project_positions: Callable[[int, int], Tensor]
    lengths: list[int] = field(init=False)
    _positional: Tensor = field(init=False)

    def __post_init__(self) -> None:
        layers, slots, heads, _, width = self.rows.shape
        self.lengths = [0] * slots
        self._positional = self.rows.new_empty(layers, heads, 0, width // 2)

    @property
    def capacity(self) -> int:
        """Positions a slot can hold."""
        return self.rows.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values."""
        return self.rows.numel() * self.rows.element_size()

    def reset(self, slot: int) -> None:
        """Forget what `slot` holds."""
        self.lengths[slot] = 0

    def positional_keys(self, count: int) -> Tensor:
        """Projected sinusoids `[layers, heads, count, d_k]` of the distances 0 .. count-1."""
        known = self._positional.shape[2]
        if count > known:
            end = -(-max(count, min(2 * known, self.capacity)) // _POSITIONS_PER_GROWTH) * _POSITIONS_PER_GROWTH
            self._positional = torch.cat([self._positional, self.project_positions(known, end)], dim=2)
        return self._positional[:, :, :count]


class CachePass:
    """One forward pass over some slots of a cache: where new rows go and what they may look at.

    Args:
        cache: the storage.
        slots: B different slots.
        new_lengths: rows each of them gains; the pass is `[B, max(new_lengths)]`, padded on the right.

    Raises InvalidInputError when a slot would outgrow the capacity.
    """

    def __init__(self, cache: RelPosCache, slots: Sequence[int], new_lengths: Sequence[int]) -> None:
        starts = [cache.lengths[slot] for slot in slots]
        ends = [start + new for start, new in zip(starts, new_lengths, strict=True)]
        if max(ends) > cache.capacity:
            raise InvalidInputError(
                "lm_input", f"needs {max(ends)} positions, but the cache holds {cache.capacity} per call"
            )
        self._cache = cache
        self._slots = list(slots)
        self._ends = ends
        self.width = max(new_lengths)
        self.window = min(-(-max(ends) // cache.block) * cache.block, cache.capacity)
        self.start = starts[0] if len(set(starts)) == 1 else None  # common first position, if there is one
        device = cache.rows.device
        self._slot_index = torch.tensor(self._slots, device=device)
        row = [row for row, new in enumerate(new_lengths) for _ in range(new)]
        column = [column for new in new_lengths for column in range(new)]
        self._row = torch.tensor(row, device=device)
        self._column = torch.tensor(column, device=device)
        self._position = torch.tensor([starts[b] + t for b, t in zip(row, column, strict=True)], device=device)
        steps = torch.arange(self.width, device=device)
        keys = torch.arange(self.window, device=device)
        distance = torch.tensor(starts, device=device)[:, None, None] + steps[:, None] - keys  # [B, T, window]
        self.visible = (distance >= 0)[:, None]  # [B, 1, T, window]
        self.distance = distance.clamp_(0, self.window - 1)[:, None]  # padding rows may lie beyond the window
        first, last = self._slots[0], self._slots[-1]
        self._range = slice(first, last + 1) if self._slots == list(range(first, last + 1)) else None

    def positional_keys(self) -> Tensor:
        """Projected sinusoids `[layers, heads, window, d_k]` of the distances this pass can meet."""
        return self._cache.positional_keys(self.window)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new rows `[B, heads, T, d_k]` of a layer; returns all rows `[B, heads, window, d_k]`."""
        rows = self._cache.rows[layer]
        new = torch.cat([keys, values], dim=-1)
        rows[self._slot_index[self._row], :, self._position] = new[self._row, :, self._column].to(rows.dtype)
        held = rows[self._range] if self._range is not None else rows[self._slot_index]
        held_keys, held_values = held[:, :, : self.window].chunk(2, dim=-1)
        return held_keys, held_values

    def commit(self) -> None:
        """Count the new rows as filled, once every layer has stored them."""
        for slot, end in zip(self._slots, self._ends, strict=True):
            self._cache.lengths[slot] = end
