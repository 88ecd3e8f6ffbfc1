"""Sizes of the speech decoder, from config.json and the stored tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from taste_grpc.errors import CheckpointError
from taste_grpc.model.layers.rel_pos import RelPosEncoderConfig
from taste_grpc.model.tensor_shapes import TensorShapes

PREFIX = "speech_decoder"

# what the published constructor fixes and config.json does not say
_AUDIO_ENCODER_HEADS = 8
_AUDIO_ENCODER_FFN = 2048
_AUDIO_ENCODER_LAYERS = 2

_SUPPORTED: dict[str, object] = {
    "encoder__static_chunk_size": 1,
    "encoder__macaron_style": False,
    "encoder__use_cnn_module": False,
    "encoder__normalize_before": True,
    "encoder__pos_enc_layer_type": "rel_pos_espnet",
    "encoder__selfattention_layer_type": "rel_selfattn",
    "llm__static_chunk_size": 1,
    "llm__pos_enc_layer_type": "rel_pos_espnet",
    "llm__selfattention_layer_type": "rel_selfattn",
    "fuse_encoded_audio_text_type": "weighted_sum",
}


@dataclass(frozen=True)
class SpeechDecoderConfig:
    """Sizes of a `SpeechDecoder`.

    Attributes:
        text_vocab_size: ids of the ASR tokenizer.
        text_width: width of the text embedding.
        audio_width: width of the audio unit embeddings (output of the quantiser).
        speaker_size: width of a speaker embedding.
        prompt_width: width of the rows the unit decoder is fed with.
        units: speech units; the id of end of speech is the next one.
        text_encoder: causal encoder of the text.
        audio_encoder: causal encoder of the audio unit embeddings.
        llm: the unit decoder.
    """

    text_vocab_size: int
    text_width: int
    audio_width: int
    speaker_size: int
    prompt_width: int
    units: int
    text_encoder: RelPosEncoderConfig
    audio_encoder: RelPosEncoderConfig
    llm: RelPosEncoderConfig

    @property
    def end_of_speech(self) -> int:
        """Id that ends a run of units."""
        return self.units

    @classmethod
    def from_published(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None) -> Self:
        """From config.json and the shapes of all stored tensors (None: the published values for what it leaves out).

        Raises CheckpointError when both contradict each other, or name a network this program does not have.
        """
        source = "config.json"
        part = config.get("speech_decoder_config")
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{source} has no speech_decoder_config")
        tensors = TensorShapes(shapes, source)
        _require_supported(part, tensors)

        def size(tensor: str, dim: int, key: str) -> int:
            return tensors.size(f"{PREFIX}.{tensor}", dim, key, part.get(key))

        units = size("speech_embedding.weight", 0, "speech_token_size")
        tensors.size(f"{PREFIX}.llm_decoder.weight", 0, "speech_token_size + 1", units + 1)
        return cls(
            text_vocab_size=size("text_embedding.weight", 0, "text_token_size"),
            text_width=size("text_embedding.weight", 1, "encoder_input_size"),
            audio_width=size("audio_embed_affine_layer.weight", 1, "audio_encoder_input_size"),
            speaker_size=size("spk_embed_affine_layer.weight", 1, "spk_embed_dim"),
            prompt_width=size("speech_embedding.weight", 1, "llm_input_size"),
            units=units,
            text_encoder=_text_encoder(part, tensors),
            audio_encoder=_audio_encoder(part, tensors, known=shapes is not None),
            llm=_llm(part, tensors),
        )


def _require_supported(part: Mapping[str, Any], tensors: TensorShapes) -> None:
    for key, supported in _SUPPORTED.items():
        tensors.require(f"speech_decoder_config.{key}", part.get(key, supported), supported)
    fusion = part.get("fuse_encoded_audio_text_kwargs") or {}
    for key, wanted in (("normalize", False), ("use_layer_norm", False), ("use_trainable_weight", True)):
        tensors.require(f"speech_decoder_config.fuse_encoded_audio_text_kwargs.{key}", fusion.get(key, wanted), wanted)


def _text_encoder(part: Mapping[str, Any], tensors: TensorShapes) -> RelPosEncoderConfig:
    keys = {
        "input_size": "encoder_input_size",
        "width": "encoder__output_size",
        "heads": "encoder__attention_heads",
        "ffn_size": "encoder__linear_units",
        "layers": "encoder__num_blocks",
    }
    stated = {field: part.get(key) for field, key in keys.items()}
    if stated["width"] is None and tensors.shape(f"{PREFIX}.text_encoder.embed.out.0.weight") is None:
        stated["width"] = part.get("llm_input_size")
    return RelPosEncoderConfig.from_tensors(
        tensors,
        f"{PREFIX}.text_encoder",
        keys=keys,
        stated=stated,
        input_layer=str(part.get("encoder__input_layer", "linear")),
    )


def _audio_encoder(part: Mapping[str, Any], tensors: TensorShapes, *, known: bool) -> RelPosEncoderConfig:
    stated: dict[str, int | None] = dict.fromkeys(("input_size", "width", "heads", "ffn_size", "layers"))
    if not known:
        stated = {
            "input_size": part.get("encoder_input_size"),
            "width": part.get("encoder__output_size", part.get("llm_input_size")),
            "heads": _AUDIO_ENCODER_HEADS,
            "ffn_size": _AUDIO_ENCODER_FFN,
            "layers": _AUDIO_ENCODER_LAYERS,
        }
    return RelPosEncoderConfig.from_tensors(tensors, f"{PREFIX}.audio_token_encoder", keys={}, stated=stated)


def _llm(part: Mapping[str, Any], tensors: TensorShapes) -> RelPosEncoderConfig:
    keys = {
        "input_size": "llm_input_size",
        "width": "llm_output_size",
        "heads": "llm__attention_heads",
        "ffn_size": "llm__linear_units",
        "layers": "llm__num_blocks",
    }
    return RelPosEncoderConfig.from_tensors(
        tensors,
        f"{PREFIX}.llm",
        keys=keys,
        stated={field: part.get(key) for field, key in keys.items()},
        input_layer=str(part.get("llm__input_layer", "linear_legacy")),
        activation="relu",
        norm_names=("norm1", "norm2"),
    )
