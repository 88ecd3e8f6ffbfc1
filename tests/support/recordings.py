"""Recordings of a human voice, cut for tests."""

from __future__ import annotations

from taste_grpc.audio import Encoding, decode_clip, resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.speech import sample_recordings

_BEGINS_S, _ENDS_S = 0.9, 4.64


def best_of_times(rate_hz: int) -> Float32Array:
    """Nearly four seconds, `[T]` float32 at `rate_hz`: "It was the best of times, it was the worst of times"."""
    clip = decode_clip(sample_recordings()["two_cities"].read_bytes(), Encoding.WAV, max_ms=60_000)
    samples = resample(clip.samples, clip.sample_rate_hz, rate_hz)
    return samples[int(_BEGINS_S * rate_hz) : int(_ENDS_S * rate_hz)]
