"""Whisper's decoder as a pooling network: each token of a known text gathers the audio that belongs to it.

The one difference to Whisper's own: cross-attention takes keys from the encoder's output and
values from one of its early layers, so that a token finds its place by content and reads
what still sounds like the speaker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.attention import KeysValues, attend, keys_values_of, queries_of
from taste_grpc.model.audio_tower.encoder import EncoderStates
from taste_grpc.model.audio_tower.pieces import Pieces, drain, row_spans


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
    """Weights of an attention, with the names `taste_grpc.model.audio_tower.attention` expects."""

    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.heads
        self.scaling = (config.d_model // config.heads) ** -0.5
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)


class _Layer(nn.Module):
    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.kind = config.attn_implementation
        self.self_attn = _Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = _Attention(config)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.activation = ACT2FN[config.activation]

    def forward(self, hidden: Tensor, before: Sequence[KeysValues], heard: KeysValues) -> tuple[Tensor, KeysValues]:
        """The rows that follow those of `before`: `[B, n, D]`, and what they offer to the rows after them."""
        normed = self.self_attn_layer_norm(hidden)
        own = keys_values_of(self.self_attn, normed, normed)
        offered = KeysValues.join([*before, own])
        hidden = hidden + attend(self.self_attn, queries_of(self.self_attn, normed), offered, self.kind, causal=True)
        queries = queries_of(self.encoder_attn, self.encoder_attn_layer_norm(hidden))
        hidden = hidden + attend(self.encoder_attn, queries, heard, self.kind)
        widened = self.activation(self.fc1(self.final_layer_norm(hidden)))
        return hidden + self.fc2(widened), own


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
        """`in_pieces`, each layer whole, all at once."""
        return drain(self.in_pieces(token_ids, audio, abort=abort))

    def in_pieces(
        self, token_ids: Tensor, audio: EncoderStates, *, rows: int | None = None, abort: AbortCheck = never_abort
    ) -> Pieces[Tensor]:
        """`[B, L, D]` of `token_ids` `[B, L]` int64, L at most `max_positions`.

        Causal, so padding at the end is harmless. A piece is one layer for at most `rows` tokens, or the keys and
        values of so many frames; None takes them all. `abort` is called before each.
        """
        layers: list[Any] = list(self.layers)
        heard = yield from self._heard(layers, audio, rows, abort)
        hidden = self._embedded(token_ids)
        spans = row_spans(token_ids.shape[1], rows)
        for layer, offered in zip(layers, heard, strict=True):
            left: list[Tensor] = []
            before: list[KeysValues] = []
            for span in spans:
                abort()
                part, own = layer(hidden[:, span], before, offered)
                left.append(part)
                before.append(own)
                yield
            hidden = torch.cat(left, dim=1)
        output: Tensor = self.layer_norm(hidden)
        return output

    def _heard(
        self, layers: Sequence[Any], audio: EncoderStates, rows: int | None, abort: AbortCheck
    ) -> Pieces[list[KeysValues]]:
        """What the audio offers to each layer."""
        parts: list[list[KeysValues]] = [[] for _ in layers]
        for span in row_spans(audio.for_key.shape[1], rows):
            abort()
            for part, layer in zip(parts, layers, strict=True):
                part.append(keys_values_of(layer.encoder_attn, audio.for_key[:, span], audio.for_value[:, span]))
            yield
        return [KeysValues.join(part) for part in parts]

    def _embedded(self, token_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed_tokens(token_ids)
        if self.config.scale_embedding:
            hidden = hidden * math.sqrt(self.config.d_model)
        return hidden + self.embed_positions.weight[: token_ids.shape[1]]
