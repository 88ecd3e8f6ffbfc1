"""The fallback voice: the espeak-ng program of the machine.

The program is run, rather than its library through pyttsx3, because a process can be killed and cannot take this one
with it; the text goes in through its standard input, where it cannot be taken for an option.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import wave
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator

from taste_grpc.audio import Encoding, decode_pcm, resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import SpeechError, UnsupportedByModelError
from taste_grpc.speech.spoken_text import spoken_text

_PROGRAM = "espeak-ng"
_SAMPLE_RATE_HZ = 22_050
_START_S = 10.0


class EspeakVoice:
    """A formant voice: robotic, understandable, in many languages, and more than fifty times faster than speech.

    Args:
        voice: one that `espeak-ng --voices` lists.
        processes: how many phrases are spoken at once.

    Raises UnsupportedByModelError when espeak-ng is not on the machine.
    """

    def __init__(self, voice: str = "en-us", *, processes: int = 2) -> None:
        program = shutil.which(_PROGRAM)
        if program is None:
            raise UnsupportedByModelError(f"this voice needs the program {_PROGRAM}: apt-get install {_PROGRAM}")
        self._command = (program, "-v", voice, "-b", "1", "--stdin", "--stdout")
        self._voice = voice
        self._free = asyncio.Semaphore(processes)
        self._is_closed = False

    @property
    def name(self) -> str:
        """The program and the voice."""
        return f"{_PROGRAM} {self._voice}"

    @property
    def sample_rate_hz(self) -> int:
        """22,050."""
        return _SAMPLE_RATE_HZ

    async def speak(self, text: str) -> AsyncGenerator[Float32Array]:
        """The audio of a phrase, `[T]` float32, in one piece; none when nothing can be said.

        A process runs for each phrase; cancelling kills it. Raises SpeechError when it fails.
        """
        if self._is_closed:
            raise SpeechError("the voice has been closed")
        if line := spoken_text(text):
            async with self._free:
                wav = await self._wav(line)
            if len(samples := _samples(wav)):
                yield samples

    async def start(self) -> None:
        """Try the voice. Raises UnsupportedByModelError when it is not there or the program does not run."""
        try:
            async with asyncio.timeout(_START_S):
                await self._wav("one")
        except (SpeechError, TimeoutError) as error:
            reason = str(error) or f"nothing came within {_START_S:.0f} s"
            raise UnsupportedByModelError(f"the voice {self.name} cannot be used: {reason}") from error

    async def aclose(self) -> None:
        """Nothing runs between phrases; those under way go on."""
        self._is_closed = True

    async def _wav(self, line: str) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
        except OSError as error:
            raise SpeechError(f"{_PROGRAM} does not start: {error.strerror or error}") from error
        try:
            wav, complaint = await process.communicate(line.encode())
        finally:
            await _end(process)
        # without the voice it says so, speaks with another one and ends well
        if process.returncode != 0 or complaint.startswith(b"Error"):
            reason = complaint.decode(errors="replace").strip() or f"exit status {process.returncode}"
            raise SpeechError(f"{_PROGRAM} failed: {' '.join(reason.split())}")
        return wav


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        assert process.stdout is not None
        assert process.stderr is not None
        for pipe in (process.stdout, process.stderr):
            await pipe.read()  # a pipe is closed once it has been read to its end
        await process.wait()


def _samples(wav: bytes) -> Float32Array:
    """`wav` as `[T]` float32 at 22,050 Hz. Its header was written before the length was known, and does not tell it."""
    try:
        with wave.open(io.BytesIO(wav)) as read:
            rate_hz, width, channels = read.getframerate(), read.getsampwidth(), read.getnchannels()
            pcm = read.readframes(read.getnframes())
    except (wave.Error, EOFError) as error:
        raise SpeechError(f"{_PROGRAM} gave no WAV: {error}") from error
    if (width, channels) != (2, 1):
        raise SpeechError(f"{_PROGRAM} gave {channels} channels of {8 * width} bits, not one of 16")
    return resample(decode_pcm(pcm, Encoding.LINEAR16), rate_hz, _SAMPLE_RATE_HZ)
