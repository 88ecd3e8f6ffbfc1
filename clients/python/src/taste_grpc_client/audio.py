"""Whatever holds audio, as the `AudioClip` a request carries."""

from __future__ import annotations

import array
import os
import sys
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from taste.v1.common_pb2 import (
    AUDIO_ENCODING_FLAC,
    AUDIO_ENCODING_FLOAT32LE,
    AUDIO_ENCODING_LINEAR16,
    AUDIO_ENCODING_MP3,
    AUDIO_ENCODING_OGG_OPUS,
    AUDIO_ENCODING_WAV,
    AudioClip,
    AudioEncoding,
    AudioFormat,
)


class SampleArray(Protocol):
    """An array of samples, such as numpy's: `[T]` or `[T, channels]`, int16, float32 or float64, by buffer protocol."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""

    def tobytes(self) -> bytes:
        """The elements in C order."""


@runtime_checkable
class BinaryFile(Protocol):
    """An open file of bytes."""

    def read(self) -> bytes:
        """All that is left in it."""


AudioSource: TypeAlias = (
    "str | os.PathLike[str] | BinaryFile | bytes | bytearray | memoryview"
    " | array.array[int] | array.array[float] | SampleArray | Sequence[int] | Sequence[float] | AudioClip"
)
"""A path, an open file or the bytes of a WAV, FLAC, Ogg Opus or MP3 file; samples; or a ready `AudioClip`."""


def audio_clip(source: AudioSource, sample_rate_hz: int | None = None) -> AudioClip:
    """The `AudioClip` for `source`.

    A path is read; bytes, and what an open file has left, are taken for a whole file, known by its first bytes, or,
    with `sample_rate_hz`, for raw LINEAR16 mono. Arrays and lists need `sample_rate_hz`: whole numbers of 16 bit go
    out as LINEAR16, float32 and float64 (in [-1, 1]) as FLOAT32LE.

    Raises:
        OSError: the file cannot be read.
        ValueError: bytes are no such file; samples have another shape, type or range; `sample_rate_hz` is missing,
            or is given with something that states its own rate.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, AudioClip):
        _refuse_rate(sample_rate_hz, "an AudioClip")
        return source
    if isinstance(source, str | os.PathLike):
        _refuse_rate(sample_rate_hz, "a file")
        return _file_clip(Path(source).read_bytes(), os.fspath(source))
    if isinstance(source, BinaryFile):
        source = _read(source)
    if isinstance(source, bytes | bytearray):
        if sample_rate_hz is None:
            return _file_clip(bytes(source), "the bytes given")
        return _raw_clip(AUDIO_ENCODING_LINEAR16, bytes(source), sample_rate_hz, 1)
    return _array_clip(list_samples(source) if isinstance(source, list | tuple) else source, sample_rate_hz)


def _read(file: BinaryFile) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"audio: the file gives {type(data).__name__}; it must be opened for bytes")
    return data


def list_samples(samples: Sequence[int] | Sequence[float]) -> array.array[int] | array.array[float]:
    """Whole numbers as 16 bit, others as float32. Raises ValueError and TypeError."""
    whole = all(isinstance(sample, Integral) for sample in samples)  # those of numpy as well
    try:
        return array.array("h" if whole else "f", samples)
    except OverflowError:
        raise ValueError("audio: whole numbers in a list are samples of 16 bit, -32,768 to 32,767") from None
    except TypeError:
        raise TypeError("audio: a list of samples has numbers, of one channel, and nothing else") from None


def _refuse_rate(sample_rate_hz: int | None, what: str) -> None:
    if sample_rate_hz is not None:
        raise ValueError(f"sample_rate_hz: {what} states its own sample rate, so none can be given")


def _file_clip(data: bytes, name: str) -> AudioClip:
    return AudioClip(format=AudioFormat(encoding=_container_of(data, name)), data=data)


def _container_of(data: bytes, name: str) -> AudioEncoding.ValueType:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return AUDIO_ENCODING_WAV
    if data[:4] == b"fLaC":
        return AUDIO_ENCODING_FLAC
    if data[:4] == b"OggS":
        return AUDIO_ENCODING_OGG_OPUS
    # An ID3 tag, or the eleven set bits that begin an MPEG frame.
    if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        return AUDIO_ENCODING_MP3
    raise ValueError(f"{name}: not a WAV, FLAC, Ogg Opus or MP3 file (raw samples need sample_rate_hz)")


def _raw_clip(encoding: AudioEncoding.ValueType, data: bytes, sample_rate_hz: int, channels: int) -> AudioClip:
    return AudioClip(format=AudioFormat(encoding=encoding, sample_rate_hz=sample_rate_hz, channels=channels), data=data)


def _array_clip(source: object, sample_rate_hz: int | None) -> AudioClip:
    try:
        view = memoryview(source)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"audio: a path, bytes, an array of samples or an AudioClip was expected, not {type(source).__name__}"
        ) from None
    if sample_rate_hz is None:
        raise ValueError("sample_rate_hz: samples do not say their sample rate, so it must be given")
    if view.ndim not in (1, 2):
        raise ValueError(f"audio: samples have shape [T] or [T, channels], not {list(view.shape or ())}")
    channels = 1 if view.ndim == 1 or view.shape is None else view.shape[1]
    data = view.tobytes()
    if view.format == "h":
        return _raw_clip(AUDIO_ENCODING_LINEAR16, little_endian(array.array("h", data)), sample_rate_hz, channels)
    if view.format in ("f", "d"):
        samples = array.array("f", array.array(view.format, data))
        return _raw_clip(AUDIO_ENCODING_FLOAT32LE, little_endian(samples), sample_rate_hz, channels)
    raise ValueError(f"audio: samples are int16, float32 or float64, not of buffer format {view.format!r}")


def little_endian(samples: array.array[int] | array.array[float]) -> bytes:
    """The samples as they travel; `samples` is used up."""
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()
