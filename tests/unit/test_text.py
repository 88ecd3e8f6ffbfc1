"""Words, in both tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.model.text.tokens import TextTokenizer, TokenSets
from taste_grpc.model.text.words import derive_word_ids, encode_words, split_words, words_of
from tests.checkpoints import TINY

TOKENIZER = TextTokenizer.from_directory(TINY / "llama_tokenizer")
SETS = TOKENIZER.sets(512)

letters = st.characters(codec="utf-8", exclude_categories=("Z", "C"))
words = st.lists(st.text(letters, min_size=1, max_size=8), max_size=8)


def is_plain(word: str) -> bool:
    """A word the tokenizer's clean-up leaves alone and that does not begin with a blank of its own."""
    return TOKENIZER.decode(TOKENIZER.encode(f" {word}")) == f" {word}"


@given(st.text(max_size=60))
def test_words_are_what_stands_between_white_space(text: str) -> None:
    found = split_words(text)
    assert [word[1:] for word in found] == text.split()
    assert all(word.startswith(" ") for word in found)


@settings(deadline=None)
@given(words)
def test_every_id_has_a_word(texts: list[str]) -> None:
    spelled = [f" {word}" for word in texts]
    tokens = encode_words(TOKENIZER, spelled)
    assert len(tokens.ids) == len(tokens.word_ids)
    assert tokens.word_ids == sorted(tokens.word_ids)
    assert set(tokens.word_ids) == {k for k, word in enumerate(spelled) if word.strip()}
    assert not set(tokens.ids) & TOKENIZER.special_ids


@settings(deadline=None)
@given(words)
def test_words_come_back(texts: list[str]) -> None:
    spelled = [f" {word}" for word in texts if is_plain(word) and word.strip()]
    tokens = encode_words(TOKENIZER, spelled)
    assert words_of(tokens.ids, tokens.word_ids, TOKENIZER) == spelled


@settings(deadline=None)
@given(st.lists(st.text("abcdefgh'TZ09", min_size=1, max_size=8).filter(is_plain), max_size=8))
def test_derived_word_ids_are_those_of_the_words(texts: list[str]) -> None:
    # words without a word-start id inside them, which letters and digits have not
    tokens = encode_words(TOKENIZER, [f" {word}" for word in texts])
    assert derive_word_ids(tokens.ids, SETS) == tokens.word_ids


@given(st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 9)))
def test_a_word_begins_at_the_first_id_and_at_word_starts(ids: list[int], starts: set[int]) -> None:
    word_ids = derive_word_ids(ids, TokenSets.from_ids(10, sorted(starts), [], []))
    assert len(word_ids) == len(ids)
    for k, text_id in enumerate(ids):
        before = word_ids[k - 1] if k else -1
        assert word_ids[k] == before + (k == 0 or text_id in starts)


def test_words_that_spell_nothing_have_no_ids() -> None:
    tokens = encode_words(TOKENIZER, [" a", " ", "", "  ", " b"])
    assert tokens.word_ids == [0, 4]


def test_words_of_wants_a_word_for_each_id() -> None:
    with pytest.raises(ValueError, match="zip"):
        words_of([1, 2], [0], TOKENIZER)
    assert words_of([], [], TOKENIZER) == []
