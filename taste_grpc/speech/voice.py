"""What the service asks of a voice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from taste_grpc.audio.waveform import Float32Array


class Voice(Protocol):
    """Text to speech, one phrase at a time. Used from the event loop; several calls may be under way at once."""

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    @property
    def sample_rate_hz(self) -> int:
        """Of all audio it gives."""
        ...

    def speak(self, text: str) -> AsyncGenerator[Float32Array]:
        """The audio of a phrase, `[T]` float32 each, in pieces as they are made; none when nothing can be said.

        Closing the iterator drops what is left; a later call is not held up by it for longer than the piece under way.
        Raises SpeechError when the phrase cannot be spoken; the next one can.
        """
        ...

    async def start(self) -> None:
        """Load what is needed, so that the first phrase comes as fast as the later ones.

        Raises UnsupportedByModelError when it is not installed or does not start.
        """
        ...

    async def aclose(self) -> None:
        """End what it runs: processes, threads."""
        ...
