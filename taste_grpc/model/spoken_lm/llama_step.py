"""Running the layers of a Llama over cached keys and values.

The weights are transformers' modules; the arithmetic between the matrix products is written out here,
because for a single row the products are so short that what surrounds them counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taste_grpc.model.abort import AbortCheck
from taste_grpc.model.spoken_lm.kv_slots import SlotWindow


def run_layers(llama: Any, rows: Tensor, window: SlotWindow, attention: str, abort: AbortCheck) -> Tensor:
    """Hidden states `[B, T, D]` after the final norm, for new rows `[B, T, D]` of the slots of `window`.

    Args:
        llama: transformers' LlamaModel; its rotary module says the angles.
        rows: in the model's dtype.
        window: where keys and values go and come from; it is not committed.
        attention: `sdpa`, or `eager` to write the attention out.
        abort: called before every layer.
    """
    mask = window.mask(rows.dtype)  # None where every key may be seen
    cos, sin = llama.rotary_emb(rows, position_ids=window.positions)  # [B, T, head_dim]
    half = sin.shape[-1] // 2
    # rotating the halves of a head and multiplying by sin, with the sign put into sin
    cos, sin = cos[:, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, None]
    hidden = rows
    for index, layer in enumerate(llama.layers):
        abort()
        hidden = hidden + _attend(
            layer.self_attn, _norm(layer.input_layernorm, hidden), index, cos, sin, mask, window, attention
        )
        hidden = hidden + _feed_forward(layer.mlp, _norm(layer.post_attention_layernorm, hidden))
    return _norm(llama.norm, hidden)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    """Root-mean-square norm; the mean is taken in float32 and the result rounded before the weight, as in Llama."""
    if hidden.dtype == torch.float32:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    normed = F.rms_norm(hidden.float(), norm.weight.shape, None, norm.variance_epsilon)
    scaled: Tensor = norm.weight * normed.to(hidden.dtype)
    return scaled


def _feed_forward(mlp: Any, hidden: Tensor) -> Tensor:
    out: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(hidden)).mul_(mlp.up_proj(hidden)))
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.roll(x, half, dims=-1), sin)


def _attend(
    attention: Any,
    hidden: Tensor,
    index: int,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    window: SlotWindow,
    kind: str,
) -> Tensor:
    heads = (*hidden.shape[:-1], -1, attention.head_dim)
    queries = _rotate(attention.q_proj(hidden).view(heads).transpose(1, 2), cos, sin)
    keys = _rotate(attention.k_proj(hidden).view(heads).transpose(1, 2), cos, sin)
    values = attention.v_proj(hidden).view(heads).transpose(1, 2)
    keys, values = window.update(keys, values, index)
    if kind == "sdpa":
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=True
        )
    else:
        groups = attention.num_key_value_groups
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = queries @ keys.transpose(-1, -2) * attention.scaling
        scores = scores if mask is None else scores + mask
        mixed = scores.float().softmax(-1).to(queries.dtype) @ values
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).reshape(*hidden.shape[:-1], -1))
    return out
