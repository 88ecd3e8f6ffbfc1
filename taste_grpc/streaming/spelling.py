"""Words and their codes out of a segment's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.processor import TasteProcessor
from taste_grpc.model.taste import TasteForCausalLM
from taste_grpc.model.text.words import words_of
from taste_grpc.streaming.conversation import check_codes, spoken_word_ids
from taste_grpc.streaming.segments import check_ids, check_text_ids, check_word_ids


def spelled_words(
    model: TasteForCausalLM,
    processor: TasteProcessor,
    prefix: str,
    text_ids: Tensor | None,
    taste_ids: Tensor | None,
    word_ids: Tensor | None,
) -> tuple[list[str], list[Sequence[int]]]:
    """The words that ids `(1, S)` spell, each with a leading blank, and the row of codes of each.

    Word ids are derived from the tokens when None. Raises InvalidInputError or InvalidTypeError naming the argument,
    with `prefix` before its name.
    """
    vocab = model.spoken_lm.vocab_size
    ids = check_text_ids(f"{prefix}text_ids", text_ids, vocab)
    codes = check_ids(f"{prefix}taste_ids", taste_ids, 3)
    check_codes(f"{prefix}taste_ids", codes, model.vq_dim, model.config.audio_tower.quantizer.codebook_size)
    rows: list[list[int]] = codes[0].tolist()
    if len(rows) != len(ids):
        raise InvalidInputError(f"{prefix}taste_ids", f"has S = {len(rows)}, but text_ids has S = {len(ids)}")
    coded = [row[0] != -1 for row in rows]
    if word_ids is None:
        words = spoken_word_ids(ids, coded, processor.text_tokenizer.sets(vocab))
    else:
        words = check_word_ids(f"{prefix}text_word_ids", word_ids, len(ids))
    spelled = words_of(ids, words, processor.text_tokenizer)
    return spelled, _row_per_word(f"{prefix}taste_ids", spelled, words, rows)


def _row_per_word(
    name: str, spelled: Sequence[str], words: Sequence[int], rows: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    starts = [i for i in range(len(words)) if i == 0 or words[i] != words[i - 1]]
    for word, start in zip(spelled, starts, strict=True):
        if word.strip() and rows[start][0] == -1:
            raise InvalidInputError(name, f"has no codes for the word {word.strip()[:40]!r} (row {start})")
    return [rows[start] for start in starts]
