"""Where in a clip somebody speaks."""

from __future__ import annotations

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.speech.detector import DETECTOR_SAMPLE_RATE_HZ, SpeechDetector, SpeechFrames

Span = tuple[int, int]
"""First sample, and the one after the last."""


def spoken_spans(samples: Float32Array, detector: SpeechDetector, pause_ms: int, margin_ms: int) -> list[Span]:
    """The stretches of speech in `samples` `[T]` at 16 kHz, with `margin_ms` more on either side where there is audio.

    Pauses shorter than `pause_ms` are inside of a stretch. `detector` is used from its start and left anywhere.
    """
    detector.reset()
    pause, margin = (ms * DETECTOR_SAMPLE_RATE_HZ // 1000 for ms in (pause_ms, margin_ms))
    spans: list[Span] = []
    for index, frame in enumerate(SpeechFrames(detector.frame_samples).push(samples)):
        if not detector.is_speech(frame):
            continue
        start, end = index * len(frame), (index + 1) * len(frame)
        if spans and start - spans[-1][1] < pause:
            start = spans.pop()[0]
        spans.append((start, end))
    return [(max(0, start - margin), min(len(samples), end + margin)) for start, end in spans]
