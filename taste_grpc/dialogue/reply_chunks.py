"""From the tokens of a language model to chunks of a few whole words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
"""Characters that are written without blanks between words: each counts as a word."""

_WORD = re.compile(rf"\s*+(?:[{_WIDE}][、。，．！？：；…」』）]*|[^\s{_WIDE}]+)")
_CLOSING = "[\"'”’»)\\]}」』）]*"
_SENTENCE_END = re.compile(rf"[.?!…。．？！]{_CLOSING}$")
_CLAUSE_END = re.compile(rf"[,;:–—、，；：]{_CLOSING}$")


class WordGrouper:
    """Groups text that comes piece by piece into chunks of whole words.

    A chunk has at most `chunk_words` words. It ends before that with a sentence, or with a part of one when it is half
    full, or when its words have waited for `wait_s`. Blanks stay in front of the word they precede, so that the chunks,
    put together, are the text. A word is whole once something that does not belong to it has come after it.

    Args:
        chunk_words: most words of a chunk.
        wait_s: how long whole words wait for a chunk to fill.
        clock: seconds.
    """

    def __init__(self, chunk_words: int, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._chunk_words, self._wait_s, self._clock = chunk_words, wait_s, clock
        self._text = ""
        self._since: float | None = None  # whole words have been waiting

    @property
    def due_in_s(self) -> float | None:
        """Seconds until `cut_due` has something to cut; None while there are no whole words."""
        if self._since is None:
            return None
        return max(0.0, self._since + self._wait_s - self._clock())

    def push(self, text: str) -> list[str]:
        """The chunks that `text` completes."""
        self._text += text
        chunks = []
        while (end := self._full()) is not None:
            chunks.append(self._take(end))
        if self._since is None and self._whole_words():
            self._since = self._clock()
        return chunks

    def cut_due(self) -> list[str]:
        """The whole words as a chunk, if they have waited long enough."""
        return [self._take(self._whole_words())] if self.due_in_s == 0.0 else []

    def finish(self) -> str:
        """What is left; may be empty."""
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        chunk, self._text, self._since = self._text[:end], self._text[end:], None
        return chunk

    def _words(self) -> Iterator[re.Match[str]]:
        """The whole words of the text."""
        end = 0
        while (word := _WORD.match(self._text, end)) is not None and word.end() < len(self._text):
            yield word
            end = word.end()

    def _whole_words(self) -> int:
        """Where the last whole word ends."""
        return max((word.end() for word in self._words()), default=0)

    def _full(self) -> int | None:
        """Where the first chunk of the text ends; None while that is open."""
        for count, word in enumerate(self._words(), 1):
            is_half_full = 2 * count >= self._chunk_words
            if (
                count == self._chunk_words
                or _SENTENCE_END.search(word[0])
                or (is_half_full and _CLAUSE_END.search(word[0]))
            ):
                return word.end()
        return None
