"""Whatever holds a question becomes the same samples, and silence is told from speech."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from taste_grpc.audio import Waveform, resample
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.dialogue.reply_audio import question_samples
from taste_grpc.dialogue.silence import MakeDetector, default_detector, has_speech
from taste_grpc.errors import InvalidInputError, InvalidTypeError
from taste_grpc.speech import SileroDetector, WebRtcDetector, sample_recordings

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def question() -> Float32Array:
    """Two seconds of a human voice, on the grid of 16 bit."""
    samples, rate_hz = soundfile.read(sample_recordings()["beckett"], dtype="int16")
    assert rate_hz == RATE_HZ
    return samples[: 2 * RATE_HZ].astype(np.float32) / 32_768


def as_int16(samples: Float32Array) -> np.ndarray:
    return (samples * 32_768).astype(np.int16)


def file_bytes(samples: Float32Array, form: str = "WAV", rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=form)
    return buffer.getvalue()


def test_tensors_arrays_files_and_clips_are_the_same_question(question: Float32Array, tmp_path: Path) -> None:
    path = tmp_path / "question.flac"
    path.write_bytes(file_bytes(question, "FLAC"))
    tensor = torch.from_numpy(question)
    sources = [
        question,
        question.astype(np.float64),
        question[None],
        question[:, None],
        np.stack([question, question]),
        as_int16(question),
        as_int16(question).astype(">i2"),
        tensor,
        tensor[None].requires_grad_(),
        torch.from_numpy(as_int16(question)),
        path,
        str(path),
        file_bytes(question),
        memoryview(file_bytes(question)),
        Waveform(question, RATE_HZ),
    ]
    for source in sources:
        samples = question_samples(source, RATE_HZ)
        assert samples.dtype == np.float32
        assert np.array_equal(samples, question)


def test_two_channels_are_averaged(question: Float32Array) -> None:
    stereo = np.stack([question, np.zeros_like(question)])
    for source in (stereo, stereo.T, torch.from_numpy(stereo)):
        assert np.allclose(question_samples(source, RATE_HZ), question / 2)


def test_half_precision_is_taken(question: Float32Array) -> None:
    samples = question_samples(torch.from_numpy(question).to(torch.bfloat16), RATE_HZ)
    assert np.allclose(samples, question, atol=0.01)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled(question: Float32Array, rate_hz: int) -> None:
    other = resample(question, RATE_HZ, rate_hz)
    expected = resample(other, rate_hz, RATE_HZ)
    assert np.allclose(question_samples(other, rate_hz), expected, atol=1e-6)
    assert np.allclose(question_samples(Waveform(other, rate_hz), RATE_HZ), expected)


TOO_LONG = np.zeros(31 * RATE_HZ, np.float32)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.zeros(300, np.float32), "at least 20 ms"),
        (TOO_LONG, "at most 30 s"),
        (file_bytes(TOO_LONG), "at most 30 s"),
        (np.zeros((3, RATE_HZ), np.float32), "shape"),
        (np.zeros((1, 1, RATE_HZ), np.float32), "shape"),
        (np.array(0.0), "shape"),
        (np.full(RATE_HZ, np.nan, np.float32), "NaN"),
        (np.full(RATE_HZ, 3e4, np.float32), "between -1 and 1"),
        (np.zeros(RATE_HZ, np.int64), "int64"),
        (torch.zeros(RATE_HZ, dtype=torch.complex64), "complex64"),
        (b"RIFF", "the bytes given: not a WAV"),
        (file_bytes(np.zeros(RATE_HZ, np.float32))[:999], "cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_question_is_refused_in_a_sentence(source: object, what: str) -> None:
    with pytest.raises((InvalidInputError, InvalidTypeError), match=what) as refused:
        question_samples(source, RATE_HZ)  # type: ignore[arg-type]
    assert refused.value.field == "audio_data"


@pytest.mark.parametrize("source", [None, 7, [0.0] * RATE_HZ, object()])
def test_what_holds_no_audio_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match="audio_data"):
        question_samples(source, RATE_HZ)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", [0, -1, 7_999, 96_001])
def test_a_rate_that_cannot_be_is_named(rate_hz: int) -> None:
    with pytest.raises(InvalidInputError, match="sampling_rate"):
        question_samples(np.zeros(RATE_HZ, np.float32), rate_hz)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        question_samples(tmp_path / "none.wav", RATE_HZ)


# --- silence ------------------------------------------------------------------------------------------


def never() -> SileroDetector:
    raise AssertionError("the energy alone decides")


@pytest.mark.parametrize("make", [default_detector, SileroDetector, WebRtcDetector])
def test_speech_is_found(question: Float32Array, make: MakeDetector) -> None:
    assert has_speech(question, make)
    assert has_speech(0.1 * question, make)


def test_no_detector_is_asked_of_what_has_no_energy(question: Float32Array) -> None:
    for samples in (np.zeros(RATE_HZ), 0.001 * question, np.zeros(0)):
        assert not has_speech(samples.astype(np.float32), never)


def test_noise_and_tones_are_no_speech() -> None:
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    noise = 0.1 * np.random.default_rng(1).standard_normal(2 * RATE_HZ)
    for samples in (noise, 0.3 * np.sin(2 * np.pi * 220 * time), 0.01 * noise):
        assert not has_speech(samples.astype(np.float32))


def test_a_click_of_a_frame_is_no_speech(question: Float32Array) -> None:
    loud = int(np.abs(question).argmax())
    assert not has_speech(question[loud : loud + 700])
