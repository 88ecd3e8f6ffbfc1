"""What the service asks of a voice-activity detector."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from taste_grpc.audio.waveform import Float32Array

DETECTOR_SAMPLE_RATE_HZ = 16_000


class SpeechDetector(Protocol):
    """Says of one frame of audio after the other whether somebody speaks in it.

    One stream uses a detector at a time, from one thread at a time.
    """

    @property
    def name(self) -> str:
        """Name and version, for people."""
        ...

    @property
    def frame_samples(self) -> int:
        """Samples of a frame, at 16 kHz."""
        ...

    def is_speech(self, frame: Float32Array) -> bool:
        """Whether there is speech in `frame` `[frame_samples]` float32. Raises InvalidInputError for another length."""
        ...

    def reset(self) -> None:
        """Forget the stream so far."""
        ...


class SpeechFrames:
    """Cuts audio that comes in pieces of any length into frames of a fixed one."""

    def __init__(self, frame_samples: int) -> None:
        self._frame_samples = frame_samples
        self._rest: list[Float32Array] = []
        self._waiting = 0

    def push(self, samples: Float32Array) -> list[Float32Array]:
        """The frames that `samples` `[T]` completes."""
        self._rest.append(samples)
        self._waiting += len(samples)
        if self._waiting < self._frame_samples:
            return []
        joined = np.concatenate(self._rest)
        whole = self._waiting - self._waiting % self._frame_samples
        self._rest, self._waiting = [joined[whole:]], self._waiting - whole
        return list(joined[:whole].reshape(-1, self._frame_samples))
