"""Whether anybody speaks in a recording."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import UnsupportedByModelError
from taste_grpc.speech import DETECTOR_SAMPLE_RATE_HZ, SileroDetector, SpeechDetector, WebRtcDetector

MIN_PEAK = 0.002
"""-54 dB of full scale: no microphone is so quiet when somebody speaks."""
MIN_SPEECH_MS = 90.0

MakeDetector = Callable[[], SpeechDetector]


def default_detector() -> SpeechDetector:
    """The best detector that is installed. Raises UnsupportedByModelError when none is."""
    try:
        return SileroDetector()
    except UnsupportedByModelError:
        return WebRtcDetector()


def has_speech(samples: Float32Array, make_detector: MakeDetector = default_detector) -> bool:
    """Whether there is speech of some length in `samples` `[T]` float32 at 16 kHz: energy first, then a detector.

    Looks no further than the first speech: 30 s without any take some 0.4 s. Not to be called on the event loop.
    """
    if float(np.abs(samples).max(initial=0.0)) < MIN_PEAK:
        return False
    detector = make_detector()
    length = detector.frame_samples
    frame_ms = 1000.0 * length / DETECTOR_SAMPLE_RATE_HZ
    padded = np.pad(samples, (0, -len(samples) % length)).reshape(-1, length)
    spoken_ms = 0.0
    for frame in padded:
        spoken_ms += frame_ms * detector.is_speech(frame)
        if spoken_ms >= MIN_SPEECH_MS:
            return True
    return False
