"""Log-mel and filter-bank features at their edges; their values are held by the parity tests."""

from __future__ import annotations

import numpy as np
import pytest

from taste_grpc.audio import kaldi_fbank, log_mel, mel_filters, remove_mean
from taste_grpc.errors import InvalidInputError


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples).astype(np.float32)


def naive_log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    """Every one of the 3000 frames transformed, one after the other."""
    padded = np.pad(np.pad(samples[:480000], (0, max(0, 480000 - len(samples)))), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = [np.abs(np.fft.rfft(padded[160 * i : 160 * i + 400] * window)) ** 2 for i in range(3000)]
    levels = np.log10(np.maximum(np.array(power) @ mel_filters(n_mels).T, 1e-10))
    return (np.maximum(levels, levels.max() - 8) + 4) / 4


@pytest.mark.parametrize("samples", [1, 159, 160, 201, 1600, 16000, 479_599, 479_601, 480_000, 500_000])
def test_frames_that_are_left_out_are_those_of_silence(samples: int) -> None:
    clip = noise(samples)
    features = log_mel(clip, 80)
    assert features.features.shape == (3000, 80)
    assert features.features.dtype == np.float32
    assert features.frames == min(samples, 480_000) // 160
    np.testing.assert_allclose(features.features, naive_log_mel(clip, 80), atol=1e-5)


def test_silence_is_the_floor_everywhere() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(16000, np.float32)).features, (-10 + 4) / 4)


def test_the_floor_lies_80_db_below_the_loudest_value() -> None:
    features = log_mel(noise(16000)).features
    assert features.max() - features.min() == pytest.approx(2.0, abs=1e-6)  # 8 powers of ten, divided by 4


@pytest.mark.parametrize("shape", [(0,), (1, 16000)])
def test_log_mel_needs_one_channel_with_samples(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="samples"):
        log_mel(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("n_mels", "n_fft", "rate_hz"), [(1, 400, 16000), (80, 400, 16000), (80, 1024, 22050)])
def test_mel_triangles(n_mels: int, n_fft: int, rate_hz: int) -> None:
    filters = mel_filters(n_mels, n_fft, rate_hz)
    assert filters.shape == (n_mels, n_fft // 2 + 1)
    assert (filters >= 0).all()
    peaks = filters.argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()
    wide = filters[(filters > 0).sum(axis=1) > 20]  # enough bins for a sum to stand for the area
    np.testing.assert_allclose(wide.sum(axis=1) * rate_hz / n_fft, 1.0, rtol=0.02)
    with pytest.raises(ValueError, match="read-only"):
        filters[0, 0] = 1.0


def test_mel_filters_need_a_band() -> None:
    with pytest.raises(InvalidInputError, match="n_mels"):
        mel_filters(0)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98)])
def test_fbank_drops_the_incomplete_last_frame(samples: int, frames: int) -> None:
    clip = noise(samples)
    features = kaldi_fbank(clip)
    assert features.shape == (frames, 80)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, kaldi_fbank(np.append(clip, np.zeros(1, np.float32)))[:frames])


def test_fbank_of_silence_and_of_a_constant_is_the_floor() -> None:
    floor = np.full((98, 80), np.log(np.finfo(np.float32).eps), np.float32)
    np.testing.assert_allclose(kaldi_fbank(np.zeros(16000, np.float32)), floor, rtol=1e-6)
    np.testing.assert_allclose(kaldi_fbank(np.full(16000, 0.5, np.float32)), floor, rtol=1e-6)


def test_fbank_of_a_tone_peaks_in_its_bin() -> None:
    hz = 1000.0
    features = kaldi_fbank(np.sin(2 * np.pi * hz * np.arange(16000) / 16000).astype(np.float32))
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 82)
    expected = int(np.abs(edges[1:-1] - 1127 * np.log(1 + hz / 700)).argmin())
    assert set(features.argmax(axis=1).tolist()) == {expected}


@pytest.mark.parametrize("shape", [(0,), (399,), (1, 16000)])
def test_fbank_needs_one_frame(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="400 samples"):
        kaldi_fbank(np.zeros(shape, np.float32))


def test_without_its_mean_a_filter_bank_does_not_know_the_volume() -> None:
    clip = noise(16000)
    quiet, loud = (remove_mean(kaldi_fbank(clip * gain)) for gain in (0.1, 1.0))
    np.testing.assert_allclose(quiet.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(quiet, loud, atol=1e-3)
