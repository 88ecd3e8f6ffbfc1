"""What a live conversation listens to: a recording as fast as it was spoken, or a microphone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import soundfile

from taste_grpc.audio import MAX_CHANNELS, Encoding, encode_pcm
from taste_grpc.cli.failure import usage_error

PIECE_MS = 40
"""Length of the pieces in which audio is sent."""


class Listening(Protocol):
    """Audio as it is spoken: LINEAR16, channels interleaved."""

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second and channel."""
        ...

    @property
    def channels(self) -> int:
        """1 or 2."""
        ...

    @property
    def silent_ms(self) -> float:
        """How much silence was added at the end; 0 before the end."""
        ...

    def pieces(self) -> AsyncGenerator[bytes]:
        """The audio in short pieces, each when it has been spoken, without end. Once."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class RecordingAudio:
    """A file with a recording, then silence.

    Args:
        path: WAV, FLAC, OGG, MP3, or whatever else libsndfile reads. Of any length: it is read as it is sent.
        clock, sleep: of the pace.

    Raises CommandError when it cannot be read, or has more than two channels.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.silent_ms = 0.0
        self._clock, self._sleep = clock, sleep
        self._path = path
        try:
            with path.open("rb"):
                pass
            self._file = soundfile.SoundFile(path)
        except OSError as error:
            raise usage_error("FILE", f"{path}: {error.strerror or error}") from None
        except soundfile.LibsndfileError as error:
            raise usage_error("FILE", f"{path}: {error.error_string.rstrip('.')}") from None
        if self._file.channels > MAX_CHANNELS:
            self._file.close()
            raise usage_error("FILE", f"{path}: has {self._file.channels} channels; 1 to {MAX_CHANNELS} are expected")

    @property
    def sample_rate_hz(self) -> int:
        """That of the file."""
        return int(self._file.samplerate)

    @property
    def channels(self) -> int:
        """Those of the file."""
        return int(self._file.channels)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The recording, then silence without end, at the pace of a clock; what comes late is made up for."""
        frames = self.sample_rate_hz * PIECE_MS // 1000
        began = self._clock()
        sent = 0
        for piece in self._unpaced(frames):
            sent += frames
            await self._sleep(max(0.0, began + sent / self.sample_rate_hz - self._clock()))
            yield piece

    def _unpaced(self, frames: int) -> Iterator[bytes]:
        silence = bytes(2 * frames * self.channels)
        while True:
            try:
                # Not as int16: libsndfile would not scale the samples of a file of floats.
                samples = self._file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise usage_error("FILE", f"{self._path}: {error.error_string.rstrip('.')}") from None
            if not len(samples):
                break
            yield encode_pcm(samples.reshape(-1), Encoding.LINEAR16)
        while True:
            self.silent_ms += PIECE_MS
            yield silence

    def close(self) -> None:
        """Close the file."""
        self._file.close()
