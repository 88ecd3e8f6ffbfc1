"""Clips that must be refused wherever a clip may stand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import soundfile

from taste.v1 import common_pb2
from taste_grpc.audio import Waveform, encode_wav
from tests.support import messages

LINEAR16 = common_pb2.AUDIO_ENCODING_LINEAR16
FLOAT32LE = common_pb2.AUDIO_ENCODING_FLOAT32LE
WAV = common_pb2.AUDIO_ENCODING_WAV
NAN, INF = math.nan, math.inf


def raw(data: bytes, encoding: int = LINEAR16, rate_hz: int | None = 16_000, channels: int | None = 1):
    form = common_pb2.AudioFormat(sample_rate_hz=rate_hz, channels=channels)
    form.encoding = encoding  # type: ignore[assignment]  # unknown values too
    return common_pb2.AudioClip(format=form, data=data)


def floats(*samples: float) -> common_pb2.AudioClip:
    return raw(np.array([0.1] * 1000 + list(samples), "<f4").tobytes(), FLOAT32LE)


def container(data: bytes, encoding: int = WAV, rate_hz: int | None = None, channels: int | None = None):
    return raw(data, encoding, rate_hz, channels)


def wav(seconds: float = 1.0, rate_hz: int = 16_000) -> bytes:
    return encode_wav(Waveform(messages.tone(seconds, rate_hz), rate_hz))


def flac(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((round(seconds * rate_hz), channels), np.float32), rate_hz, format="FLAC")
    return buffer.getvalue()


ONE_SECOND = bytes(32_000)

CLIPS: dict[str, tuple[str, Callable[[], common_pb2.AudioClip]]] = {
    "no format": ("format.encoding", lambda: common_pb2.AudioClip(data=ONE_SECOND)),
    "unknown encoding": ("format.encoding", lambda: raw(ONE_SECOND, 77)),
    "empty": ("data", lambda: raw(b"")),
    "3-byte LINEAR16": ("data", lambda: raw(b"abc")),
    "half a sample": ("data", lambda: raw(ONE_SECOND + b"abc")),
    "5-byte FLOAT32LE": ("data", lambda: raw(b"abcde", FLOAT32LE)),
    "half a stereo frame": ("data", lambda: raw(ONE_SECOND + b"ab", channels=2)),
    "too short": ("data", lambda: raw(bytes(2 * 300))),
    "31 s": ("data", lambda: raw(bytes(2 * 8000 * 31), rate_hz=8000)),
    "31 s compressed": ("data", lambda: container(flac(31), common_pb2.AUDIO_ENCODING_FLAC)),
    "NaN": ("data", lambda: floats(NAN)),
    "infinity": ("data", lambda: floats(-INF)),
    "integers sent as floats": ("data", lambda: floats(30_000.0)),
    "rate 0": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=0)),
    "rate not given": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=None)),
    "rate -1": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=-1)),
    "rate 10^9": ("format.sample_rate_hz", lambda: raw(ONE_SECOND, rate_hz=10**9)),
    "0 channels": ("format.channels", lambda: raw(ONE_SECOND, channels=0)),
    "9 channels": ("format.channels", lambda: raw(ONE_SECOND, channels=9)),
    "8 channels in a file": ("data", lambda: container(flac(1, channels=8), common_pb2.AUDIO_ENCODING_FLAC)),
    "truncated WAV": ("data", lambda: container(wav()[:9000])),
    "no WAV at all": ("data", lambda: container(b"hello" * 100)),
    "another container": ("data", lambda: container(wav(), common_pb2.AUDIO_ENCODING_FLAC)),
    "0 Hz for a file": ("format.sample_rate_hz", lambda: container(wav(), rate_hz=0)),
    "9 channels for a file": ("format.channels", lambda: container(wav(), channels=9)),
    "rate that is not the file's": ("format.sample_rate_hz", lambda: container(wav(), rate_hz=8_000)),
    "channels that are not the file's": ("format.channels", lambda: container(wav(), channels=2)),
}
"""What is wrong: the field below the clip that is named, and the clip."""
