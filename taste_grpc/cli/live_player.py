"""Where the answers of a live conversation are played, or would be, and how far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from taste_grpc_client import SpeechChunk


class Player(Protocol):
    """Plays answers one after the other. Used from one thread."""

    def play(self, chunk: SpeechChunk) -> None:
        """Take the next audio."""
        ...

    def stop(self) -> None:
        """Be silent at once: what was not played is not played any more."""
        ...

    def progress(self) -> list[tuple[int, float]]:
        """Turns, and how many ms of their answers were played, where that has changed since last asked."""
        ...

    @property
    def unplayed_ms(self) -> float:
        """Length of the audio that is still to be played."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass
class _Answer:
    length_ms: float
    until_s: float
    told_ms: float = -1.0


class ClockPlayer:
    """Plays nothing, and takes as long for it as a loudspeaker.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[int, _Answer] = {}

    def play(self, chunk: SpeechChunk) -> None:
        """Take the next audio: it begins now, or after what is still to be played."""
        until_s = max([self._clock(), *(answer.until_s for answer in self._answers.values())])
        answer = self._answers.setdefault(chunk.turn, _Answer(0.0, until_s))
        answer.length_ms += chunk.duration_ms
        answer.until_s = until_s + chunk.duration_ms / 1000

    def stop(self) -> None:
        """Be silent at once."""
        now = self._clock()
        for answer in self._answers.values():
            answer.length_ms, answer.until_s = self._played_ms(answer), min(answer.until_s, now)

    def progress(self) -> list[tuple[int, float]]:
        """Turns, and how many ms of their answers were played, where that has changed since last asked."""
        told = []
        for turn, answer in self._answers.items():
            played_ms = self._played_ms(answer)
            if played_ms > answer.told_ms and played_ms > 0:
                answer.told_ms = played_ms
                told.append((turn, played_ms))
        return told

    @property
    def unplayed_ms(self) -> float:
        """Length of the audio that is still to be played."""
        return sum(answer.length_ms - self._played_ms(answer) for answer in self._answers.values())

    def close(self) -> None:
        """Nothing to end."""

    def _played_ms(self, answer: _Answer) -> float:
        left_ms = 1000 * max(0.0, answer.until_s - self._clock())
        return max(0.0, answer.length_ms - left_ms)
