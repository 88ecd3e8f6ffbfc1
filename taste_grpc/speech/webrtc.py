"""The light voice-activity detector: that of WebRTC, which hears energy in the bands of speech."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.speech.detector import DETECTOR_SAMPLE_RATE_HZ

_DISTRIBUTION = "webrtcvad-wheels"
_FRAME = 320


class WebRtcDetector:
    """A Gaussian mixture over frames of 20 ms: a few microseconds each, and easily taken in by noise.

    Args:
        mode: from 0, which takes much for speech, to 3, which takes little.

    Raises UnsupportedByModelError when the package is not installed.
    """

    def __init__(self, mode: int = 3) -> None:
        if mode not in range(4):
            raise InvalidInputError("mode", f"{mode} is not 0 to 3")
        self._mode = mode
        self._vad = self._made()

    @property
    def name(self) -> str:
        """Name and version of the package."""
        return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"

    @property
    def frame_samples(self) -> int:
        """20 ms."""
        return _FRAME

    def is_speech(self, frame: Float32Array) -> bool:
        """Whether there is speech in `frame` `[320]` float32 at 16 kHz."""
        if frame.shape != (_FRAME,):
            raise InvalidInputError("frame", f"has shape {list(frame.shape)}, not [{_FRAME}]")
        pcm = (np.clip(frame, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        return bool(self._vad.is_speech(pcm, DETECTOR_SAMPLE_RATE_HZ))

    def reset(self) -> None:
        """Forget the stream so far."""
        self._vad = self._made()

    def _made(self) -> Any:
        try:
            import webrtcvad
        except ImportError as error:
            raise UnsupportedByModelError(
                f"this voice-activity detector needs {_DISTRIBUTION}: pip install 'taste-grpc[embedded]'"
            ) from error
        return webrtcvad.Vad(self._mode)
