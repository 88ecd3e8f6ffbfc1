"""The decode step of the spoken LM as a function of tensors of fixed shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from taste_grpc.model.layers.graphed_step import GraphedStep
from taste_grpc.model.layers.stepping import StaticPlaces
from taste_grpc.model.spoken_lm.kv_slots import KeyValueSlots
from taste_grpc.model.spoken_lm.llama_step import attention, llama_layer, llama_norm
from taste_grpc.model.spoken_lm.network import SpokenLM


class LlamaStaticStep:
    """One row per call through the layers of `lm`, over the slots of `cache`; a `StaticStep`.

    Rows come in float32 and are cast to the model's dtype.
    """

    def __init__(self, lm: SpokenLM, cache: KeyValueSlots) -> None:
        self._llama: Any = lm.llama.model
        self._cache, self._dtype, self._kind = cache, lm.dtype, lm.config.attn_implementation
        # as many positions as there can be, the spare one included: a graph holds on to this table
        self._table = self._llama.rotary_emb.table(cache.capacity + 1, torch.empty(0, dtype=lm.dtype))

    def __call__(self, rows: Tensor, places: StaticPlaces) -> Tensor:
        """Rows `[B, D]` to hidden states `[B, D]` after the final norm."""
        cos, sin = self._table.at(places.positions)
        hidden = rows.to(self._dtype)
        mask = torch.zeros(len(rows), places.window, dtype=self._dtype, device=rows.device)
        mask.masked_fill_(places.hidden_keys(), -torch.inf)
        attend = partial(self._attend, places, places.targets(self._cache), mask[:, None, None])
        for index, layer in enumerate(self._llama.layers):
            rowwise = self._cache.fixed is not None
            hidden = llama_layer(layer, index, hidden, cos, sin, attend, rowwise=rowwise)
        return llama_norm(self._llama.norm, hidden)

    def _attend(
        self,
        places: StaticPlaces,
        targets: Tensor,
        mask: Tensor,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
    ) -> Tensor:
        seen, mixed = places.exchange(self._cache, layer, targets, keys, values)
        # the heads that share a key are the rows of one product
        grouped = queries.view(len(queries), seen.shape[1], -1, queries.shape[-1])
        mask = mask.expand(-1, -1, grouped.shape[2], -1)
        return attention(grouped, seen, mixed, mask, scale, self._kind).reshape(queries.shape)


def graphed_text_step(lm: SpokenLM, cache: KeyValueSlots) -> GraphedStep:
    """Steps over `cache` for `decode_step(.., forward=..)`: CUDA graphs where there is CUDA."""
    return GraphedStep(LlamaStaticStep(lm, cache), cache, lm.hidden_dim, torch.float32)
