"""What of a text is left to be said."""

from __future__ import annotations

import unicodedata

_SPOKEN = frozenset("LNS")
"""First letters of the categories that are read out: letters, numbers, and symbols such as % and 😀."""


def spoken_text(text: str) -> str:
    """`text` fit for a voice: one line without control characters; empty when there is nothing in it to be said.

    `[[`, which the phonemizer of espeak-ng takes for the beginning of phonemes, is taken apart.
    """
    line = " ".join("".join(_said(letter) for letter in text).split())
    while "[[" in line:
        line = line.replace("[[", "[ [")
    return line if any(unicodedata.category(letter)[0] in _SPOKEN for letter in line) else ""


def _said(letter: str) -> str:
    # control characters end C strings, lone surrogates have no UTF-8
    return " " if unicodedata.category(letter) in ("Cc", "Cs") else letter
