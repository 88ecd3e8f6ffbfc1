"""Whisper's encoder, tapped in the middle."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort


@dataclass(frozen=True)
class EncoderStates:
    """Two views of the audio, each `[B, 1500, D]`.

    `for_key` is the normalised output; `for_value` the hidden state that enters the tapped
    layer, without any norm: words are looked for late in the network and read out early.
    """

    for_key: Tensor
    for_value: Tensor


class AudioEncoder(nn.Module):
    """transformers' Whisper encoder under its published name.

    Args:
        config: sizes and attention implementation.
        value_layer: index of the layer whose input is tapped.
    """

    def __init__(self, config: WhisperConfig, value_layer: int) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.value_layer = value_layer

    def forward(self, features: Tensor, abort: AbortCheck = never_abort) -> EncoderStates:
        """Encode log-mel features `[B, F, bins]`, padded with zeros to the encoder's length (3000 frames).

        Every frame attends to every other, padding included, as in the published model.
        `abort` is called before each layer. Raises InvalidInputError for too many frames or
        another number of bins.
        """
        encoder = self.encoder
        limit = 2 * encoder.max_source_positions
        _, frames, bins = features.shape
        if frames > limit:
            raise InvalidInputError("audio_features", f"has {frames} frames; at most {limit} are allowed")
        if bins != encoder.num_mel_bins:
            raise InvalidInputError("audio_features", f"has {bins} mel bins; this model has {encoder.num_mel_bins}")
        padded = F.pad(features.to(encoder.conv1.weight.dtype), (0, 0, 0, limit - frames)).transpose(1, 2)
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(padded)))).transpose(1, 2)  # [B, 1500, D]
        hidden = hidden + encoder.embed_positions.weight
        for_value = hidden
        for index, layer in enumerate(encoder.layers):
            abort()
            if index == self.value_layer:
                for_value = hidden
            hidden = layer(hidden, None)
        for_key: Tensor = encoder.layer_norm(hidden)
        return EncoderStates(for_key=for_key, for_value=for_value)


def whisper_encoder_config(
    *,
    d_model: int,
    layers: int,
    heads: int,
    ffn_dim: int,
    n_mels: int,
    max_positions: int,
    activation: str,
    attn_implementation: str,
) -> WhisperConfig:
    """The part of a Whisper configuration that its encoder reads, nothing dropped at random."""
    config = WhisperConfig(
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn_dim,
        num_mel_bins=n_mels,
        max_source_positions=max_positions,
        activation_function=activation,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
    )
    config._attn_implementation = attn_implementation
    return config
