"""The published completion modes: their prompts, and what the batch calls return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from taste_grpc.errors import BatchSizeError
from taste_grpc.model.audio_tower.rvq import ResidualVQ
from taste_grpc.model.spoken_lm.generation import (
    GeneratedText,
    Prompt,
    audio_prompt,
    instruct_prompt,
    text_prompt,
    zero_prompt,
)
from taste_grpc.model.spoken_lm.network import SpokenLM
from taste_grpc.model.text.tokens import TextTokenizer

ConditionalMode = Literal["zero", "text", "audio", "instruct"]


def completion_prompt(
    lm: SpokenLM,
    codebooks: ResidualVQ,
    mode: ConditionalMode,
    tensors: Mapping[str, Tensor],
    codes: Tensor | None,
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
) -> Prompt:
    """The prompt of a mode.

    Args:
        tensors: `llm_token_ids` `[1, L]`, `llm_token_lengths` `[1]` and `llm_word_ids` `[1, L]`, as far as needed.
        codes: `[L, Q]` what was heard (modes `audio` and `instruct`).
        prefix_ids: text before what was heard (mode `instruct`); likewise `suffix_ids` after it.
    """
    if mode == "zero":
        return zero_prompt(lm)
    text_ids: list[int] = tensors["llm_token_ids"][0].tolist()
    if "llm_token_lengths" in tensors:
        text_ids = text_ids[: int(tensors["llm_token_lengths"][0])]
    if mode == "text" or codes is None:
        return text_prompt(lm, text_ids)
    word_ids: list[int] = tensors["llm_word_ids"][0, : len(text_ids)].tolist()
    if mode == "audio":
        return audio_prompt(lm, codebooks, text_ids, word_ids, codes[: len(text_ids)])
    return instruct_prompt(lm, codebooks, prefix_ids, text_ids, word_ids, codes[: len(text_ids)], suffix_ids)


def check_single(name: str, tensor: Tensor) -> None:
    """Raise BatchSizeError naming `name` unless the batch size is 1."""
    if tensor.shape[0] != 1:
        raise BatchSizeError(name, f"has batch size {tensor.shape[0]}; one utterance at a time")


def speech_outputs(units: list[int]) -> dict[str, Any]:
    """`speech_token_ids` `[1, U]` and `speech_token_lengths` `[1]`."""
    return {
        "speech_token_ids": torch.tensor([units], dtype=torch.long),
        "speech_token_lengths": torch.tensor([len(units)], dtype=torch.int32),
    }


def text_outputs(generated: GeneratedText, tokenizer: TextTokenizer, vq_dim: int) -> dict[str, Any]:
    """`generated_text`, `llm_token_ids` `[1, N]`, `llm_word_ids` `[1, N]` and `llm_indices` `[1, M, Q]`."""
    return {
        "generated_text": tokenizer.decode(generated.text_ids).strip(),
        "llm_token_ids": torch.tensor([generated.text_ids], dtype=torch.long),
        "llm_word_ids": torch.tensor([generated.word_ids], dtype=torch.long),
        "llm_indices": torch.tensor(generated.taste_rows, dtype=torch.long).reshape(1, -1, vq_dim),
    }
