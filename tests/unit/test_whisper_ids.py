"""Whisper's special ids come from its tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from taste_grpc.errors import CheckpointError
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]


def tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2}, unk_token="<|endoftext|>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<|endoftext|>")
    fast.add_tokens(special, special_tokens=True)
    return fast


def test_ids_are_looked_up() -> None:
    ids = WhisperSpecialIds.from_tokenizer(tokenizer(SPECIAL))
    assert ids == WhisperSpecialIds(start=3, language=4, task=6, no_timestamps=7, end=2)
    assert ids.prefix == (3, 4, 6, 7)
    assert WhisperSpecialIds.from_tokenizer(tokenizer(SPECIAL), language="de").language == 5


@pytest.mark.parametrize("missing", ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])
def test_a_token_that_is_not_there_is_named(missing: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        WhisperSpecialIds.from_tokenizer(tokenizer([token for token in SPECIAL if token != missing]))
    assert missing in str(caught.value)
