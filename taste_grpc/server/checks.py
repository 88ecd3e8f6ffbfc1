"""Checks of single values; each raises InvalidInputError with the field path it was given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from taste.v1 import common_pb2
from taste_grpc.audio import Encoding
from taste_grpc.errors import InvalidInputError
from taste_grpc.settings import LimitSettings

ENCODINGS: dict[int, Encoding] = {
    common_pb2.AUDIO_ENCODING_LINEAR16: Encoding.LINEAR16,
    common_pb2.AUDIO_ENCODING_FLOAT32LE: Encoding.FLOAT32LE,
    common_pb2.AUDIO_ENCODING_WAV: Encoding.WAV,
    common_pb2.AUDIO_ENCODING_FLAC: Encoding.FLAC,
    common_pb2.AUDIO_ENCODING_OGG_OPUS: Encoding.OGG_OPUS,
    common_pb2.AUDIO_ENCODING_MP3: Encoding.MP3,
}
"""Wire values of `AudioEncoding`, without UNSPECIFIED."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters of Unicode but tab and newline."""


def check_text(path: str, text: str, max_bytes: int) -> None:
    """Text that is said: not empty, not only blanks, no control characters but tab and newline."""
    size = len(text.encode())
    if size > max_bytes:
        raise InvalidInputError(path, f"has {size} bytes of UTF-8; at most {max_bytes} are allowed")
    if not text.strip():
        raise InvalidInputError(path, "is empty or has only blanks")
    control = _CONTROL.search(text)
    if control:
        raise InvalidInputError(
            path,
            f"has the control character U+{ord(control[0]):04X} at {control.start()}; only tab and newline are allowed",
        )


def check_words(path: str, words: Sequence[str], max_bytes: int) -> None:
    """Words as they are written, at `path` and an index: none is empty, or has blanks or control characters."""
    text = " ".join(words)
    size = len(text.encode())
    if size > max_bytes:
        raise InvalidInputError(
            path, f"have {size} bytes of UTF-8 with blanks between; at most {max_bytes} are allowed"
        )
    if text.split() == list(words) and not _CONTROL.search(text):
        return
    for index, word in enumerate(words):
        where = f"{path}[{index}].text"
        check_text(where, word, max_bytes)
        blank = next((position for position, char in enumerate(word) if char.isspace()), None)
        if blank is not None:
            raise InvalidInputError(where, f"has a blank at {blank}; each word stands alone, without blanks around it")


def check_between(path: str, value: float, low: float, high: float) -> None:
    """A number of [low, high]; NaN is in no range."""
    if not low <= value <= high:
        raise InvalidInputError(path, f"is {value:.10g}; {low:.10g} to {high:.10g} is allowed")


def check_above(path: str, value: float, low: float, high: float) -> None:
    """A number of (low, high]."""
    if not low < value <= high:
        raise InvalidInputError(path, f"is {value:.10g}; above {low:.10g} and at most {high:.10g} is allowed")


def check_enum(path: str, value: int, names: Any, *, required: bool = True) -> None:
    """A value that the enum `names` (its generated wrapper) has; its zero only when not `required`."""
    allowed = [number for number in names.values() if number or not required]
    if value not in allowed:
        stated = names.Name(value) if value in names.values() else str(value)
        raise InvalidInputError(path, f"is {stated}; {', '.join(names.Name(number) for number in allowed)} are allowed")


def check_ids(path: str, ids: Sequence[int], size: int, max_count: int) -> None:
    """Ids below `size`, not more than `max_count`."""
    if len(ids) > max_count:
        raise InvalidInputError(path, f"has {len(ids)} ids; at most {max_count} are allowed")
    _check_range(path, int64_array(ids), 0, size - 1)


def _check_range(path: str, values: npt.NDArray[np.int64], low: int, high: int) -> None:
    bad = (values < low) | (values > high)
    if bad.any():
        first = int(bad.argmax())
        raise InvalidInputError(f"{path}[{first}]", f"is {values[first]}; {low} to {high} is allowed")


def check_word_ids(path: str, ids: Sequence[int], length: int) -> None:
    """None, or a word number for each of `length` text ids: never below zero, falling or skipping."""
    if not ids:
        return
    if len(ids) != length:
        raise InvalidInputError(path, f"has {len(ids)} values for {length} text ids")
    values = int64_array(ids)
    if values[0] < 0:
        raise InvalidInputError(f"{path}[0]", f"is {values[0]}; words are counted from 0 upwards")
    steps = np.diff(values)
    bad = (steps != 0) & (steps != 1)
    if bad.any():
        first = int(bad.argmax()) + 1
        raise InvalidInputError(
            f"{path}[{first}]", f"is {values[first]} after {values[first - 1]}; words never fall and never skip"
        )


def check_word_codes(path: str, codes: common_pb2.TasteCodes, vq_dim: int, codebook_size: int) -> None:
    """One row of codebook indices, none of them -1."""
    _check_shape(path, codes, 1, vq_dim, "a word")
    _check_range(f"{path}.ids", int64_array(codes.ids), 0, codebook_size - 1)


def check_codes(path: str, codes: common_pb2.TasteCodes, length: int, vq_dim: int, codebook_size: int) -> None:
    """Rows of codebook indices, one for each of `length` text ids; a row may be all -1."""
    _check_shape(path, codes, length, vq_dim, f"{length} text ids")
    values = int64_array(codes.ids)
    _check_range(f"{path}.ids", values, -1, codebook_size - 1)
    absent = (values == -1).reshape(-1, vq_dim)
    mixed = absent.any(axis=1) & ~absent.all(axis=1)
    if mixed.any():
        row = int(mixed.argmax())
        first = row * vq_dim + int(absent[row].argmax())
        raise InvalidInputError(f"{path}.ids[{first}]", f"is -1 in row {row}, whose other codes are not")


def _check_shape(path: str, codes: common_pb2.TasteCodes, rows: int, vq_dim: int, owner: str) -> None:
    if codes.vq_dim != vq_dim:
        raise InvalidInputError(f"{path}.vq_dim", f"is {codes.vq_dim}; the model has {vq_dim} codes for a word")
    if len(codes.ids) != rows * vq_dim:
        raise InvalidInputError(
            f"{path}.ids", f"has {len(codes.ids)} codes; {owner} needs {rows * vq_dim}, {vq_dim} in a row"
        )


def check_embedding(path: str, values: Sequence[float], size: int) -> None:
    """A vector with a direction."""
    if len(values) != size:
        raise InvalidInputError(path, f"has {len(values)} values; the model's voices have {size}")
    vector = np.fromiter(values, np.float64, len(values))
    finite = np.isfinite(vector)
    if not finite.all():
        raise InvalidInputError(f"{path}[{int(finite.argmin())}]", "is NaN or infinite")
    if not np.any(vector):
        raise InvalidInputError(path, "is all zero: it has no direction")


def check_rate(path: str, rate_hz: int, limits: LimitSettings) -> None:
    """A sample rate within the limits."""
    if not limits.min_sample_rate_hz <= rate_hz <= limits.max_sample_rate_hz:
        allowed = f"{limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz are allowed"
        raise InvalidInputError(path, f"is {rate_hz}; {allowed}")


def check_format(path: str, form: common_pb2.AudioFormat, limits: LimitSettings) -> None:
    """A format a request's clip may have."""
    check_enum(f"{path}.encoding", form.encoding, common_pb2.AudioEncoding)
    if form.HasField("sample_rate_hz"):
        check_rate(f"{path}.sample_rate_hz", form.sample_rate_hz, limits)
    elif ENCODINGS[form.encoding].is_raw:
        raise InvalidInputError(f"{path}.sample_rate_hz", "is not given; raw audio does not say it itself")
    if form.HasField("channels"):
        check_between(f"{path}.channels", form.channels, 1, limits.max_channels)


def check_clip(path: str, clip: common_pb2.AudioClip, limits: LimitSettings) -> None:
    """What can be told of a clip without decoding it."""
    check_format(f"{path}.format", clip.format, limits)
    if not clip.data:
        raise InvalidInputError(f"{path}.data", "is empty")


def int64_array(ids: Sequence[int]) -> npt.NDArray[np.int64]:
    """`ids` as `[N]` int64."""
    return np.fromiter(ids, np.int64, len(ids))
