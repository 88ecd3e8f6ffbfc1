"""Whisper's decoder as a pooling network: each token of a known text gathers the audio that belongs to it.

The one difference to Whisper's own: cross-attention takes keys from the encoder's output and
values from one of its early layers, so that a token finds its place by content and reads
what still sounds like the speaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.encoder import EncoderStates


@dataclass(frozen=True)
class PoolingDecoderConfig:
    """Sizes of the decoder; `attn_implementation` is `eager` or anything else for torch's fused attention."""

    d_model: int = 1280
    layers: int = 2
    heads: int = 20
    ffn_dim: int = 5120
    vocab_size: int = 51866
    max_positions: int = 448
    activation: str = "gelu"
    scale_embedding: bool = False
    attn_implementation: str = "sdpa"


class _Attention(nn.Module):
    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.eager = config.attn_implementation == "eager"
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [B, heads, T, head_dim]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """`query` `[B, T, D]` over `key` and `value` `[B, N, D]`, each still to be projected."""
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        if self.eager:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
            if causal:
                future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(future, -math.inf)
            pooled = scores.softmax(dim=-1) @ v
        else:
            pooled = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        output: Tensor = self.out_proj(pooled.transpose(1, 2).flatten(2))
        return output


class _Layer(nn.Module):
    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = _Attention(config)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.activation = ACT2FN[config.activation]

    def forward(self, hidden: Tensor, audio: EncoderStates) -> Tensor:
        normed = self.self_attn_layer_norm(hidden)
        hidden = hidden + self.self_attn(normed, normed, normed, causal=True)
        normed = self.encoder_attn_layer_norm(hidden)
        hidden = hidden + self.encoder_attn(normed, audio.for_key, audio.for_value, causal=False)
        widened = self.activation(self.fc1(self.final_layer_norm(hidden)))
        output: Tensor = hidden + self.fc2(widened)
        return output


class PoolingDecoder(nn.Module):
    """A row per token of a text, made of the audio the token attends to."""

    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_positions, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, token_ids: Tensor, audio: EncoderStates, abort: AbortCheck = never_abort) -> Tensor:
        """`[B, L, D]` of `token_ids` `[B, L]` int64, L at most `max_positions`.

        Causal, so padding at the end is harmless. `abort` is called before each layer.
        """
        hidden: Tensor = self.embed_tokens(token_ids)
        if self.config.scale_embedding:
            hidden = hidden * math.sqrt(self.config.d_model)
        hidden = hidden + self.embed_positions.weight[: token_ids.shape[1]]
        for layer in self.layers:
            abort()
            hidden = layer(hidden, audio)
        output: Tensor = self.layer_norm(hidden)
        return output
