"""Whisper's log-mel features: 16 kHz mono audio to 100 frames a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError

SAMPLE_RATE_HZ = 16_000
FFT_SAMPLES = 400
HOP_SAMPLES = 160
CLIP_SAMPLES = 30 * SAMPLE_RATE_HZ
CLIP_FRAMES = CLIP_SAMPLES // HOP_SAMPLES

_POWER_FLOOR = 1e-10
_DYNAMIC_RANGE = 8.0  # of log10 power: 80 dB

# Slaney's scale: linear up to 1 kHz (200/3 Hz a mel), then 27 mels for each factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_MELS_PER_LOG_HZ = 27.0 / np.log(6.4)

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogMel:
    """`features` `[3000, n_mels]` float32, of which the first `frames` stand for audio and the rest for padding."""

    features: Float32Array
    frames: int


def _slaney_to_hz(mels: Float64Array) -> Float64Array:
    logarithmic = _BREAK_HZ * np.exp((mels - _BREAK_MEL) / _MELS_PER_LOG_HZ)
    return np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ_PER_MEL, logarithmic)


def _hz_to_slaney(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) * _MELS_PER_LOG_HZ)


@lru_cache(maxsize=8)
def mel_filters(n_mels: int, n_fft: int = FFT_SAMPLES, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Float32Array:
    """Slaney's triangles, each of area one: `[n_mels, n_fft // 2 + 1]` float32, read-only.

    The band reaches from 0 Hz to half of `sample_rate_hz`. Raises InvalidInputError
    unless `n_mels` is positive.
    """
    if n_mels < 1:
        raise InvalidInputError("n_mels", f"must be at least 1, not {n_mels}")
    bins_hz = np.fft.rfftfreq(n_fft, 1.0 / sample_rate_hz)
    edges_hz = _slaney_to_hz(np.linspace(0.0, _hz_to_slaney(sample_rate_hz / 2), n_mels + 2))
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    triangles = np.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre))
    filters: Float32Array = (np.maximum(triangles, 0.0) * (2.0 / (high - low))).astype(np.float32)
    filters.flags.writeable = False
    return filters


def log_mel(samples: Float32Array, n_mels: int = 128) -> LogMel:
    """Features of `samples` `[T]` float32 at 16 kHz, padded with silence or cut to 30 s.

    The loudest value of the clip sets the floor, 80 dB below it, so frames depend on one
    another. Raises InvalidInputError for an empty clip or one that is not one-dimensional.
    May be called from any thread.
    """
    if samples.ndim != 1 or len(samples) == 0:
        raise InvalidInputError("samples", f"one channel with at least one sample expected, not shape {samples.shape}")
    samples = samples[:CLIP_SAMPLES]
    edge = FFT_SAMPLES // 2
    centred = np.pad(np.pad(samples, (0, CLIP_SAMPLES - len(samples))), edge, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(centred, FFT_SAMPLES)[::HOP_SAMPLES]
    # Frames that see padding alone have no power: leave them out of the transforms.
    touched = min(CLIP_FRAMES, (len(samples) - 1 + edge) // HOP_SAMPLES + 1)
    if len(samples) > CLIP_SAMPLES - FFT_SAMPLES:
        touched = CLIP_FRAMES  # the reflection at the end holds audio
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)
    spectrum = np.fft.rfft(frames[:touched] * window, axis=1)
    power = spectrum.real**2 + spectrum.imag**2  # [touched, 201]
    mel = power @ mel_filters(n_mels).T.astype(np.float64)

    levels = np.full((CLIP_FRAMES, n_mels), np.log10(_POWER_FLOOR))
    levels[:touched] = np.log10(np.maximum(mel, _POWER_FLOOR))
    levels = np.maximum(levels, levels.max() - _DYNAMIC_RANGE)
    return LogMel(((levels + 4.0) / 4.0).astype(np.float32), len(samples) // HOP_SAMPLES)
