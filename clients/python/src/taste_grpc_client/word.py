"""A word and how it is said."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Word:
    """A word and how it is said.

    Attributes:
        text: as it is written, with its punctuation, without blanks.
        codes: its speech tokens, one from each codebook.
        text_ids: ids of the language model's tokenizer that `text` came as; empty once it was edited.

    Raises:
        ValueError: one of them cannot be.
    """

    text: str
    codes: tuple[int, ...]
    text_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", tuple(self.codes))
        object.__setattr__(self, "text_ids", tuple(self.text_ids))
        if fault := _text_fault(self.text):
            raise ValueError(f"text: {fault}")
        if not self.codes:
            raise ValueError("codes: at least one is needed")
        for name in ("codes", "text_ids"):
            for index, value in enumerate(getattr(self, name)):
                if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INT32:
                    raise ValueError(f"{name}[{index}]: a whole number from 0 up was expected, not {value!r}")


def _text_fault(text: object) -> str:
    if not isinstance(text, str):
        return f"a string was expected, not {type(text).__name__}"
    if text.split() != [text]:
        return f"one word without blanks was expected, not {text!r}"
    # Cs: half of a surrogate pair, which UTF-8 cannot write.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return f"control characters are not allowed: {text!r}"
    return ""
