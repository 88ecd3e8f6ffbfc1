"""Where speech is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PHRASE_ENDS = tuple(".,;:!?…—。，、；：！？،؛؟।")
_CLOSING = "\"'”’»)]}"


@dataclass(frozen=True)
class Phrasing:
    """How much is spoken at a time.

    The speech decoder ends every chunk as it ends a sentence, so chunks follow phrases where there are any.

    Attributes:
        min_words: a phrase with fewer is joined to the next one.
        max_words: a chunk has no more, phrase or not.
        look_ahead_words: words after a chunk that the speech decoder is shown, and whose share of the units is
            thrown away again, so that a chunk inside a sentence does not sound like its end. Text and units are
            aligned only at the ends of what is decoded at once, so the cut is an estimate.
    """

    min_words: int = 3
    max_words: int = 12
    look_ahead_words: int = 0


@dataclass(frozen=True)
class Cut:
    """Words `start` to `end` are a chunk; those up to `seen` are shown."""

    start: int
    end: int
    seen: int


def cut_phrases(words: Sequence[str], phrasing: Phrasing) -> Iterator[Cut]:
    """Cut `words` into chunks; the last one ends with the last word."""
    start = 0
    while start < len(words):
        end = _chunk_end(words, start, phrasing)
        yield Cut(start, end, min(len(words), end + phrasing.look_ahead_words))
        start = end


def _chunk_end(words: Sequence[str], start: int, phrasing: Phrasing) -> int:
    limit = min(len(words), start + phrasing.max_words)
    for end in range(start + phrasing.min_words, limit):
        if ends_phrase(words[end - 1]) and len(words) - end >= phrasing.min_words:
            return end
    return limit


def ends_phrase(word: str) -> bool:
    """Whether a speaker may pause after `word`."""
    return word.rstrip().rstrip(_CLOSING).endswith(_PHRASE_ENDS)
