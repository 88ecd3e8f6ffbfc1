"""The default voice-activity detector: Silero's network, whose weights ship in the silero-vad package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError, UnsupportedByModelError
from taste_grpc.speech.detector import DETECTOR_SAMPLE_RATE_HZ

_PACKAGE, _DISTRIBUTION = "silero_vad", "silero-vad"
_FRAME, _CONTEXT = 512, 64
_STATE = (2, 1, 128)


@cache
def _session() -> Any:
    """The network; it keeps no state, so all detectors share it, on any thread."""
    spec = find_spec(_PACKAGE)
    path = Path(spec.origin).parent / "data" / "silero_vad.onnx" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise UnsupportedByModelError(
            f"the default voice-activity detector needs {_DISTRIBUTION}: pip install 'taste-grpc[embedded]'"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class SileroDetector:
    """A recurrent network over frames of 32 ms.

    Begins to see speech at `threshold` and goes on until the probability falls below `threshold` less 0.15, so that it
    does not flicker.

    Raises UnsupportedByModelError when the package is not installed.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self._network = _session()
        self._threshold = threshold
        self._state: Float32Array
        self._context: Float32Array
        self._speaks: bool
        self.reset()

    @property
    def name(self) -> str:
        """Name and version of the package."""
        try:
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"
        except PackageNotFoundError:
            return _DISTRIBUTION

    @property
    def frame_samples(self) -> int:
        """32 ms."""
        return _FRAME

    def is_speech(self, frame: Float32Array) -> bool:
        """Whether there is speech in `frame` `[512]` float32 at 16 kHz; some 0.4 ms on one core."""
        if frame.shape != (_FRAME,):
            raise InvalidInputError("frame", f"has shape {list(frame.shape)}, not [{_FRAME}]")
        given = np.concatenate([self._context, frame])[None].astype(np.float32)
        rate = np.asarray(DETECTOR_SAMPLE_RATE_HZ, np.int64)
        probability, self._state = self._network.run(None, {"input": given, "state": self._state, "sr": rate})
        self._context = frame[-_CONTEXT:]
        self._speaks = bool(probability[0, 0] >= self._threshold - 0.15 * self._speaks)
        return self._speaks

    def reset(self) -> None:
        """Forget the stream so far."""
        self._state = np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._speaks = False
