from __future__ import annotations

import array
import io
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from taste.v1.common_pb2 import AUDIO_ENCODING_FLOAT32LE, AUDIO_ENCODING_LINEAR16, AUDIO_ENCODING_WAV, AudioFormat
from taste.v1.taste_pb2 import DetokenizeResponse
from taste_grpc_client import WavWriter, audio_clip, write_wav


def chunk(audio: bytes, encoding: int = AUDIO_ENCODING_LINEAR16, rate_hz: int = 16000) -> DetokenizeResponse:
    form = AudioFormat(sample_rate_hz=rate_hz, channels=1)
    form.encoding = encoding  # type: ignore[assignment]
    return DetokenizeResponse(audio=audio, format=form)


def read(source: str | io.BytesIO) -> tuple[int, int, int, bytes]:
    with wave.open(source, "rb") as file:
        return file.getnchannels(), file.getsampwidth(), file.getframerate(), file.readframes(file.getnframes())


@pytest.mark.parametrize("kind", [str, Path])
def test_audio_is_written_as_it_comes(tmp_path: Path, kind: type) -> None:
    target = kind(tmp_path / "speech.wav")
    assert write_wav(target, iter([chunk(b"\x01\x00\x02\x00"), chunk(b""), chunk(b"\x03\x00")])) == 3 / 16
    assert read(str(target)) == (1, 2, 16000, b"\x01\x00\x02\x00\x03\x00")
    assert audio_clip(target).format.encoding == AUDIO_ENCODING_WAV


def test_an_open_file_stays_open() -> None:
    buffer = io.BytesIO()
    assert write_wav(buffer, [chunk(bytes(480), rate_hz=24000)]) == 10.0
    assert not buffer.closed
    buffer.seek(0)
    assert read(buffer) == (1, 2, 24000, bytes(480))


def test_floats_are_rounded_and_cut_off(tmp_path: Path) -> None:
    floats = array.array("f", [0.0, 0.5, -1.0, 1.0, 7.0, -7.0, 1e-9])
    write_wav(tmp_path / "x.wav", [chunk(floats.tobytes(), AUDIO_ENCODING_FLOAT32LE)])
    samples = array.array("h", read(str(tmp_path / "x.wav"))[3])
    assert list(samples) == [0, 16384, -32767, 32767, 32767, -32767, 0]


def test_what_came_before_a_failure_is_a_whole_file(tmp_path: Path) -> None:
    def stream() -> Iterator[DetokenizeResponse]:
        yield chunk(b"\x01\x00")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        write_wav(tmp_path / "x.wav", stream())
    assert read(str(tmp_path / "x.wav"))[3] == b"\x01\x00"


def test_silence_leaves_no_file(tmp_path: Path) -> None:
    assert write_wav(tmp_path / "x.wav", []) == 0.0
    assert not (tmp_path / "x.wav").exists()


def test_formats_that_do_not_fit(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "x.wav") as writer:
        with pytest.raises(ValueError, match="LINEAR16 or FLOAT32LE and its sample rate were expected"):
            writer.write(DetokenizeResponse(audio=b"\x01\x00"))
        with pytest.raises(ValueError, match="LINEAR16 or FLOAT32LE"):
            writer.write(chunk(b"\x01\x00", AUDIO_ENCODING_WAV))
        assert writer.duration_ms == 0.0
        writer.write(chunk(b"\x01\x00"))
        with pytest.raises(ValueError, match="each call needs a file of its own"):
            writer.write(chunk(b"\x01\x00", rate_hz=8000))
        writer.close()
    with pytest.raises(FileNotFoundError):
        write_wav(tmp_path / "absent" / "x.wav", [chunk(b"\x01\x00")])
