"""What the headers of audio files say, read before and beside the decoder.

libsndfile reads whatever format it can make of the bytes, and silently decodes the part of a WAV or Ogg
file that is there; these checks tell the formats that are meant from others, and a whole file from one
that was cut off.
"""

from __future__ import annotations

import struct

_UNKNOWN_LENGTH = 0x7FFF_F000
"""Writers that cannot seek leave sizes from here up in the header, for `until the end`."""

_OGG_HEADER_BYTES = 27
_ID3_HEADER_BYTES = 10
_MAX_ID3_TAGS = 8


def container_of(data: bytes) -> str | None:
    """Which container the first bytes of a file are those of: `WAV`, `FLAC`, `OGG` or `MP3`; None: none of these.

    The decoder knows dozens of formats and guesses; only what was asked for is to get to its parsers.
    """
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"OggS":
        return "OGG"
    start = _after_id3(data)
    if data[start : start + 4] == b"fLaC":
        return "FLAC"
    is_sync = data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] >= b"\xe0"
    return "MP3" if is_sync else None


def _after_id3(data: bytes) -> int:
    """Where a file goes on after the ID3v2 tags before it; there is rarely more than one."""
    start = 0
    for _ in range(_MAX_ID3_TAGS):
        if data[start : start + 3] != b"ID3" or len(data) < start + _ID3_HEADER_BYTES:
            break
        size = 0
        for byte in data[start + 6 : start + _ID3_HEADER_BYTES]:
            size = size << 7 | byte & 0x7F
        start += _ID3_HEADER_BYTES + size
    return start


def missing_wav_bytes(data: bytes) -> int:
    """How many bytes of its sample data a RIFF/WAVE file lacks; 0 when it is whole or does not say."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= len(data):
        tag, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if tag == b"data":
            return 0 if size >= _UNKNOWN_LENGTH else max(0, position + size - len(data))
        position += size + size % 2  # chunks start at even offsets
    return max(1, position - len(data))


def ogg_is_whole(data: bytes) -> bool:
    """Whether `data` is a row of complete Ogg pages (a stream may end without an end-of-stream mark)."""
    position = 0
    while position < len(data):
        if data[position : position + 4] != b"OggS" or position + _OGG_HEADER_BYTES > len(data):
            return False
        segments = data[position + 26]
        table_end = position + _OGG_HEADER_BYTES + segments
        if table_end > len(data):
            return False
        position = table_end + sum(data[position + _OGG_HEADER_BYTES : table_end])
    return position == len(data) and position > 0
