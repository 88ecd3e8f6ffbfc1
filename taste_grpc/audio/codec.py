"""Bytes to waveforms and back: the only place where audio is bytes."""

from __future__ import annotations

import enum
import io
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from taste_grpc.audio.container import container_of, missing_wav_bytes, ogg_is_whole
from taste_grpc.audio.waveform import Float32Array, Waveform
from taste_grpc.errors import InvalidInputError, InvalidTypeError, type_name

MIN_SAMPLE_RATE_HZ = 8_000
MAX_SAMPLE_RATE_HZ = 96_000
MAX_CHANNELS = 2
MAX_CLIP_MS = 30_000
MIN_CLIP_MS = 20

_INT16_SCALE = 32_768
_MAX_MAGNITUDE = 8.0  # beyond any overshoot of a codec: samples on the scale of integers


class Encoding(enum.Enum):
    """How the bytes of a clip are to be read."""

    LINEAR16 = "LINEAR16"
    """Raw signed 16-bit little-endian samples, channels interleaved."""
    FLOAT32LE = "FLOAT32LE"
    """Raw 32-bit little-endian floats in [-1, 1], channels interleaved."""
    WAV = "WAV"
    FLAC = "FLAC"
    OGG_OPUS = "OGG_OPUS"
    MP3 = "MP3"

    @property
    def is_raw(self) -> bool:
        """Whether the bytes say nothing of rate and channels."""
        return self in (Encoding.LINEAR16, Encoding.FLOAT32LE)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one raw sample; raises ValueError for containers."""
        if not self.is_raw:
            raise ValueError(f"{self.name} is a container: its samples have no fixed size")
        return 2 if self is Encoding.LINEAR16 else 4


_CONTAINER_FORMATS = {
    Encoding.WAV: ("WAV", "WAVEX", "RF64"),
    Encoding.FLAC: ("FLAC",),
    Encoding.OGG_OPUS: ("OGG",),
    Encoding.MP3: ("MP3",),
}


def decode_clip(
    data: bytes,
    encoding: Encoding,
    sample_rate_hz: int | None = None,
    channels: int | None = None,
    *,
    min_ms: int = MIN_CLIP_MS,
    max_ms: int = MAX_CLIP_MS,
) -> Waveform:
    """A whole clip as mono float32 at the rate it was recorded with.

    Raw encodings need `sample_rate_hz` and `channels` (1 when None); a container says both
    itself and the arguments are not looked at. Two channels are averaged. Samples outside
    [-1, 1], the overshoot of lossy codecs, are cut there.

    Args:
        min_ms, max_ms: allowed length. A container that decodes to more is refused without
            being decoded in full, so memory stays within `max_ms` whatever the bytes claim.

    Raises:
        InvalidInputError: its field is `data`, or `format.encoding`, `format.sample_rate_hz`,
            `format.channels`: paths within an `AudioClip` of the contract.

    May be called from any thread.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidTypeError("data", f"bytes expected, not {type_name(data)}")
    data = bytes(data)
    if not data:
        raise InvalidInputError("data", "is empty")
    if encoding.is_raw:
        rate_hz = _checked_rate("format.sample_rate_hz", sample_rate_hz)
        frames = _decode_raw(data, encoding, _checked_channels("format.channels", channels), rate_hz, max_ms)
    else:
        frames, rate_hz = _decode_container(data, encoding, max_ms)
    duration_ms = 1000 * len(frames) / rate_hz
    if duration_ms < min_ms:
        raise InvalidInputError("data", f"holds {duration_ms:.3g} ms of audio; at least {min_ms} ms are needed")
    return Waveform(_mono(frames), rate_hz)


def _checked_rate(field: str, rate_hz: int | None) -> int:
    if rate_hz is None or not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        stated = "not given" if rate_hz is None else str(rate_hz)
        raise InvalidInputError(field, f"is {stated}; {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz are allowed")
    return rate_hz


def _checked_channels(field: str, channels: int | None) -> int:
    if channels is None:
        return 1
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidInputError(field, f"is {channels}; 1 to {MAX_CHANNELS} are allowed")
    return channels


def _too_long(seconds: float, max_ms: int) -> InvalidInputError:
    return InvalidInputError("data", f"holds {seconds:.2f} s of audio; at most {max_ms / 1000:g} s are allowed")


def _decode_raw(data: bytes, encoding: Encoding, channels: int, rate_hz: int, max_ms: int) -> Float32Array:
    """`[T, channels]` float32."""
    frame_bytes = encoding.sample_bytes * channels
    if len(data) % frame_bytes:
        raise InvalidInputError(
            "data",
            f"has {len(data)} bytes, no multiple of {frame_bytes} "
            f"({channels} channel{'s' * (channels > 1)} of {encoding.name})",
        )
    seconds = len(data) / frame_bytes / rate_hz
    if seconds * 1000 > max_ms:
        raise _too_long(seconds, max_ms)
    return decode_pcm(data, encoding).reshape(-1, channels)


def _decode_container(data: bytes, encoding: Encoding, max_ms: int) -> tuple[Float32Array, int]:
    """(`[T, channels]` float32, rate)."""
    _check_magic(data, encoding)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, encoding)
            limit = max_ms * file.samplerate // 1000
            # The header may lie about the length, so the read is bounded too.
            frames = file.read(limit + 1, dtype="float32", always_2d=True)
            expected, rate_hz = int(file.frames), int(file.samplerate)
    except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise InvalidInputError("data", f"is no {encoding.name} file that can be read: {reason}") from error
    if len(frames) > limit:
        raise _too_long(max(expected, len(frames)) / rate_hz, max_ms)
    _check_whole(data, encoding, len(frames), expected)
    return np.asarray(frames, np.float32), rate_hz


def _check_magic(data: bytes, encoding: Encoding) -> None:
    found, wanted = container_of(data), encoding.name.removesuffix("_OPUS")
    if found is None:
        raise InvalidInputError("data", f"is no {encoding.name} file: it does not begin like one")
    if found != wanted:
        raise InvalidInputError("data", f"is a {found} file, but format.encoding says {encoding.name}")


def _check_header(file: soundfile.SoundFile, encoding: Encoding) -> None:
    found = file.format if file.format != "OGG" else f"OGG_{file.subtype}"
    if file.format not in _CONTAINER_FORMATS[encoding] or (encoding is Encoding.OGG_OPUS and file.subtype != "OPUS"):
        raise InvalidInputError("data", f"is a {found} file, but format.encoding says {encoding.name}")
    _checked_rate("data", int(file.samplerate))
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise InvalidInputError("data", f"has {file.channels} channels; 1 to {MAX_CHANNELS} are allowed")


def _check_whole(data: bytes, encoding: Encoding, frames: int, expected: int) -> None:
    if encoding is Encoding.WAV and (missing := missing_wav_bytes(data)):
        raise InvalidInputError("data", f"is cut off: the WAV header announces {missing} more bytes")
    if encoding is Encoding.OGG_OPUS and not ogg_is_whole(data):
        raise InvalidInputError("data", "is cut off: the last Ogg page is incomplete")
    if frames < expected:
        raise InvalidInputError("data", f"is cut off: {frames} of {expected} announced samples could be decoded")


def _mono(frames: Float32Array) -> Float32Array:
    """Average of the channels of `[T, channels]`, checked to be finite and of audio's scale."""
    finite = np.isfinite(frames).all(axis=1)
    if not finite.all():
        raise InvalidInputError("data", f"has a sample that is NaN or infinite, the first at {int(finite.argmin())}")
    peak = float(np.abs(frames).max(initial=0.0))
    if peak > _MAX_MAGNITUDE:
        raise InvalidInputError("data", f"has samples up to {peak:g}; floats between -1 and 1 are expected")
    mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(np.clip(mono, -1.0, 1.0), np.float32)


def decode_pcm(data: bytes, encoding: Encoding) -> Float32Array:
    """Raw bytes, a whole number of samples, as `[T]` float32; of several channels the samples alternate.

    Values are taken as they are: FLOAT32LE may hold some that are NaN, infinite or out of range.
    Raises InvalidInputError for a container encoding. May be called from any thread.
    """
    if encoding is Encoding.LINEAR16:
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_INT16_SCALE)
    if encoding is Encoding.FLOAT32LE:
        return np.frombuffer(data, "<f4").astype(np.float32)
    raise InvalidInputError("encoding", f"is {encoding.name}; LINEAR16 and FLOAT32LE are raw")


def encode_pcm(samples: Float32Array, encoding: Encoding) -> bytes:
    """`samples` `[T]` float32 as raw bytes; the inverse of `decode_pcm`.

    LINEAR16 rounds to the nearest of 65,536 steps and cuts what lies outside [-1, 1).
    Raises InvalidInputError for a container encoding. May be called from any thread.
    """
    if encoding is Encoding.LINEAR16:
        return _int16(samples).tobytes()
    if encoding is Encoding.FLOAT32LE:
        return np.asarray(samples, "<f4").tobytes()
    raise InvalidInputError("encoding", f"is {encoding.name}; LINEAR16 and FLOAT32LE can be written")


def _int16(samples: Float32Array) -> npt.NDArray[np.int16]:
    scaled = np.rint(np.asarray(samples, np.float32) * np.float32(_INT16_SCALE))
    return np.asarray(np.clip(scaled, -_INT16_SCALE, _INT16_SCALE - 1), "<i2")


def encode_wav(waveform: Waveform) -> bytes:
    """A WAV file of 16-bit samples."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(waveform.sample_rate_hz)
        file.writeframes(encode_pcm(waveform.samples, Encoding.LINEAR16))
    return buffer.getvalue()


def write_wav(path: str | Path, waveform: Waveform) -> None:
    """Write `waveform` to `path` as 16-bit WAV. Raises OSError when the file cannot be written."""
    Path(path).write_bytes(encode_wav(waveform))
