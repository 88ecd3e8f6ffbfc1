"""Bytes to waveforms and back."""

from __future__ import annotations

import io
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taste_grpc.audio import Encoding, Waveform, decode_clip, decode_pcm, encode_pcm, encode_wav, write_wav
from taste_grpc.errors import InvalidInputError, InvalidTypeError

CONTAINERS = {
    Encoding.WAV: ("WAV", "PCM_16"),
    Encoding.FLAC: ("FLAC", "PCM_16"),
    Encoding.OGG_OPUS: ("OGG", "OPUS"),
    Encoding.MP3: ("MP3", "MPEG_LAYER_III"),
}

pcm16 = hnp.arrays(np.int16, st.integers(400, 2000))


def tone(seconds: float = 1.0, rate_hz: int = 16000, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def container(encoding: Encoding, samples: np.ndarray, rate_hz: int = 48000) -> bytes:
    buffer = io.BytesIO()
    kind, subtype = CONTAINERS[encoding]
    soundfile.write(buffer, samples, rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def refusal(data: bytes, encoding: Encoding, rate_hz: int | None = 16000, channels: int | None = 1, **limits: int):
    with pytest.raises(InvalidInputError) as caught:
        decode_clip(data, encoding, rate_hz, channels, **limits)
    return caught.value


@given(pcm16)
@settings(deadline=None)
def test_linear16_survives_decoding_and_encoding(samples: np.ndarray) -> None:
    data = samples.astype("<i2").tobytes()
    clip = decode_clip(data, Encoding.LINEAR16, 16000, 1)
    assert clip.samples.dtype == np.float32
    assert clip.sample_rate_hz == 16000
    assert np.abs(clip.samples).max() <= 1.0
    assert encode_pcm(clip.samples, Encoding.LINEAR16) == data


@given(hnp.arrays(np.float32, st.integers(400, 2000), elements=st.floats(-1, 1, width=32)))
@settings(deadline=None)
def test_float32_survives_decoding_and_encoding(samples: np.ndarray) -> None:
    data = samples.astype("<f4").tobytes()
    clip = decode_clip(data, Encoding.FLOAT32LE, 16000)
    np.testing.assert_array_equal(clip.samples, samples)
    assert encode_pcm(clip.samples, Encoding.FLOAT32LE) == data


@given(pcm16, st.integers(800, 9600).map(lambda tens: 10 * tens))  # FLAC stores no other rate above 65535 Hz
@settings(deadline=None)
def test_wav_and_flac_give_exactly_the_raw_samples(samples: np.ndarray, rate_hz: int) -> None:
    raw = decode_clip(samples.tobytes(), Encoding.LINEAR16, rate_hz, 1, min_ms=0)
    for encoding in (Encoding.WAV, Encoding.FLAC):
        clip = decode_clip(container(encoding, samples, rate_hz), encoding, min_ms=0)
        assert clip.sample_rate_hz == rate_hz
        np.testing.assert_array_equal(clip.samples, raw.samples)
    np.testing.assert_array_equal(decode_clip(encode_wav(raw), Encoding.WAV, min_ms=0).samples, raw.samples)


@pytest.mark.parametrize("encoding", [Encoding.OGG_OPUS, Encoding.MP3])
def test_lossy_containers_give_the_tone_that_went_in(encoding: Encoding) -> None:
    samples = tone(1.0, 48000)
    clip = decode_clip(container(encoding, samples), encoding)
    assert clip.sample_rate_hz == 48000
    assert len(clip.samples) == len(samples)
    spectrum = np.abs(np.fft.rfft(clip.samples))
    assert abs(int(spectrum.argmax()) - 440) <= 1


@pytest.mark.parametrize("encoding", list(CONTAINERS))
def test_a_container_says_rate_and_channels_itself(encoding: Encoding) -> None:
    clip = decode_clip(container(encoding, np.stack([tone(0.5, 48000)] * 2, axis=1)), encoding, 1, 99)
    assert clip.sample_rate_hz == 48000
    assert clip.samples.ndim == 1


def test_raw_samples_are_taken_as_they_are() -> None:
    halves = np.array([0.5, -1.0, 32767 / 32768], np.float32)
    np.testing.assert_array_equal(decode_pcm(encode_pcm(halves, Encoding.LINEAR16), Encoding.LINEAR16), halves)
    odd = np.array([np.nan, np.inf, -2.0, 0.25], np.float32)
    np.testing.assert_array_equal(decode_pcm(encode_pcm(odd, Encoding.FLOAT32LE), Encoding.FLOAT32LE), odd)
    with pytest.raises(InvalidInputError, match="encoding"):
        decode_pcm(b"RIFF", Encoding.WAV)


def test_two_channels_are_averaged() -> None:
    left, right = np.full(800, 1000, "<i2"), np.full(800, 3000, "<i2")
    clip = decode_clip(np.stack([left, right], 1).tobytes(), Encoding.LINEAR16, 16000, 2)
    np.testing.assert_array_equal(clip.samples, np.full(800, 2000 / 32768, np.float32))


def test_samples_beyond_full_scale_are_cut() -> None:
    clip = decode_clip(np.full(800, 1.25, "<f4").tobytes(), Encoding.FLOAT32LE, 16000)
    assert clip.samples.max() == 1.0
    assert np.frombuffer(encode_pcm(np.array([2.0, -2.0], np.float32), Encoding.LINEAR16), "<i2").tolist() == [
        32767,
        -32768,
    ]


@pytest.mark.parametrize(
    ("encoding", "size", "channels"), [("LINEAR16", 801, 1), ("LINEAR16", 802, 2), ("FLOAT32LE", 1602, 1)]
)
def test_a_part_of_a_sample_is_refused(encoding: str, size: int, channels: int) -> None:
    error = refusal(bytes(size), Encoding[encoding], 16000, channels)
    assert error.field == "data"
    assert str(size) in error.description


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_number_are_refused_with_their_position(value: float) -> None:
    samples = np.zeros(800, "<f4")
    samples[123] = value
    error = refusal(samples.tobytes(), Encoding.FLOAT32LE)
    assert error.field == "data"
    assert "123" in error.description


def test_integers_sent_as_floats_are_refused() -> None:
    assert "32000" in refusal(np.full(800, 32000, "<f4").tobytes(), Encoding.FLOAT32LE).description


@pytest.mark.parametrize("rate_hz", [None, 0, -1, 7999, 96001])
def test_rates_outside_the_limits_are_refused(rate_hz: int | None) -> None:
    assert refusal(bytes(4000), Encoding.LINEAR16, rate_hz).field == "format.sample_rate_hz"
    for allowed in (8000, 96000):
        assert decode_clip(bytes(4000), Encoding.LINEAR16, allowed).sample_rate_hz == allowed


@pytest.mark.parametrize("channels", [0, 3, -1])
def test_numbers_of_channels_outside_the_limits_are_refused(channels: int) -> None:
    assert refusal(bytes(4800), Encoding.LINEAR16, 16000, channels).field == "format.channels"


def test_a_container_with_a_forbidden_layout_is_refused() -> None:
    assert "3 channels" in refusal(container(Encoding.WAV, np.zeros((8000, 3), np.int16)), Encoding.WAV).description
    assert "4000" in refusal(container(Encoding.WAV, np.zeros(8000, np.int16), 4000), Encoding.WAV).description


@pytest.mark.parametrize("encoding", list(CONTAINERS))
@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.9])
def test_a_container_that_was_cut_off_is_refused(encoding: Encoding, part: float) -> None:
    rng = np.random.default_rng(0)
    data = container(encoding, (rng.standard_normal(96000) * 0.1).astype(np.float32))
    assert refusal(data[: max(1, int(len(data) * part))], encoding).field == "data"


@pytest.mark.parametrize("encoding", list(CONTAINERS))
@given(data=st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_bytes_that_are_no_container_are_refused(encoding: Encoding, data: bytes) -> None:
    assert refusal(data, encoding).field == "data"


@pytest.mark.parametrize("encoding", list(CONTAINERS))
def test_a_container_must_be_the_one_announced(encoding: Encoding) -> None:
    announced = Encoding.WAV if encoding is Encoding.FLAC else Encoding.FLAC
    if announced is encoding:
        return
    description = refusal(container(encoding, tone(0.5, 48000)), announced).description
    assert announced.name in description
    assert CONTAINERS[encoding][0] in description


def test_vorbis_is_not_opus() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 16000, format="OGG", subtype="VORBIS")
    assert "OGG_VORBIS" in refusal(buffer.getvalue(), Encoding.OGG_OPUS).description


def test_a_wav_written_to_a_pipe_has_no_length_and_is_read_to_its_end() -> None:
    data = bytearray(container(Encoding.WAV, tone(0.1)))
    struct.pack_into("<I", data, 4, 0xFFFFFFFF)
    struct.pack_into("<I", data, bytes(data).index(b"data") + 4, 0xFFFFFFFF)
    assert len(decode_clip(bytes(data), Encoding.WAV).samples) == 1600


@pytest.mark.parametrize("encoding", [Encoding.LINEAR16, *CONTAINERS])
def test_length_limits(encoding: Encoding) -> None:
    def data(seconds: float) -> bytes:
        samples = np.zeros(int(seconds * 48000), np.int16)
        return samples.tobytes() if encoding.is_raw else container(encoding, samples)

    assert len(decode_clip(data(2.0), encoding, 48000, max_ms=2000).samples) == 96000
    assert "at most 2 s" in refusal(data(2.1), encoding, 48000, max_ms=2000).description
    assert "at least 20 ms" in refusal(data(0.019), encoding, 48000).description


def test_a_small_file_of_hours_is_refused_without_being_decoded() -> None:
    silence = container(Encoding.FLAC, np.zeros(3600 * 8000, np.int16), 8000)
    assert len(silence) < 1 << 20
    tracemalloc.start()
    try:
        assert "3600" in refusal(silence, Encoding.FLAC).description
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # whole, it is 115 MB
    finally:
        tracemalloc.stop()


def test_arguments_of_the_wrong_kind() -> None:
    assert refusal(b"", Encoding.LINEAR16).description == "is empty"
    with pytest.raises(InvalidTypeError, match="data"):
        decode_clip("text", Encoding.LINEAR16, 16000, 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="FLAC"):
        encode_pcm(tone(), Encoding.FLAC)


def test_a_written_file_is_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    write_wav(path, Waveform(tone(0.25, 22050), 22050))
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
    samples, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 22050
    np.testing.assert_allclose(samples, tone(0.25, 22050), atol=1 / 65536)
