"""The byte-level BPE tokenizer stored in a GGUF file, as a fast tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from taste_grpc.errors import CheckpointError

_CONTROL_TOKEN = 3  # GGUF's token type of special tokens
_SPECIAL_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_from_gguf(path: Path, fields: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """Build the tokenizer that `fields` (the metadata of the GGUF file `path`) describe.

    Returns the tokenizer and the entries of its tokenizer_config.json. Text is split as SmolLM2
    splits it: every digit by itself, then GPT-2's byte-level pattern.

    Raises:
        CheckpointError: the file holds another kind of tokenizer.
    """
    kind = _contents(fields, "tokenizer.ggml.model"), _contents(fields, "tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise CheckpointError(f"{path}: the tokenizer is of the kind {kind}, expected ('gpt2', 'smollm')")
    tokens: list[str] = _contents(fields, "tokenizer.ggml.tokens")
    merges = [_pair(merge) for merge in _contents(fields, "tokenizer.ggml.merges")]
    types: list[int] = _contents(fields, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind_ in zip(tokens, types, strict=True) if kind_ == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer, _tokenizer_config(fields, tokens)


def _tokenizer_config(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    for role, name in _SPECIAL_ROLES.items():
        index = _contents(fields, f"tokenizer.ggml.{name}_token_id")
        if index is not None:
            config[role] = tokens[index]
    template = _contents(fields, "tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _contents(fields: Mapping[str, Any], name: str) -> Any:
    field = fields.get(name)
    return None if field is None else field.contents()


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
