"""What the service asks of a speech recogniser."""

from __future__ import annotations

from typing import Protocol

from taste_grpc.audio.waveform import Float32Array

RECOGNISER_SAMPLE_RATE_HZ = 16_000


class Recogniser(Protocol):
    """Whole clips to text.

    A recogniser may be made on one thread and used on another, but by one thread at a time.
    """

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    def transcribe(self, samples: Float32Array) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is.

        Runs on the calling thread and cannot be interrupted.
        """
        ...
