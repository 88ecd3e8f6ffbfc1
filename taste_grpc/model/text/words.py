"""Words: the unit in which the text tokenizer and the Whisper tokenizer meet.

Source: checkpoint layout 4.11 and 4.16. Each word is one blank plus its letters and is tokenised on
its own by both tokenizers.
"""

from __future__ import annotations

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
    groups: list[list[int]] = []
    previous: int | None = None
    for text_id, word_id in zip(text_ids, word_ids, strict=True):
        if previous is None or word_id != previous:
            groups.append([])
        groups[-1].append(text_id)
        previous = word_id
    return [f" {tokenizer.decode(group).strip()}" for group in groups]
