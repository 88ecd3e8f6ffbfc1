"""Whatever holds a spoken question, as the samples that models take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from taste_grpc.audio import MAX_CHANNELS, Encoding, Waveform, decode_clip, resample
from taste_grpc.audio.container import container_of
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import InvalidInputError, InvalidTypeError, type_name
from taste_grpc.speech import RECOGNISER_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import torch

    AudioData = torch.Tensor | npt.NDArray[Any] | str | Path | bytes | Waveform
    """A tensor or an array of samples, the path or the bytes of a WAV, FLAC, Ogg Opus or MP3 file, or a clip."""

FIELD = "audio_data"
_ENCODINGS = {"WAV": Encoding.WAV, "FLAC": Encoding.FLAC, "OGG": Encoding.OGG_OPUS, "MP3": Encoding.MP3}


def question_samples(source: AudioData, sampling_rate: int) -> Float32Array:
    """`source` as `[T]` float32 at 16 kHz; blocks while a file is read and decoded.

    Tensors and arrays are float in [-1, 1] or int16, at `sampling_rate`, of shape `[T]`, or `[channels, T]` or
    `[T, channels]` with one channel or two, which are averaged. Files and clips say their rate themselves.

    Raises:
        InvalidInputError: it is no such audio, or shorter than 20 ms, or longer than 30 s.
        InvalidTypeError: it is something else altogether.
        OSError: the file cannot be read.
    """
    if isinstance(source, Waveform):
        clip = source
    elif isinstance(source, str | Path):
        clip = _file(Path(source).read_bytes(), str(source))
    elif isinstance(source, bytes | bytearray | memoryview):
        clip = _file(bytes(source), "the bytes given")
    else:
        clip = _raw(_array(source), sampling_rate)
    return resample(clip.samples, clip.sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ)


def _file(data: bytes, name: str) -> Waveform:
    container = container_of(data)
    if container is None:
        raise InvalidInputError(FIELD, f"{name}: not a WAV, FLAC, Ogg Opus or MP3 file")
    try:
        return decode_clip(data, _ENCODINGS[container])
    except InvalidInputError as error:
        raise InvalidInputError(FIELD, f"{name}: {error.description}") from error


def _array(source: Any) -> npt.NDArray[Any]:
    if hasattr(source, "detach"):  # a tensor, of whatever device and type
        tensor = source.detach().cpu()
        return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    if isinstance(source, np.ndarray):
        return source
    raise InvalidTypeError(
        FIELD, f"a tensor, an array, a path, the bytes of a file or a Waveform is expected, not {type_name(source)}"
    )


def _raw(samples: npt.NDArray[Any], sampling_rate: int) -> Waveform:
    """Samples as they come, checked in the way that raw audio of a request is."""
    frames = _frames(samples)
    if frames.dtype.kind == "i" and frames.dtype.itemsize == 2:
        data, encoding = frames.astype("<i2").tobytes(), Encoding.LINEAR16
    elif frames.dtype.kind == "f":
        data, encoding = frames.astype("<f4").tobytes(), Encoding.FLOAT32LE
    else:
        raise InvalidInputError(FIELD, f"has samples of type {frames.dtype}; float and int16 are allowed")
    try:
        return decode_clip(data, encoding, sampling_rate, frames.shape[1])
    except InvalidInputError as error:
        field = "sampling_rate" if error.field.endswith("sample_rate_hz") else FIELD
        raise InvalidInputError(field, error.description) from error


def _frames(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`[T, channels]`."""
    if samples.ndim == 1:
        return samples[:, None]
    if samples.ndim == 2 and samples.shape[0] <= MAX_CHANNELS < samples.shape[1]:
        return samples.T
    if samples.ndim == 2 and 1 <= samples.shape[1] <= MAX_CHANNELS:
        return samples
    raise InvalidInputError(FIELD, f"has shape {list(samples.shape)}; one clip of one or two channels is expected")
