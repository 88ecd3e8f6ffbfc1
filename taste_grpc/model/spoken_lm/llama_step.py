"""Running the layers of a Llama over cached keys and values.

The weights are transformers' modules; the arithmetic between the matrix products is written out here,
because for a single row the products are so short that what surrounds them counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.layers.products import product, products
from taste_grpc.model.spoken_lm.kv_slots import SlotPass

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, queries `[N, H, d]`, new keys and values `[N, kv_heads, d]`, scale) to mixed values `[N, H, d]`."""


def llama_layer(
    layer: Any, index: int, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend, *, rowwise: bool
) -> Tensor:
    """One layer over rows `[N, D]`.

    Args:
        layer: transformers' decoder layer; `index` is its number.
        hidden: in the model's dtype.
        cos: `[N, 1, head_dim]`, with `sin`, whose first half is negated (see `RotaryTable`).
        attend: keeps the new keys and values and mixes.
        rowwise: compute functions that kernels approximate row by row, so that none depends on its neighbours.
    """
    attention = layer.self_attn
    normed = llama_norm(layer.input_layernorm, hidden)
    heads = (hidden.shape[0], -1, attention.head_dim)
    queries, keys, values = (
        out.contiguous().view(heads) for out in products((attention.q_proj, attention.k_proj, attention.v_proj), normed)
    )
    mixed = attend(index, _rotate(queries, cos, sin), _rotate(keys, cos, sin), values, attention.scaling)
    hidden = hidden + product(attention.o_proj, mixed.flatten(1)).contiguous()
    return hidden + _feed_forward(layer.mlp, llama_norm(layer.post_attention_layernorm, hidden), rowwise)


def llama_norm(norm: Any, hidden: Tensor) -> Tensor:
    """Root-mean-square norm; the mean is taken in float32 and the result rounded before the weight, as in Llama."""
    if hidden.dtype == torch.float32:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    normed = F.rms_norm(hidden.float(), norm.weight.shape, None, norm.variance_epsilon)
    scaled: Tensor = norm.weight * normed.to(hidden.dtype)
    return scaled


def _feed_forward(mlp: Any, hidden: Tensor, rowwise: bool) -> Tensor:
    gate, up = products((mlp.gate_proj, mlp.up_proj), hidden)
    # the vectorised part of a kernel and what is left over at its end may differ in the last bit
    gate = torch.stack([mlp.act_fn(row) for row in gate.contiguous()]) if rowwise else mlp.act_fn(gate)
    return product(mlp.down_proj, gate.mul_(up)).contiguous()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.roll(x, half, dims=-1), sin)


class LayerRun:
    """New rows of some calls on their way through the layers, as many layers at a time as the caller likes.

    Between two goes other runs may use the same cache, on other slots. The rows count as read (the slots grow) when
    the last layer is done; a run that is dropped before leaves the slots as they were.

    Args:
        llama: transformers' LlamaModel, with a `RoundedRotaryEmbedding`.
        rows: `[run.rows, D]` in the model's dtype.
        run: which slots they belong to.
        kind: `sdpa`, or `eager` to write the attention out.
        rowwise: see `llama_layer`.
    """

    def __init__(self, llama: Any, rows: Tensor, run: SlotPass, kind: str, *, rowwise: bool = False) -> None:
        self._llama, self._hidden, self._run, self._kind, self._rowwise = llama, rows, run, kind, rowwise
        self._next = 0
        self._cos, self._sin = llama.rotary_emb.table(int(max(end for _, _, end in run.spans)), rows).at(run.positions)
        self._masks = [_causal_mask(end - first, window, rows, kind) for first, end, window in run.spans]

    @property
    def done(self) -> bool:
        """Whether the rows have been through every layer."""
        return self._next > len(self._llama.layers)

    def advance(self, layers: int | None = None, abort: AbortCheck = never_abort) -> bool:
        """Go through the next `layers` (None: all that are left); returns `done`. `abort` is called before each."""
        count = len(self._llama.layers)
        stop = count if layers is None else min(self._next + layers, count)
        for index in range(self._next, stop):
            abort()
            self._hidden = llama_layer(
                self._llama.layers[index],
                index,
                self._hidden,
                self._cos,
                self._sin,
                self._attend,
                rowwise=self._rowwise,
            )
            self._next = index + 1
        if self._next == count:
            self._hidden = llama_norm(self._llama.norm, self._hidden)
            self._run.commit()
            self._next += 1
        return self.done

    @property
    def hidden(self) -> Tensor:
        """Hidden states `[run.rows, D]` after the final norm. Only once it is done."""
        if not self.done:
            raise RuntimeError("the rows have not been through every layer yet")
        return self._hidden

    def _attend(self, index: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Each slot over its own window: a view, no copy, and nothing of it masked but what lies ahead."""
        self._run.store(index, keys, values)
        mixed = [
            _mix(queries[first:end], *self._run.window(index, k), mask, scale, self._kind)
            for k, ((first, end, _), mask) in enumerate(zip(self._run.spans, self._masks, strict=True))
        ]
        if self._run.used < self._run.rows:
            mixed.append(torch.zeros_like(queries[self._run.used :]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _causal_mask(rows: int, window: int, like: Tensor, kind: str) -> Tensor | None:
    """Additive mask `[rows, window]` for the last `rows` of `window` positions; None where `_mix` does without."""
    if rows == 1 or (rows == window and kind == "sdpa"):
        return None
    return torch.full((rows, window), -torch.inf, dtype=like.dtype, device=like.device).triu_(window - rows + 1)


def _mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, kind: str) -> Tensor:
    """Attention of the last T positions `[T, H, d]` over all W, `[1, kv_heads, W, d]`: `[T, H, d]`."""
    rows, heads, size = queries.shape
    if rows == 1:  # the heads that share a key are the rows of one product
        grouped = queries.view(1, keys.shape[1], -1, size)
        return attention(grouped, keys, values, None, scale, kind).reshape(1, heads, size)
    mixed = attention(queries.transpose(0, 1)[None], keys, values, mask, scale, kind, causal=mask is None)
    return mixed[0].transpose(0, 1)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    kind: str,
    *,
    causal: bool = False,
) -> Tensor:
    """Softmax attention of `[B, H, T, d]` over `[B, kv_heads, W, d]`, of `kind` `sdpa` or `eager`.

    `mask` is added to the scores. `causal` is for T = W, without a mask, and only for `sdpa`.
    """
    groups = queries.shape[1] // keys.shape[1]
    if kind == "sdpa":
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    scores = queries @ keys.transpose(-1, -2) * scale
    scores = scores if mask is None else scores + mask
    return scores.float().softmax(-1).to(queries.dtype) @ values
