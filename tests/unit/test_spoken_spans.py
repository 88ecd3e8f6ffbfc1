"""Where in a clip somebody speaks, told by loudness."""

from __future__ import annotations

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.speech.spoken_spans import spoken_spans

MS = 16
FRAME_MS = 20


class Loudness:
    """Hears speech in any frame with a sample in it that is not 0."""

    name = "loudness"
    frame_samples = FRAME_MS * MS

    def __init__(self) -> None:
        self.resets = 0

    def is_speech(self, frame: Float32Array) -> bool:
        return bool(frame.any())

    def reset(self) -> None:
        self.resets += 1


def clip(*lengths_ms: int) -> Float32Array:
    """Silence, speech, silence … of these lengths."""
    return np.concatenate([np.full(ms * MS, index % 2, np.float32) for index, ms in enumerate(lengths_ms)])


def spans_ms(samples: Float32Array, pause_ms: int = 500, margin_ms: int = 100) -> list[tuple[int, int]]:
    return [(start // MS, end // MS) for start, end in spoken_spans(samples, Loudness(), pause_ms, margin_ms)]


def test_silence_has_none() -> None:
    assert spans_ms(clip(1000)) == []
    assert spans_ms(clip(0)) == []


def test_a_stretch_has_margins() -> None:
    assert spans_ms(clip(400, 200, 400)) == [(300, 700)]


def test_margins_end_where_the_clip_does() -> None:
    assert spans_ms(clip(40, 200, 60)) == [(0, 300)]


def test_short_pauses_are_inside_and_long_ones_between() -> None:
    assert spans_ms(clip(200, 200, 480, 200, 500, 200, 200)) == [(100, 1180), (1480, 1880)]


def test_the_detector_starts_afresh() -> None:
    detector = Loudness()
    spoken_spans(clip(100), detector, 500, 100)
    assert detector.resets == 1
