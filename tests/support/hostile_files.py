"""Audio files as nobody should write them, and some that are merely rare.

Run as a program, it decodes them all as the server does and prints what became of each, and of its memory.
"""

from __future__ import annotations

import io
import json
import resource
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import soundfile

from taste.v1 import common_pb2
from taste_grpc.errors import InvalidInputError
from taste_grpc.server.clips import ClipReader
from taste_grpc.settings import LimitSettings
from tests.support.messages import tone

WAV, FLAC = common_pb2.AUDIO_ENCODING_WAV, common_pb2.AUDIO_ENCODING_FLAC
OGG_OPUS, MP3 = common_pb2.AUDIO_ENCODING_OGG_OPUS, common_pb2.AUDIO_ENCODING_MP3

PCM, ADPCM, FLOAT, IMA_ADPCM, GSM, MPEG3, EXTENSIBLE = 1, 2, 3, 0x11, 0x31, 0x55, 0xFFFE
RATE_HZ = 16_000


def chunk(tag: bytes, data: bytes, size: int | None = None) -> bytes:
    """A RIFF chunk that says it has `size` bytes."""
    return tag + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def fmt(
    tag: int = PCM,
    channels: int = 1,
    rate_hz: int = RATE_HZ,
    bits: int = 16,
    byte_rate: int | None = None,
    block: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A `fmt ` chunk."""
    block = channels * bits // 8 if block is None else block
    byte_rate = rate_hz * block if byte_rate is None else byte_rate
    fields = struct.pack("<HHIIHH", tag, channels, rate_hz, byte_rate % 2**32, block % 2**16, bits)
    return chunk(b"fmt ", fields + extra)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """A RIFF WAVE file that says it has `size` bytes after its first eight."""
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def pcm(seconds: float = 0.5) -> bytes:
    return (tone(seconds, RATE_HZ) * 32_767).astype("<i2").tobytes()


def written(form: str, subtype: str | None = None, seconds: float = 0.5, rate_hz: int = RATE_HZ, channels: int = 1):
    """A file that libsndfile writes."""
    buffer = io.BytesIO()
    samples = np.repeat(tone(seconds, rate_hz)[:, None], channels, axis=1)
    soundfile.write(buffer, samples, rate_hz, format=form, subtype=subtype)
    return buffer.getvalue()


def silence(form: str, subtype: str | None, seconds: float, rate_hz: int = 8_000) -> bytes:
    """Much silence in few bytes, written in pieces."""
    buffer = io.BytesIO()
    minute = np.zeros(60 * rate_hz, np.float32)
    with soundfile.SoundFile(buffer, "w", rate_hz, 1, subtype, format=form) as file:
        for _ in range(round(seconds / 60)):
            file.write(minute)
    return buffer.getvalue()


def replaced(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def flac_header(rate_hz: int = RATE_HZ, channels: int = 1, samples: int = 8_000, meta: bytes = b"") -> bytes:
    """A FLAC file whose header says this, with `meta` for further metadata blocks."""
    data = written("FLAC")
    layout = rate_hz << 44 | (channels - 1) << 41 | 15 << 36 | samples
    return (
        data[:4]
        + (b"\0" if meta else data[4:5])
        + replaced(data, 18, layout.to_bytes(8, "big"))[5:42]
        + meta
        + data[42:]
    )


def opus_header(position: int, new: bytes) -> bytes:
    """An Opus file with `new` at `position` of its head."""
    data = written("OGG", "OPUS")
    return replaced(data, data.index(b"OpusHead") + position, new)


def noise(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def mp3(before: bytes = b"", inside: bytes = b"", after: bytes = b"") -> bytes:
    data = written("MP3")
    return before + data[: len(data) // 2] + inside + data[len(data) // 2 :] + after


DATA = chunk(b"data", pcm())
ID3 = b"ID3\x04\0\0"
HUGE = 15_000_000
MAX_CPU_S = 100
File = tuple[int, Callable[[], bytes]]

RARE: dict[str, File] = {
    **{
        f"{subtype} WAV": (WAV, partial(written, "WAV", subtype))
        for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM")
    },
    "extensible WAV": (WAV, partial(written, "WAVEX", "PCM_16")),
    "RF64": (WAV, partial(written, "RF64", "PCM_16")),
    "stereo WAV": (WAV, partial(written, "WAV", channels=2)),
    "WAV that was piped": (WAV, lambda: riff(fmt(), chunk(b"data", pcm(), 2**32 - 1), size=2**32 - 1)),
    "WAV of size 0": (WAV, lambda: riff(fmt(), DATA, size=0)),
    "WAV with a wrong byte rate": (WAV, lambda: riff(fmt(byte_rate=1), DATA)),
    "WAV with a wrong block size": (WAV, lambda: riff(fmt(block=65_535), DATA)),
    "WAV with odd chunks": (WAV, lambda: riff(chunk(b"JUNK", b"odd"), fmt(), chunk(b"LIST", b"INFO"), DATA)),
    "WAV with lying notes": (
        WAV,
        lambda: riff(fmt(), chunk(b"cue ", struct.pack("<I", 2**31) + b"x" * 99), chunk(b"smpl", b"\xff" * 36), DATA),
    ),
    "24 bit FLAC": (FLAC, partial(written, "FLAC", "PCM_24")),
    "FLAC after ID3": (FLAC, lambda: ID3 + b"\0\0\0\x20" + bytes(32) + written("FLAC")),
    "FLAC of millions of blocks": (FLAC, lambda: flac_header(meta=b"\1\0\0\0" * (HUGE // 4))),
    "Opus of several streams": (OGG_OPUS, lambda: written("OGG", "OPUS") * 9),
    "MP3 after ID3": (MP3, lambda: mp3(before=ID3 + b"\0\0\0\x20" + bytes(32))),
    "MP3 before much silence": (MP3, lambda: mp3(after=bytes(HUGE))),
    "MP3 before much noise": (MP3, lambda: mp3(after=noise(HUGE))),
}
"""Files that are read: half a second of a tone."""

HOSTILE: dict[str, File] = {
    **{
        f"WAV of {bits} bits": (WAV, partial(lambda bits: riff(fmt(bits=bits), DATA), bits)) for bits in (0, 64, 65_535)
    },
    **{
        f"WAV at {rate_hz} Hz": (WAV, partial(lambda rate: riff(fmt(rate_hz=rate), DATA), rate_hz))
        for rate_hz in (0, 1, 10**9, 2**32 - 1)
    },
    **{
        f"WAV of {channels} channels": (WAV, partial(lambda n: riff(fmt(channels=n, block=2), DATA), channels))
        for channels in (0, 9, 65_535)
    },
    **{
        f"WAV coded as {tag}": (
            WAV,
            partial(lambda tag: riff(fmt(tag, bits=4, block=0, extra=struct.pack("<HH", 2, 0)), DATA), tag),
        )
        for tag in (0, ADPCM, IMA_ADPCM, GSM, MPEG3, EXTENSIBLE, 0xFFFF)
    },
    "WAV with a lying size": (WAV, lambda: riff(fmt(), chunk(b"data", pcm(), 0x7FFF_EFFF))),
    "WAV without a format": (WAV, lambda: riff(DATA)),
    "WAV with the format last": (WAV, lambda: riff(DATA, fmt())),
    "WAV without samples": (WAV, lambda: riff(fmt())),
    "WAV of no samples": (WAV, lambda: riff(fmt(), chunk(b"data", b""))),
    "WAV of millions of chunks": (WAV, lambda: riff(fmt(), chunk(b"JUNK", b"") * (HUGE // 8), DATA)),
    "WAV with a huge chunk": (WAV, lambda: riff(fmt(), chunk(b"JUNK", b"", 2**31), DATA)),
    "WAV of NaN": (WAV, lambda: riff(fmt(FLOAT, bits=32), chunk(b"data", np.full(8000, np.nan, "<f4").tobytes()))),
    "WAV of huge floats": (
        WAV,
        lambda: riff(fmt(FLOAT, bits=64), chunk(b"data", np.full(8000, 1e300, "<f8").tobytes())),
    ),
    "AIFF sent as WAV": (WAV, partial(written, "AIFF", "PCM_16")),
    "nothing but RIFF": (WAV, lambda: b"RIFF"),
    "FLAC of an hour of silence": (FLAC, partial(silence, "FLAC", "PCM_16", 3600)),
    "FLAC of 2^36 samples": (FLAC, partial(flac_header, samples=2**36 - 1)),
    "FLAC at 0 Hz": (FLAC, partial(flac_header, rate_hz=0)),
    "FLAC at 1 MHz": (FLAC, partial(flac_header, rate_hz=2**20 - 1)),
    "FLAC of 8 channels": (FLAC, partial(flac_header, channels=8)),
    "FLAC that changes its channels": (FLAC, partial(flac_header, channels=2)),
    "FLAC with a lying comment": (FLAC, lambda: flac_header(meta=b"\x84\xff\xff\xff" + b"\xff" * 50)),
    "FLAC of noise": (FLAC, lambda: written("FLAC")[:42] + noise(HUGE)),
    "truncated FLAC": (FLAC, lambda: written("FLAC")[:-900]),
    "MAT5 after ID3": (FLAC, lambda: ID3 + b"\0\0\0\x20" + bytes(32) + written("MAT5")),
    "Opus of two minutes of silence": (OGG_OPUS, partial(silence, "OGG", "OPUS", 120)),
    **{
        f"Opus of {channels} channels": (OGG_OPUS, partial(opus_header, 9, bytes([channels])))
        for channels in (0, 3, 255)
    },
    "Opus with an unknown version": (OGG_OPUS, partial(opus_header, 8, b"\xf0")),
    "Opus without pages of sound": (OGG_OPUS, lambda: written("OGG", "OPUS")[:800]),
    "truncated Opus": (OGG_OPUS, lambda: written("OGG", "OPUS")[:-10]),
    "Opus before noise": (OGG_OPUS, lambda: written("OGG", "OPUS") + noise(HUGE)),
    "Vorbis": (OGG_OPUS, partial(written, "OGG", "VORBIS")),
    "Ogg of empty pages": (OGG_OPUS, lambda: (b"OggS\0\0" + bytes(20) + b"\0") * (HUGE // 27)),
    "MP3 of an hour of nothing": (MP3, lambda: b"\xff\xfb\x10\0" * (HUGE // 4)),
    "MP3 with garbage inside": (MP3, lambda: mp3(inside=noise(5000))),
    "MP3 with a gap": (MP3, lambda: mp3(inside=bytes(5000))),
    "truncated MP3": (MP3, lambda: written("MP3")[:-200]),
    "MP3 after a lying ID3": (MP3, lambda: mp3(before=ID3 + b"\x7f\x7f\x7f\x7f")),
    "MP3 after a million of ID3": (MP3, lambda: mp3(before=(ID3 + bytes(4)) * (HUGE // 10))),
    "MP3 of sync words": (MP3, lambda: b"\xff\xfb" * (HUGE // 2)),
    "MP3 of noise": (MP3, lambda: b"\xff\xfb\x90\0" + noise(HUGE)),
}
"""Files that are refused."""


def clip(file: File) -> common_pb2.AudioClip:
    encoding, make = file
    message = common_pb2.AudioClip(data=make())
    message.format.encoding = encoding  # type: ignore[assignment]
    return message


def decode(file: File) -> str:
    """`read`, or the field that is refused."""
    try:
        wave = ClipReader(LimitSettings()).clip("audio", clip(file))
    except InvalidInputError as error:
        return error.field
    return "read" if 400 < wave.duration_ms < 700 else f"{wave.duration_ms} ms"


def main() -> None:
    # a decoder that does not get ready is ended
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    decode(RARE["stereo WAV"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {name: decode(file) for name, file in {**RARE, **HOSTILE}.items()}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"outcomes": outcomes, "grown_kib": grown}))


if __name__ == "__main__":
    main()
