"""Words: the unit in which the text tokenizer and the Whisper tokenizer meet.

Source: checkpoint layout 4.11 and 4.16. Each word is one blank plus its letters and is tokenised on
its own by both tokenizers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from taste_grpc.model.text.tokens import TextTokenizer, TokenSets


@dataclass(frozen=True)
class WordTokens:
    """Ids and, for each id, the index of its word (counted from 0)."""

    ids: list[int]
    word_ids: list[int]


def split_words(text: str) -> list[str]:
    """The words of `text`, each with one leading blank; runs of white space count as one."""
    return [f" {word}" for word in text.split()]


def encode_words(encode: TextTokenizer | PreTrainedTokenizerFast, words: Sequence[str]) -> WordTokens:
    """Tokenise every word separately, without special tokens; a word that spells nothing has no ids."""
    ids: list[int] = []
    word_ids: list[int] = []
    for index, word in enumerate(words):
        if not word.strip():
            continue
        if isinstance(encode, TextTokenizer):
            word_tokens = encode.encode(word)
        else:
            word_tokens = encode.encode(word, add_special_tokens=False, split_special_tokens=True)
        ids += word_tokens
        word_ids += [index] * len(word_tokens)
    return WordTokens(ids, word_ids)


def derive_word_ids(text_ids: Sequence[int], sets: TokenSets) -> list[int]:
    """Word index of each text id: a word begins at the first id and at every word-start id."""
    word_ids: list[int] = []
    word = -1
    for text_id in text_ids:
        if word < 0 or sets.is_word_start(text_id):
            word += 1
        word_ids.append(word)
    return word_ids


def words_of(text_ids: Sequence[int], word_ids: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """The word each run of equal `word_ids` spells, with one leading blank."""
    return [f" {tokenizer.decode(group).strip()}" for group in _ids_by_word(text_ids, word_ids)]


def written_words(text_ids: Sequence[int], word_ids: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """The word each run of equal `word_ids` spells, as it is written: without blanks and control characters.

    There is one for each run, also where nothing is left to be written, which is then empty.
    """
    return [_written(tokenizer.decode(group)) for group in _ids_by_word(text_ids, word_ids)]


def written_word_ids(word: str, text_ids: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
    """Ids of a word as it is written: `text_ids` while they spell it, else those of one blank plus `word`."""
    if text_ids and _written(tokenizer.decode(text_ids)) == word:
        return list(text_ids)
    return encode_words(tokenizer, [f" {word}"]).ids


def _written(text: str) -> str:
    return "".join(char for char in text if not char.isspace() and unicodedata.category(char) != "Cc")


def _ids_by_word(text_ids: Sequence[int], word_ids: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    previous: int | None = None
    for text_id, word_id in zip(text_ids, word_ids, strict=True):
        if previous is None or word_id != previous:
            groups.append([])
        groups[-1].append(text_id)
        previous = word_id
    return groups
