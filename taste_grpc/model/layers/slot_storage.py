"""Keys and values of many calls, kept in slots of one preallocated block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.layers.shapes import FixedShape

_ALIGNMENT = 16  # positions; every slot then begins at the same place of a cache line, which kernels may notice


class SlotStorage:
    """Storage for `slots` calls of up to `capacity` positions each.

    `keys` and `values` are `[layers, slots, kv_heads, room, head_dim]`, where `room` is a little more than `capacity`:
    the position `capacity` is spare. `lengths[slot]` counts the positions of a slot that are filled. On the CPU, memory
    that was never written costs nothing. `fixed` makes the numbers of a call independent of its company (see
    `FixedShape`).
    """

    too_small = "positions"
    """What an error about a call that needs more than `capacity` positions names."""

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
        fixed: FixedShape | None = None,
    ) -> None:
        room = (capacity // _ALIGNMENT + 1) * _ALIGNMENT
        shape = (layers, slots, kv_heads, room, head_dim)
        # zeros, because what a mask hides still enters products
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.fixed = fixed
        self.lengths = [0] * slots
        self.uses = [0] * slots  # how often a slot was reset: a pass under way sees that it belongs to somebody else
        self._written = [0] * slots
        self._views = [
            [(keys[slot : slot + 1], values[slot : slot + 1]) for slot in range(slots)]
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values together."""
        return 2 * self.keys.numel() * self.keys.element_size()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.keys.device

    @property
    def room(self) -> int:
        """Positions of a slot in memory."""
        return self.keys.shape[3]

    def reset(self, slot: int) -> None:
        """Forget what a slot holds; its rows become zeros, lest one that is not finite spoils the next call."""
        written = self._written[slot]
        self.keys[:, slot, :, :written] = 0
        self.values[:, slot, :, :written] = 0
        self.lengths[slot] = self._written[slot] = 0
        self.uses[slot] += 1

    def claim(self, slot: int, end: int) -> None:
        """Note that positions below `end` are about to be written. Raises InvalidInputError beyond the capacity."""
        if end > self.capacity:
            raise InvalidInputError(
                self.too_small, f"{end} positions are needed, but the cache holds {self.capacity} per call"
            )
        self._written[slot] = max(self._written[slot], end)

    def window(self, layer: int, slot: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, kv_heads, end, head_dim]` of a slot's first positions, without a copy."""
        keys, values = self._views[layer][slot]
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)


class SlotPass:
    """One forward pass over some slots: new rows of all of them, one slot after the other.

    A slot that is reset while the pass is under way is left alone from then on: its rows go nowhere.

    Args:
        cache: the storage.
        slots: different slots.
        new_lengths: rows each of them adds, at least 1.
        rows: rows of the pass; those beyond the sum of `new_lengths` belong to nobody. None: exactly the sum.

    Attributes:
        rows: as given.
        used: rows that belong to a slot.
        spans: for each slot its first row, the row after its last, and the positions it then holds.
        positions: `[rows]` int64, where each row stands in its call; 0 for rows of nobody.

    Raises InvalidInputError when a slot would outgrow the capacity; nothing is changed then.
    """

    def __init__(
        self, cache: SlotStorage, slots: Sequence[int], new_lengths: Sequence[int], rows: int | None = None
    ) -> None:
        self.used = sum(new_lengths)
        self.rows = self.used if rows is None else rows
        if self.rows < self.used:
            raise ValueError(f"{self.used} rows do not fit into a pass of {self.rows}")
        self._cache = cache
        self._slots = list(slots)
        self._uses = [cache.uses[slot] for slot in slots]
        starts = [cache.lengths[slot] for slot in slots]
        for slot, start, new in zip(slots, starts, new_lengths, strict=True):
            cache.claim(slot, start + new)
        self.spans: list[tuple[int, int, int]] = []
        first = 0
        for start, new in zip(starts, new_lengths, strict=True):
            self.spans.append((first, first + new, start + new))
            first += new
        self._place(starts, new_lengths)

    def _place(self, starts: Sequence[int], new_lengths: Sequence[int]) -> None:
        """Work out positions, and which row of the storage each (row, head) goes to."""
        device, heads, room = self._cache.device, self._cache.keys.shape[2], self._cache.room
        places = [start + t for start, new in zip(starts, new_lengths, strict=True) for t in range(new)]
        slots = [slot for slot, new in zip(self._slots, new_lengths, strict=True) for _ in range(new)]
        bases = torch.tensor(
            [slot * heads * room + place for slot, place in zip(slots, places, strict=True)], device=device
        )
        self._targets = (bases[:, None] + torch.arange(0, heads * room, room, device=device)).view(-1)
        self.positions = torch.tensor(places + [0] * (self.rows - self.used), device=device)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep the new rows `[rows, kv_heads, head_dim]` of a layer."""
        size, targets, kept_rows = keys.shape[-1], self._targets, self._kept_rows()
        if kept_rows is not None:
            targets = targets.view(self.used, -1)[kept_rows].view(-1)
        for kept, new in ((self._cache.keys[layer], keys), (self._cache.values[layer], values)):
            rows = new[: self.used] if kept_rows is None else new[kept_rows]
            kept.view(-1, size).index_copy_(0, targets, rows.reshape(-1, size))

    def _kept_rows(self) -> Tensor | None:
        """Rows whose slots have not been reset since; None is all of them."""
        if all(self._is_kept()):
            return None
        spans = [span for span, kept in zip(self.spans, self._is_kept(), strict=True) if kept]
        rows = [row for first, end, _ in spans for row in range(first, end)]
        return torch.tensor(rows, dtype=torch.int64, device=self._cache.device)

    def _is_kept(self) -> list[bool]:
        return [self._cache.uses[slot] == uses for slot, uses in zip(self._slots, self._uses, strict=True)]

    def window(self, layer: int, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, kv_heads, W, head_dim]` that the rows of the `index`-th slot may look at."""
        return self._cache.window(layer, self._slots[index], self.spans[index][2])

    def commit(self) -> None:
        """Count the new rows as filled, once every layer has stored them."""
        for slot, (_, _, end), kept in zip(self._slots, self.spans, self._is_kept(), strict=True):
            if kept:
                self._cache.lengths[slot] = end
