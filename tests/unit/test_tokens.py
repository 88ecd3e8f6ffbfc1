"""The id sets of a tokenizer, its clean-up, and what is no special token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from taste_grpc.model.text.tokens import TextTokenizer, TokenSets, clean_up_blanks
from tests.checkpoints import CONVERSATION_TOKENS, TINY
from tests.conftest import Loaded

WORDS = [
    "Ġ.",
    ".",
    "Ġ?",
    "Ġ!",
    "Ġ,",
    "Ġ's",
    "Ġ'",
    "Ġn't",
    "Ġ...",
    "Ġhello",
    "lo",
    "Ċ",
    ".Ċ",
    "Ġ;",
    "§",
    "Ġ7",
    "Ġ",
    "ĠÃ©",
]
BEGIN, END, PAUSE = "<|begin|>", "<|end|>", "<|pause|>"


def small_tokenizer(folder: Path, *, clean_up: bool | None) -> TextTokenizer:
    """A byte-level tokenizer over WORDS and three special tokens, from files as a checkpoint has them."""
    folder.mkdir()
    special = [
        {"id": len(WORDS) + k, "content": token, "special": token != PAUSE}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for k, token in enumerate((BEGIN, END, PAUSE))
    ]
    backend = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": {word: k for k, word in enumerate(WORDS)}, "unk_token": "lo"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    if clean_up is not None:
        settings["clean_up_tokenization_spaces"] = clean_up
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return TextTokenizer.from_directory(folder)


def chosen(mask: torch.Tensor) -> set[str]:
    names = [*WORDS, BEGIN, END, PAUSE, "padding"]
    return {names[i] for i in mask.nonzero().flatten().tolist()}


def test_the_sets_without_clean_up(tmp_path: Path) -> None:
    sets = small_tokenizer(tmp_path / "t", clean_up=False).sets(len(WORDS) + 4)
    blanks = {word for word in WORDS if word.startswith("Ġ")}
    assert chosen(sets.word_start) == blanks | {BEGIN, END}  # an added token that is not special is a word like others
    assert chosen(sets.sentence_end) == {"Ġ.", ".", "Ġ...", ".Ċ"}
    assert chosen(sets.banned) == {"Ġ?", "Ġ!", "Ċ", ".Ċ", "Ġ;", "§", "Ġ", "ĠÃ©", END, "padding"}


def test_the_clean_up_takes_word_starts_away(tmp_path: Path) -> None:
    sets = small_tokenizer(tmp_path / "t", clean_up=True).sets(len(WORDS) + 4)
    assert chosen(sets.word_start) == {"Ġ'", "Ġhello", "Ġ;", "Ġ7", "Ġ", "ĠÃ©", BEGIN, END}
    # what may be said, and what ends a sentence, is the same either way
    assert chosen(sets.banned) == {"Ġ?", "Ġ!", "Ċ", ".Ċ", "Ġ;", "§", "Ġ", "ĠÃ©", END, "padding"}
    assert chosen(sets.sentence_end) == {"Ġ.", ".", "Ġ...", ".Ċ"}


@pytest.mark.parametrize(
    ("clean_up", "text"), [(True, " hello, hello."), (False, " hello , hello ."), (None, " hello , hello .")]
)
def test_the_clean_up_of_texts(tmp_path: Path, clean_up: bool | None, text: str) -> None:
    tokenizer = small_tokenizer(tmp_path / "t", clean_up=clean_up)
    assert tokenizer.decode([9, 4, 9, 0]) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" . ? ! ,", ".?!,"),
        ("a ' b", "a'b"),
        ("I do n't , we 've and they 're it 's I 'm", "I don't, we've and they're it's I'm"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_what_is_cleaned_up(text: str, cleaned: str) -> None:
    assert clean_up_blanks(text) == cleaned


class Counting:
    """A tokenizers.Tokenizer that counts what it is asked to decode."""

    def __init__(self, real: Tokenizer) -> None:
        self._real = real
        self.decoded = 0

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        self.decoded += 1
        return self._real.decode(ids, **options)

    def decode_batch(self, batch: Sequence[Sequence[int]], **options: Any) -> list[str]:
        self.decoded += len(batch)
        return self._real.decode_batch(batch, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_the_sets_are_built_once_per_tokenizer() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY / "llama_tokenizer")
    counting = Counting(tokenizer._tokenizer)
    tokenizer._tokenizer = counting
    sets = TextTokenizer.of(tokenizer).sets(512)
    assert counting.decoded == 512
    for _ in range(3):
        # whoever wraps the same tokenizer again finds what was built
        assert TextTokenizer.of(tokenizer).sets(512) is sets
    assert counting.decoded == 512
    assert TextTokenizer.of(TextTokenizer.of(tokenizer)) is TextTokenizer.of(tokenizer)


def test_requests_decode_no_more_than_their_words(chat: Loaded) -> None:
    from taste_grpc.streaming import streaming_generate

    tokenizer = chat.processor.text_tokenizer.tokenizer
    chat.processor.text_tokenizer.sets(chat.model.spoken_lm.vocab_size)
    real, looked_up = tokenizer._tokenizer, []
    counting = Counting(real)
    get_vocab = counting._real.get_vocab
    counting.get_vocab = lambda *a, **k: looked_up.append(1) or get_vocab(*a, **k)  # type: ignore[attr-defined]
    tokenizer._tokenizer = counting
    try:
        results = list(streaming_generate(chat.model, chat.processor, [], extra_words=2, max_length=8, seed=0))
    finally:
        tokenizer._tokenizer = real
    assert results[-1].is_complete
    assert counting.decoded <= 8
    assert len(looked_up) <= 1  # the markers are looked up once as well


def test_the_recorded_sets_are_masks_of_the_vocabulary(tiny: Loaded) -> None:
    sets = tiny.processor.text_tokenizer.sets(600)
    assert sets.vocab_size == 600
    assert sets.banned[512:].all()  # rows of the embedding the tokenizer knows nothing of
    assert not sets.word_start[512:].any()
    for text_id in (0, 100, 496, 599):
        assert sets.is_word_start(text_id) == bool(sets.word_start[text_id])
        assert sets.is_sentence_end(text_id) == bool(sets.sentence_end[text_id])


def test_masks_move_to_a_device_once() -> None:
    sets = TokenSets.from_ids(5, [1], [2], [3])
    ceiling = sets.ceiling_on(torch.device("cpu"), -9.0)
    assert ceiling.tolist() == [torch.inf, torch.inf, -9.0, torch.inf, torch.inf]
    assert sets.ceiling_on(torch.device("cpu"), -9.0) is ceiling
    assert sets.ceiling_on(torch.device("meta"), -9.0).shape == (5,)


@pytest.mark.parametrize("token", [*CONVERSATION_TOKENS, "<|end_of_text|>", "<|begin_of_text|>"])
def test_special_tokens_spelled_out_are_ordinary_text(chat: Loaded, token: str) -> None:
    tokenizer = chat.processor.text_tokenizer
    ids = tokenizer.encode(f" hello {token} world")
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == f" hello {token} world"


def test_conversation_tokens(chat: Loaded, tiny: Loaded) -> None:
    tokens = chat.processor.text_tokenizer.conversation_tokens()
    assert tokens is not None
    assert (tokens.segment_start, tokens.segment_end) == (512, 513)
    assert [tokens.role(role) for role in ("system", "user", "assistant")] == [514, 515, 516]
    assert tiny.processor.text_tokenizer.conversation_tokens() is None
