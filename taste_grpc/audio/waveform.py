"""Mono audio in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio: `samples` `[T]` float32 in [-1, 1] at `sample_rate_hz`."""

    samples: Float32Array
    sample_rate_hz: int

    @property
    def duration_ms(self) -> float:
        """Length in milliseconds."""
        return 1000.0 * len(self.samples) / self.sample_rate_hz
