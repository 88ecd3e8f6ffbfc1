"""Attention between rows that are computed in pieces: the queries of some over the keys and values of all.

The weights are in modules with the parts of transformers' WhisperAttention: `q_proj`, `k_proj`, `v_proj`, `out_proj`,
`num_heads` and `scaling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KeysValues(NamedTuple):
    """What rows offer to queries: two tensors `[B, heads, N, head_dim]`."""

    keys: Tensor
    values: Tensor

    @classmethod
    def join(cls, parts: Sequence[KeysValues]) -> KeysValues:
        """Those of all rows, in the order of `parts`."""
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.keys for part in parts], dim=2), torch.cat([part.values for part in parts], dim=2))


def queries_of(attention: Any, rows: Tensor) -> Tensor:
    """Queries `[B, heads, n, head_dim]` of `rows` `[B, n, D]`, already scaled, as in Whisper."""
    return _heads(attention, attention.q_proj(rows) * attention.scaling)


def keys_values_of(attention: Any, for_key: Tensor, for_value: Tensor) -> KeysValues:
    """Keys of `for_key` and values of `for_value`, both `[B, N, D]`."""
    return KeysValues(_heads(attention, attention.k_proj(for_key)), _heads(attention, attention.v_proj(for_value)))


def attend(attention: Any, queries: Tensor, offered: KeysValues, kind: str, *, causal: bool = False) -> Tensor:
    """What `queries` gather, after the output projection: `[B, n, D]`.

    Args:
        attention: the module the projections are in.
        queries: see `queries_of`.
        offered: keys and values of N rows.
        kind: `eager` to write the attention out; anything else for torch's fused one.
        causal: the queries belong to the last n of the N rows, and none looks ahead.
    """
    keys, values = offered
    rows, ahead = queries.shape[2], keys.shape[2] - queries.shape[2] + 1
    if kind != "eager" and (not causal or ahead == 1):
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=1.0)
    else:
        hidden = queries.new_ones((rows, keys.shape[2]), dtype=torch.bool).triu_(ahead) if causal else None
        mixed = _mix(queries, keys, values, hidden, kind)
    output: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return output


def _mix(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, kind: str) -> Tensor:
    """Attention that leaves out what `hidden` `[n, N]` marks."""
    if kind != "eager":
        visible = None if hidden is None else ~hidden
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=1.0)
    scores = queries @ keys.transpose(2, 3)
    scores = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(dim=-1) @ values


def _heads(attention: Any, rows: Tensor) -> Tensor:
    return rows.view(*rows.shape[:2], attention.num_heads, -1).transpose(1, 2)
