"""Kaldi's filter-bank features, as the speaker encoder was trained on them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 400
HOP_SAMPLES = 160

_FFT_SAMPLES = 512
_LOW_HZ = 20.0
_HIGH_HZ = SAMPLE_RATE_HZ / 2
_PRE_EMPHASIS = 0.97
_ENERGY_FLOOR = float(np.finfo(np.float32).eps)

Float64Array = npt.NDArray[np.float64]


def _hz_to_mel(hz: npt.ArrayLike) -> Float64Array:
    return np.asarray(1127.0 * np.log(1.0 + np.asarray(hz) / 700.0))


@lru_cache(maxsize=4)
def _triangles(n_bins: int) -> Float64Array:
    """`[n_bins, 257]`: triangles that are straight on the mel axis; the bin at 8 kHz counts nowhere."""
    edges = np.linspace(_hz_to_mel(_LOW_HZ), _hz_to_mel(_HIGH_HZ), n_bins + 2)
    bins = _hz_to_mel(np.arange(_FFT_SAMPLES // 2) * (SAMPLE_RATE_HZ / _FFT_SAMPLES))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.pad(np.maximum(weights, 0.0), ((0, 0), (0, 1)))


def kaldi_fbank(samples: Float32Array, n_bins: int = 80) -> Float32Array:
    """Log filter-bank energies of `samples` `[T]` float32 in [-1, 1] at 16 kHz: `[(T - 400) // 160 + 1, n_bins]`.

    Frames of 25 ms every 10 ms, none padded; each loses its mean, is pre-emphasised and
    shaped by the Povey window. No dither, no energy column. Raises InvalidInputError when
    not one frame fits. May be called from any thread.
    """
    if samples.ndim != 1 or len(samples) < FRAME_SAMPLES:
        raise InvalidInputError(
            "samples", f"one channel with at least {FRAME_SAMPLES} samples (25 ms) expected, not shape {samples.shape}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::HOP_SAMPLES]
    frames = windows.astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    previous = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    phase = 2.0 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1)
    povey = (0.5 - 0.5 * np.cos(phase)) ** 0.85
    spectrum = np.fft.rfft((frames - _PRE_EMPHASIS * previous) * povey, n=_FFT_SAMPLES, axis=1)
    power = spectrum.real**2 + spectrum.imag**2  # [N, 257]
    energies = np.maximum(power @ _triangles(n_bins).T, _ENERGY_FLOOR)
    return np.asarray(np.log(energies), np.float32)


def remove_mean(features: Float32Array) -> Float32Array:
    """`features` `[N, n_bins]` less the mean of each bin over time.

    A microphone or a volume adds a constant to a log spectrum; this takes it away.
    """
    mean = features.mean(axis=0, keepdims=True, dtype=np.float64)
    return np.asarray(features - mean, np.float32)
