"""Change of sampling rate, whole clips and streams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError

_QUALITY = "HQ"
_FILTER_REACH = 160  # samples, at the lower rate, on either side; found by measurement for this quality, with room


def _check_rate(name: str, rate_hz: int) -> None:
    if not 0 < rate_hz < math.inf:
        raise InvalidInputError(name, f"must be a positive number of samples per second, not {rate_hz}")


def resample(samples: Float32Array, from_hz: int, to_hz: int) -> Float32Array:
    """`samples` `[T]` float32 at `from_hz`, as `[round(T * to_hz / from_hz)]` float32 at `to_hz`.

    Equal rates give the input back. Raises InvalidInputError for rates that are not
    positive. May be called from any thread.
    """
    _check_rate("from_hz", from_hz)
    _check_rate("to_hz", to_hz)
    if from_hz == to_hz or len(samples) == 0:
        return samples
    resampled: Any = soxr.resample(np.ascontiguousarray(samples, np.float32), from_hz, to_hz, quality=_QUALITY)
    return np.asarray(resampled, np.float32)


@dataclass
class ResamplerState:
    """Where a `StreamResampler` stands: plain values, fit to be stored.

    Attributes:
        history: `[N]` float32, the newest samples that went in.
        start: absolute index of the first of them.
        emitted: samples that came out.
    """

    history: Float32Array
    start: int
    emitted: int

    @classmethod
    def empty(cls) -> ResamplerState:
        """The start of a stream."""
        return cls(np.zeros(0, np.float32), 0, 0)

    def at_rate(self, from_hz: int, old_hz: int, new_hz: int) -> ResamplerState:
        """The state of a stream that goes on with `new_hz` where this one, to `old_hz`, stands.

        What the new filter would have heard earlier than the old one kept is silence to it.
        """
        if old_hz == new_hz:
            return self
        grid = from_hz // math.gcd(from_hz, new_hz)
        start = self.start // grid * grid
        history = np.concatenate([np.zeros(self.start - start, np.float32), self.history])
        return ResamplerState(history, start, self.emitted * new_hz // old_hz)


class StreamResampler:
    """Resamples a stream that arrives in chunks of any size.

    Each chunk is resampled together with the samples before it that the filter reaches. What `push` and `finish`
    return, put together, equals `resample` of the whole input up to rounding, with exactly as many samples. From
    `state` another one goes on, in another process too, as if it had been the same. One thread at a time.
    """

    def __init__(self, from_hz: int, to_hz: int, state: ResamplerState | None = None) -> None:
        _check_rate("from_hz", from_hz)
        _check_rate("to_hz", to_hz)
        self.from_hz = from_hz
        self.to_hz = to_hz
        self.state = state or ResamplerState.empty()
        # a history that begins at a multiple of this yields samples at the places of the whole stream's
        self._grid = from_hz // math.gcd(from_hz, to_hz)
        self._reach = 0 if from_hz == to_hz else math.ceil(_FILTER_REACH * max(1.0, from_hz / to_hz))

    def push(self, chunk: Float32Array) -> Float32Array:
        """The samples that `chunk` `[T]` float32 makes certain; may be empty: the filter looks ahead."""
        end = self.state.start + len(self.state.history) + len(chunk)
        return self._advance(chunk, max(self.state.emitted, (end - self._reach) * self.to_hz // self.from_hz))

    def finish(self) -> Float32Array:
        """The samples still held back. The stream may go on after them, with a join that is not exact."""
        end = self.state.start + len(self.state.history)
        return self._advance(np.zeros(0, np.float32), (2 * end * self.to_hz + self.from_hz) // (2 * self.from_hz))

    def _advance(self, chunk: Float32Array, until: int) -> Float32Array:
        state = self.state
        history = np.concatenate([state.history, np.asarray(chunk, np.float32)])
        first = state.start * self.to_hz // self.from_hz
        fresh = resample(history, self.from_hz, self.to_hz)[state.emitted - first : until - first]
        needed = max(0, until * self.from_hz // self.to_hz - self._reach) // self._grid * self._grid
        start = max(state.start, needed)
        self.state = ResamplerState(history[start - state.start :].copy(), start, until)
        return fresh
