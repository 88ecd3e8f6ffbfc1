"""What the service asks of a speech recogniser."""

from __future__ import annotations

from typing import Protocol

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import UnsupportedByModelError

RECOGNISER_SAMPLE_RATE_HZ = 16_000


class Recogniser(Protocol):
    """Whole clips to text.

    What it hears of a clip does not depend on earlier ones. A recogniser may be made on one thread and used on another,
    but by one thread at a time.
    """

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    @property
    def languages(self) -> frozenset[str]:
        """The languages it knows: first parts of BCP 47 tags, such as `en`."""
        ...

    def transcribe(self, samples: Float32Array, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is.

        Runs on the calling thread and cannot be interrupted.

        Args:
            language: BCP 47 tag of the speech; None leaves it to the recogniser.

        Raises UnsupportedByModelError for a language it does not know.
        """
        ...


def known_language(recogniser: Recogniser, language: str | None) -> str | None:
    """The member of `recogniser.languages` that the BCP 47 tag `language` belongs to; None for None.

    Raises UnsupportedByModelError when there is none.
    """
    if language is None:
        return None
    first = language.replace("_", "-").partition("-")[0].lower()
    if first not in recogniser.languages:
        known = sorted(recogniser.languages)
        knows = ", ".join(known) if len(known) <= 8 else f"{len(known)} other languages"
        raise UnsupportedByModelError(f"{recogniser.name} does not know the language {language!r}; it knows {knows}")
    return first
