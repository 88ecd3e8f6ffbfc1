"""Words, in both tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taste_grpc.model.text.tokens import TextTokenizer, TokenSets
from taste_grpc.model.text.words import (
    derive_word_ids,
    encode_words,
    split_words,
    words_of,
    written_word_ids,
    written_words,
)
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
    assert written_words([], [], TOKENIZER) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12))
def test_any_ids_have_words_that_can_be_written_and_come_back_as_these_ids(ids: list[int]) -> None:
    word_ids = derive_word_ids(ids, SETS)
    written = written_words(ids, word_ids, TOKENIZER)
    assert len(written) == word_ids[-1] + 1
    assert not any(char.isspace() or char < " " for word in written for char in word)
    for index, word in enumerate(written):
        own = [text_id for text_id, word_id in zip(ids, word_ids, strict=True) if word_id == index]
        assert not word or written_word_ids(word, own, TOKENIZER) == own


@settings(deadline=None)
@given(words)
def test_written_words_are_those_of_the_text(texts: list[str]) -> None:
    spelled = [word for word in texts if is_plain(word)]
    tokens = encode_words(TOKENIZER, [f" {word}" for word in spelled])
    assert written_words(tokens.ids, tokens.word_ids, TOKENIZER) == spelled


def test_ids_are_used_while_they_spell_the_word() -> None:
    begun, inner = TOKENIZER.encode(" ing"), TOKENIZER.encode("ing")
    assert begun != inner
    assert written_word_ids("ing", inner, TOKENIZER) == inner
    assert written_word_ids("ing", begun, TOKENIZER) == begun
    assert written_word_ids("ing", [], TOKENIZER) == begun
    assert written_word_ids("ing", TOKENIZER.encode(" ink"), TOKENIZER) == begun
    assert written_word_ids("ink", inner, TOKENIZER) == TOKENIZER.encode(" ink")


def test_a_word_may_look_like_a_special_token_and_is_not_one() -> None:
    special = min(TOKENIZER.special_ids)
    name = TOKENIZER.decode([special])
    assert written_word_ids(name, [], TOKENIZER) == TOKENIZER.encode(f" {name}")
    assert special not in TOKENIZER.encode(f" {name}")
    assert written_word_ids(name, [special], TOKENIZER) == [special]


def test_control_characters_are_not_written() -> None:
    ids = TOKENIZER.encode(" a\tb\x00c\x85")
    assert written_words(ids, [4] * len(ids), TOKENIZER) == ["abc"]
    assert written_words([*ids, *TOKENIZER.encode(" ")], [0] * len(ids) + [1], TOKENIZER) == ["abc", ""]
