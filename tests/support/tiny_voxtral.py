"""A Voxtral of random weights, small enough for tests, in the layout of published checkpoints.

Its tokenizer is the one that mistral-common ships, cut to its most frequent pieces and given the special tokens and the
audio section that Voxtral's has.
"""

from __future__ import annotations

import json
from pathlib import Path

import mistral_common
import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, VoxtralProcessor, WhisperFeatureExtractor
from transformers.tokenization_mistral_common import MistralCommonBackend

_SPECIAL_TOKENS, _PIECES = 1000, 3000
_NAMES = {
    **{0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]"},
    **{7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]"},
    **{13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]"},
    **{19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"},
}
_AUDIO = {
    "sampling_rate": 16_000,
    "frame_rate": 12.5,
    "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
    "chunk_length_s": 30.0,
}


def write_tiny_voxtral(directory: Path, seed: int = 3) -> Path:
    """Write the checkpoint into `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory / "tekken.json")
    tokenizer = MistralCommonBackend.from_pretrained(str(directory))
    VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer).save_pretrained(directory)
    torch.manual_seed(seed)
    model = VoxtralForConditionalGeneration(_config())
    # Likely pieces are those that begin a word, and what is said changes from word to word.
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    model.generation_config.update(eos_token_id=2, pad_token_id=11, bos_token_id=1)
    model.save_pretrained(directory)
    return directory


def _write_tokenizer(path: Path) -> None:
    shipped = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    tokenizer = json.loads(shipped.read_text(encoding="utf-8"))
    tokenizer.pop("image", None)
    size = {"default_vocab_size": _PIECES + _SPECIAL_TOKENS, "default_num_special_tokens": _SPECIAL_TOKENS}
    tokenizer["config"] |= {"version": "v7", **size}
    tokenizer["vocab"] = tokenizer["vocab"][:_PIECES]
    tokenizer["special_tokens"] = [
        {"rank": rank, "token_str": _NAMES.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(_SPECIAL_TOKENS)
    ]
    path.write_text(json.dumps(tokenizer | {"audio": _AUDIO}), encoding="utf-8")


def _config() -> VoxtralConfig:
    audio = {"num_mel_bins": 128, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_key_value_heads": 2}
    return VoxtralConfig(
        audio_config={**audio, "num_attention_heads": 2, "vocab_size": 100},
        text_config={
            **text,
            "num_attention_heads": 2,
            "head_dim": 32,
            "vocab_size": _PIECES + _SPECIAL_TOKENS,
            "max_position_embeddings": 8192,
        },
        audio_token_id=24,
    )
