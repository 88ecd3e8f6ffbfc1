"""Keys and values of the spoken LM, kept per call in slots of one preallocated block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError


class KeyValueSlots:
    """Storage for `slots` calls of up to `capacity` positions each.

    `keys` and `values` are `[layers, slots, kv_heads, capacity, head_dim]`; `lengths[slot]` counts the
    positions of a slot that are filled. Zeros, because masked rows still enter products.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, slots, kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = [0] * slots

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values together."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def reset(self, slot: int) -> None:
        """Forget what a slot holds; its rows become zeros, lest one that is not finite spoils the next call."""
        filled = self.lengths[slot]
        self.keys[:, slot, :, :filled] = 0
        self.values[:, slot, :, :filled] = 0
        self.lengths[slot] = 0


class SlotWindow:
    """One forward pass over some slots: where its new rows go and what they may look at.

    Args:
        cache: the storage.
        slots: B different slots.
        new_lengths: rows each of them adds; the pass is `[B, max(new_lengths)]`, padded on the right.
    """

    def __init__(self, cache: KeyValueSlots, slots: Sequence[int], new_lengths: Sequence[int]) -> None:
        device = cache.keys.device
        self._cache = cache
        self._slots = list(slots)
        self._new_lengths = list(new_lengths)
        starts = [cache.lengths[slot] for slot in slots]
        ends = [start + new for start, new in zip(starts, new_lengths, strict=True)]
        if max(ends) > cache.capacity:
            raise InvalidInputError(
                "max_length", f"{max(ends)} positions are needed, but the cache holds {cache.capacity} per call"
            )
        self._width = max(new_lengths)
        self._window = max(ends)
        steps = torch.arange(self._width, device=device)
        self.positions = torch.tensor(starts, device=device)[:, None] + steps[None, :]  # [B, T]
        # rows beyond a slot's own new ones are padding; they are parked on its last new position
        self._valid = steps[None, :] < torch.tensor(new_lengths, device=device)[:, None]
        self._slot_index = torch.tensor(self._slots, device=device)
        self._contiguous = self._slots == list(range(self._slots[0], self._slots[0] + len(self._slots)))
        self._aligned = len(set(starts)) == 1 and len(set(new_lengths)) == 1

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive attention mask `[B, 1, T, window]`; None when every row may look at the whole window."""
        if self._aligned and self._width == 1:
            return None
        keys = torch.arange(self._window, device=self.positions.device)
        visible = keys[None, None, :] <= self.positions[:, :, None]  # [B, T, window]
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store new rows `[B, kv_heads, T, head_dim]` of a layer; returns all rows (T becomes the window)."""
        own_keys, own_values = self._cache.keys[layer], self._cache.values[layer]
        if self._contiguous and self._aligned:
            slots = slice(self._slots[0], self._slots[0] + len(self._slots))
            start = self._window - self._width
            own_keys[slots, :, start : self._window] = keys
            own_values[slots, :, start : self._window] = values
        else:
            rows, columns = self._valid.nonzero(as_tuple=True)
            slot_of_row, positions = self._slot_index[rows], self.positions[rows, columns]
            own_keys[slot_of_row, :, positions] = keys[rows, :, columns]
            own_values[slot_of_row, :, positions] = values[rows, :, columns]
        if self._contiguous:
            slots = slice(self._slots[0], self._slots[0] + len(self._slots))
            return own_keys[slots, :, : self._window], own_values[slots, :, : self._window]
        return own_keys[self._slot_index, :, : self._window], own_values[self._slot_index, :, : self._window]

    def commit(self) -> None:
        """Count the new rows as filled, once every layer has stored them."""
        for slot, new in zip(self._slots, self._new_lengths, strict=True):
            self._cache.lengths[slot] += new
