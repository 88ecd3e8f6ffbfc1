"""Recorded speech through the code that joins windows and chunks: whether the joins show among the steps of a voice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from taste_grpc.audio import StreamResampler, mel_filters, resample
from taste_grpc.model.voice_generator.flow import FlowConfig
from taste_grpc.model.voice_generator.generator import VoiceGenerator
from taste_grpc.model.voice_generator.mel_stream import MelState, MelWindowing, extend_mel, finish_mel
from taste_grpc.model.voice_generator.wave_stream import WaveState, extend_wave
from taste_grpc.speech import sample_recordings
from tests.conftest import Loaded
from tests.support.speaking import golden_tolerance, result

RATE_HZ, HOP, FFT, BINS = 22_050, 256, 1024, 80
SECONDS = 24
CHUNK_UNITS = 60
LEVEL = 0.5
"""Nepers (4.3 dB) by which windows are too loud and too soft in turn: the flow normalises over its window."""


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """A man reading a novel, `[samples]` float32."""
    pytest.importorskip("moonshine_voice")
    samples, rate_hz = soundfile.read(sample_recordings()["two_cities"], dtype="float32", stop=SECONDS * 48_000)
    return resample(samples, rate_hz, RATE_HZ)


@pytest.fixture(scope="module")
def generator(tiny: Loaded) -> VoiceGenerator:
    return tiny.processor.get_generator("cpu")


def log_mel(samples: np.ndarray) -> Tensor:
    """Mel spectrogram `[80, T]` as the vocoder reads it; the edges are reflected, so they are those of no other."""
    padded = np.pad(samples, (FFT - HOP) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) @ mel_filters(BINS, FFT, RATE_HZ).T
    return torch.from_numpy(np.log(np.maximum(power, 1e-5)).T.astype(np.float32))


class RecordedFlow:
    """In the place of the flow: a window's mel is that of a stretch of the recording, analysed by itself.

    What the windows have in common they see differently: each has edges of its own, and another level.
    """

    encoder_proj = SimpleNamespace(weight=torch.zeros(1))

    def __init__(self, config: FlowConfig, recording: np.ndarray) -> None:
        self.config = config
        self._recording = recording
        self._windows = 0

    def window_mean(self, units: Tensor, first_unit: int, _abort: Any) -> Tensor:
        start, end = self.config.frames(first_unit), self.config.frames(first_unit + units.shape[1])
        self._windows += 1
        return (log_mel(self._recording[start * HOP : end * HOP]) + LEVEL * (-1) ** self._windows).T[None]

    def noise(self, _seed: int, _first_frame: int, frames: int) -> Tensor:
        return torch.zeros(1, BINS, frames)

    def encode_speaker(self, speaker: Tensor) -> Tensor:
        return speaker

    def euler_steps(self, _noise: Tensor, mu: Tensor, _speaker: Tensor, _abort: Any) -> Iterator[Tensor]:
        yield mu.transpose(1, 2)


@dataclass(frozen=True)
class JoinedMel:
    """`[80, T]`, and the frames from which on a window takes over from the one before it."""

    mel: Tensor
    joins: list[int]


def joined_mel(config: FlowConfig, recording: np.ndarray, windowing: MelWindowing) -> JoinedMel:
    flow: Any = RecordedFlow(config, recording)
    count = len(recording) * config.unit_rate_hz // RATE_HZ
    state, mels, joins = MelState.empty(BINS), [], []
    for start in range(0, count, CHUNK_UNITS):
        units = list(range(start, min(start + CHUNK_UNITS, count)))
        mels.append(result(extend_mel(flow, state, units, torch.zeros(1, 1), 0, windowing)))
        joins.append(state.frame_count)
    return JoinedMel(torch.cat([*mels, finish_mel(state)], dim=2)[0], joins[:-1])


def steps_at_and_between(mel: JoinedMel, windowing: MelWindowing) -> tuple[Tensor, Tensor]:
    """How far each frame is from the one before it: at joins, and elsewhere."""
    steps = mel.mel.diff(dim=1).abs().mean(dim=0)
    at = torch.zeros(len(steps), dtype=torch.bool)
    for join in mel.joins:
        at[join - 1 : join + windowing.fade_frames] = True
    return steps[at], steps[~at]


def test_windows_of_a_recording_join_without_a_step(generator: VoiceGenerator, recording: np.ndarray) -> None:
    windowing = MelWindowing()
    mel = joined_mel(generator.config.flow, recording, windowing)
    assert len(mel.joins) >= 19
    assert mel.mel.shape[1] == generator.config.flow.frames(50 * SECONDS)
    at_joins, between = steps_at_and_between(mel, windowing)
    assert float(at_joins.max()) <= float(between.quantile(0.999))


@pytest.mark.parametrize("windowing", [MelWindowing(fade_frames=0), MelWindowing(held_frames=0, fade_frames=0)])
def test_without_a_fade_the_joins_would_show(
    generator: VoiceGenerator, recording: np.ndarray, windowing: MelWindowing
) -> None:
    """Such windows do differ: put side by side they leave steps that a voice does not have."""
    at_joins, between = steps_at_and_between(joined_mel(generator.config.flow, recording, windowing), windowing)
    assert float(at_joins.max()) > float(between.quantile(0.999))


# --- the waveform that is made of it


@dataclass(frozen=True)
class Spoken:
    """The recording's windows through the vocoder, in chunks and in one go."""

    chunks: list[np.ndarray]
    whole: np.ndarray


@pytest.fixture(scope="module")
def spoken(generator: VoiceGenerator, recording: np.ndarray) -> Spoken:
    with torch.inference_mode():
        mel = joined_mel(generator.config.flow, recording[: 7 * RATE_HZ], MelWindowing()).mel[None]
        vocoder, state = generator.hift, WaveState.empty(BINS)
        parts = list(mel.split(50, dim=2))
        chunks = [
            result(extend_wave(vocoder, state, part, 5, last=index == len(parts) - 1)).numpy()
            for index, part in enumerate(parts)
        ]
        source, _ = vocoder.source(vocoder.f0(mel), seed=5)
        return Spoken(chunks, vocoder.decode(mel, source)[0].numpy())


def in_chunks(chunks: list[np.ndarray], rate_hz: int) -> list[np.ndarray]:
    """Chunks at another rate, and what the resampler held back."""
    stream = StreamResampler(RATE_HZ, rate_hz)
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


@pytest.mark.parametrize("rate_hz", [8_000, 12_345, 16_000, RATE_HZ, 24_000, 44_100, 48_000, 96_000])
def test_at_every_rate_the_samples_are_those_of_the_whole(spoken: Spoken, rate_hz: int) -> None:
    whole = resample(spoken.whole, RATE_HZ, rate_hz)
    chunks = in_chunks(spoken.chunks, rate_hz)
    assert sum(len(chunk) for chunk in chunks) == len(whole)
    greatest, least_db = golden_tolerance("vocoder.waveform")
    difference = np.concatenate(chunks) - whole
    assert np.abs(difference).max() <= greatest
    assert 10 * np.log10(np.square(whole).sum() / np.square(difference).sum()) >= least_db


# --- the recording itself, at another rate


def steps_at_borders(chunks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How far each sample is from the one before it: where chunks meet, and elsewhere."""
    steps = np.abs(np.diff(np.concatenate(chunks)))
    borders = np.cumsum([len(chunk) for chunk in chunks])[:-1] - 1
    borders = borders[(borders >= 0) & (borders < len(steps))]
    return steps[borders], np.delete(steps, borders)


@pytest.fixture(scope="module")
def pieces(recording: np.ndarray) -> list[np.ndarray]:
    """The recording in chunks as irregular as words are."""
    ends = np.cumsum(np.random.default_rng(3).integers(1, 9_000, 200))
    return np.split(recording, ends[ends < len(recording)])


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_a_recording_in_chunks_is_the_recording(recording: np.ndarray, pieces: list[np.ndarray], rate_hz: int) -> None:
    chunks, whole = in_chunks(pieces, rate_hz), resample(recording, RATE_HZ, rate_hz)
    assert sum(len(chunk) for chunk in chunks) == len(whole)
    assert np.abs(np.concatenate(chunks) - whole).max() < 1e-5
    at_borders, inside = steps_at_borders(chunks)
    assert len(at_borders) > 100
    assert at_borders.max() <= np.quantile(inside, 0.999)


def test_chunks_that_do_not_know_of_each_other_would_step(pieces: list[np.ndarray]) -> None:
    at_borders, inside = steps_at_borders([resample(piece, RATE_HZ, 44_100) for piece in pieces])
    assert at_borders.max() > np.quantile(inside, 0.999)
