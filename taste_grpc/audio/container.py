"""What the headers of audio files say, read before and beside the decoder.

libsndfile silently decodes the part of a WAV or Ogg file that is there; these checks
tell a whole file from one that was cut off.
"""

from __future__ import annotations

import struct

_UNKNOWN_LENGTH = 0x7FFF_F000
"""Writers that cannot seek leave sizes from here up in the header, for `until the end`."""

_OGG_HEADER_BYTES = 27


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
