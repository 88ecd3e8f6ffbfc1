"""How well a transcript fits what was said."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer


def plain(text: str) -> str:
    """Lower-case words, without punctuation."""
    return " ".join("".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split())


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Words wrong, missing or too many, per word said, over all sentences."""
    return float(jiwer.wer([plain(text) for text in said], [plain(text) for text in heard]))
