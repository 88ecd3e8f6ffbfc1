"""Whisper's encoder, tapped in the middle.

transformers' modules hold the weights. The arithmetic between them is written out here, so that a layer over all
1500 rows need not be computed in one go: what one row is made of besides the keys and values of all rows is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.attention import KeysValues, attend, keys_values_of, queries_of
from taste_grpc.model.audio_tower.pieces import Pieces, drain, row_spans

_FLOAT16_MARGIN = 1000  # Whisper keeps hidden states this far below the largest number of the type


@dataclass(frozen=True)
class EncoderStates:
    """Two views of the audio, each `[B, 1500, D]`.

    `for_key` is the normalised output; `for_value` the hidden state that enters the tapped
    layer, without any norm: words are looked for late in the network and read out early.
    """

    for_key: Tensor
    for_value: Tensor


@dataclass(frozen=True)
class _Entering:
    """Some rows at the door of a layer: hidden states `[B, n, D]`, and what attention there needs of them."""

    hidden: Tensor
    queries: Tensor
    offered: KeysValues

    @classmethod
    def of(cls, layer: Any, hidden: Tensor) -> _Entering:
        normed = layer.self_attn_layer_norm(hidden)
        return cls(hidden, queries_of(layer.self_attn, normed), keys_values_of(layer.self_attn, normed, normed))


class AudioEncoder(nn.Module):
    """transformers' Whisper encoder under its published name.

    Args:
        config: sizes.
        value_layer: index of the layer whose input is tapped.
        attn_implementation: `eager`, or anything else for torch's fused attention.
    """

    def __init__(self, config: WhisperConfig, value_layer: int, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.value_layer = value_layer
        self.attn_implementation = attn_implementation

    def forward(self, features: Tensor, abort: AbortCheck = never_abort) -> EncoderStates:
        """`in_pieces`, each layer whole, all at once."""
        return drain(self.in_pieces(features, abort=abort))

    def in_pieces(
        self, features: Tensor, *, rows: int | None = None, abort: AbortCheck = never_abort
    ) -> Pieces[EncoderStates]:
        """Encode log-mel features `[B, F, bins]`, padded with zeros to the encoder's length (3000 frames).

        Every frame attends to every other, padding included, as in the published model.

        Args:
            features: in any dtype.
            rows: a piece is one layer for at most so many rows; None takes them all.
            abort: called before each piece.

        Raises:
            InvalidInputError: too many frames, or another number of bins.
        """
        layers: list[Any] = list(self.encoder.layers)
        mel = self._padded(features)
        entering = []
        for span in row_spans(self.encoder.max_source_positions, rows):
            abort()
            entering.append(_Entering.of(layers[0], self._convolved(mel, span)))
            yield
        for index, layer in enumerate(layers):
            if index == self.value_layer:
                for_value = torch.cat([part.hidden for part in entering], dim=1)
            offered = KeysValues.join([part.offered for part in entering])
            leaving = []
            for k, part in enumerate(entering):
                abort()
                hidden = self._layer(layer, part, offered)
                if index + 1 < len(layers):  # in the same piece: alone, it is too little for one
                    entering[k] = _Entering.of(layers[index + 1], hidden)
                else:
                    leaving.append(self.encoder.layer_norm(hidden))
                yield
        return EncoderStates(for_key=torch.cat(leaving, dim=1), for_value=for_value)

    def _padded(self, features: Tensor) -> Tensor:
        """Features as the convolutions take them, with a frame of zeros before and after: `[B, bins, 3002]`."""
        encoder = self.encoder
        limit = 2 * encoder.max_source_positions
        _, frames, bins = features.shape
        if frames > limit:
            raise InvalidInputError("audio_features", f"has {frames} frames; at most {limit} are allowed")
        if bins != encoder.num_mel_bins:
            raise InvalidInputError("audio_features", f"has {bins} mel bins; this model has {encoder.num_mel_bins}")
        return F.pad(features.to(encoder.conv1.weight.dtype), (0, 0, 1, limit - frames + 1)).transpose(1, 2)

    def _convolved(self, mel: Tensor, span: slice) -> Tensor:
        """Rows `span` of what the convolutions make of `mel`, with their positions: `[B, n, D]`.

        Row t reads frames 2t - 1 to 2t + 1 of the first convolution, and each of them its neighbours in `mel`.
        """
        first, second = self.encoder.conv1, self.encoder.conv2
        begin = max(0, 2 * span.start - 1)
        hidden = F.gelu(F.conv1d(mel[:, :, begin : 2 * span.stop + 2], first.weight, first.bias))
        if span.start == 0:
            hidden = F.pad(hidden, (1, 0))  # before the first frame there is nothing, not a frame of silence
        hidden = F.gelu(F.conv1d(hidden, second.weight, second.bias, stride=2)).transpose(1, 2)
        return hidden + self.encoder.embed_positions.weight[span]

    def _layer(self, layer: Any, part: _Entering, offered: KeysValues) -> Tensor:
        """The rows of `part` behind `layer`, given keys and values of all rows: `[B, n, D]`."""
        hidden: Tensor = part.hidden + attend(layer.self_attn, part.queries, offered, self.attn_implementation)
        widened = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
        hidden = hidden + layer.fc2(widened)
        if hidden.dtype == torch.float16:
            most = torch.finfo(hidden.dtype).max - _FLOAT16_MARGIN
            hidden = hidden.clamp(-most, most)
        return hidden


def whisper_encoder_config(
    *, d_model: int, layers: int, heads: int, ffn_dim: int, n_mels: int, max_positions: int, activation: str
) -> WhisperConfig:
    """The part of a Whisper configuration that its encoder reads."""
    return WhisperConfig(
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn_dim,
        num_mel_bins=n_mels,
        max_source_positions=max_positions,
        activation_function=activation,
    )
