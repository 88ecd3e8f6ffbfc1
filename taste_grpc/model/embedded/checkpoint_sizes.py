"""Sizes of small checkpoints, and the published files and tensor names that follow from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from taste_grpc.model.audio_tower.tower import AudioTowerConfig
from taste_grpc.model.config import TasteConfig
from taste_grpc.model.speech_decoder.decoder import SpeechDecoderConfig
from taste_grpc.model.spoken_lm.network import SpokenLMConfig
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.voice_generator.config import PUBLISHED_DIMS, VoiceGeneratorConfig
from taste_grpc.model.voice_generator.generator import VoiceGenerator

Shapes = dict[str, tuple[int, ...]]

_HEAD = "spoken_lm.language_model.base_model.model.lm_head.weight"
_FC_MU = "spoken_lm.extract_for_bridge_out_llm.fc_mu.weight"
WHISPER_VOCAB_SIZE = 51866
"""Ids of the tokenizer that comes with this package, that of whisper-large-v3."""


@dataclass(frozen=True)
class SpeechSizes:
    """Sizes of everything but the language model.

    Attributes:
        tower_width: of the audio tower and of speech embeddings.
        tower_layers: encoder layers, at least 7.
        tower_heads: heads of encoder and decoder.
        codebook_dim: width of a code.
        codebook_size: codes per table.
        quantizers: tables, the codes of a word.
        lora_rank: of the adapters.
        text_width: width of the text embedding of the speech decoder.
        decoder_width: width of the speech decoder.
        decoder_heads: its heads.
        decoder_layers: layers of its unit decoder.
        units: speech units.
        flow_width: width of the flow's encoder.
        estimator_channels: width of the flow's estimator, a multiple of 8.
        estimator_mid_stages: stages in its middle.
        vocoder_channels: width of the vocoder, a multiple of 4.
        f0_channels: width of the f0 predictor.
    """

    tower_width: int = 32
    tower_layers: int = 7
    tower_heads: int = 4
    codebook_dim: int = 16
    codebook_size: int = 32
    quantizers: int = 4
    lora_rank: int = 2
    text_width: int = 8
    decoder_width: int = 32
    decoder_heads: int = 4
    decoder_layers: int = 2
    units: int = 64
    flow_width: int = 24
    estimator_channels: int = 16
    estimator_mid_stages: int = 2
    vocoder_channels: int = 32
    f0_channels: int = 24


def published_config(
    sizes: SpeechSizes, text_config: Mapping[str, Any], *, sos_id: int, rotary_inv_freq_dtype: str | None = None
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        sizes: of the speech parts.
        text_config: configuration of the language model (a Llama's config.json).
        sos_id: text id that opens a prompt.
        rotary_inv_freq_dtype: `float32` for a language model whose rotary frequencies were never rounded.
    """
    spoken_lm = _spoken_lm_config(sizes, sos_id)
    if rotary_inv_freq_dtype is not None:
        spoken_lm["rotary_inv_freq_dtype"] = rotary_inv_freq_dtype
    return {
        "architectures": ["TasteForCausalLM"],
        "model_type": "taste",
        "asr_config": _asr_config(sizes),
        "audio_tower_config": _audio_tower_config(sizes),
        "speech_decoder_config": _speech_decoder_config(sizes),
        "spoken_lm_config": spoken_lm,
        "text_config": dict(text_config),
    }


def _spoken_lm_config(sizes: SpeechSizes, sos_id: int) -> dict[str, Any]:
    return {
        "model_type": "taste",
        "audio_embed_conv_mode": "fill_forward",
        "delay": 1,
        "delay_level": "word",
        "in_llm_module": "weighted_sum",
        "kwargs_for_lora": {"lora_alpha": 2 * sizes.lora_rank, "lora_r": sizes.lora_rank, "lora_target_linear": True},
        "out_llm_module": "continue_latent_linear_last",
        "sos_id": sos_id,
        "use_lora": True,
    }


def _audio_tower_config(sizes: SpeechSizes) -> dict[str, Any]:
    return {
        "model_type": "taste",
        "audio_embed_dim": sizes.tower_width,
        "is_joint_encoder_segmenter": True,
        "kwargs_for_joint_encoder_segmenter": {
            "forward_type": "asr_attn_pooling",
            "is_word_level": True,
            "skip_prefix_idx": 4,
        },
        "kwargs_for_quantizer": {
            "codebook_dim": sizes.codebook_dim,
            "codebook_size": sizes.codebook_size,
            "dim": sizes.tower_width,
            "num_quantizers": sizes.quantizers,
        },
        "quantization_on": True,
        "text_token_size": WHISPER_VOCAB_SIZE,
    }


def _asr_config(sizes: SpeechSizes) -> dict[str, Any]:
    width, heads = sizes.tower_width, sizes.tower_heads
    return {
        "_name_or_path": "whisper-large-v3",
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": width,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": 2 * width,
        "decoder_layers": 2,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 2 * width,
        "encoder_layers": sizes.tower_layers,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "num_mel_bins": 128,
        "scale_embedding": False,
        "vocab_size": WHISPER_VOCAB_SIZE,
    }


def _speech_decoder_config(sizes: SpeechSizes) -> dict[str, Any]:
    width, heads = sizes.decoder_width, sizes.decoder_heads
    return {
        "model_type": "taste",
        "audio_encoder_input_size": sizes.tower_width,
        "encoder__attention_heads": heads,
        "encoder__input_layer": "linear",
        "encoder__linear_units": 2 * width,
        "encoder__num_blocks": 2,
        "encoder__static_chunk_size": 1,
        "encoder_input_size": sizes.text_width,
        "fuse_encoded_audio_text_kwargs": {
            "normalize": False,
            "use_layer_norm": False,
            "use_trainable_weight": True,
            "weight_init_type": "balance",
        },
        "fuse_encoded_audio_text_type": "weighted_sum",
        "llm__attention_heads": heads,
        "llm__input_layer": "linear_legacy",
        "llm__linear_units": 2 * width,
        "llm__num_blocks": sizes.decoder_layers,
        "llm__static_chunk_size": 1,
        "llm_input_size": width,
        "llm_output_size": width,
        "speech_token_size": sizes.units,
        "spk_embed_dim": 192,
        "text_token_size": WHISPER_VOCAB_SIZE,
    }


def voice_generator_dims(sizes: SpeechSizes) -> dict[str, Any]:
    """The content of `cosyvoice/voice_generator_dims.json`; rates and constants are the published ones."""
    dims = copy.deepcopy(dict(PUBLISHED_DIMS))
    flow, hift, width = dims["flow"], dims["hift"], sizes.flow_width
    flow.update(vocab_size=sizes.units, input_size=width)
    flow["encoder"].update(input_size=width, output_size=width, attention_heads=4, linear_units=2 * width, num_blocks=2)
    flow["estimator"].update(
        channels=[sizes.estimator_channels] * 2,
        attention_head_dim=sizes.estimator_channels // 2,
        num_heads=2,
        n_blocks=1,
        num_mid_blocks=sizes.estimator_mid_stages,
    )
    hift.update(base_channels=sizes.vocoder_channels)
    hift["f0_predictor"].update(cond_channels=sizes.f0_channels)
    return dims


def model_shapes(sizes: SpeechSizes, config: Mapping[str, Any], *, store_lm_head: bool = False) -> Shapes:
    """Names and shapes of the tensors of model.safetensors for the config.json `config`.

    `store_lm_head` lists the output head; otherwise the text embedding stands in for it.
    """
    speech = SpeechDecoderConfig.from_published(config, None)
    # The published constructor fixes these; the tensors reveal them, so a small network may differ.
    audio_encoder = replace(speech.audio_encoder, heads=sizes.decoder_heads, ffn_size=2 * sizes.decoder_width)
    latent = {_FC_MU: (sizes.codebook_dim, int(config["text_config"]["hidden_size"]))}
    taste_config = TasteConfig(
        audio_tower=AudioTowerConfig.from_published(config, None),
        spoken_lm=SpokenLMConfig.from_published(config, latent),
        speech_decoder=replace(speech, audio_encoder=audio_encoder),
        published=dict(config),
    )
    with torch.device("meta"):
        model = TasteForCausalLM(taste_config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not store_lm_head:
        del shapes[_HEAD]
    return shapes


def voice_shapes(dims: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the tensors of voice_generator.pth for the description `dims`."""
    with torch.device("meta"):
        generator = VoiceGenerator(VoiceGeneratorConfig.from_published(dims, None))
    return {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
