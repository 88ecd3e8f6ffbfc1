"""Received audio as a WAV file."""

from __future__ import annotations

import array
import os
import sys
import wave
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Self

from taste.v1.common_pb2 import AUDIO_ENCODING_FLOAT32LE, AUDIO_ENCODING_LINEAR16, AudioEncoding, AudioFormat
from taste.v1.taste_pb2 import DetokenizeResponse
from taste_grpc_client.conversation_events import SpeechChunk
from taste_grpc_client.requests import encoding_of

_BYTES_PER_SAMPLE = 2
_FULL_SCALE = 32767


class WavWriter:
    """Writes the audio of a `detokenize` or `speak` stream, or of answers in a conversation, to a WAV file of 16 bit
    samples, as it comes.

    The file is made at the first message, which tells the sample rate, and is complete after `close` or the `with`
    block; a stream without messages leaves none. Samples of a float32 stream are rounded to 16 bit. To be used by
    one thread at a time.

    Args:
        target: a path, or a binary file that can be written and sought; the latter stays the caller's to close.
    """

    def __init__(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        self._target = target
        self._file: IO[bytes] | None = None
        self._wave: wave.Wave_write | None = None
        self._format = AudioFormat()
        self._samples = 0

    @property
    def duration_ms(self) -> float:
        """Length of what was written, in ms."""
        return 1000.0 * self._samples / self._format.sample_rate_hz if self._samples else 0.0

    def write(self, response: DetokenizeResponse | SpeechChunk) -> None:
        """Appends the audio of one message.

        Raises:
            ValueError: the message has no format (those of `detokenize` and `speak` do), or another one than the
                messages before.
            OSError: the file cannot be written.
        """
        form = _format_of(response)
        if self._wave is None:
            self._wave = self._open(form)
        elif form != self._format:
            raise ValueError("format: differs from that of the messages before; each call needs a file of its own")
        samples = _linear16(response.audio, self._format.encoding)
        self._wave.writeframesraw(samples)
        self._samples += len(samples) // _BYTES_PER_SAMPLE

    def _open(self, form: AudioFormat) -> wave.Wave_write:
        if form.encoding not in (AUDIO_ENCODING_LINEAR16, AUDIO_ENCODING_FLOAT32LE) or form.sample_rate_hz <= 0:
            raise ValueError("format: LINEAR16 or FLOAT32LE and its sample rate were expected in the first message")
        if isinstance(self._target, str | os.PathLike):
            self._file = open(self._target, "wb")  # noqa: SIM115  # `close` closes it
            opened = wave.Wave_write(self._file)
        else:
            opened = wave.Wave_write(self._target)
        opened.setnchannels(1)
        opened.setsampwidth(_BYTES_PER_SAMPLE)
        opened.setframerate(form.sample_rate_hz)
        self._format.CopyFrom(form)
        return opened

    def close(self) -> None:
        """Completes the file. Does nothing the second time."""
        if self._wave is not None:
            self._wave.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_wav(
    target: str | os.PathLike[str] | IO[bytes], responses: Iterable[DetokenizeResponse | SpeechChunk]
) -> float:
    """Writes all audio of a stream to a WAV file and returns its length in ms.

    When the stream fails, what came before is in the file. Raises as `WavWriter.write` and the stream do.
    """
    with WavWriter(target) as writer:
        for response in responses:
            writer.write(response)
    return writer.duration_ms


def _format_of(response: DetokenizeResponse | SpeechChunk) -> AudioFormat:
    if isinstance(response, DetokenizeResponse):
        return response.format
    return AudioFormat(
        encoding=encoding_of("encoding", response.encoding), sample_rate_hz=response.sample_rate_hz, channels=1
    )


def _linear16(audio: bytes, encoding: AudioEncoding.ValueType) -> bytes:
    if encoding == AUDIO_ENCODING_LINEAR16:
        return audio
    floats = array.array("f", audio)
    if sys.byteorder == "big":
        floats.byteswap()
    samples = array.array("h", (round(_FULL_SCALE * max(-1.0, min(1.0, sample))) for sample in floats))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()
