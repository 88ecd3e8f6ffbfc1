"""Sizes of the audio tower, from config.json and the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from transformers import WhisperConfig

from taste_grpc.errors import CheckpointError
from taste_grpc.model.audio_tower.encoder import whisper_encoder_config
from taste_grpc.model.audio_tower.pooling_decoder import PoolingDecoderConfig
from taste_grpc.model.audio_tower.rvq import ResidualVQConfig
from taste_grpc.model.tensor_shapes import TensorShapes

VALUE_LAYER = 6
"""The layer whose input gives the values. A constant of the published network: the configuration's
`encoder__target_hidden_layer` belongs to a variant without the joint decoder."""

PREFIX_IDS = 4
"""Ids before the text: start, language, task, no timestamps."""

PUBLISHED_DECODER_LAYERS = 2
"""config.json describes the recogniser (32), not the two layers that were distilled from it."""

_ENCODER = "audio_tower.audio_joint_encoder_segmenter.audio_encoder.encoder"
_DECODER = "audio_tower.audio_joint_encoder_segmenter.audio_segmenter.decoder"


@dataclass(frozen=True)
class AudioTowerConfig:
    """Encoder, pooling decoder and quantiser; the defaults are the published sizes."""

    encoder_layers: int = 32
    encoder_heads: int = 20
    encoder_ffn_dim: int = 5120
    n_mels: int = 128
    max_source_positions: int = 1500
    value_layer: int = VALUE_LAYER
    decoder: PoolingDecoderConfig = field(default_factory=PoolingDecoderConfig)
    quantizer: ResidualVQConfig = field(default_factory=ResidualVQConfig)

    @property
    def whisper(self) -> WhisperConfig:
        """What transformers' encoder is built from."""
        return whisper_encoder_config(
            d_model=self.decoder.d_model,
            layers=self.encoder_layers,
            heads=self.encoder_heads,
            ffn_dim=self.encoder_ffn_dim,
            n_mels=self.n_mels,
            max_positions=self.max_source_positions,
            activation=self.decoder.activation,
        )

    @classmethod
    def from_published(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        attn_implementation: str = "sdpa",
    ) -> Self:
        """Read config.json, held against the tensors where `shapes` has them.

        Raises CheckpointError where the two contradict each other, and for a variant of the
        tower this program has no network for.
        """
        try:
            asr = config["asr_config"]
            _check_variant(config["audio_tower_config"])
            layers = int(asr["encoder_layers"])
            decoder = _decoder_config(asr, shapes, attn_implementation)
            quantizer = ResidualVQConfig.from_published(config, shapes)
        except KeyError as error:
            raise CheckpointError(f"config.json does not say {error.args[0]}") from error
        if layers <= VALUE_LAYER:
            raise CheckpointError(
                f"config.json says asr_config.encoder_layers = {layers}; "
                f"the tower reads the input of layer {VALUE_LAYER}, so it needs more than that"
            )
        if quantizer.dim != decoder.d_model:
            raise CheckpointError(
                f"config.json says asr_config.d_model = {decoder.d_model}, "
                f"but audio_tower_config.kwargs_for_quantizer.dim = {quantizer.dim}"
            )
        return cls(
            encoder_layers=TensorShapes(shapes, "config.json").count(
                f"{_ENCODER}.layers", "asr_config.encoder_layers", layers
            ),
            **_encoder_sizes(asr, shapes),
            decoder=decoder,
            quantizer=quantizer,
        )


def _check_variant(stated: Mapping[str, Any]) -> None:
    found = TensorShapes(None, "config.json")
    kwargs = stated.get("kwargs_for_joint_encoder_segmenter", {})
    field_name = "audio_tower_config.kwargs_for_joint_encoder_segmenter"
    found.require("audio_tower_config.is_joint_encoder_segmenter", stated.get("is_joint_encoder_segmenter", True), True)
    found.require("audio_tower_config.quantization_on", stated.get("quantization_on", True), True)
    found.require(f"{field_name}.forward_type", kwargs.get("forward_type", "asr_attn_pooling"), "asr_attn_pooling")
    found.require(f"{field_name}.is_word_level", kwargs.get("is_word_level", True), True)
    found.require(f"{field_name}.skip_prefix_idx", kwargs.get("skip_prefix_idx", PREFIX_IDS), PREFIX_IDS)


def _encoder_sizes(asr: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, int]:
    found = TensorShapes(shapes, "config.json")

    def size(tensor: str, dim: int, key: str) -> int:
        return found.size(f"{_ENCODER}.{tensor}", dim, f"asr_config.{key}", asr[key])

    return {
        "encoder_heads": int(asr["encoder_attention_heads"]),
        "encoder_ffn_dim": size("layers.0.fc1.weight", 0, "encoder_ffn_dim"),
        "n_mels": size("conv1.weight", 1, "num_mel_bins"),
        "max_source_positions": size("embed_positions.weight", 0, "max_source_positions"),
    }


def _decoder_config(
    asr: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None, attn_implementation: str
) -> PoolingDecoderConfig:
    found = TensorShapes(shapes, "config.json")

    def size(tensor: str, dim: int, key: str) -> int:
        return found.size(f"{_DECODER}.{tensor}", dim, f"asr_config.{key}", asr[key])

    heads, width = int(asr["decoder_attention_heads"]), int(asr["d_model"])
    if heads < 1 or width % heads:
        raise CheckpointError(f"config.json: asr_config.decoder_attention_heads {heads} does not divide {width}")
    layers_stated = PUBLISHED_DECODER_LAYERS if shapes is None else None
    return PoolingDecoderConfig(
        d_model=size("embed_tokens.weight", 1, "d_model"),
        layers=found.count(f"{_DECODER}.layers", "the decoder layers of the audio tower", layers_stated),
        heads=heads,
        ffn_dim=size("layers.0.fc1.weight", 0, "decoder_ffn_dim"),
        vocab_size=size("embed_tokens.weight", 0, "vocab_size"),
        max_positions=size("embed_positions.weight", 0, "max_target_positions"),
        activation=str(asr.get("activation_function", "gelu")),
        scale_embedding=bool(asr.get("scale_embedding", False)),
        attn_implementation=attn_implementation,
    )
