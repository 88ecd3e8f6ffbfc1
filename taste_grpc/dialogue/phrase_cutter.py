"""From the tokens of a language model to phrases that are spoken one after the other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_SENTENCE_END = re.compile(r"[.?!。？！…]+[\"'”’)\]]*(?=\s)|[。？！]+")
"""A mark with a blank after it: the one in 3.14 ends nothing. Where no blanks are written none is waited for."""

MAX_CHARS = 60
GAP_S = 0.7


class PhraseCutter:
    """Cuts text into phrases as it comes.

    A phrase ends with a sentence, before it would be longer than `max_chars` (at the last blank in it, where there is
    one), or when nothing has come for `gap_s`, then not inside a word. Nothing is lost: put together, the phrases are
    the text, but for the blanks around them.

    Args:
        max_chars: the longest phrase.
        gap_s: how long a phrase waits for its end.
        clock: seconds.
    """

    def __init__(
        self, max_chars: int = MAX_CHARS, gap_s: float = GAP_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_chars, self._gap_s, self._clock = max_chars, gap_s, clock
        self._text = ""
        self._last = clock()

    @property
    def due_in_s(self) -> float | None:
        """Seconds until `cut_at_gap` has something to cut; None while there are no whole words."""
        if not self._whole_words():
            return None
        return max(0.0, self._last + self._gap_s - self._clock())

    def push(self, text: str) -> list[str]:
        """The phrases that `text` completes."""
        self._last = self._clock()
        self._text += text
        phrases = []
        while (end := self._end()) is not None:
            phrases.append(self._text[:end].strip())
            self._text = self._text[end:]
        return [phrase for phrase in phrases if phrase]

    def cut_at_gap(self) -> str | None:
        """The whole words that have waited for `gap_s`, as a phrase; None when they have not, or there are none."""
        if self.due_in_s != 0.0:
            return None
        end = self._whole_words()
        phrase, self._text = self._text[:end].strip(), self._text[end:]
        return phrase

    def finish(self) -> str | None:
        """What is left, as a phrase; None when nothing is."""
        phrase, self._text = self._text.strip(), ""
        return phrase or None

    def _end(self) -> int | None:
        """Where the first phrase of the text ends; None while that is open."""
        lead = len(self._text) - len(self._text.lstrip())
        sentence = _SENTENCE_END.search(self._text, lead)
        if sentence is not None and sentence.end() - lead <= self._max_chars:
            return sentence.end()
        limit = lead + self._max_chars
        if len(self._text.rstrip()) <= limit:
            return None
        blank = max((at for at in range(lead, limit + 1) if self._text[at].isspace()), default=lead)
        return blank if blank > lead else limit

    def _whole_words(self) -> int:
        """Length of the text without a word that may go on."""
        stripped = self._text.rstrip()
        if not stripped or len(stripped) < len(self._text) or not stripped[-1].isalnum():
            return len(self._text) if stripped else 0
        at = len(stripped)
        while at and not stripped[at - 1].isspace():
            at -= 1
        return at if stripped[:at].strip() else 0
