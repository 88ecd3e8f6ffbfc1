"""Recognisers and voice-activity detectors that packages ship, each kind behind one protocol."""

from taste_grpc.speech.detector import DETECTOR_SAMPLE_RATE_HZ, SpeechDetector, SpeechFrames
from taste_grpc.speech.moonshine import MoonshineRecogniser, sample_recordings
from taste_grpc.speech.recogniser import RECOGNISER_SAMPLE_RATE_HZ, Recogniser
from taste_grpc.speech.silero import SileroDetector
from taste_grpc.speech.voice import Voice
from taste_grpc.speech.webrtc import WebRtcDetector

__all__ = [
    "DETECTOR_SAMPLE_RATE_HZ",
    "RECOGNISER_SAMPLE_RATE_HZ",
    "MoonshineRecogniser",
    "Recogniser",
    "SileroDetector",
    "SpeechDetector",
    "SpeechFrames",
    "Voice",
    "WebRtcDetector",
    "default_recogniser",
    "sample_recordings",
]


def default_recogniser() -> Recogniser:
    """The embedded recogniser. Raises UnsupportedByModelError when it is not installed."""
    return MoonshineRecogniser()
