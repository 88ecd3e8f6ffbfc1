from __future__ import annotations

import array
import io
import struct
import wave
from pathlib import Path

import pytest

from taste.v1 import common_pb2
from taste_grpc_client import audio_clip


def wav_bytes() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\x01\x00" * 8)
    return buffer.getvalue()


def test_path_and_bytes_of_a_file_are_the_same_clip(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(wav_bytes())
    clip = audio_clip(path)
    assert clip == audio_clip(str(path)) == audio_clip(wav_bytes()) == audio_clip(clip)
    assert clip.format.encoding == common_pb2.AUDIO_ENCODING_WAV
    assert clip.data == wav_bytes()
    assert not clip.format.HasField("sample_rate_hz")


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"fLaC", common_pb2.AUDIO_ENCODING_FLAC),
        (b"OggS", common_pb2.AUDIO_ENCODING_OGG_OPUS),
        (b"ID3\x04", common_pb2.AUDIO_ENCODING_MP3),
        (b"\xff\xfb\x90", common_pb2.AUDIO_ENCODING_MP3),
    ],
)
def test_containers_are_known_by_their_first_bytes(head: bytes, encoding: int) -> None:
    assert audio_clip(head + b"....").format.encoding == encoding


def test_bytes_with_a_rate_are_raw() -> None:
    clip = audio_clip(b"\x01\x00\x02\x00", 8000)
    assert clip.format == common_pb2.AudioFormat(
        encoding=common_pb2.AUDIO_ENCODING_LINEAR16, sample_rate_hz=8000, channels=1
    )


def test_arrays_of_the_standard_library() -> None:
    ints = audio_clip(array.array("h", [1, -2]), 16000)
    assert (ints.format.encoding, ints.data) == (common_pb2.AUDIO_ENCODING_LINEAR16, struct.pack("<2h", 1, -2))
    for kind in "fd":
        floats = audio_clip(array.array(kind, [0.5, -0.25]), 16000)
        assert floats.format.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
        assert floats.data == struct.pack("<2f", 0.5, -0.25)


def test_lists_of_numbers() -> None:
    assert audio_clip([0.5, -0.25], 16000) == audio_clip(array.array("f", [0.5, -0.25]), 16000)
    assert audio_clip((1, -2), 16000) == audio_clip(array.array("h", [1, -2]), 16000)
    assert audio_clip([0, 0.5], 16000).format.encoding == common_pb2.AUDIO_ENCODING_FLOAT32LE
    with pytest.raises(ValueError, match="samples of 16 bit"):
        audio_clip([0, 40_000], 16000)
    with pytest.raises(TypeError, match="has numbers, of one channel"):
        audio_clip([[0.5], [0.5]], 16000)  # type: ignore[list-item]


def test_open_files(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(wav_bytes())
    with path.open("rb") as file:
        assert audio_clip(file) == audio_clip(path)
    assert audio_clip(io.BytesIO(b"\x01\x00"), 8000) == audio_clip(b"\x01\x00", 8000)
    with pytest.raises(TypeError, match="it must be opened for bytes"):
        audio_clip(io.StringIO("text"))  # type: ignore[arg-type]


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    samples = array.array("h", [1])
    with pytest.raises(ValueError, match="sample_rate_hz: samples do not say"):
        audio_clip(samples)
    with pytest.raises(ValueError, match="states its own sample rate"):
        audio_clip(str(tmp_path / "x.wav"), 16000)
    with pytest.raises(ValueError, match="not a WAV, FLAC"):
        audio_clip(b"plain text")
    with pytest.raises(ValueError, match="not of buffer format 'q'"):
        audio_clip(array.array("q", [1]), 16000)
    with pytest.raises(ValueError, match=r"not \[1, 1, 4\]"):
        audio_clip(memoryview(bytes(4)).cast("B", (1, 1, 4)), 16000)
    with pytest.raises(TypeError, match="not dict"):
        audio_clip({}, 16000)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        audio_clip(tmp_path / "absent.wav")
