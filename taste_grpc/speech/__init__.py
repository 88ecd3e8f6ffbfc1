"""Recognisers, voices and voice-activity detectors that packages ship, each kind behind one protocol."""

from typing import Literal

from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.speech.detector import DETECTOR_SAMPLE_RATE_HZ, SpeechDetector, SpeechFrames
from taste_grpc.speech.espeak import EspeakVoice
from taste_grpc.speech.moonshine import MoonshineRecogniser, sample_recordings
from taste_grpc.speech.piper import PiperVoice
from taste_grpc.speech.recogniser import RECOGNISER_SAMPLE_RATE_HZ, Recogniser, known_language
from taste_grpc.speech.recogniser_pool import RecogniserPool
from taste_grpc.speech.silero import SileroDetector
from taste_grpc.speech.voice import Voice
from taste_grpc.speech.webrtc import WebRtcDetector
from taste_grpc.speech.whisper import WhisperRecogniser, parse_whisper_model

__all__ = [
    "DETECTOR_SAMPLE_RATE_HZ",
    "RECOGNISER_SAMPLE_RATE_HZ",
    "EspeakVoice",
    "MoonshineRecogniser",
    "PiperVoice",
    "Recogniser",
    "RecogniserPool",
    "SileroDetector",
    "SpeechDetector",
    "SpeechFrames",
    "Voice",
    "VoiceName",
    "WebRtcDetector",
    "WhisperRecogniser",
    "default_recogniser",
    "default_voice",
    "known_language",
    "make_voice",
    "parse_whisper_model",
    "sample_recordings",
]

VoiceName = Literal["auto", "piper", "espeak"]


def default_recogniser() -> Recogniser:
    """The embedded recogniser. Raises UnsupportedByModelError when it is not installed."""
    return MoonshineRecogniser()


def default_voice() -> Voice:
    """Piper where it is installed, else espeak-ng. Raises UnsupportedByModelError when neither is there."""
    return make_voice("auto")


def make_voice(name: VoiceName = "auto", *, processes: int = 1) -> Voice:
    """A voice by its name, not started yet.

    Args:
        name: `piper`, `espeak`, or `auto`, which takes the first of them that is installed.
        processes: how many phrases it speaks at once.

    Raises UnsupportedByModelError when what it needs is not installed.
    """
    if name == "piper":
        return PiperVoice(processes=processes)
    if name == "espeak":
        return EspeakVoice(processes=processes)
    if name != "auto":
        raise InvalidInputError("voice", f"{name!r} is not auto, piper or espeak")
    try:
        return PiperVoice(processes=processes)
    except UnsupportedByModelError as no_piper:
        try:
            return EspeakVoice(processes=processes)
        except UnsupportedByModelError as no_espeak:
            raise UnsupportedByModelError(f"there is no voice: {no_piper}; or {no_espeak}") from None
