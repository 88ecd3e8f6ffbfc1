"""Recognisers that packages ship, behind one protocol."""

from taste_grpc.speech.moonshine import MoonshineRecogniser, sample_recordings
from taste_grpc.speech.recogniser import RECOGNISER_SAMPLE_RATE_HZ, Recogniser

__all__ = [
    "RECOGNISER_SAMPLE_RATE_HZ",
    "MoonshineRecogniser",
    "Recogniser",
    "default_recogniser",
    "sample_recordings",
]


def default_recogniser() -> Recogniser:
    """The embedded recogniser. Raises UnsupportedByModelError when it is not installed."""
    return MoonshineRecogniser()
