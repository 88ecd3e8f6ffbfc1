"""Change of sampling rate, whole clips and streams."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import soxr

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError

_QUALITY = "HQ"


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


class StreamResampler:
    """Resamples a stream that arrives in chunks of any size.

    What `push` and `finish` return, put together, equals `resample` of the whole input,
    sample for sample. The filter looks ahead, so the first chunks give less than their
    share; `finish` gives the rest. One stream, one thread at a time.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        _check_rate("from_hz", from_hz)
        _check_rate("to_hz", to_hz)
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._finished = False
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality=_QUALITY)

    def push(self, chunk: Float32Array) -> Float32Array:
        """The samples that `chunk` `[T]` float32 completes; may be empty. Raises ValueError after `finish`."""
        return self._feed(chunk, last=False)

    def finish(self) -> Float32Array:
        """The samples still held back. The stream takes no more after this."""
        return self._feed(np.zeros(0, np.float32), last=True)

    def _feed(self, chunk: Float32Array, *, last: bool) -> Float32Array:
        if self._finished:
            raise ValueError("this stream is finished; make a new StreamResampler for more audio")
        self._finished = last
        if self._stream is None:
            return chunk
        resampled: Any = self._stream.resample_chunk(np.ascontiguousarray(chunk, np.float32), last=last)
        return np.asarray(resampled, np.float32)
