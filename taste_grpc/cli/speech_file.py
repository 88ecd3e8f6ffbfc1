"""Where speech goes as it is made: a file that is there when it is whole, or a pipe."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from taste_grpc.cli.failure import usage_error

if TYPE_CHECKING:
    from taste.v1.taste_pb2 import DetokenizeResponse

Encoding = Literal["wav", "linear16", "float32le"]

_UNKNOWN_LENGTH = 0xFFFF_FFFF


class SpeechWriter:
    """Writes speech to `file`, as 16 bit WAV or as raw samples.

    A WAV file that cannot be sought says in its header that its length is not known.

    Attributes:
        samples, sample_rate_hz: what was written so far.
    """

    def __init__(self, file: IO[bytes], encoding: Encoding) -> None:
        self._file, self._encoding = file, encoding
        self.samples = 0
        self.sample_rate_hz = 0

    @property
    def duration_ms(self) -> float:
        """Length of what was written."""
        return 1000.0 * self.samples / self.sample_rate_hz if self.samples else 0.0

    def write(self, response: DetokenizeResponse) -> None:
        """Append the audio of one message."""
        if not self.sample_rate_hz:
            self.sample_rate_hz = response.format.sample_rate_hz
            if self._encoding == "wav":
                self._file.write(_wav_header(self.sample_rate_hz, _UNKNOWN_LENGTH))
        self._file.write(response.audio)
        self._file.flush()
        self.samples += len(response.audio) // (4 if self._encoding == "float32le" else 2)

    def complete(self) -> None:
        """Write the length into the header, where there is one and it can be reached."""
        if self._encoding == "wav" and self._file.seekable():
            self._file.seek(0)
            self._file.write(_wav_header(self.sample_rate_hz, 2 * self.samples))


def _wav_header(sample_rate_hz: int, data_bytes: int) -> bytes:
    """Header of a WAV file of one channel of 16 bit samples."""
    riff_bytes = min(36 + data_bytes, _UNKNOWN_LENGTH)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)


@contextmanager
def speech_file(path: Path, encoding: Encoding) -> Iterator[SpeechWriter]:
    """A writer to `path`, or to stdout when it is `-`.

    A file appears when the block has ended well, whole; when it has not, what was there before stays. Raises
    CommandError for a terminal, OSError when the file cannot be written.
    """
    if str(path) == "-":
        if sys.stdout.isatty():
            raise usage_error("--out", "stdout is a terminal; audio goes to a file or a pipe")
        yield SpeechWriter(sys.stdout.buffer, encoding)
        return
    if path.exists() and not path.is_file():  # a named pipe, /dev/null
        with path.open("wb") as pipe:
            yield SpeechWriter(pipe, encoding)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            writer = SpeechWriter(file, encoding)
            yield writer
            writer.complete()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
