"""From microphone bytes to frames that a voice-activity detector has judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taste_grpc.audio import Encoding, StreamResampler, decode_pcm
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError
from taste_grpc.speech import DETECTOR_SAMPLE_RATE_HZ, SpeechDetector, SpeechFrames


@dataclass(frozen=True)
class Frame:
    """A frame of microphone audio.

    Attributes:
        samples: `[T]` float32, mono, at 16 kHz.
        is_speech: what the detector says.
    """

    samples: Float32Array
    is_speech: bool


class Ear:
    """Takes in the raw PCM of one microphone. One thread at a time.

    Args:
        encoding: a raw one.
        sample_rate_hz: of the microphone.
        channels: which are averaged.
        detector: of this microphone only.
    """

    def __init__(self, encoding: Encoding, sample_rate_hz: int, channels: int, detector: SpeechDetector) -> None:
        self.frame_bytes = encoding.sample_bytes * channels
        self.frame_ms = 1000 * detector.frame_samples / DETECTOR_SAMPLE_RATE_HZ
        self._encoding, self._channels, self._detector = encoding, channels, detector
        self._resampler = StreamResampler(sample_rate_hz, DETECTOR_SAMPLE_RATE_HZ)
        self._frames = SpeechFrames(detector.frame_samples)

    def check(self, data: bytes) -> None:
        """Raise InvalidInputError unless `data` is a whole number of frames of PCM, and at least one."""
        if not data or len(data) % self.frame_bytes:
            raise InvalidInputError(
                "audio", f"has {len(data)} bytes, which is no whole number of frames of {self.frame_bytes} bytes"
            )

    def push(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Samples that are no numbers count as silence."""
        samples = decode_pcm(data, self._encoding)
        if self._encoding is Encoding.FLOAT32LE:
            samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1)
        heard = self._frames.push(self._resampler.push(samples))
        return [Frame(samples, self._detector.is_speech(samples)) for samples in heard]
