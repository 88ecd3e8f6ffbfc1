"""Rotary positions: angles from frequencies that are rounded once, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from taste_grpc.errors import CheckpointError

_POSITIONS_PER_GROWTH = 1024


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines `[positions, 1, head_dim]`; the first half of a row of sines is negated.

    Rotating a head `x` is then `x * cos + roll(x, head_dim / 2) * sin`.
    """

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[N, 1, head_dim]` for `positions` `[N]`."""
        return self.cos[positions], self.sin[positions]


class RoundedRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary angles from frequencies that were rounded once and stay float32 ever after.

    The published model rounds its (scaled) frequencies to bfloat16 and then computes angles in float32;
    un-rounded ones move the logits. Casting or moving the module never rounds them again.
    """

    def __init__(self, config: LlamaConfig, rounded_to: torch.dtype) -> None:
        rope: Any = config.rope_parameters
        if rope["rope_type"] in ("dynamic", "longrope"):
            raise CheckpointError(
                f"config.json: text_config.rope_scaling of type {rope['rope_type']!r} changes its "
                "frequencies with the length of the text, which cached keys do not allow"
            )
        # the frequencies are computed for real even where the weights are not (meta device)
        with torch.device("cpu"):
            super().__init__(config)
        self._rounded = self.inv_freq.to(rounded_to).float()
        self.inv_freq = nn.Buffer(self._rounded, persistent=False)
        self._tables: dict[torch.dtype, RotaryTable] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.original_inv_freq.device
        frequencies = self._rounded if device.type == "meta" else self._rounded.to(device)
        self.inv_freq = nn.Buffer(frequencies, persistent=False)
        self._tables = {}
        return self

    def table(self, positions: int, like: Tensor) -> RotaryTable:
        """Angles of at least the first `positions` positions, on the device and in the dtype of `like`.

        Worked out once, in blocks that do not depend on who asks: a position has the same angles always.
        """
        known = self._tables.get(like.dtype)
        have = 0 if known is None else known.cos.shape[0]
        if known is None or have < positions:
            end = -(-max(positions, 2 * have) // _POSITIONS_PER_GROWTH) * _POSITIONS_PER_GROWTH
            blocks = [self._block(first, like) for first in range(have, end, _POSITIONS_PER_GROWTH)]
            before = [] if known is None else [(known.cos, known.sin)]
            cos, sin = (torch.cat(parts) for parts in zip(*before, *blocks, strict=True))
            known = self._tables[like.dtype] = RotaryTable(cos, sin)
        return known

    def _block(self, first: int, like: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(first, first + _POSITIONS_PER_GROWTH, device=self.inv_freq.device)
            values = torch.empty(0, dtype=like.dtype, device=self.inv_freq.device)
            cos, sin = self(values, position_ids=positions[None])  # [1, block, head_dim]
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
            return cos[0][:, None], signed[0][:, None]
