"""The step of a causal rel-pos encoder as a function of tensors of fixed shape."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taste_grpc.model.layers.graphed_step import GraphedStep
from taste_grpc.model.layers.rel_pos import RelPosAttention, RelPosEncoder
from taste_grpc.model.layers.rel_pos_cache import RelPosCache
from taste_grpc.model.layers.stepping import StaticPlaces


class RelPosStaticStep:
    """One row per stream through the blocks of `encoder`, over the slots of `cache`; a `StaticStep`."""

    def __init__(self, encoder: RelPosEncoder, cache: RelPosCache) -> None:
        self._encoder, self._cache = encoder, cache
        # as many distances as there can be: a graph holds on to this table
        self._positional = encoder.positional_keys().upto(cache.capacity + 1)

    def __call__(self, rows: Tensor, places: StaticPlaces) -> Tensor:
        """Rows `[B, input_size]` to `[B, width]`."""
        hidden = places.hidden_keys()
        # of the distances window-1 .. 0, the column that belongs to each key; masked keys take some other
        columns = places.window - 1 - places.positions[:, None] + torch.arange(places.window, device=rows.device)
        columns = columns.clamp(0, places.window - 1)
        targets = places.targets(self._cache)
        x = self._encoder.embed(rows)
        for index, layer in enumerate(self._encoder.encoders):
            block: Any = layer
            x = block.extend(x, partial(self._attend, block.self_attn, index, places, targets, columns, hidden))
        out: Tensor = self._encoder.after_norm(x)
        return out

    def _attend(
        self,
        attention: RelPosAttention,
        layer: int,
        places: StaticPlaces,
        targets: Tensor,
        columns: Tensor,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        keys, values = places.exchange(self._cache, layer, targets, key, value)
        scale = 1.0 / math.sqrt(attention.head_size)
        positional = self._positional[layer]
        positional = positional[:, positional.shape[1] - places.window :]
        by_distance = torch.bmm(
            (query + attention.pos_bias_v).transpose(0, 1), positional.transpose(1, 2)
        )  # [heads, B, window]
        bias = by_distance.transpose(0, 1).gather(2, columns[:, None].expand(-1, attention.heads, -1)) * scale
        bias = bias.masked_fill(hidden[:, None], -math.inf)
        mixed = F.scaled_dot_product_attention(
            (query + attention.pos_bias_u)[:, :, None], keys, values, attn_mask=bias[:, :, None], scale=scale
        )
        return mixed[:, :, 0]


def graphed_row_step(encoder: RelPosEncoder, cache: RelPosCache) -> GraphedStep:
    """Steps over `cache` for `SpeechDecoder.step(.., forward=..)`: CUDA graphs where there is CUDA."""
    return GraphedStep(
        RelPosStaticStep(encoder, cache), cache, encoder.config.input_size, encoder.after_norm.weight.dtype
    )
