"""The recogniser for a given Whisper model, on faster-whisper."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import CheckpointError, InvalidInputError, UnsupportedByModelError
from taste_grpc.speech.recogniser import known_language

_PACKAGE, _DISTRIBUTION = "faster_whisper", "faster-whisper"

COMPUTE_TYPES = (
    "bfloat16",
    "float16",
    "float32",
    "int16",
    "int8",
    "int8_bfloat16",
    "int8_float16",
    "int8_float32",
)
"""How CTranslate2 may compute."""


def parse_whisper_model(text: str) -> tuple[str, str | None]:
    """Model and compute type of `small-int8`, `large-v3-float16`, `small.en`, `someone/model-int8` or a directory.

    A directory is taken as it is, whatever it ends in. None for a compute type that is not given.

    Raises InvalidInputError when there is no model in it.
    """
    model, compute_type = text.strip(), None
    if not Path(model).is_dir():
        head, _, last = model.rpartition("-")
        if last in COMPUTE_TYPES:
            model, compute_type = head, last
    if not model:
        raise InvalidInputError("whisper", f"{text!r} names no model; `small-int8` or a directory does")
    return model, compute_type


class WhisperRecogniser:
    """Speech to text with a Whisper model in the format of CTranslate2.

    Args:
        model: a directory; or a size that faster-whisper knows or a hub id, which it fetches when the hub's cache does
            not have it; with a compute type at the end, as `small-int8`. Without one it is int8 on the CPU
            and float16 with CUDA.
        device: `cpu`, `cuda`, or `auto`, which takes CUDA when there is one.
        threads: of one computation on the CPU.

    Raises:
        InvalidInputError: `model` or `device` is not of these.
        UnsupportedByModelError: the package is not installed.
        CheckpointError: the weights cannot be had, are no such model, or the device cannot compute so.
    """

    def __init__(self, model: str, *, device: str = "auto", threads: int = 1) -> None:
        name, compute_type = parse_whisper_model(model)
        if device not in ("auto", "cpu", "cuda"):
            raise InvalidInputError("device", f"{device!r} is not auto, cpu or cuda")
        if find_spec(_PACKAGE) is None:
            raise UnsupportedByModelError(f"this recogniser needs {_DISTRIBUTION}: pip install 'taste-grpc[whisper]'")
        import ctranslate2  # type: ignore[import-untyped]
        import faster_whisper  # type: ignore[import-untyped]

        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        compute_type = compute_type or ("int8" if device == "cpu" else "float16")
        try:
            self._model = faster_whisper.WhisperModel(
                name, device=device, compute_type=compute_type, cpu_threads=threads
            )
        except Exception as error:  # of the hub's client, of HTTP, of CTranslate2: they have nothing in common
            raise CheckpointError(f"the Whisper model {name} cannot be loaded: {_first_line(error)}") from error
        self._name = f"{name} {compute_type} on {device}"

    @property
    def name(self) -> str:
        """Name and version of the package, the model, and how it runs."""
        try:
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)} {self._name}"
        except PackageNotFoundError:
            return f"{_DISTRIBUTION} {self._name}"

    @property
    def languages(self) -> frozenset[str]:
        """A hundred of them, or English."""
        return frozenset(self._model.supported_languages)

    def transcribe(self, samples: Float32Array, language: str | None = None) -> str:
        """What is said in `samples` `[T]` float32 at 16 kHz; empty when nothing is. `Recogniser` says the rest.

        Without `language` a multilingual model finds out by itself.
        """
        from faster_whisper.vad import get_speech_timestamps  # type: ignore[import-untyped]

        language = known_language(self, language)
        samples = np.ascontiguousarray(samples, np.float32)
        spans = get_speech_timestamps(samples)
        if not spans:  # of silence Whisper makes up words
            return ""
        segments, _ = self._model.transcribe(
            samples[spans[0]["start"] : spans[-1]["end"]],
            language=language,
            beam_size=1,
            temperature=0.0,  # the default decodes up to six times what it doubts
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(text for segment in segments if (text := segment.text.strip()))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
